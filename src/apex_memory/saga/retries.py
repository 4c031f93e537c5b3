"""The one way to call a store from the saga: bounded in time, behind its breaker, retried where that can help."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import TypeVar

import stamina

from apex_memory.config import Settings
from apex_memory.errors import RetryLater, Unavailable
from apex_memory.saga.breaker import Breaker, CircuitOpen
from apex_memory.telemetry import RETRIES, logger
from apex_memory.telemetry.logs import unforeseen

T = TypeVar("T")

PROBE_SECONDS = 1.0  # between two looks at the breakers


def _is_transient(error: Exception) -> bool:
    return isinstance(error, (RetryLater, Unavailable)) and not isinstance(error, CircuitOpen)


class ResilientStore:
    """A store behind the only layer of retries: waits of 1, 2 and 4 s with jitter (settings `retry_…`)."""

    def __init__(self, store: str, settings: Settings) -> None:
        self.store = store
        self.breaker = Breaker(
            store, failures=settings.breaker_failures, open_seconds=settings.breaker_open_seconds
        )
        self._attempts = settings.retry_attempts
        self._first_wait = settings.retry_seconds
        self._timeout = settings.call_timeout_seconds

    async def call(self, operation: Callable[[], Awaitable[T]]) -> T:
        """Run the operation and return its result.

        Raises `Unavailable` or `RetryLater` when every attempt failed, `CircuitOpen` at once while the breaker
        is open, and any other error of the operation as it is.
        """
        failure: Exception | None = None
        try:
            async for attempt in self._tries():
                with attempt:
                    if attempt.num > 1:
                        RETRIES.labels(self.store).inc()
                    try:
                        return await self.call_once(operation)
                    except (Unavailable, RetryLater) as error:
                        if not isinstance(error, CircuitOpen):
                            failure = error
                        raise
        except CircuitOpen:
            if failure is None:
                raise
            raise failure from None  # this call's own failure opened the breaker
        raise AssertionError("unreachable: the retry context returns or raises")

    def _tries(self) -> AsyncIterator[stamina.Attempt]:
        longest_wait = self._first_wait * 2 ** max(0, self._attempts - 2)
        return aiter(
            stamina.retry_context(
                on=_is_transient,
                attempts=self._attempts,
                timeout=None,
                wait_initial=self._first_wait,
                wait_max=longest_wait,
                wait_jitter=self._first_wait / 4,
                wait_exp_base=2,
            )
        )

    async def call_once(self, operation: Callable[[], Awaitable[T]]) -> T:
        """Run the operation and return its result as `call` does, without retries."""
        async with self.breaker.call():
            try:
                async with asyncio.timeout(self._timeout):
                    return await operation()
            except TimeoutError:
                raise Unavailable(self.store, f"no response within {self._timeout:g} s") from None


class BreakerProbes:
    """Closes the breakers of stores that are well again, in a process that has no work for them.

    Work for a store is a probe too. Without this, a process to which no work came after a failure would show its breaker as
    open for ever.
    """

    def __init__(self, probes: Mapping[ResilientStore, Callable[[], Awaitable[object]]]) -> None:
        """`probes` has for each store an operation that succeeds when the store is well, such as a ping."""
        self._probes = dict(probes)

    async def run(self) -> None:
        """Probe half-open breakers until cancelled."""
        while True:
            await asyncio.sleep(PROBE_SECONDS)
            await self.probe()

    async def probe(self) -> None:
        """Send one probe through each breaker that is half-open."""
        half_open = [
            (store, operation)
            for store, operation in self._probes.items()
            if store.breaker.state == "half-open"
        ]
        await asyncio.gather(*(self._probe(store, operation) for store, operation in half_open))

    async def _probe(
        self, store: ResilientStore, operation: Callable[[], Awaitable[object]]
    ) -> None:
        try:
            await store.call_once(operation)
        except (Unavailable, RetryLater):
            return  # the breaker counts and shows it
        except Exception as error:  # noqa: BLE001 (whatever it is, the breakers of the other stores are probed on)
            logger(component="breaker").error(
                "probe failed", store=store.store, **unforeseen(error)
            )
            return
        logger(component="breaker").info("store responds again", store=store.store)
