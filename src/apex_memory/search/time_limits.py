"""Time limits for the parts of a search: a store that is down or hangs makes the result poorer, never late."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TypeVar

from apex_memory.errors import RetryLater, Unavailable
from apex_memory.stores.base import Store
from apex_memory.telemetry import DEGRADED, SEARCH_SECONDS, logger, traces
from apex_memory.telemetry.exemplars import observe

T = TypeVar("T")


class Degraded:
    """The parts that did not take part in one result in full. Each is counted once."""

    def __init__(self) -> None:
        self._parts: set[str] = set()

    def add(self, part: str) -> None:
        if part not in self._parts:
            self._parts.add(part)
            DEGRADED.labels(part).inc()

    def names(self) -> list[str]:
        return sorted(self._parts)


class TimeLimiter:
    """Runs a part of a search for at most `seconds`. A part that times out is skipped for `rest` seconds."""

    def __init__(
        self, *, seconds: float, rest: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._seconds = seconds
        self._rest = rest
        self._clock = clock
        self._skipped_until: dict[str, float] = {}
        self._log = logger(component="search")

    async def run(
        self, part: str, degraded: Degraded, call: Callable[[], Awaitable[T]]
    ) -> T | None:
        """Return the result of the call, or None, with `part` degraded, if it is down, too slow or skipped.

        PostgreSQL is not such a part: without it `Unavailable` is raised.
        """
        if self._clock() < self._skipped_until.get(part, 0):
            reason = "skipped for a while after a timeout"
        else:
            try:
                async with asyncio.timeout(self._seconds):
                    return await call()
            except TimeoutError:
                self._skipped_until[part] = self._clock() + self._rest
                reason = f"timeout after {self._seconds:g} s"
            except (Unavailable, RetryLater) as error:
                if isinstance(error, Unavailable) and error.store == "documents":
                    raise
                reason = str(error)
        self._log.warning("searching without", part=part, reason=reason)
        degraded.add(part)
        return None

    async def check_incarnation(
        self, store: Store, verified: Mapping[str, str], degraded: Degraded
    ) -> None:
        """Degrade a store whose incarnation is not the verified one of this snapshot.

        Call it after the store has responded. A past incarnation never comes back: if the present one
        was verified before the store was queried, it was there all the while.
        """
        incarnation = await self.run(store.name, degraded, store.incarnation)
        if incarnation is None or incarnation != verified.get(store.name):
            degraded.add(store.name)


class Stopwatch:
    """Measures the parts of a search in milliseconds. Each is also observed as `apex_search_seconds`, and a span."""

    def __init__(self) -> None:
        self.took_ms: dict[str, float] = {}

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        try:
            with traces.span(f"search {name}"):
                yield
        finally:
            seconds = time.perf_counter() - start
            observe(SEARCH_SECONDS.labels(name), seconds)
            self.took_ms[name] = round(self.took_ms.get(name, 0) + seconds * 1000, 3)
