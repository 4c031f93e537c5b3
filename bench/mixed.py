"""Priorities under load: webhooks, each timed until it is searchable, while bulk work drains."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

from apex_memory.model import Event, Priority, micros
from bench.rows import Row, at_most, percentile, scaled, stated
from bench.standing import DEFAULT_EMBEDDER, one_after_another, standing
from tests.waiting import until

FLOOD = 100_000
PAUSES = (0.1, 0.4)  # seconds between two webhooks
PAGE = 1_000


async def mixed() -> list[Row]:
    """P0 webhooks until searchable while P2 events drain, with the default model, as shipped."""
    count = scaled(FLOOD)
    async with standing(DEFAULT_EMBEDDER) as (stack, _):
        await stack.whole(seconds=60)
        idle = await one_after_another(stack, "idle", PAUSES)
        async with stack.inbox() as (inbox, db):
            for page in _flood(count):
                await inbox.land(page)

            async def left() -> int:
                row = await db.fetch_one(
                    "SELECT count(*) AS n FROM inbox WHERE source = 'hubspot' AND open"
                )
                return int(row["n"]) if row else 0

            async def draining() -> bool:
                return await left() < count - 50

            await until(draining, seconds=60, every=0.1, what=stack.log_tail)
            began, before = time.perf_counter(), await left()
            busy = await one_after_another(stack, "busy", PAUSES)
            seconds, after = time.perf_counter() - began, await left()
    assert after > 0, "the flood was over before the webhooks were: nothing was measured"
    return [
        at_most(
            "P0 webhook → searchable while P2 events drain, p99",
            1000 * percentile(busy, 0.99),
            "ms",
            1000,
            f"{len(busy)} signed Front webhooks, {count:,} P2 events (HubSpot contacts) waiting at first, {after:,} at the end, "
            f"{(before - after) / seconds:.0f}/s drained meanwhile; p50 {1000 * percentile(busy, 0.5):.0f} ms; idle in the same run "
            f"p50 {1000 * percentile(idle, 0.5):.0f}, p99 {1000 * percentile(idle, 0.99):.0f} ms; default model",
        ),
        stated(
            "P2 events drained beside P0 webhooks",
            (before - after) / seconds,
            "events/s",
            "one short chunk each, embedded with the default model by the bulk worker",
        ),
    ]


def _flood(count: int) -> Iterator[list[Event]]:
    """HubSpot contacts, a page at a time."""
    start = datetime(2026, 11, 2, tzinfo=UTC)
    for first in range(0, count, PAGE):
        page = []
        for n in range(first, min(count, first + PAGE)):
            at = start + timedelta(seconds=n)
            record = {
                "id": str(n),
                "properties": {
                    "firstname": f"Dana{n}",
                    "lastname": "Whitfield",
                    "email": f"dana{n}@harborfoods.example",
                    "company": "Harbor Foods",
                    "jobtitle": "Dock planner",
                    "lastmodifieddate": at.isoformat(),
                },
                "updatedAt": at.isoformat(),
                "archived": False,
            }
            page.append(
                Event(
                    source="hubspot",
                    event_id=f"flood:{n}",
                    doc_key=f"contact:{n}",
                    version=micros(at),
                    occurred_at=at,
                    payload=json.dumps(record).encode(),
                    priority=Priority.P2,
                )
            )
        print(f"mixed: {first + len(page):,} of {count:,} landed", file=sys.stderr)
        yield page
