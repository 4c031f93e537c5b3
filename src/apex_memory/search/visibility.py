"""Which hits the snapshot shows, and repeated queries where too few of a store's hits are live."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection, Iterable, Sequence
from functools import partial
from typing import Protocol, TypeVar
from uuid import UUID

from apex_memory.search.snapshot import LiveDocument, SnapshotReader
from apex_memory.search.time_limits import Degraded, TimeLimiter

ROUNDS = 3  # queries of a store that fills its page with hits that the snapshot hides
EXCLUDE_MAX = 1_000  # stages excluded by id; that many cost the vector store about 5 ms

T = TypeVar("T")
U = TypeVar("U")


async def gather_both(first: Awaitable[T], second: Awaitable[U]) -> tuple[T, U]:
    """Return both results. If one fails, the other still ends first: it may be reading in the snapshot."""
    first_result, second_result = await asyncio.gather(first, second, return_exceptions=True)
    if isinstance(first_result, BaseException):
        raise first_result
    if isinstance(second_result, BaseException):
        raise second_result
    return first_result, second_result


class StagedItem(Protocol):
    """An item that a store returns: a part of a document, written by one of its stages."""

    @property
    def doc(self) -> UUID: ...

    @property
    def stage(self) -> UUID: ...


class SnapshotView:
    """The documents of one snapshot, each read once."""

    def __init__(self, reader: SnapshotReader) -> None:
        self._reader = reader
        self._lock = asyncio.Lock()
        self._loaded: set[UUID] = set()
        self._hidden_stages: list[UUID] | None = None
        self.documents: dict[UUID, LiveDocument] = {}

    async def load(self, docs: Iterable[UUID]) -> None:
        # The legs run concurrently: none may continue before the rows that another one requests are in.
        async with self._lock:
            missing = set(docs) - self._loaded
            if missing:
                self.documents |= await self._reader.live(missing)
                self._loaded |= missing

    def document_of(self, item: StagedItem) -> LiveDocument | None:
        """Return the item's document, which must be loaded, if it points at the item's stage; else None."""
        document = self.documents.get(item.doc)
        return document if document is not None and document.stage_id == item.stage else None

    def shows(self, item: StagedItem) -> bool:
        """Return whether the item's document, which must be loaded, points at the item's stage."""
        return self.document_of(item) is not None

    async def speakers(self, docs: Collection[UUID]) -> set[str]:
        """Return how documents of one turn, such as mails, name who wrote them."""
        return await self._reader.speakers(docs) if docs else set()

    async def hidden_stages(self) -> list[UUID]:
        """Return the stages to exclude by id; none if there are more than `EXCLUDE_MAX`."""
        if self._hidden_stages is None:
            self._hidden_stages = await self._reader.hidden_stages(EXCLUDE_MAX)
        return self._hidden_stages


class StoreQuery:
    """Queries stores for one search: within a time limit, and again where too few hits are live."""

    def __init__(
        self, snapshot: SnapshotView, time_limiter: TimeLimiter, degraded: Degraded
    ) -> None:
        self.snapshot = snapshot
        self.degraded = degraded
        self._time_limiter = time_limiter

    async def run(self, store: str, call: Callable[[], Awaitable[T]]) -> T | None:
        """Return the store's result; None if the store does not take part."""
        return await self._time_limiter.run(store, self.degraded, call)

    async def run_until_filled(
        self,
        store: str,
        call: Callable[[Sequence[UUID]], Awaitable[T]],
        *,
        items_of: Callable[[T], Sequence[StagedItem]],
        is_short: Callable[[T], bool],
    ) -> T | None:
        """Return the result of `call(stages to exclude)`, with its documents loaded; None if the store does not take part.

        The first call excludes nothing: excluding stages in the store costs more than dropping hits here.
        It is repeated without hidden stages only if too few items are live. After `ROUNDS` calls the store is
        degraded, because more hits may lie behind its hidden ones.
        """
        exclude: set[UUID] = set()
        for _ in range(ROUNDS):
            result = await self.run(store, partial(call, sorted(exclude)))
            if result is None:
                return None
            await self.snapshot.load(item.doc for item in items_of(result))
            if not is_short(result):
                return result
            exclude |= {item.stage for item in items_of(result) if not self.snapshot.shows(item)}
            exclude |= set(await self.snapshot.hidden_stages())
        self.degraded.add(store)
        return result
