"""Landing for many requests at once: what comes while a commit is under way shares the next one.

An idle gateway lands each request by itself, at once. Under load a commit carries all requests that
waited for it, so their number, not the disk, is what a commit costs. Nothing is answered before its
own events are committed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from time import monotonic

from apex_memory.errors import Rejected, RetryLater, Unavailable
from apex_memory.model import Event, LandResult

AT_ONCE = 3  # commits under way; well below the pool's eight connections, so that readers find one
QUEUED = 512  # requests inside
SECONDS = 5.0  # until a request is sent away; vendors give up after three to ten
MOST_EVENTS = 256
MOST_BYTES = 8_000_000
AWAY_SECONDS = 1.0

Land = Callable[[Sequence[Event]], Awaitable[list[LandResult]]]


@dataclass(slots=True, eq=False)
class _Commit:
    """Events of several requests, to be landed by one statement."""

    events: list[Event] = field(default_factory=list)
    bytes: int = 0
    task: asyncio.Task[list[LandResult]] = field(init=False)

    def takes(self, events: Sequence[Event]) -> bool:
        room = len(self.events) + len(events) <= MOST_EVENTS
        return room and self.bytes + _bytes(events) <= MOST_BYTES

    def add(self, events: Sequence[Event]) -> slice:
        """Where the answers for these events will be."""
        start = len(self.events)
        self.events += events
        self.bytes += _bytes(events)
        return slice(start, len(self.events))


class GroupCommitter:
    """All landings of this process. While PostgreSQL is away one request a second finds out; the others are told at once."""

    def __init__(
        self, land: Land, *, at_once: int = AT_ONCE, queued: int = QUEUED, seconds: float = SECONDS
    ) -> None:
        self._land = land
        self._slots = asyncio.Semaphore(at_once)
        self._most = queued
        self._seconds = seconds
        self._inside = 0
        self._next: _Commit | None = None
        self._away_until = 0.0

    async def land(self, events: Sequence[Event]) -> list[LandResult]:
        """Commit the events of one request; answers one `LandResult` each, in order.

        Raises `RetryLater` when too many requests are inside or this one is for too long, `Unavailable`
        without PostgreSQL. Sending the same again is right after both.
        """
        if not events:
            return []
        if self._inside >= self._most:
            raise _busy()
        if monotonic() < self._away_until:
            raise Unavailable("documents", "PostgreSQL did not answer a moment ago")
        self._inside += 1
        try:
            async with asyncio.timeout(self._seconds):
                return await self._share(events)
        except TimeoutError:
            raise _busy() from None
        finally:
            self._inside -= 1

    async def _share(self, events: Sequence[Event]) -> list[LandResult]:
        commit = self._next
        if commit is None or not commit.takes(events):
            commit = self._next = self._open()
        mine = commit.add(events)
        try:
            # Shielded: one request that gives up must not take the others' commit with it.
            return (await asyncio.shield(commit.task))[mine]
        except Rejected:
            if len(commit.events) == len(events):
                raise
            # PostgreSQL refused one of many, and so kept none: each finds out for itself.
            alone = self._open()
            mine = alone.add(events)
            return (await asyncio.shield(alone.task))[mine]

    def _open(self) -> _Commit:
        commit = _Commit()
        commit.task = asyncio.create_task(self._run(commit), name="land")
        commit.task.add_done_callback(_note)
        return commit

    async def _run(self, commit: _Commit) -> list[LandResult]:
        async with self._slots:
            if self._next is commit:
                self._next = None  # from here on nobody may join
            try:
                return await self._land(commit.events)
            except Unavailable:
                self._away_until = monotonic() + AWAY_SECONDS
                raise


def _note(task: asyncio.Task[list[LandResult]]) -> None:
    """Look at the error, or asyncio complains when all who waited have given up."""
    if not task.cancelled():
        task.exception()


def _bytes(events: Sequence[Event]) -> int:
    return sum(len(event.payload) for event in events)


def _busy() -> RetryLater:
    return RetryLater(
        "too many requests at once",
        after=1,
        remedy="send it again after the seconds in Retry-After; what was kept is recognised",
    )
