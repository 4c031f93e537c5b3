"""A rollback to 0 under load: how long Temporal still gets documents after the command, and whether anything is lost."""

from __future__ import annotations

import asyncio
import json
import sys
import time

from apex_memory.stores.postgres import Postgres
from bench.rows import Row, at_most
from bench.standing import Standing, standing
from tests.waiting import until

RATE, RATE_SECONDS = 20, 20
SETTLED_SECONDS = 5.0  # without another claim by Temporal
SUBJECT = "/v1/rollouts/frontapp"
PLAN = {"steps": [50, 100], "min_events": 10_000}


async def rollback() -> list[Row]:
    """Measure a rollback from 50 % to nothing while webhooks arrive at 20/s."""
    async with standing("hashing") as (stack, _):
        await stack.whole(seconds=60)
        return [await measured(stack)]


async def measured(stack: Standing) -> Row:
    """Return the row, measured on a running stack."""
    await stack.post(f"{SUBJECT}/start", json={"reason": "bench", "plan": PLAN})
    async with stack.inbox() as (_, db):
        loading = asyncio.create_task(_load(stack))
        await until(lambda: _carried(db), seconds=60, what=stack.log_tail)
        began = time.monotonic()
        watching = asyncio.create_task(_last_claim(db, began))
        await stack.post(f"{SUBJECT}/back", json={"reason": "bench", "to": "off"})
        acknowledged = time.monotonic() - began
        last = await watching
        landed = await loading
        await until(lambda: _all_final(db, landed), seconds=120, what=stack.log_tail)
        before, after = await _paths(db, began)
    return at_most(
        "rollback seconds",
        last,
        "s",
        1,
        f"from the command to Temporal's last claim, a source at 50 % with {RATE} webhooks/s, read every 10 ms; the command took {1000 * acknowledged:.0f} ms; all {landed} events final, {before} by Temporal, {after} of those received a second later",
    )


async def _load(stack: Standing) -> int:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "bench.shooter", stack.children()["gateway"].url),
        *(str(RATE), str(RATE_SECONDS)),
        stdout=asyncio.subprocess.PIPE,
    )
    out, _ = await process.communicate()
    return len(json.loads(out))


async def _by_temporal(db: Postgres) -> int:
    row = await db.fetch_one("SELECT count(*) AS events FROM inbox WHERE path = 'temporal'")
    return int(row["events"]) if row else 0


async def _carried(db: Postgres) -> bool:
    return await _by_temporal(db) >= RATE


async def _last_claim(db: Postgres, began: float) -> float:
    """Return the seconds from `began` to the last claim by Temporal, 0 without one."""
    count, last = await _by_temporal(db), began
    while time.monotonic() - last < SETTLED_SECONDS:
        await asyncio.sleep(0.01)
        now = await _by_temporal(db)
        if now != count:
            count, last = now, time.monotonic()
    return last - began


async def _all_final(db: Postgres, events: int) -> bool:
    row = await db.fetch_one(
        "SELECT count(*) FILTER (WHERE state IN ('done', 'superseded')) AS ended FROM inbox"
    )
    return bool(row and row["ended"] >= events)


async def _paths(db: Postgres, began: float) -> tuple[int, int]:
    """Return how many events Temporal carried, and how many of those received a second after the command."""
    seconds = time.monotonic() - began - 1
    row = await db.fetch_one(
        """SELECT count(*) AS events, count(*) FILTER (
                    WHERE received_at > clock_timestamp() - make_interval(secs => %s)) AS late
           FROM inbox WHERE path = 'temporal'""",
        (seconds,),
    )
    assert row
    return row["events"], row["late"]
