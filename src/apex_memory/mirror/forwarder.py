"""The forwarder: sends waiting copies to their targets, one after the other per source. Runs in the worker process.

A copy is marked as delivered after the response. A process that ends in between sends it again later: delivery is
at least once, in order. Whoever has the lease of a source forwards it, so that several workers keep one order.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from time import monotonic
from uuid import uuid4

from apex_memory.errors import ApexError
from apex_memory.mirror import queue
from apex_memory.mirror.guard import Network
from apex_memory.mirror.queue import TargetState, WaitingCopy
from apex_memory.mirror.target import Outcome, Target
from apex_memory.sources.base import Source, SourceSettings
from apex_memory.stores.lease import acquire, release
from apex_memory.stores.postgres import Postgres
from apex_memory.tasks import end_tasks
from apex_memory.telemetry import (
    MIRROR_ATTEMPTS,
    MIRROR_DEAD,
    MIRROR_DEAD_LETTERS,
    MIRROR_OLDEST_SECONDS,
    MIRROR_WAITING,
    logger,
)
from apex_memory.telemetry.logs import unforeseen

POLL_SECONDS = 0.25  # between two looks for waiting copies, where a source has a target
GAUGE_SECONDS = 5.0
LEASE_SECONDS = 10.0  # how long another worker waits after this one died
FIRST_WAIT, LONGEST_WAIT = 1.0, 60.0  # seconds between attempts without a `Retry-After`


class Forwarder:
    def __init__(self, db: Postgres, sources: Mapping[str, Source]) -> None:
        self._db = db
        self._sources = sources
        self._targets: dict[tuple[str, tuple[Network, ...]], Target] = {}
        self._running: dict[str, asyncio.Task[None]] = {}
        self._log = logger(component="mirror")

    async def run(self) -> None:
        """Run for ever: forward what waits. Where no source has a target, only the gauges are kept."""
        gauges_at = float("-inf")
        try:
            while True:
                try:
                    await self.start_due()
                    if monotonic() - gauges_at >= GAUGE_SECONDS:
                        gauges_at = monotonic()
                        await self._set_gauges()
                except ApexError as error:
                    self._log.warning("mirrors not checked", reason=str(error))
                await asyncio.sleep(POLL_SECONDS)
        finally:
            await self._stop()

    async def start_due(self) -> None:
        """Start to forward every source whose copies are due and that is not being forwarded already."""
        self._running = {name: task for name, task in self._running.items() if not task.done()}
        mirrored = [name for name, source in self._sources.items() if source.settings.mirror_url]
        idle = [name for name in mirrored if name not in self._running]
        for name in await queue.due(self._db, idle) if idle else ():
            self._running[name] = asyncio.create_task(self.forward(name), name=f"mirror {name}")

    async def forward(self, source: str) -> None:
        """Send the waiting copies of a source until none is left, one has to wait, or another worker forwards it."""
        try:
            async with self._leased(source) as lease:
                if lease.is_held():
                    await self._drain(source, lease)
        except ApexError as error:
            self._log.warning("mirror interrupted", source=source, reason=str(error))
        except Exception as error:  # noqa: BLE001 (the outermost frame of a task that nobody waits for)
            self._log.error("mirror failed unexpectedly", source=source, **unforeseen(error))
            await asyncio.sleep(LONGEST_WAIT)

    async def _drain(self, source: str, lease: _Lease) -> None:
        settings = self._sources[source].settings
        target = self._target(settings)
        state = await queue.target_state(self._db, source)
        while copies := await queue.head(self._db, source):
            for copy in copies:
                # Another worker may have the source now, if this one was stopped for longer than its lease.
                if not lease.is_held():
                    return
                try:
                    async with lease.limiting():
                        outcome = await self._send(source, target, copy)
                except TimeoutError:
                    self._log.warning("lease lost while sending", source=source, copy=copy.id)
                    return
                MIRROR_ATTEMPTS.labels(source, outcome.kind).inc()
                following = await self._record(source, copy, outcome, state, settings)
                if following is None:
                    return
                state = following

    async def _send(self, source: str, target: Target, copy: WaitingCopy) -> Outcome:
        try:
            return await target.send(copy.query, copy.headers, copy.body)
        except Exception as error:  # noqa: BLE001 (whatever it is, one copy must not hold its source for ever)
            self._log.error(
                "sending failed unexpectedly", source=source, copy=copy.id, **unforeseen(error)
            )
            return Outcome("refused", f"sending it failed unexpectedly ({type(error).__name__})")

    async def _record(
        self,
        source: str,
        copy: WaitingCopy,
        outcome: Outcome,
        state: TargetState,
        settings: SourceSettings,
    ) -> TargetState | None:
        """Record the outcome of an attempt. Return the state of the target, None if the source has to wait."""
        if outcome.kind == "delivered":
            await queue.mark_delivered(self._db, source, copy.id)
            return TargetState()
        if outcome.kind == "refused":
            wait = back_off(copy.refusals)
            dead = await queue.mark_refused(
                self._db, source, copy, outcome.reason, state=state, wait=wait
            )
            self._report(source, copy, outcome, int(dead))
            return TargetState(refusing=True) if dead else None
        hold = settings.mirror_hold_seconds
        wait = min(max(back_off(state.failures), outcome.after or 0), hold)
        lost = await queue.mark_failed(
            self._db, source, copy.id, outcome.reason, wait=wait, hold=hold
        )
        self._report(source, copy, outcome, lost)
        return None

    def _report(self, source: str, copy: WaitingCopy, outcome: Outcome, dead: int) -> None:
        """Log a failed attempt, and count the copies that became dead letters."""
        facts = {"source": source, "copy": copy.id, "reason": outcome.reason}
        if dead:
            MIRROR_DEAD.labels(source).inc(dead)
            self._log.error(
                "mirrored webhooks are dead letters",
                **facts,
                number=dead,
                remedy="correct the target, then `apex mirror redrive`",
            )
        else:
            self._log.warning("webhook not mirrored yet", **facts)

    def _target(self, settings: SourceSettings) -> Target:
        key = (settings.mirror_url, tuple(settings.mirror_networks))
        if key not in self._targets:
            self._targets[key] = Target(*key)
        return self._targets[key]

    @asynccontextmanager
    async def _leased(self, source: str) -> AsyncIterator[_Lease]:
        """Try to get the lease of a source, once, and renew it inside the block."""
        lease = _Lease(self._db, f"mirror:{source}")
        await lease.try_to_take()
        renewing = asyncio.create_task(lease.keep())
        try:
            yield lease
        finally:
            renewing.cancel()
            if lease.is_held():
                await release(self._db, lease.name, lease.owner)

    async def _set_gauges(self) -> None:
        for queued in await queue.summary(self._db):
            MIRROR_WAITING.labels(queued.source).set(queued.waiting)
            MIRROR_OLDEST_SECONDS.labels(queued.source).set(queued.oldest_seconds or 0)
            MIRROR_DEAD_LETTERS.labels(queued.source).set(queued.dead)

    async def _stop(self) -> None:
        await end_tasks(self._running.values())
        for target in self._targets.values():
            await target.close()
        self._targets.clear()  # `run` may begin again


class _Lease:
    """The lease of a source: while it is held no other worker sends to the target."""

    def __init__(self, db: Postgres, name: str) -> None:
        self.name = name
        self.owner = uuid4()
        self._db = db
        self._until = float("-inf")
        self._limit: asyncio.Timeout | None = None

    def is_held(self) -> bool:
        return monotonic() < self._until

    async def try_to_take(self) -> None:
        began = monotonic()
        if await acquire(self._db, self.name, self.owner, seconds=LEASE_SECONDS):
            self._until = began + LEASE_SECONDS
        else:
            self._until = float("-inf")
        if self._limit is not None:
            self._limit.reschedule(self._deadline())

    @asynccontextmanager
    async def limiting(self) -> AsyncIterator[None]:
        """Limit the block to the time for which the lease is held, with its renewals. Raises `TimeoutError` at its end.

        Another worker then sends the same copy: a request that goes on would reach the target after later ones.
        """
        try:
            async with asyncio.timeout_at(self._deadline()) as self._limit:
                yield
        finally:
            self._limit = None

    def _deadline(self) -> float:
        """Return the end of the lease by the clock of the event loop."""
        return asyncio.get_running_loop().time() + self._until - monotonic()

    async def keep(self) -> None:
        """Renew the lease every third of its time. What cannot be renewed runs out."""
        while self.is_held():
            await asyncio.sleep(LEASE_SECONDS / 3)
            try:
                await self.try_to_take()
            except ApexError as error:
                logger(component="mirror").warning(
                    "lease not renewed", lease=self.name, reason=str(error)
                )


def back_off(failures: int) -> float:
    """Return the seconds before the next attempt after so many earlier failures, with jitter."""
    exponent = min(failures, 10)
    longest: float = min(LONGEST_WAIT, FIRST_WAIT * 2.0**exponent)
    return longest * (0.5 + random.random())  # noqa: S311 -- jitter
