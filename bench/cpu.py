"""CPU seconds and memory of processes, as the kernel counts them in /proc."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

TICK = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class Usage:
    """`user` and `system` in CPU seconds since the start, ended children included."""

    user: float
    system: float

    @property
    def total(self) -> float:
        return self.user + self.system

    def __sub__(self, other: Usage) -> Usage:
        return Usage(self.user - other.user, self.system - other.system)


def usage(pids: Mapping[str, int]) -> dict[str, Usage]:
    """Usage by name, of each process with all it started, but for those that have a name of their own."""
    parents = _stats()
    children: dict[int, list[int]] = defaultdict(list)
    for pid, fields in parents.items():
        children[int(fields[1])].append(pid)
    for named in pids.values():  # the engines are children of the process that measures
        if named in parents:
            children[int(parents[named][1])].remove(named)
    return {name: _sum(parents, children, pid) for name, pid in pids.items()}


def spent(before: Mapping[str, Usage], after: Mapping[str, Usage]) -> dict[str, Usage]:
    return {name: after[name] - before[name] for name in before}


def rss_mb(pid: int) -> float:
    """Resident memory that is the process's own (without shared file pages), in MB."""
    with suppress(FileNotFoundError, ProcessLookupError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("RssAnon:"):
                return int(line.split()[1]) / 1024
    return 0.0


def _stats() -> dict[int, list[str]]:
    """Fields of /proc/PID/stat from the state on, by process."""
    found = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with suppress(FileNotFoundError, ProcessLookupError):  # it ended meanwhile
                text = (entry / "stat").read_text()
                found[int(entry.name)] = text.rpartition(")")[2].split()
    return found


def _sum(stats: Mapping[int, list[str]], children: Mapping[int, Iterable[int]], root: int) -> Usage:
    """An ended child's time is in its parent's, once that has waited for it."""
    user = system = 0
    open_ = [root]
    while open_:
        pid = open_.pop()
        if pid in stats:
            fields = stats[pid]
            user += int(fields[11]) + int(fields[13])
            system += int(fields[12]) + int(fields[14])
        open_ += children.get(pid, ())
    return Usage(user / TICK, system / TICK)
