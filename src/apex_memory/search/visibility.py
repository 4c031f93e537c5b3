"""Which hits the snapshot shows, and asking a store again when too many are not."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence
from functools import partial
from typing import Protocol, TypeVar
from uuid import UUID

from apex_memory.search.snapshot import SnapshotReader
from apex_memory.search.time_limits import Degraded, TimeLimiter
from apex_memory.stores.postgres import Row

ROUNDS = 3  # of asking a store that fills its page with what the snapshot does not show
EXCLUDE_MAX = 1_000  # stages left out by name; so many cost the vector store about 5 ms

T = TypeVar("T")
U = TypeVar("U")


async def settled(one: Awaitable[T], other: Awaitable[U]) -> tuple[T, U]:
    """Both answers. An error of one waits for the other, which may still read in the snapshot."""
    first, second = await asyncio.gather(one, other, return_exceptions=True)
    if isinstance(first, BaseException):
        raise first
    if isinstance(second, BaseException):
        raise second
    return first, second


class Staged(Protocol):
    """What a store answers: something of a document that one of its stages put there."""

    @property
    def doc(self) -> UUID: ...

    @property
    def stage(self) -> UUID: ...


class SnapshotView:
    """The documents of one snapshot, each looked up once."""

    def __init__(self, reader: SnapshotReader) -> None:
        self._reader = reader
        self._looking = asyncio.Lock()
        self._looked_up: set[UUID] = set()
        self._unsettled: list[UUID] | None = None
        self.rows: dict[UUID, Row] = {}

    async def look_up(self, docs: Iterable[UUID]) -> None:
        # The legs run at once: none may go on before the rows that another asked for are in.
        async with self._looking:
            fresh = set(docs) - self._looked_up
            if fresh:
                self.rows |= await self._reader.live(fresh)
                self._looked_up |= fresh

    def shows(self, hit: Staged) -> bool:
        row = self.rows.get(hit.doc)
        return row is not None and row["stage_id"] == hit.stage

    async def unsettled(self) -> list[UUID]:
        """Stages to leave out by name; none when they are too many for that."""
        if self._unsettled is None:
            self._unsettled = await self._reader.unsettled(EXCLUDE_MAX)
        return self._unsettled


class StoreQuery:
    """Asks stores for one search: bounded in time, and again where too little of an answer is live."""

    def __init__(self, live: SnapshotView, bounded: TimeLimiter, degraded: Degraded) -> None:
        self.live = live
        self.degraded = degraded
        self._bounded = bounded

    async def once(self, store: str, call: Callable[[], Awaitable[T]]) -> T | None:
        """What the store answers; None when it does not take part."""
        return await self._bounded.run(store, self.degraded, call)

    async def fill(
        self,
        store: str,
        call: Callable[[Sequence[UUID]], Awaitable[T]],
        *,
        hits: Callable[[T], Sequence[Staged]],
        short: Callable[[T], bool],
    ) -> T | None:
        """What the store answers when asked without the stages given, its documents looked up.

        The first question leaves nothing out: naming stages to a store is dearer than dropping hits.
        Only when too few are live it is asked again, without what this snapshot does not show. The
        store is degraded when it is so full of that that more may be hidden behind it.
        """
        exclude: set[UUID] = set()
        for _ in range(ROUNDS):
            answer = await self.once(store, partial(call, sorted(exclude)))
            if answer is None:
                return None
            await self.live.look_up(hit.doc for hit in hits(answer))
            if not short(answer):
                return answer
            exclude |= {hit.stage for hit in hits(answer) if not self.live.shows(hit)}
            exclude |= set(await self.live.unsettled())
        self.degraded.add(store)
        return answer
