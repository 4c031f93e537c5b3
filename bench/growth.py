"""What a memory costs as it grows: processors, memory, disk, searches, and a restart; with SCALE=5 up to a million documents.

Documents have as many passages as those of a busy month of all sources, most of them one.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from apex_memory.app import App
from bench.corpus import OF_A_MONTH, Corpus, DrawnEmbedder
from bench.cpu import memory_mb, spent, usage
from bench.engines import Engines, data_folder, engines_in, opened
from bench.filled import indexed, make_queries, time_searches
from bench.rows import Row, percentile, scaled, stated
from bench.writing import land_and_drain
from tests.waiting import until

FULL = 200_000
SHARES = (0.01, 0.05, 0.2, 0.5, 1)
"""Of all documents: where the figures are taken."""
PORTION = 10_000  # documents that are landed and processed at a time
RESTART_SECONDS = 1_800
ENGINES = ("postgres", "vectors", "falkordb", "valkey")


@dataclass(frozen=True, slots=True)
class Figures:
    """What was measured with so many documents. CPU and rate are of those that came since the figures before."""

    documents: int
    passages: int
    rate: float
    cpu_ms: float
    p50_ms: float
    p99_ms: float
    search_cpu: Mapping[str, float]
    """Milliseconds of a search, by process."""
    memory: Mapping[str, float]
    disk: Mapping[str, float]
    is_indexed: bool

    @property
    def disk_kb(self) -> float:
        """The disk that one document takes in all engines."""
        return 1000 * sum(self.disk.values()) / self.documents

    @property
    def search_cpu_ms(self) -> float:
        return sum(self.search_cpu.values())

    def __str__(self) -> str:
        return (
            f"{self.documents:,} documents, {self.passages:,} passages: {self.rate:.0f}/s at {self.cpu_ms:.2f} CPU-ms; "
            f"search p50 {self.p50_ms:.0f} ms, p99 {self.p99_ms:.0f}, {self.search_cpu_ms:.0f} CPU-ms ({_sizes(self.search_cpu)}); "
            f"memory {_sizes(self.memory)}; disk {_sizes(self.disk)}, {self.disk_kb:.1f} kB a document"
            + ("" if self.is_indexed else "; indexing had not finished")
        )


async def growth() -> list[Row]:
    """Take the figures at each of `SHARES`; then stop the engines and start them again."""
    corpus = Corpus(passages=OF_A_MONTH)
    count = scaled(FULL)
    figures: list[Figures] = []
    async with data_folder() as folder:
        async with _open(folder) as (engines, app):
            for share in SHARES:
                before = figures[-1].documents if figures else 0
                figures.append(await _grow(app, engines, corpus, before, round(share * count)))
                print(f"  {figures[-1]}", file=sys.stderr, flush=True)
        query = make_queries(corpus, count)[0]
        began = time.perf_counter()
        async with _open(folder) as (_, app):

            async def is_complete() -> bool:
                return not (await app.search.search(query)).degraded

            await until(is_complete, "searches are complete", seconds=RESTART_SECONDS, every=0.2)
            restart = time.perf_counter() - began
    return _rows(figures, restart)


@asynccontextmanager
async def _open(folder: Path) -> AsyncIterator[tuple[Engines, App]]:
    """Run the engines of a folder, and an App on them whose passages get vectors without a model."""
    async with (
        engines_in(folder) as engines,
        opened(engines.urls, folder, DrawnEmbedder(), embedder_threads=1) as app,
    ):
        yield engines, app


async def _grow(app: App, engines: Engines, corpus: Corpus, first: int, count: int) -> Figures:
    """Add documents until there are `count`, and return the figures."""
    pids = {**engines.pids, "client": os.getpid()}
    began, before = time.perf_counter(), usage(pids)
    for portion in range(first, count, PORTION):
        await land_and_drain(app, corpus, min(PORTION, count - portion), "f", portion)
    is_indexed = await indexed(app)
    seconds, used = time.perf_counter() - began, spent(before, usage(pids))
    queries = make_queries(corpus, count)
    before = usage(pids)
    taken = await time_searches(app, queries)
    searched = spent(before, usage(pids))
    return Figures(
        documents=count,
        passages=await app.vectors.points(),
        rate=(count - first) / seconds,
        cpu_ms=1000 * sum(each.total for each in used.values()) / (count - first),
        p50_ms=1000 * percentile(taken, 0.5),
        p99_ms=1000 * percentile(taken, 0.99),
        search_cpu={name: 1000 * each.total / len(taken) for name, each in searched.items()},
        memory=memory_mb(pids),
        disk={name: _disk_mb(engines.folder / name) for name in ENGINES},
        is_indexed=is_indexed,
    )


def _disk_mb(folder: Path) -> float:
    """Return what the files of a folder take on the disk, which of files with holes is less than their size."""
    blocks = 0
    for path, _, names in os.walk(folder):
        for name in names:
            try:
                blocks += (Path(path) / name).lstat().st_blocks
            except FileNotFoundError:  # an engine removed it meanwhile
                continue
    return blocks * 512 / 1e6


def _rows(figures: Sequence[Figures], restart: float) -> list[Row]:
    last = figures[-1]
    size = f"with {last.documents:,} documents of {last.passages:,} passages"

    def row(name: str, value: Callable[[Figures], float], unit: str, note: str) -> Row:
        before = "; ".join(f"{each.documents:,}: {value(each):.1f}" for each in figures[:-1])
        return stated(
            f"growth: {name}",
            value(last),
            unit,
            f"{size}, vectors given; {note}; with fewer: {before}",
        )

    memory = f"private and shared memory without files, MB: {_sizes(last.memory)}"
    return [
        row("CPU of a document", lambda each: each.cpu_ms, "ms", "all processes, the indexing included, direct path"),
        row("documents/s", lambda each: each.rate, "documents/s", "landing and indexing included"),
        row("search, p50", lambda each: each.p50_ms, "ms", f"p99 {last.p99_ms:.0f} ms"),
        row("CPU of a search", lambda each: each.search_cpu_ms, "ms", _sizes(last.search_cpu)),
        row("memory", lambda each: sum(each.memory.values()), "MB", memory),
        row("disk of a document", lambda each: each.disk_kb, "kB", f"MB: {_sizes(last.disk)}"),
        stated("growth: restart", restart, "s", f"{size}: from the start of the engines until all stores are checked and a search is complete"),
    ]  # fmt: skip


def _sizes(sizes: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {size:,.0f}" for name, size in sizes.items() if size >= 1)
