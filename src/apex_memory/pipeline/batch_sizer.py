"""The pace of preparing: how many events make a batch, so that an urgent one waits no longer than it must."""

from __future__ import annotations

import math
from dataclasses import dataclass, field


@dataclass(slots=True)
class BatchSizer:
    """As many events as are prepared in about `seconds`, `most` at most; learnt for each source from its batches."""

    most: int
    seconds: float
    _rates: dict[str, float] = field(default_factory=dict)
    _alone: dict[str, int] = field(default_factory=dict)

    def isolate(self, source: str, events: int) -> None:
        """Claim the next events of a source one at a time."""
        self._alone[source] = events

    def limit(self, source: str) -> int:
        """Events of the source's next batch."""
        if self._alone.get(source):
            self._alone[source] -= 1
            return 1
        rate = self._rates.get(source)
        return self.most if rate is None else max(1, min(self.most, math.ceil(rate * self.seconds)))

    def took(self, source: str, events: int, seconds: float) -> None:
        """Learn from a batch. Small ones say little about large ones: they never lower the pace."""
        rate = events / max(seconds, 1e-6)
        known = self._rates.get(source, rate)
        if seconds > self.seconds / 4 or rate > known:
            self._rates[source] = (known + rate) / 2
