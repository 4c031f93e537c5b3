"""The size of a batch: small enough that an urgent event does not wait long for the batch before it."""

from __future__ import annotations

import math
from dataclasses import dataclass, field


@dataclass(slots=True)
class BatchSizer:
    """Sizes batches so that one takes about `seconds`, with `most` events at most. It learns each source's rate."""

    most: int
    seconds: float
    _rates: dict[str, float] = field(default_factory=dict)
    """Events per second by source."""
    _isolated: dict[str, int] = field(default_factory=dict)
    """Events that are still to be claimed alone, by source."""

    def isolate(self, source: str, events: int) -> None:
        """Let the source's next `events` batches have one event each."""
        self._isolated[source] = events

    def limit(self, source: str) -> int:
        """Return the number of events for the source's next batch."""
        if self._isolated.get(source):
            self._isolated[source] -= 1
            return 1
        rate = self._rates.get(source)
        if rate is None:
            return self.most
        return max(1, min(self.most, math.ceil(rate * self.seconds)))

    def record(self, source: str, events: int, seconds: float) -> None:
        """Learn from a finished batch. A short one never lowers the rate: it shows little about long ones."""
        rate = events / max(seconds, 1e-6)
        known = self._rates.get(source, rate)
        if seconds > self.seconds / 4 or rate > known:
            self._rates[source] = (known + rate) / 2
