"""Every process of a data folder runs a part of each second and is stopped for the rest, as if the machine were slower."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from tests.e2e.stack import belonging

STOPPED_SECONDS = 1.0  # between two turns
LOOK_SECONDS = 0.01
PROCESSORS = os.cpu_count() or 1
TICKS = os.sysconf("SC_CLK_TCK")  # of /proc, in a second


class Slowing:
    """Stops and continues the processes of a data folder.

    They are offered a share of the processors' time, whether they use it or not. What other programs take while it is
    their turn does not count, so that a busy machine is not slower still; where others take nearly everything,
    `offered` says what is left.
    """

    def __init__(self, share: float, data_dir: Path) -> None:
        self._share = share
        self._data_dir = data_dir
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._alternate)
        self._began = self._ended = time.monotonic()
        self._offered = 0.0

    @property
    def offered(self) -> float:
        """The share of the processors' time that they were offered."""
        return self._offered / PROCESSORS / (self._ended - self._began)

    def start(self) -> None:
        self._thread.start()

    def end(self) -> None:
        """Let them run for good."""
        self._over.set()
        self._thread.join()
        _signal(belonging(self._data_dir), signal.SIGCONT)

    def _alternate(self) -> None:
        while not self._over.is_set():
            pids = belonging(self._data_dir)
            began = time.monotonic()
            _signal(pids, signal.SIGSTOP)
            self._over.wait(STOPPED_SECONDS)
            _signal(pids, signal.SIGCONT)
            self._offered += self._turn(pids, began)
            self._ended = time.monotonic()

    def _turn(self, pids: list[int], began: float) -> float:
        """Wait until they have had their share of the time since `began`; return the processor seconds offered to them.

        Those that start meanwhile are stopped before the next turn.
        """
        start, all_before = time.monotonic(), _busy_seconds()
        own_before = {pid: _own_seconds(pid) for pid in pids}
        while True:
            self._over.wait(LOOK_SECONDS)
            now = time.monotonic()
            own = sum(max(0.0, _own_seconds(pid) - own_before[pid]) for pid in pids)
            others = max(0.0, _busy_seconds() - all_before - own)
            offered = max(own, (now - start) * PROCESSORS - others)
            due = self._share * PROCESSORS * (now - began)
            if offered >= due or self._over.is_set() or now - start > STOPPED_SECONDS:
                return offered


@contextmanager
def slowed_to(share: float, data_dir: Path) -> Iterator[Slowing]:
    """Offer every process of a data folder this share of the processors' time, also those that start meanwhile."""
    slowing = Slowing(share, data_dir)
    slowing.start()
    try:
        yield slowing
    finally:
        slowing.end()


def _busy_seconds() -> float:
    """Return the processor seconds that all programs have used, and what a hypervisor took."""
    fields = Path("/proc/stat").read_text().partition("\n")[0].split()[1:9]
    user, nice, system, _idle, _io, interrupts, soft, stolen = map(int, fields)
    return (user + nice + system + interrupts + soft + stolen) / TICKS


def _own_seconds(pid: int) -> float:
    """Return the processor seconds that a process has used; none when it has ended."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return 0.0
    return (int(fields[11]) + int(fields[12])) / TICKS


def _signal(pids: list[int], number: signal.Signals) -> None:
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, number)
