"""Shares that change in mid-load, with versions of the same documents on both paths: nothing is lost, and the newest version is live."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from time import monotonic
from typing import Any

from apex_memory.app import App, open_app
from apex_memory.inbox.routing import Path
from apex_memory.rollout.subjects import source_subject
from tests.e2e.conftest import MakeSettings, land, text_event
from tests.waiting import until

DOCUMENTS, VERSIONS = 8, 12
SUBJECT = source_subject("documents")


async def process(app: App, path: Path) -> None:
    """Work on the documents of one path, for ever: the steps that a drain of Temporal and the direct loop sequence."""
    while True:
        batch = await app.steps.claim("documents", path=path, everything=False)
        if not batch.events:
            await asyncio.sleep(0.01)  # a worker's pause between two looks
            continue
        await app.steps.prepare("documents", batch.id)
        await app.steps.publish(batch.id)


@asynccontextmanager
async def both_paths(app: App) -> AsyncIterator[None]:
    paths: tuple[Path, ...] = ("temporal", "temporal", "direct", "direct")
    tasks = [asyncio.create_task(process(app, path)) for path in paths]
    try:
        yield
        assert not any(task.done() for task in tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def finished(app: App) -> list[Any]:
    """Every event, once none is open; an empty list before."""
    rows = await app.db.fetch("SELECT state, path FROM inbox")
    return rows if all(row["state"] in ("done", "superseded", "dead") for row in rows) else []


async def test_nothing_is_lost_or_doubled_when_shares_change_in_mid_load(
    make_settings: MakeSettings,
) -> None:
    chance = random.Random(15)
    settings = make_settings(batch_max=4)
    async with open_app(settings) as app:
        await app.recovery.check_restarted_stores()
        events = [
            text_event(app, f"d{n}", f"Document {n}, version {version}.", version=version)
            for n in range(DOCUMENTS)
            for version in range(1, VERSIONS + 1)
        ]
        chance.shuffle(events)
        async with both_paths(app):
            while events:
                await land(app, *events[:6])
                del events[:6]
                share = chance.choice((0, 10, 50, 90, 100))
                await app.shares.set(SUBJECT, share, actor="test")
                await asyncio.sleep(0.05)  # both paths work under this share
            rows = await until(lambda: finished(app), "every event has ended", seconds=90)
        assert len(rows) == DOCUMENTS * VERSIONS
        assert {row["state"] for row in rows} <= {"done", "superseded"}
        assert {row["path"] for row in rows} == {"temporal", "direct"}
        live = await app.db.fetch("SELECT doc_key, version FROM documents WHERE NOT deleted")
        assert sorted((row["doc_key"], row["version"]) for row in live) == [
            (f"d{n}", VERSIONS) for n in range(DOCUMENTS)
        ]
        stages = await app.db.fetch("SELECT count(*) AS n FROM stages WHERE state = 'committed'")
        assert stages[0]["n"] == DOCUMENTS, "one live stage a document"


async def test_a_change_acts_with_the_first_claim_after_it_in_every_process(
    make_settings: MakeSettings,
) -> None:
    settings = make_settings()
    async with open_app(settings) as one, open_app(settings) as other:
        paths: tuple[Path, Path] = ("temporal", "direct")
        for n, share in enumerate((0, 100, 0)):
            began = monotonic()
            await one.shares.set(SUBJECT, share, actor="test")
            await land(one, *(text_event(one, f"r{n}-{m}", "A note.") for m in range(5)))
            idle, busy = paths if share == 0 else reversed(paths)
            assert not (await other.steps.claim("documents", path=idle, everything=False)).events
            taken = await other.steps.claim("documents", path=busy, everything=False)
            assert len(taken.events) == 5
            assert monotonic() - began < 1, "the change acts within a second"
