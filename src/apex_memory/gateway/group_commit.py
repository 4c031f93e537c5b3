"""Group commit: requests that arrive while a commit is under way share the next one.

An idle gateway commits each request at once. Under load one commit holds the events of all requests
that wait, so that the cost of the disk is shared. No request gets its response before its own events
are committed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from random import random
from time import monotonic

from apex_memory.errors import Deadlock, Rejected, RetryLater, Unavailable
from apex_memory.mirror.copies import MirrorCopy
from apex_memory.model import Event, LandResult

AT_ONCE = 3  # commits under way; well below the pool's eight connections, so that readers find one
QUEUED = 512  # most requests waiting for a commit
SECONDS = 5.0  # longest a request waits for its commit; vendors give up after three to ten
MOST_EVENTS = 256  # in one commit
MOST_BYTES = 8_000_000  # in one commit
AWAY_SECONDS = 1.0  # how long requests are refused after PostgreSQL did not respond

MAY_BE_STORED = (
    "the events may have been stored: repeat the request after the seconds in Retry-After, with the same Idempotency-Key, "
    "and what is stored already is recognised"
)

Land = Callable[[Sequence[Event]], Awaitable[list[LandResult]]]
LandWithCopies = Callable[[Sequence[Event], Sequence[MirrorCopy]], Awaitable[list[LandResult]]]


@dataclass(slots=True, eq=False)
class _Commit:
    """Events of several requests, landed by one statement, with copies for the mirrors in its transaction."""

    events: list[Event] = field(default_factory=list)
    copies: list[MirrorCopy] = field(default_factory=list)
    requests: int = 0
    bytes: int = 0
    land: Land | None = None
    """Lands these events instead of the committer's own function."""
    task: asyncio.Task[list[LandResult]] = field(init=False)

    def takes(self, events: Sequence[Event], copy: MirrorCopy | None) -> bool:
        room = len(self.events) + len(events) <= MOST_EVENTS
        return room and self.bytes + _bytes(events, copy) <= MOST_BYTES

    def add(self, events: Sequence[Event], copy: MirrorCopy | None) -> slice:
        """Add the events of a request. Return the slice of the commit's results that belongs to them."""
        start = len(self.events)
        self.events += events
        if copy is not None:
            self.copies.append(copy)
        self.requests += 1
        self.bytes += _bytes(events, copy)
        return slice(start, len(self.events))


class GroupCommitter:
    """Commits the events of all requests of this process.

    While PostgreSQL is unavailable one request a second tries it; the others are refused at once.
    `land_with_copies` serves the commits that hold copies for mirrors; all others are one statement of `land`.
    """

    def __init__(
        self,
        land: Land,
        land_with_copies: LandWithCopies | None = None,
        *,
        at_once: int = AT_ONCE,
        queued: int = QUEUED,
        seconds: float = SECONDS,
    ) -> None:
        self._land = land
        self._land_with_copies = land_with_copies
        self._slots = asyncio.Semaphore(at_once)
        self._most = queued
        self._seconds = seconds
        self._inside = 0
        self._next: _Commit | None = None
        self._away_until = 0.0

    async def land(
        self, events: Sequence[Event], copy: MirrorCopy | None = None, *, alone: Land | None = None
    ) -> list[LandResult]:
        """Commit the events of one request, and its copy. Return one `LandResult` for each event, in order.

        `alone` lands them in a commit that no other request shares, so that it may refuse them as a whole.

        Raises `RetryLater` when too many requests wait or this one has waited too long, and `Unavailable` without
        PostgreSQL. Repeating the request is right after each.
        """
        if not events and copy is None:
            return []
        if self._inside >= self._most:
            raise _busy()
        if monotonic() < self._away_until:
            raise Unavailable(
                "documents",
                "PostgreSQL did not respond a moment ago; nothing of this request is stored",
            )
        self._inside += 1
        try:
            async with asyncio.timeout(self._seconds):
                if alone is not None:
                    return await self._alone(events, None, alone)
                return await self._share(events, copy)
        except TimeoutError:
            raise RetryLater(
                f"the outcome is unknown: no commit within {self._seconds:g} s",
                after=1,
                remedy=MAY_BE_STORED,
            ) from None
        except Unavailable as error:
            # The connection may have broken after PostgreSQL committed.
            raise Unavailable(
                error.store,
                "PostgreSQL did not confirm the commit, so its outcome is unknown",
                remedy=MAY_BE_STORED,
            ) from error
        finally:
            self._inside -= 1

    async def _share(self, events: Sequence[Event], copy: MirrorCopy | None) -> list[LandResult]:
        commit = self._next
        if commit is None or not commit.takes(events, copy):
            commit = self._next = self._open()
        positions = commit.add(events, copy)
        try:
            # Shielded: a request that gives up must not cancel the commit of the others.
            return (await asyncio.shield(commit.task))[positions]
        except Rejected:
            if commit.requests == 1:
                raise
        except Deadlock:
            pass
        # PostgreSQL refused one event, or another process landed the same ones in another order. None is kept: each
        # request commits alone.
        return await self._alone(events, copy)

    async def _alone(
        self, events: Sequence[Event], copy: MirrorCopy | None, land: Land | None = None
    ) -> list[LandResult]:
        """Commit the events of one request by themselves. After a deadlock again, as long as the request may wait."""
        while True:
            commit = self._open(land)
            commit.add(events, copy)
            try:
                return await asyncio.shield(commit.task)
            except Deadlock as error:
                # By chance, so that two processes do not meet again.
                await asyncio.sleep(error.after * (1 + random()))  # noqa: S311 -- a pause, no secret

    def _open(self, land: Land | None = None) -> _Commit:
        commit = _Commit(land=land)
        commit.task = asyncio.create_task(self._run(commit), name="land")
        commit.task.add_done_callback(_retrieve_exception)
        return commit

    async def _run(self, commit: _Commit) -> list[LandResult]:
        async with self._slots:
            if self._next is commit:
                self._next = None  # closed: later requests open the next commit
            try:
                if not commit.copies:
                    land = commit.land or self._land
                    return await land(commit.events)
                assert self._land_with_copies is not None, "copies need a mirror"
                return await self._land_with_copies(commit.events, commit.copies)
            except Unavailable:
                self._away_until = monotonic() + AWAY_SECONDS
                raise


def _retrieve_exception(task: asyncio.Task[list[LandResult]]) -> None:
    """Mark the error as seen: asyncio logs one that nobody awaits, which happens when all requests have given up."""
    if not task.cancelled():
        task.exception()


def _bytes(events: Sequence[Event], copy: MirrorCopy | None) -> int:
    size = sum(len(event.payload) for event in events if event.payload_object is None)
    return size if copy is None else size + len(copy.body) + len(copy.headers)


def _busy() -> RetryLater:
    return RetryLater(
        "too many requests at once; nothing of this request is stored",
        after=1,
        remedy="repeat it after the seconds in Retry-After",
    )
