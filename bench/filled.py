"""Cost of an event and latency of searches when the stores are full, also while another process writes."""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import sys
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

from apex_memory.app import App
from apex_memory.config import Settings
from apex_memory.pipeline import open_embedder
from apex_memory.stores.edge import EdgeVectors
from apex_memory.telemetry import configure_logging
from bench.corpus import CARRIERS, PLACES, Corpus, GivenEmbedder, random_pool
from bench.cpu import Usage, spent, usage
from bench.engines import Engines, opened, running_engines
from bench.rows import SCALE, Row, at_most, percentile, scaled
from bench.writing import land_and_drain

FULL = 200_000
# Documents of a sample: as many as fill one sealed shard of vectors, or one merge, so that each sample includes its share
# of the indexing.
SAMPLE = 16_000 if SCALE >= 1 else 4_000
FOUND_AT = 20_000  # documents, 100,000 chunks, that searches run on
QUESTIONS, WARMED = 200, 5
INDEX_SECONDS = 1_200 if SCALE >= 1 else 240  # the largest merge is of 320,000 points there
COST_LIMIT = 1.2
QUIET, WRITING = (15, 50), (25, 80)  # ms, p50 and p99
SEARCH_CPU = 22  # ms


async def filled() -> list[Row]:
    """Measure the cost of an event after N documents and after N/20, and searches at 100,000 chunks."""
    count = scaled(FULL)
    corpus = Corpus()
    async with running_engines() as engines:
        pids = {**engines.pids, "client": os.getpid()}
        async with opened(
            await engines.fresh(),
            engines.folder,
            GivenEmbedder(random_pool()),
            embedder_threads=1,  # as `apex up` sets it for the gateway
        ) as app:
            few = count // 20
            await land_and_drain(app, corpus, few, "f")
            first = await _cost(app, corpus, pids, few)
            held = few + SAMPLE
            searched_at = max(held, min(count, FOUND_AT))
            await land_and_drain(app, corpus, searched_at - held, "f", held)
            rows = await _searches(app, engines, corpus, searched_at, 1000 / first[1])
            await land_and_drain(
                app, corpus, max(count, searched_at) - searched_at, "f", searched_at
            )
            last = await _cost(app, corpus, pids, count)
    return [
        at_most(
            "cost an event after N documents / after N/20",
            last[0] / first[0],
            "×",
            COST_LIMIT,
            f"N = {count:,}; CPU ms of all processes a document over {SAMPLE:,}, the indexing for them included: {first[0]:.2f} → {last[0]:.2f}; wall ms {first[1]:.2f} → {last[1]:.2f}; direct path, vectors given",
        ),
        *rows,
    ]


async def _cost(app: App, corpus: Corpus, pids: dict[str, int], first: int) -> tuple[float, float]:
    """Return the CPU and wall milliseconds per document, including the indexing that follows."""
    await indexed(app)
    before = usage(pids)
    rate = await land_and_drain(app, corpus, SAMPLE, "f", first)
    await indexed(app)
    used = spent(before, usage(pids))
    return 1000 * sum(usage.total for usage in used.values()) / SAMPLE, 1000 / rate


async def indexed(app: App) -> bool:
    """Wait until the vector process has indexed and merged all sealed points. Return False if that takes too long."""
    deadline = time.monotonic() + INDEX_SECONDS
    vectors = app.vectors
    assert isinstance(vectors, EdgeVectors)
    while (stats := await vectors.stats())["unindexed"] or stats["unmerged"]:
        if time.monotonic() > deadline:
            return False
        await asyncio.sleep(0.2)  # a bounded poll, whose end is a result
    return True


async def _searches(
    app: App, engines: Engines, corpus: Corpus, documents: int, rate: float
) -> list[Row]:
    whole = await indexed(app)
    chunks = await app.vectors.points()
    how = (
        f"{chunks:,} chunks, {QUESTIONS} different questions, one after the other, limit 10, the question's vector included, in process, on the gateway's event loop"
        + ("" if whole else "; indexing had not finished")
    )
    common = " ".join(corpus.common_words)
    queries = make_queries(corpus, documents)
    pids = {**engines.pids, "client": os.getpid()}
    before = usage(pids)
    rows = _p50_and_p99("search", await time_searches(app, queries), how, QUIET)
    rows.append(await _cpu_of_a_search(spent(before, usage(pids)), queries))
    many = [f"{common} {n}" for n in range(QUESTIONS)]
    rows += _p50_and_p99("search, ten common words", await time_searches(app, many), how, QUIET)
    async with writing(engines, app, rate / 2):
        taken = await time_searches(app, make_queries(corpus, documents, seed=2))
    return rows + _p50_and_p99(
        "search while writing",
        taken,
        f"{how}; another process writes {rate / 2:.0f} documents/s, half of the rate just measured",
        WRITING,
    )


