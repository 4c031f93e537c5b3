"""How many requests land events at one time: few enough that each is quick, the rest waits briefly or is sent away."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from apex_memory.errors import RetryLater

AT_ONCE = 6  # below the pool's eight connections, so that readers find one
QUEUED = 512
QUEUE_SECONDS = 2.0  # vendors give up after three to ten


class Landings:
    def __init__(
        self, *, at_once: int = AT_ONCE, queued: int = QUEUED, seconds: float = QUEUE_SECONDS
    ) -> None:
        self._slots = asyncio.Semaphore(at_once)
        self._most = at_once + queued
        self._seconds = seconds
        self._here = 0

    @asynccontextmanager
    async def slot(self) -> AsyncIterator[None]:
        """A place among those who land. `RetryLater` when too many wait, or for too long."""
        if self._here >= self._most:
            raise _busy()
        self._here += 1
        try:
            try:
                async with asyncio.timeout(self._seconds):
                    await self._slots.acquire()
            except TimeoutError:
                raise _busy() from None
            try:
                yield
            finally:
                self._slots.release()
        finally:
            self._here -= 1


def _busy() -> RetryLater:
    return RetryLater(
        "too many requests at once",
        after=1,
        remedy="send again after the seconds in Retry-After; nothing of this request was kept",
    )
