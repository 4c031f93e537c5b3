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
    stats = _stats()
    return {name: _sum(stats, tree) for name, tree in _trees(stats, pids).items()}


def spent(before: Mapping[str, Usage], after: Mapping[str, Usage]) -> dict[str, Usage]:
    return {name: after[name] - before[name] for name in before}


def memory_mb(pids: Mapping[str, int]) -> dict[str, float]:
    """Return the memory by name, of each process with all it started, in MB: private, and its share of shared, without files."""
    trees = _trees(_stats(), pids)
    return {name: sum(map(_without_files_mb, tree)) for name, tree in trees.items()}


def _without_files_mb(pid: int) -> float:
    kinds = ("Pss_Anon:", "Pss_Shmem:")
    with suppress(FileNotFoundError, ProcessLookupError):
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        return sum(int(line.split()[1]) for line in lines if line.startswith(kinds)) / 1024
    return 0.0


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


def _trees(stats: Mapping[int, list[str]], pids: Mapping[str, int]) -> dict[str, list[int]]:
    """Return each named process with all it started, but for those that have a name of their own."""
    children: dict[int, list[int]] = defaultdict(list)
    for pid, fields in stats.items():
        children[int(fields[1])].append(pid)
    for named in pids.values():  # the engines are children of the process that measures
        if named in stats:
            children[int(stats[named][1])].remove(named)
    trees: dict[str, list[int]] = {}
    for name, root in pids.items():
        trees[name] = tree = [root] if root in stats else []
        for pid in tree:  # it grows meanwhile
            tree += children[pid]
    return trees


def _sum(stats: Mapping[int, list[str]], tree: Iterable[int]) -> Usage:
    """An ended child's time is in its parent's, once that has waited for it."""
    user = system = 0
    for pid in tree:
        fields = stats[pid]
        user += int(fields[11]) + int(fields[13])
        system += int(fields[12]) + int(fields[14])
    return Usage(user / TICK, system / TICK)
