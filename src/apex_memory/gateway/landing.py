"""Who may land events now: few enough at one time that each is quick; the rest waits briefly or is sent away."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from time import monotonic

from apex_memory.errors import RetryLater, Unavailable

AT_ONCE = 6  # below the pool's eight connections, so that readers find one
QUEUED = 512
QUEUE_SECONDS = 2.0  # vendors give up after three to ten
AWAY_SECONDS = 1.0


class Landings:
    """Places to land. While PostgreSQL is away one request a second finds out; the others are told at once."""

    def __init__(
        self, *, at_once: int = AT_ONCE, queued: int = QUEUED, seconds: float = QUEUE_SECONDS
    ) -> None:
        self._slots = asyncio.Semaphore(at_once)
        self._most = at_once + queued
        self._seconds = seconds
        self._here = 0
        self._away_until = 0.0

    @asynccontextmanager
    async def slot(self) -> AsyncIterator[None]:
        """A place among those who land. `RetryLater` when too many wait, or for too long; `Unavailable` when it would be in vain."""
        if self._here >= self._most:
            raise _busy()
        self._check()
        self._here += 1
        try:
            await self._enter()
            try:
                self._check()  # those in the queue must not each wait in vain
                yield
            except Told:
                raise
            except Unavailable:
                self._away_until = monotonic() + AWAY_SECONDS
                raise
            finally:
                self._slots.release()
        finally:
            self._here -= 1

    async def _enter(self) -> None:
        try:
            async with asyncio.timeout(self._seconds):
                await self._slots.acquire()
        except TimeoutError:
            raise _busy() from None

    def _check(self) -> None:
        if monotonic() < self._away_until:
            raise Told("documents", "PostgreSQL did not answer a moment ago")


class Told(Unavailable):
    """Unavailable, as another request found out."""


def _busy() -> RetryLater:
    return RetryLater(
        "too many requests at once",
        after=1,
        remedy="send again after the seconds in Retry-After; nothing of this request was kept",
    )
