"""A store's part in an answer, bounded in time: one that is away or hangs makes the answer poorer, never late."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TypeVar

from apex_memory.errors import RetryLater, Unavailable
from apex_memory.stores.base import Store
from apex_memory.telemetry import DEGRADED, SEARCH_SECONDS, logger

T = TypeVar("T")


class Degraded:
    """What did not take part in one answer in full; counted once each."""

    def __init__(self) -> None:
        self._parts: set[str] = set()

    def add(self, part: str) -> None:
        if part not in self._parts:
            self._parts.add(part)
            DEGRADED.labels(part).inc()

    def names(self) -> list[str]:
        return sorted(self._parts)


class TimeLimiter:
    """Runs one part of an answer within `seconds`. A part that ran out of time is left alone for `rest` seconds."""

    def __init__(
        self, *, seconds: float, rest: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._seconds = seconds
        self._rest = rest
        self._clock = clock
        self._left_alone: dict[str, float] = {}
        self._log = logger(component="search")

    async def run(
        self, part: str, degraded: Degraded, call: Callable[[], Awaitable[T]]
    ) -> T | None:
        """What the call answers; None, with `part` degraded, when it is away, too slow or left alone.

        PostgreSQL is no part: without it `Unavailable` passes.
        """
        if self._clock() < self._left_alone.get(part, 0):
            reason = "left alone after it had not answered in time"
        else:
            try:
                async with asyncio.timeout(self._seconds):
                    return await call()
            except TimeoutError:
                self._left_alone[part] = self._clock() + self._rest
                reason = f"no answer in {self._seconds:g} s"
            except (Unavailable, RetryLater) as error:
                if isinstance(error, Unavailable) and error.store == "documents":
                    raise
                reason = str(error)
        self._log.warning("searching without", part=part, reason=reason)
        degraded.add(part)
        return None

    async def mark(
        self, stores: Sequence[Store], verified: Mapping[str, str], degraded: Degraded
    ) -> None:
        """Degrade each store that is not the incarnation that this snapshot knows as verified.

        To be called once the stores have answered. An incarnation that is gone never comes back: one
        that is there now, and was verified before the stores were asked, was there all the while.
        """
        found = await asyncio.gather(
            *(self.run(store.name, degraded, store.incarnation) for store in stores)
        )
        for store, incarnation in zip(stores, found, strict=True):
            if incarnation is None or incarnation != verified.get(store.name):
                degraded.add(store.name)


class Stopwatch:
    """Milliseconds that each part of an answer took; also observed as `apex_search_seconds`."""

    def __init__(self) -> None:
        self.took_ms: dict[str, float] = {}

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        began = time.perf_counter()
        try:
            yield
        finally:
            seconds = time.perf_counter() - began
            SEARCH_SECONDS.labels(name).observe(seconds)
            self.took_ms[name] = round(self.took_ms.get(name, 0) + seconds * 1000, 3)
