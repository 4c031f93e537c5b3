"""Shares that people decide in a flag system of their own, through its OpenFeature provider.

The provider's flags are read every second by the process that the controller's lease elects, and written to the table
`rollouts`, so that the claim needs no flag system. Flags: `apex.SOURCE.share`, an integer from 0 to 100, and
`apex.SOURCE.shadow`, a boolean. Where the provider does not know a flag, or does not respond, the share stays as it is.
"""

from __future__ import annotations

import asyncio
import importlib
from collections.abc import Callable, Collection
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from apex_memory.errors import ApexError, Misconfigured, require_extra
from apex_memory.rollout.shares import Shares
from apex_memory.rollout.subjects import source_subject
from apex_memory.rollout_settings import RolloutSettings
from apex_memory.telemetry import FLAG_DEFAULTS, logger

if TYPE_CHECKING:
    from openfeature.client import OpenFeatureClient

DOMAIN = "apex-memory"
"""OpenFeature's name for the clients that share a provider."""

ACTOR = "openfeature"
UNKNOWN = -1
"""The default that an evaluation passes: a share that no flag has, so that a default is never taken for a decision."""

EVALUATION_SECONDS = 5.0
START_SECONDS = 10.0  # between two attempts to start the provider


@dataclass(frozen=True, slots=True)
class FlagShare:
    """What the flags of a source say. `share` is None when they say nothing, and `problem` says why."""

    share: int | None
    shadow: bool
    problem: str = ""


def share_flag(source: str) -> str:
    return f"apex.{source}.share"


def shadow_flag(source: str) -> str:
    return f"apex.{source}.shadow"


class Flags:
    """The flags of all sources at a provider. Building one starts the provider."""

    def __init__(self, provider: str) -> None:
        """Start the provider with the name `module:name`. Raises `Misconfigured` when that is not possible."""
        require_extra("openfeature", extra="flags", feature="rollout.flags_provider")
        from openfeature import api

        self.provider = provider
        try:
            api.set_provider_and_wait(_load(provider), domain=DOMAIN)
        except ApexError:
            raise
        except Exception as error:  # noqa: BLE001 -- the code of a user, which may raise anything
            raise _misconfigured(provider, f"does not start ({type(error).__name__})") from None
        self._client: OpenFeatureClient = api.get_client(domain=DOMAIN)

    def read(self, sources: Collection[str]) -> dict[str, FlagShare]:
        """Return what the flags of each source say. Blocks as long as the provider does."""
        return {source: self._read(source) for source in sources}

    def _read(self, source: str) -> FlagShare:
        share = self._client.get_integer_details(share_flag(source), UNKNOWN)
        if share.error_code is not None or share.value == UNKNOWN:
            return FlagShare(None, False, str(share.error_code or "no value"))
        if not 0 <= share.value <= 100:
            return FlagShare(None, False, f"{share.value} is not a share in per cent")
        shadow = self._client.get_boolean_details(shadow_flag(source), False)
        return FlagShare(int(share.value), bool(shadow.value))

    def close(self) -> None:
        from openfeature import api

        api.clear_providers()


def _load(name: str) -> Any:
    """Return the provider, or what the function with this name returns."""
    module, _, attribute = name.partition(":")
    try:
        named = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise _misconfigured(name, f"not found ({error})") from None
    is_class = isinstance(named, type)
    is_provider = hasattr(named, "resolve_integer_details") and not is_class
    provider = named() if callable(named) and not is_provider else named
    if not hasattr(provider, "resolve_integer_details"):
        raise _misconfigured(name, "is not an OpenFeature provider, and does not return one")
    return provider


def _misconfigured(provider: str, problem: str) -> Misconfigured:
    return Misconfigured(
        f"rollout.flags_provider: {provider} {problem}",
        remedy="name a provider, or a function without parameters that returns one, as `module:name`",
    )


class FlagFollower:
    """Writes what a provider's flags say to the table `rollouts`, while `elected` says that this process should."""

    def __init__(
        self,
        shares: Shares,
        sources: Collection[str],
        flags: Flags,
        *,
        seconds: float,
        elected: Callable[[], bool],
    ) -> None:
        self._shares = shares
        self._sources = sources
        self._flags = flags
        self._seconds = seconds
        self._elected = elected
        # One thread: while the provider hangs, no second evaluation begins.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="flags")
        self._evaluating: asyncio.Future[dict[str, FlagShare]] | None = None
        self._problems: dict[str, str] = {}
        self._log = logger(component="flags")

    async def watch(self) -> None:
        """Run for ever."""
        while True:
            if self._elected():
                try:
                    await self.follow()
                except ApexError as error:
                    self._log.warning("flags not followed", reason=str(error)[:300])
            await asyncio.sleep(self._seconds)

    async def follow(self) -> None:
        """Read the flags once, and write the shares that differ from them."""
        try:
            decisions = await self._evaluate()
        except TimeoutError:
            decisions = dict.fromkeys(
                self._sources, FlagShare(None, False, "the provider does not respond")
            )
        for source, decision in decisions.items():
            self._report(source, decision.problem)
            if decision.share is not None:
                await self._write(source, decision.share, shadow=decision.shadow)

    async def _evaluate(self) -> dict[str, FlagShare]:
        if self._evaluating is None or self._evaluating.done():
            loop = asyncio.get_running_loop()
            self._evaluating = loop.run_in_executor(
                self._thread, self._flags.read, tuple(self._sources)
            )
        async with asyncio.timeout(EVALUATION_SECONDS):
            return await asyncio.shield(self._evaluating)

    async def _write(self, source: str, share: int, *, shadow: bool) -> None:
        subject = source_subject(source)
        row = await self._shares.find(subject)
        if row is not None and (row.share, row.shadow) == (share, shadow):
            return
        reason = f"flag {share_flag(source)} of {self._flags.provider}"
        await self._shares.set(subject, share, shadow=shadow, actor=ACTOR, reason=reason)
        self._log.info("share set by its flag", source=source, share=share, shadow=shadow)

    def _report(self, source: str, problem: str) -> None:
        """Count a default, and log it when the problem is new."""
        if problem:
            FLAG_DEFAULTS.labels(source).inc()
        if problem and self._problems.get(source) != problem:
            self._log.warning(
                "flag without a decision; the share stays", source=source, reason=problem
            )
        self._problems[source] = problem

    def close(self) -> None:
        self._thread.shutdown(wait=False, cancel_futures=True)
        self._flags.close()


async def follow_flags(
    shares: Shares,
    sources: Collection[str],
    settings: RolloutSettings,
    *,
    elected: Callable[[], bool],
) -> None:
    """Follow the flags of the provider in the settings. Never returns, unless there is none.

    A provider that cannot start is tried again: its service may be away, and events are processed without it.
    """
    if not settings.flags_provider:
        return
    log = logger(component="flags")
    while True:
        try:
            flags = await asyncio.to_thread(Flags, settings.flags_provider)
            break
        except Misconfigured as error:
            log.error("flags provider not started", reason=str(error), remedy=error.remedy)
            await asyncio.sleep(START_SECONDS)
    follower = FlagFollower(shares, sources, flags, seconds=settings.flags_seconds, elected=elected)
    try:
        await follower.watch()
    finally:
        follower.close()
