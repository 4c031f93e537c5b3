"""Free space of a volume, and the reserve that the graph and the vectors leave on it.

An engine that meets a full disk in the middle of a write ends: FalkorDB exits when its log cannot grow, and the
vector engine gets SIGBUS when a mapped page has no block. Neither could start again before space is free, and
searches would lack them. So both refuse writes while there is still some space, and keep serving reads. On a shared
volume the rest is left to PostgreSQL, which takes in events.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

RESERVE_BYTES = 256_000_000
RESERVE_SHARE = 10
"""A small volume keeps a tenth of its size instead."""


@dataclass(frozen=True, slots=True)
class DiskSpace:
    """Bytes of a volume: all, and those that are free for this user."""

    total: int
    free: int

    @property
    def reserve(self) -> int:
        """Bytes below which the graph and the vectors accept no writes."""
        return min(RESERVE_BYTES, self.total // RESERVE_SHARE)

    def is_low(self, *, refusing: bool = False) -> bool:
        """Return whether writes must be refused. A store that refuses already waits for a quarter more, so that it does not flap."""
        needed = self.reserve * 5 // 4 if refusing else self.reserve
        return self.free < needed

    def __str__(self) -> str:
        return f"{in_bytes(self.free)} of {in_bytes(self.total)}"


def disk_space(folder: Path) -> DiskSpace:
    """Return the space of the volume that the folder lies on. Takes some microseconds. Raises `OSError`."""
    usage = shutil.disk_usage(folder)
    return DiskSpace(usage.total, usage.free)


def in_bytes(count: int) -> str:
    """Return a number of bytes for display: `3 MB`, `1.2 GB`."""
    return f"{count / 1e6:.0f} MB" if count < 1e9 else f"{count / 1e9:.1f} GB"
