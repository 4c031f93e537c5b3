"""A day of all nine sources within ten minutes: whether anything falls behind, and what share of the processors it takes.

The simulated vendors run in the measuring process; their share is reported by itself.
"""

from __future__ import annotations

import asyncio
import json
import math
import os
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

import httpx2

from apex_memory.simulate.day import DayPlayback, end_of
from apex_memory.simulate.delivery import Delivery
from apex_memory.simulate.registry import simulator_classes
from apex_memory.simulate.samsara.simulator import Samsara
from apex_memory.simulate.server import serve_simulators
from apex_memory.simulate.vendor import Chaos, Simulator
from apex_memory.simulate.world import Clock, World
from apex_memory.stores.postgres import Postgres
from bench.cpu import spent, usage
from bench.rows import Row, at_least, at_most, percentile, scaled, stated
from bench.standing import DEFAULT_EMBEDDER, Standing, standing
from tests.waiting import seconds_until

DAY_SECONDS = 600  # of this machine, for the whole day of the world
# The first so many shipments of one world bring each source its volume of a day, or somewhat more.
SHIPMENTS = {
    "frontapp": 150,
    "turvo": 60,
    "llm": 50,
    "samsara": 60,
    "plaid": 60,
    "sonar": 340,
    "edi": 20,
    "hubspot": 20,
    "quickbooks": 20,
}
READINGS = 1_000  # a minute of this machine
POLL_SECONDS = 5
SETTLE_SECONDS = 120
LATE = 10.0  # seconds
DAILY = {  # events a day; readings are counted by the minute
    "frontapp": 1000,
    "turvo": 500,
    "plaid": 200,
    "sonar": 300,
    "edi": 50,
    "hubspot": 100,
    "quickbooks": 50,
}


async def day() -> list[Row]:
    """The first part of the day, as long as the scale gives; at full size all of it."""
    world = World.make(1, shipments=max(SHIPMENTS.values()))
    clock = Clock(world.start)
    speed = (end_of(world) - world.start).total_seconds() / DAY_SECONDS
    simulators = [_simulator(kind, clock, speed) for kind in simulator_classes()]
    async with serve_simulators(simulators) as served:
        tables = served.settings()
        for name in tables.keys() - {"llm"}:
            tables[name].setdefault("poll_seconds", POLL_SECONDS)
        for name in ("page_size", "listing_seconds"):  # as in life: the simulator's are for tests
            del tables["turvo"][name]
        keys = json.dumps(tables["frontapp"]["signing_keys"])
        given = {
            "SOURCES": json.dumps(tables, default=str),
            "SOURCES__FRONTAPP__SIGNING_KEYS": keys,
        }
        async with (
            standing(DEFAULT_EMBEDDER, **given) as (stack, _),
            httpx2.AsyncClient(timeout=30) as http,
        ):
            await stack.whole(seconds=60)
            delivery = Delivery(stack.children()["gateway"].url, stack.key, http)
            return await _measure(stack, DayPlayback(simulators, delivery, clock), speed)


def _simulator(kind: type[Simulator], clock: Clock, speed: float) -> Simulator:
    world = World.make(1, shipments=SHIPMENTS[kind.name])
    if kind is not Samsara:
        return kind(world, clock, Chaos())
    per_truck = Samsara(world, clock, Chaos(), trucks=1).readings_per_minute * speed
    return Samsara(world, clock, Chaos(), trucks=math.ceil(READINGS / per_truck))


async def _measure(stack: Standing, playback: DayPlayback, speed: float) -> list[Row]:
    seconds = scaled(DAY_SECONDS)
    pids = {**stack.pids(), "simulators": os.getpid()}
    async with stack.inbox() as (_, db):
        before, began = usage(pids), time.perf_counter()
        playback.clock.run(speed)
        ages = await _watched(playback, db, seconds)
        used = spent(before, usage(pids))
        took = time.perf_counter() - began
        playback.clock.run(0)
        late = await seconds_until(
            lambda: _settled(stack), seconds=SETTLE_SECONDS, every=0.5, what=stack.log_tail
        )
        landed = await _landed(db)
    assert not playback.delivery.refused, playback.delivery.refused[:5]
    readings = landed.pop("readings")
    volumes = {name: landed.get(name, 0) / (DAILY[name] * seconds / DAY_SECONDS) for name in DAILY}
    parts = ", ".join(f"{name} {100 * cpu.total / took:.0f}" for name, cpu in used.items())
    apex = sum(cpu.total for name, cpu in used.items() if name != "simulators")
    events = ", ".join(f"{count:,} {name}" for name, count in landed.items())
    third = len(ages) // 3
    how = (
        f"nine simulated vendors for {took:.0f} s, in which {seconds / DAY_SECONDS:.0%} of a day goes by ({speed:.0f} times as fast as in life); "
        f"landed: {events}; {60 * readings / took:,.0f} readings a minute; default model"
    )
    thirds = ", ".join(
        f"{percentile(part, 0.5):.1f}/{percentile(part, 0.99):.1f}"
        for part in (ages[:third], ages[third : 2 * third], ages[2 * third :])
    )
    least = "all sources at their volumes, the least of them", min(volumes.values()), "× its volume"
    shares = "events landed, in parts of a day's volume for so much time: " + ", ".join(
        f"{name} {share:.1f}" for name, share in volumes.items()
    )
    return [
        at_most(
            "all sources at their volumes, oldest open event, p99",
            percentile(ages, 0.99),
            "s",
            LATE,
            f"read every half second; p50/p99 by thirds of the time: {thirds} s; {late:.1f} s after the last one nothing waited; {how}",
        ),
        # The morning is not the whole day.
        at_least(*least, 1, shares) if seconds >= DAY_SECONDS else stated(*least, shares),
        stated(
            "all sources at their volumes, CPU share",
            100 * apex / took / (os.cpu_count() or 1),
            "% of all cores",
            f"% of one core: {parts}",
        ),
    ]


async def _watched(playback: DayPlayback, db: Postgres, seconds: float) -> list[float]:
    """Play the day for so long; return the age in seconds of the oldest open event, every half second."""
    ages, end = list[float](), time.perf_counter() + seconds

    async def watch() -> None:
        while time.perf_counter() < end:
            row = await db.fetch_one(
                "SELECT extract(epoch FROM clock_timestamp() - min(received_at)) AS age FROM inbox WHERE open"
            )
            ages.append(float(row["age"] or 0) if row else 0.0)
            if len(ages) % 60 == 0:
                print(f"day: {playback.until:%H:%M}, oldest {ages[-1]:.1f} s", file=sys.stderr)
            await asyncio.sleep(0.5)  # the interval between two samples

    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(watch())
        while time.perf_counter() < end:
            await playback.send_due()
            await asyncio.sleep(0.25)  # the pace: what is due goes out four times a second
    return ages


async def _settled(stack: Standing) -> bool:
    """Whether nothing waits, of any source; fails for a dead letter or a source's error."""
    rows: Sequence[Mapping[str, Any]] = (await stack.get("/v1/sources"))["sources"]
    wrong = [row for row in rows if row["dead_letters"] or row["error"]]
    assert not wrong, wrong
    return not any(row["backlog"] or row["change_hints"] or row["files"] for row in rows)


async def _landed(db: Postgres) -> dict[str, int]:
    """Events by source, and `readings`."""
    rows = await db.fetch("SELECT source, count(*) AS n FROM inbox GROUP BY source ORDER BY source")
    kept = await db.fetch_one("SELECT count(*) AS n FROM readings WHERE kind <> 'vehicle'")
    assert kept
    return {row["source"]: row["n"] for row in rows} | {"readings": kept["n"]}
