"""Readings of a stream: from the vendor's feed into PostgreSQL, aggregated, and their windows into all four stores.

The simulated vendor is a process of its own (`python -m bench.streams TRUCKS SPEED`), so that its CPU time is separate.
"""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta

import httpx2
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route

from apex_memory.app import App
from apex_memory.simulate.samsara.simulator import Samsara
from apex_memory.simulate.server import serve_simulators
from apex_memory.simulate.vendor import Chaos
from apex_memory.simulate.world import Clock, World
from bench.cpu import spent, usage
from bench.engines import opened, running_engines
from bench.profile import Ledger
from bench.rows import Row, at_least, at_most, percentile, stated

NAME = "samsara"
TARGET = 1_667  # readings a second: a hundred times the busiest source's 1,000 a minute
EVERY = 5  # seconds between two positions of a moving truck
STEP = 300  # seconds of the world that a flat-out step brings: a window of each truck
STEPS = 3
FLEET = 500
PACED_SECONDS = 60
PACED = 1.1 * TARGET  # offered: in the first seconds the late points of before are missing
PACED_SPEED = 10  # of the world's clock: windows end ten times as often, for a tenth of the trucks
POLL_SECONDS = 5


class Led(Samsara):
    """The vendor, with a route that moves its clock."""

    def routes(self) -> Sequence[BaseRoute]:
        return [*super().routes(), Route("/advance", self._advance, methods=["POST"])]

    async def _advance(self, request: Request) -> Response:
        seconds = int(request.query_params["seconds"])
        self.clock.advance_to(self.clock.now + timedelta(seconds=seconds))
        return JSONResponse({"now": self.clock.now.isoformat()})


def vendor(trucks: int, speed: float) -> Led:
    world = World.make(1, shipments=1)
    return Led(world, Clock(world.start, speed=speed), Chaos(), every=EVERY, trucks=trucks, page=2_000)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Vendor:
    """The vendor in its process."""

    url: str
    pid: int

    async def advance(self, seconds: int) -> None:
        async with httpx2.AsyncClient() as http:
            answer = await http.post(f"{self.url}/advance", params={"seconds": seconds})
            answer.raise_for_status()


@asynccontextmanager
async def running_vendor(trucks: int, speed: float = 0) -> AsyncIterator[Vendor]:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "bench.streams", str(trucks), str(speed)),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    assert process.stdout and process.stdin
    try:
        url = (await process.stdout.readline()).decode().strip()
        yield Vendor(f"{url}/{NAME}", process.pid)
    finally:
        process.stdin.close()  # it ends when nobody holds the other end any more
        await process.wait()


async def streams() -> list[Row]:
    """Measure readings/s at full speed, and CPU and lag at the target rate."""
    async with running_engines() as engines:
        pids = {**engines.pids, "client": os.getpid()}
        async with running_vendor(FLEET) as feed:
            settings = {NAME: vendor(0, 0).settings(feed.url)}
            async with opened(await engines.fresh(), engines.folder, sources=settings) as app:
                flat = await flat_out(app, feed, {**pids, "simulator": feed.pid})
        trucks = round(PACED * 60 / vendor(1, 0).readings_per_minute / PACED_SPEED)
        async with running_vendor(trucks, PACED_SPEED) as feed:
            settings = {NAME: vendor(0, 0).settings(feed.url)}
            async with opened(await engines.fresh(), engines.folder, sources=settings) as app:
                paced = await at_pace(app, {**pids, "simulator": feed.pid})
    return [flat, *paced]


async def flat_out(app: App, feed: Vendor, pids: dict[str, int]) -> Row:
    """Measure full speed: the next step is pulled and aggregated while earlier windows are drained."""
    await app.fetcher.pull(NAME)
    await feed.advance(STEP)
    await _process(app)  # connections, plans, partitions, the model
    profile = await _profile(app, feed, pids)
    before, first = usage(pids), await _stored(app)
    began = time.perf_counter()
    async with _draining(app):
        for _ in range(STEPS):
            await feed.advance(STEP)
            await app.fetcher.pull(NAME)
            await app.fetcher.aggregate_windows(NAME)
    seconds = time.perf_counter() - began
    used, stored = spent(before, usage(pids)), await _stored(app) - first
    await _check(app)
    cpu = ", ".join(f"{name} {1e6 * usage.total / stored:.0f}" for name, usage in used.items())
    return at_least(
        "readings/s, feed to PostgreSQL, folded and drained",
        stored / seconds,
        "readings/s",
        TARGET,
        f"{stored:,} readings of {FLEET} trucks in {seconds:.0f} s, their windows into all four stores with the default model, one Apex process, the simulator on the same cores; CPU ms per 1,000 readings: {cpu}; one after the other: {profile}",
    )


