"""Throughput with one, two and three worker processes on the same stores: how the rate scales, and what bounds it.

The measuring process starts the others, each with an App of its own, and lets them drain one queue at once. Vectors are given.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import psycopg

from apex_memory.app import App
from apex_memory.telemetry import configure_logging
from bench.corpus import CHUNKS, Corpus, GivenEmbedder, random_pool
from bench.cpu import spent, usage
from bench.engines import Engines, opened, running_engines, scrub_environment
from bench.rows import Row, stated

PROCESSES = (1, 2, 3)
DOCUMENTS = 3_000
TURNS = 2
WARM = 512  # documents for each process: twice what one claims at first


async def workers() -> list[Row]:
    """Measure documents/s of one, two and three processes, in turns; each number of processes has the better of its turns."""
    corpus = Corpus()
    rates: dict[int, float] = {}
    notes: dict[int, str] = {}
    async with running_engines() as engines:
        for _ in range(TURNS):
            for count in PROCESSES:
                rate, note = await _measured(engines, corpus, count)
                if rate > rates.get(count, 0.0):
                    rates[count], notes[count] = rate, note
    return [
        stated(
            f"documents/s with {count} worker processes, of one's",
            rates[count] / rates[1],
            "×",
            f"{rates[count]:.0f} of {rates[1]:.0f} documents/s; {notes[count]}",
        )
        for count in PROCESSES[1:]
    ]


async def _measured(engines: Engines, corpus: Corpus, count: int) -> tuple[float, str]:
    """Return the documents/s of so many processes on empty stores, and where the processor time went."""
    urls = await engines.fresh()
    async with AsyncExitStack() as stack:
        async with opened(urls, engines.folder, GivenEmbedder(random_pool())) as app:
            await _land(app, corpus, count * WARM, "warm")
            drains = [
                await stack.enter_async_context(_drain(urls, engines.folder)) for _ in range(count)
            ]
            # Compiled plans, connections and caches of each process: one that claims nothing here would be measured cold.
            if not all(await _go(drains)):
                raise AssertionError("a worker process of the bench drained nothing to warm up")
            await _land(app, corpus, DOCUMENTS, "measured")
        pids = engines.pids | {f"worker {n}": drain.pid for n, drain in enumerate(drains, 1)}
        before, began = usage(pids), time.perf_counter()
        drained = await _go(drains)
        seconds = time.perf_counter() - began
        used = spent(before, usage(pids))
    if sum(drained) != DOCUMENTS or await _open_events(urls["documents"]):
        raise AssertionError(f"{drained} of {DOCUMENTS} drained, not all of them done")
    busy = sum(item.total for item in used.values()) / seconds
    parts = ", ".join(f"{name} {100 * item.total / seconds:.0f}" for name, item in used.items())
    return DOCUMENTS / seconds, (
        f"{DOCUMENTS} documents of {CHUNKS} chunks, direct path, vectors given, drained {' + '.join(map(str, drained))}; "
        f"{busy:.2f} of {os.cpu_count()} cores busy, % of one: {parts}"
    )


async def _land(app: App, corpus: Corpus, count: int, name: str) -> None:
    for page in corpus.events(0, count, name=name):
        await app.inbox.land(page)


@asynccontextmanager
async def _drain(urls: dict[str, str], folder: Path) -> AsyncIterator[asyncio.subprocess.Process]:
    """Run a process that drains the queue each time it is asked to; yield it when it is ready."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "bench.workers", json.dumps(urls), str(folder)),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    assert process.stdin and process.stdout
    try:
        if await process.stdout.readline() != b"ready\n":
            raise AssertionError("a worker process of the bench did not start")
        yield process
        process.stdin.close()
        await process.wait()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def _go(drains: list[asyncio.subprocess.Process]) -> list[int]:
    """Let all processes drain until nothing is ready; return how many events each carried."""
    for process in drains:
        assert process.stdin
        process.stdin.write(b"drain\n")
    lines = await asyncio.gather(
        *(process.stdout.readline() for process in drains if process.stdout)
    )
    return [int(line) for line in lines]


async def _open_events(documents: str) -> int:
    async with await psycopg.AsyncConnection.connect(documents) as connection:
        cursor = await connection.execute("SELECT count(*) FROM inbox WHERE state <> 'done'")
        row = await cursor.fetchone()
    assert row
    return int(row[0])


async def drain_when_asked(urls: dict[str, str], folder: Path) -> None:
    """Drain once for each line of standard input, and print how many events that were."""
    lines = asyncio.StreamReader()
    loop = asyncio.get_running_loop()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(lines), sys.stdin)
    async with opened(urls, folder, GivenEmbedder(random_pool())) as app:
        print("ready", flush=True)
        while await lines.readline():
            print(await app.direct.drain("documents"), flush=True)


if __name__ == "__main__":
    scrub_environment()
    configure_logging("error", "console")
    asyncio.run(drain_when_asked(json.loads(sys.argv[1]), Path(sys.argv[2])))