async def _cpu_of_a_search(used: Mapping[str, Usage], queries: Sequence[str]) -> Row:
    """Return the CPU time of one search, with that of its vector alone: the part that depends on the processor the most."""
    searches = len(queries) + WARMED
    each = {name: 1000 * usage.total / searches for name, usage in used.items()}
    embedder = open_embedder(Settings.model_fields["embedder"].default, threads=1)
    await embedder.query(queries[0])
    began = time.process_time()
    for query in queries:
        await embedder.query(query)
    embedding = 1000 * (time.process_time() - began) / len(queries)
    await embedder.close()
    parts = ", ".join(f"{name} {ms:.1f}" for name, ms in each.items() if ms >= 0.05)
    return at_most(
        "CPU of a search, all processes",
        sum(each.values()),
        "ms",
        SEARCH_CPU,
        f"{parts}; of the client's the question's vector takes {embedding:.1f} here",
    )


def _p50_and_p99(
    name: str, taken: list[float], how: str, targets: tuple[float, float]
) -> list[Row]:
    p50, p99 = targets
    return [
        at_most(f"{name}, p50", 1000 * percentile(taken, 0.5), "ms", p50, how),
        at_most(f"{name}, p99", 1000 * percentile(taken, 0.99), "ms", p99, how),
    ]


def make_queries(corpus: Corpus, documents: int, seed: int = 1) -> list[str]:
    """Return queries of three kinds: words of a passage, a shipment, a carrier with a place."""
    dice = random.Random(seed)
    queries = []
    for n in range(QUESTIONS):
        words = corpus.passage(dice, 0).split()
        queries.append(
            (
                " ".join(words[8 : 8 + dice.randrange(3, 8)]),
                f"where is SHP-{100_000 + dice.randrange(documents)} {words[9]}",
                f"{dice.choice(CARRIERS)} late near {dice.choice(PLACES)} {words[10]} {words[12]}",
            )[n % 3]
        )
    return queries


async def time_searches(app: App, queries: Sequence[str]) -> list[float]:
    """Return the seconds of each search. Raises `AssertionError` for a degraded or empty result."""
    for query in queries[:WARMED]:
        await app.search.search(f"warm {query}")
    taken = []
    for query in queries:
        began = time.perf_counter()
        answer = await app.search.search(query)
        taken.append(time.perf_counter() - began)
        if answer.degraded or not answer.hits:
            raise AssertionError(f"{query!r}: {answer.degraded}, {len(answer.hits)} hits")
    return taken


@asynccontextmanager
async def writing(engines: Engines, app: App, rate: float) -> AsyncIterator[None]:
    """Run a process that lands and drains `rate` documents/s inside the block."""
    settings = app.settings
    urls = {n: getattr(settings, n) for n in ("documents", "graph", "vectors", "cache", "temporal")}
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "bench.filled", json.dumps(urls), str(engines.folder), str(rate)),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    assert process.stdout
    try:
        assert await process.stdout.readline() == b"writing\n"
        yield
        assert process.returncode is None, "the writer ended"
    finally:
        if process.returncode is None:
            process.terminate()
        await process.wait()  # it finishes what it has claimed


async def write(urls: dict[str, str], folder: Path, rate: float) -> None:
    """Write until SIGTERM: every half second the documents of half a second."""
    corpus, stop = Corpus(), asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    async with opened(urls, folder, GivenEmbedder(random_pool())) as app:
        page, first, due = max(1, round(rate / 2)), 0, time.monotonic()
        while not stop.is_set():
            await land_and_drain(app, corpus, page, "w", first)
            if not first:
                print("writing", flush=True)
            first, due = first + page, due + 0.5
            await asyncio.sleep(max(0.0, due - time.monotonic()))  # the pace of the load


if __name__ == "__main__":
    configure_logging("error", "console")  # the first line of its output says that it writes
    asyncio.run(write(json.loads(sys.argv[1]), Path(sys.argv[2]), float(sys.argv[3])))
