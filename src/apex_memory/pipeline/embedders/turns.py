"""How passages are shared out: slices of texts, several at a time, in turns that urgent work takes first."""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager


class Turns:
    """Gives out `places` turns at a time, urgent ones first, otherwise in the order of their calls."""

    def __init__(self, places: int) -> None:
        self.places = places
        self._free = places
        self._calls = 0
        self._waiting: list[tuple[bool, int, asyncio.Future[None]]] = []

    @asynccontextmanager
    async def turn(self, *, urgent: bool) -> AsyncIterator[None]:
        """Hold a turn during the block; wait for it first."""
        await self._take(urgent)
        try:
            yield
        finally:
            self._give_back()

    async def _take(self, urgent: bool) -> None:
        if self._free:
            self._free -= 1
            return
        self._calls += 1
        granted: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        heapq.heappush(self._waiting, (not urgent, self._calls, granted))
        try:
            await granted
        except asyncio.CancelledError:
            if granted.done() and not granted.cancelled():  # granted and cancelled at once
                self._give_back()
            raise

    def _give_back(self) -> None:
        while self._waiting:
            _, _, granted = heapq.heappop(self._waiting)
            if not granted.done():  # else its call was cancelled
                granted.set_result(None)
                return
        self._free += 1


def slices_of(sizes: Sequence[int], *, most: int, most_texts: int) -> Iterator[slice]:
    """Yield slices of texts in their order. A slice has sizes of `most` together and `most_texts` texts at most, or it is one text."""
    start, total = 0, 0
    for n, size in enumerate(sizes):
        if n > start and (total + size > most or n - start == most_texts):
            yield slice(start, n)
            start, total = n, 0
        total += size
    if start < len(sizes):
        yield slice(start, len(sizes))


async def each(
    slices: Iterator[slice], work: Callable[[slice], Awaitable[None]], *, at_a_time: int
) -> None:
    """Do the work of every slice, several at a time. Raises the first error, and begins nothing after it."""

    async def until_none_is_left() -> None:
        for part in slices:  # all tasks share the iterator
            await work(part)

    tasks = [asyncio.create_task(until_none_is_left()) for _ in range(at_a_time)]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
