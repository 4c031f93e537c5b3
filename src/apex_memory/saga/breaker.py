"""Circuit breaker: after repeated failures a store gets no calls for a while, then one probe."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from apex_memory.errors import NotCalled, RetryLater, Unavailable
from apex_memory.telemetry import BREAKER

WINDOW = 20  # calls over which the failure rate is taken


class CircuitOpen(NotCalled):
    """The breaker is open, so the store was not called."""


class Breaker:
    """The breaker of one store.

    `closed` → `open` after `failures` in a row, or when half of the last 20 calls failed. `open` → `half-open`
    after `open_seconds`: one probe at a time is let through. It closes the breaker when it succeeds, and opens
    it again when it fails. A cancelled call counts as neither.
    """

    def __init__(
        self,
        store: str,
        *,
        failures: int,
        open_seconds: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.store = store
        self._limit = failures
        self._open_seconds = open_seconds
        self._clock = clock
        self._in_a_row = 0
        self._recent: deque[bool] = deque(maxlen=WINDOW)
        self._opened_at: float | None = None
        self._probing = False
        BREAKER.labels(store).set(0)

    @property
    def state(self) -> str:
        """`closed`, `open` or `half-open`."""
        if self._opened_at is None:
            return "closed"
        return "half-open" if self._clock() - self._opened_at >= self._open_seconds else "open"

    @asynccontextmanager
    async def call(self) -> AsyncIterator[None]:
        """Run one store call inside the block. Raises `CircuitOpen` instead while the breaker is open."""
        probe = self._admit()
        try:
            yield
        except (Unavailable, RetryLater, TimeoutError):
            self._failed()
            raise
        else:
            self._succeeded()
        finally:
            if probe:
                self._probing = False

    def _admit(self) -> bool:
        state = self.state
        if state == "open" or (state == "half-open" and self._probing):
            raise CircuitOpen(
                self.store,
                f"no calls after repeated failures (breaker {state})",
                remedy="Apex probes it again by itself; see `apex doctor`",
            )
        self._probing = state == "half-open"
        if self._probing:
            BREAKER.labels(self.store).set(0.5)
        return self._probing

    def _succeeded(self) -> None:
        if self._opened_at is not None:
            self._recent.clear()
        self._in_a_row, self._opened_at = 0, None
        self._recent.append(True)
        BREAKER.labels(self.store).set(0)

    def _failed(self) -> None:
        self._in_a_row += 1
        self._recent.append(False)
        too_many = len(self._recent) == WINDOW and sum(self._recent) <= WINDOW // 2
        if self._in_a_row >= self._limit or too_many or self._opened_at is not None:
            self._opened_at = self._clock()
            BREAKER.labels(self.store).set(1)
