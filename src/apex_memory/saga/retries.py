"""One way to call a store from the saga: bounded in time, behind its breaker, tried again when that can help."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

import stamina

from apex_memory.config import Settings
from apex_memory.errors import RetryLater, Unavailable
from apex_memory.saga.breaker import Breaker, CircuitOpen
from apex_memory.telemetry import RETRIES

T = TypeVar("T")


def _passing(error: Exception) -> bool:
    return isinstance(error, (RetryLater, Unavailable)) and not isinstance(error, CircuitOpen)


class ResilientStore:
    """The only layer of retries around a store call: 1, 2, 4 s with jitter (settings)."""

    def __init__(self, store: str, settings: Settings) -> None:
        self.store = store
        self.breaker = Breaker(
            store, failures=settings.breaker_failures, open_seconds=settings.breaker_open_seconds
        )
        self._attempts = settings.retry_attempts
        self._first_wait = settings.retry_seconds
        self._timeout = settings.call_timeout_seconds

    async def call(self, operation: Callable[[], Awaitable[T]]) -> T:
        """The operation's result. Raises `Unavailable` when the store stays away, `Rejected` as it comes."""
        async for attempt in stamina.retry_context(
            on=_passing,
            attempts=self._attempts,
            timeout=None,
            wait_initial=self._first_wait,
            wait_max=self._first_wait * 2 ** (self._attempts - 2)
            if self._attempts > 1
            else self._first_wait,
            wait_jitter=self._first_wait / 4,
            wait_exp_base=2,
        ):
            with attempt:
                if attempt.num > 1:
                    RETRIES.labels(self.store).inc()
                return await self._once(operation)
        raise AssertionError("unreachable: the retry context returns or raises")

    async def _once(self, operation: Callable[[], Awaitable[T]]) -> T:
        async with self.breaker.call():
            try:
                async with asyncio.timeout(self._timeout):
                    return await operation()
            except TimeoutError:
                raise Unavailable(self.store, f"no answer within {self._timeout:g} s") from None
