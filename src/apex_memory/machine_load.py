"""How much this process is held back: by other work, by too few processors, or by the limit of its container."""

from __future__ import annotations

import asyncio
import os
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

SAMPLES = 30
SAMPLE_SECONDS = 1.0
PRESSURE = Path("/proc/pressure/cpu")
GROUPS = Path("/proc/self/cgroup")
MOUNT = Path("/sys/fs/cgroup")


@dataclass(frozen=True, slots=True)
class MachineLoad:
    """The load over the last half minute. Shares are from 0 to 1, and None where the system does not show them."""

    delay_seconds: float
    """How late this process runs after it should, on average: a few milliseconds on a machine with processors to spare."""
    processors: int
    """Those that this process may use."""
    pressure: float | None
    """Share of the last minute in which some process of the machine waited for a processor. Linux, where it is enabled."""
    throttled: float | None
    """Share of time in which a limit of processor time (a container's, a cgroup's) stopped this process and its siblings."""


class LoadMeter:
    """Measures the load of this process while `watch` runs. `on_delay` gets each new average delay (s)."""

    def __init__(self, on_delay: Callable[[float], None] | None = None) -> None:
        self._on_delay = on_delay
        self._delays: deque[float] = deque(maxlen=SAMPLES)
        self._periods: deque[tuple[int, int]] = deque(maxlen=SAMPLES)

    async def watch(self) -> None:
        """Measure for ever, once a second."""
        clock = asyncio.get_running_loop().time
        while True:
            due = clock() + SAMPLE_SECONDS
            await asyncio.sleep(SAMPLE_SECONDS)
            self.add(max(0.0, clock() - due), throttled_periods())

    def add(self, delay: float, periods: tuple[int, int] | None) -> None:
        """Add a sample: how late it came (s), and the (elapsed, stopped) periods of a limit until now."""
        self._delays.append(delay)
        if periods:
            self._periods.append(periods)
        if self._on_delay:
            self._on_delay(self._delay())

    def current(self) -> MachineLoad:
        return MachineLoad(self._delay(), _processors(), cpu_pressure(), self._throttled())

    def _delay(self) -> float:
        return sum(self._delays) / len(self._delays) if self._delays else 0.0

    def _throttled(self) -> float | None:
        if not self._periods:
            return None
        first, last = self._periods[0], self._periods[-1]
        elapsed = last[0] - first[0]
        return (last[1] - first[1]) / elapsed if elapsed else 0.0


def cpu_pressure(file: Path = PRESSURE) -> float | None:
    """Return the share of the last minute in which some process waited for a processor; None where it is unknown.

    Source: the kernel's pressure stall information, `some … avg60=` in percent.
    """
    try:
        words = file.read_text(encoding="ascii").split()
    except OSError:
        return None
    for word in words:
        if word.startswith("avg60="):
            return float(word.removeprefix("avg60=")) / 100
    return None


def throttled_periods(groups: Path = GROUPS, mount: Path = MOUNT) -> tuple[int, int] | None:
    """Return the elapsed and the stopped periods of the limit that stops this process most; None without a limit.

    Source: `nr_periods` and `nr_throttled` in `cpu.stat` of its cgroup and those above it, of version 1 or 2.
    """
    limits: list[tuple[int, int]] = []
    for file in _stat_files(groups, mount):
        try:
            lines = file.read_text(encoding="ascii").splitlines()
        except OSError:
            continue
        counts = dict(line.split() for line in lines if line.count(" ") == 1)
        elapsed = int(counts.get("nr_periods", 0))
        if elapsed:
            limits.append((elapsed, int(counts.get("nr_throttled", 0))))
    return max(limits, key=lambda limit: limit[1], default=None)


def _stat_files(groups: Path, mount: Path) -> Iterator[Path]:
    """Yield `cpu.stat` of the process's cgroup and of each above it. In a container the topmost is the container's."""
    try:
        lines = groups.read_text(encoding="utf-8").splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            root = mount
        elif "cpu" in controllers.split(","):
            root = mount / controllers
            if not root.is_dir():
                root = mount / "cpu"
        else:
            continue
        place = root / path.lstrip("/")
        yield place / "cpu.stat"
        while place != root:
            place = place.parent
            yield place / "cpu.stat"


def _processors() -> int:
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # not on macOS
        return os.cpu_count() or 1