async def _profile(app: App, feed: Vendor, pids: dict[str, int]) -> str:
    """Return wall seconds and CPU milliseconds per 1,000 readings, by step."""
    ledger, first = Ledger(pids), await _stored(app)
    await feed.advance(STEP)
    await ledger.step("pull", lambda: app.fetcher.pull(NAME))
    windows = await ledger.step("fold", lambda: app.fetcher.aggregate_windows(NAME))
    await ledger.step("drain", lambda: app.direct.drain(NAME))
    stored = await _stored(app) - first
    parts = (
        f"{step} {wall:.1f} s ("
        + ", ".join(
            f"{name} {1e6 * cpu / stored:.0f}"
            for name, cpu in ledger.cpu[step].items()
            if 1e6 * cpu / stored >= 1
        )
        + ")"
        for step, wall in ledger.wall.items()
    )
    return f"{stored:,} readings, {windows} windows: {', '.join(parts)}"


async def at_pace(app: App, pids: dict[str, int]) -> list[Row]:
    """Measure CPU and lag at the target rate, polled at the usual interval."""
    await app.fetcher.pull(NAME)
    first, before, began = await _stored(app), usage(pids), time.perf_counter()
    poll_seconds, oldest_seconds = list[float](), list[float]()
    async with _draining(app):
        while (elapsed := time.perf_counter() - began) < PACED_SECONDS:
            due = POLL_SECONDS * (len(poll_seconds) + 1)
            await asyncio.sleep(due - elapsed)  # the pace of the polls
            start = time.perf_counter()
            await app.fetcher.pull(NAME)
            await app.fetcher.aggregate_windows(NAME)
            poll_seconds.append(time.perf_counter() - start)
            oldest_seconds.append(await _oldest(app))
        stored, seconds = await _stored(app) - first, time.perf_counter() - began
        used = spent(before, usage(pids))
    await _check(app)
    parts = ", ".join(f"{name} {100 * usage.total / seconds:.0f}" for name, usage in used.items())
    own_seconds = sum(usage.total for name, usage in used.items() if name != "simulator")
    how = f"{stored / seconds:,.0f} readings/s for {seconds:.0f} s, windows ending {PACED_SPEED} times as often for a tenth of the trucks, default model"
    period = STEP / PACED_SPEED
    return [
        stated(
            "readings at 100 × the busiest source, CPU share",
            100 * own_seconds / seconds / (os.cpu_count() or 1),
            "% of all cores",
            f"{how}; % of one core: {parts}",
        ),
        at_most(
            "readings at 100 × the busiest source, a poll's work, p99",
            percentile(poll_seconds, 0.99),
            "s",
            POLL_SECONDS,
            f"{how}; pull and fold of every {POLL_SECONDS} s, while windows are drained: with less than that no reading waits for long",
        ),
        at_most(
            "readings at 100 × the busiest source, oldest window not in memory",
            max(oldest_seconds),
            "s",
            period,
            f"{how}; all windows end at once, every {period:g} s: with less than that nothing piles up",
        ),
    ]


@asynccontextmanager
async def _draining(app: App) -> AsyncIterator[None]:
    """Drain continuously inside the block, and at its end until nothing is left."""
    ended = asyncio.Event()

    async def drain() -> None:
        while await app.direct.drain(NAME) or not ended.is_set():
            await asyncio.sleep(0.05)  # a worker's pause between two looks

    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(drain())
        yield
        ended.set()


async def _oldest(app: App) -> float:
    """Return the seconds since the oldest open event landed."""
    row = await app.db.fetch_one(
        "SELECT extract(epoch FROM clock_timestamp() - min(received_at)) AS age FROM inbox WHERE open"
    )
    return float(row["age"] or 0) if row else 0.0


async def _process(app: App) -> None:
    await app.fetcher.pull(NAME)
    await app.fetcher.aggregate_windows(NAME)
    await app.direct.drain(NAME)


async def _stored(app: App) -> int:
    """Return the readings in PostgreSQL, without the vehicles' names that are stored beside them."""
    row = await app.db.fetch_one("SELECT count(*) AS n FROM readings WHERE kind <> 'vehicle'")
    assert row
    return int(row["n"])


async def _check(app: App) -> None:
    """Raise `AssertionError` unless every reading is in a window, and every window is aggregated and in memory."""
    await app.fetcher.aggregate_windows(NAME, everything=True)
    await app.direct.drain(NAME)
    row = await app.db.fetch_one(
        """SELECT (SELECT count(*) FROM windows WHERE dirty) AS dirty,
                  (SELECT count(*) FROM inbox WHERE state NOT IN ('done', 'superseded')) AS undone,
                  (SELECT count(*) FROM windows) - (SELECT count(*) FROM documents) AS missing"""
    )
    if row is None or any(row.values()):
        raise AssertionError(f"left over: {row}")


async def _serve(trucks: int, speed: float) -> None:
    """Serve until standard input ends."""
    async with serve_simulators([vendor(trucks, speed)]) as served:
        print(served.url, flush=True)
        await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)


if __name__ == "__main__":
    asyncio.run(_serve(int(sys.argv[1]), float(sys.argv[2])))
