"""CPU milliseconds of a document, by step and process."""

from __future__ import annotations

import os
import time
import uuid
from collections import defaultdict
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from apex_memory.app import App
from apex_memory.inbox import Consumer
from apex_memory.model import now
from bench.corpus import Corpus, GivenEmbedder, random_pool
from bench.cpu import Usage, spent, usage
from bench.engines import opened, running_engines

BATCH = 256
BATCHES = 12
T = TypeVar("T")


class Ledger:
    """Wall and CPU seconds by step, summed over batches."""

    def __init__(self, pids: dict[str, int]) -> None:
        self._pids = pids
        self.wall: dict[str, float] = defaultdict(float)
        self.cpu: dict[str, dict[str, float]] = defaultdict(lambda: dict.fromkeys(pids, 0.0))

    async def step(self, name: str, work: Callable[[], Awaitable[T]]) -> T:
        before, began = usage(self._pids), time.perf_counter()
        result = await work()
        self.wall[name] += time.perf_counter() - began
        used: dict[str, Usage] = spent(before, usage(self._pids))
        for process, usage_of_step in used.items():
            self.cpu[name][process] += usage_of_step.total
        return result

    def markdown(self, documents: int) -> str:
        names = list(self._pids)
        lines = [
            f"| step | wall | {' | '.join(names)} | CPU |",
            "|---|" + "---:|" * (len(names) + 2),
        ]
        sums = dict.fromkeys(names, 0.0)
        for step, used in self.cpu.items():
            cells = [1000 * used[name] / documents for name in names]
            sums = {name: sums[name] + cell for name, cell in zip(names, cells, strict=True)}
            lines.append(_line(step, 1000 * self.wall[step] / documents, cells))
        lines.append(_line("all", 1000 * sum(self.wall.values()) / documents, list(sums.values())))
        return "\n".join(lines)


def _line(name: str, wall: float, cells: list[float]) -> str:
    return f"| {name} | {wall:.2f} | {' | '.join(f'{cell:.2f}' for cell in cells)} | {sum(cells):.2f} |"


async def table() -> str:
    """Return a Markdown table in milliseconds per document of five chunks, vectors given, batches of 256."""
    corpus = Corpus()
    async with running_engines() as engines:
        pids = {"client": os.getpid(), **engines.pids}
        async with opened(
            await engines.fresh(), engines.folder, GivenEmbedder(random_pool())
        ) as app:
            await _batch(app, Ledger(pids), corpus, 0)
            ledger = Ledger(pids)
            for n in range(1, BATCHES + 1):
                await _batch(app, ledger, corpus, n)
    return ledger.markdown(BATCH * BATCHES)


async def _batch(app: App, ledger: Ledger, corpus: Corpus, n: int) -> None:
    """Run the steps of the direct path one after the other, so that the CPU time of each is separate."""
    events = [corpus.event(BATCH * n + k) for k in range(BATCH)]
    document, batch = app.sources["documents"].document, uuid.uuid4()
    publication, step = app.publication, ledger.step
    await step("land", lambda: app.inbox.land(events))
    await step(
        "claim",
        lambda: app.inbox.claim(
            "documents",
            batch=batch,
            limit=BATCH,
            lease=60,
            consumer=Consumer("temporal", app.build),
        ),
    )
    ids = list(await step("list events", lambda: app.inbox.unprepared(batch)))
    work = await step("read payloads", lambda: app.inbox.start(batch, ids))
    made: Any = await step(
        "parse, chunk, extract", lambda: app.pipeline.prepare([(event, document) for event in work])
    )
    await step(
        "store manifests",
        lambda: publication.store_manifests(batch, list(zip(work, made, strict=True))),
    )
    begun = await step("begin", lambda: publication.journal.begin(batch))
    stages = begun.stages
    ids = [stage.manifest.doc_id for stage in stages]
    await step("lock", lambda: app.cache.lock(ids, batch, 60))
    await step("stage graph", lambda: publication._write_graph(stages))
    points = [point for stage in stages for point in stage.points()]
    rows = publication._rows(stages)
    await step("stage vectors", lambda: app.vectors.upsert(points, rows))
    await step("flush vectors", app.vectors.flush)
    errors = await step("verify", lambda: publication.verify(stages))
    at = now()
    done = await step(
        "commit", lambda: publication.journal.commit(batch, stages, graph_at=at, vectors_at=at)
    )
    await step("unlock", lambda: app.cache.unlock(ids, batch))
    publication.manifests.forget(stage.manifest.id for stage in stages)
    if errors or len(done.done) != BATCH:
        raise AssertionError(f"{len(done.done)} of {BATCH} done, {len(errors)} errors")
