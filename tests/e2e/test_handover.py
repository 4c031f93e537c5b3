"""An event that changes its build: the one that processes it makes its manifest, whatever the other one left."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any
from uuid import UUID

import pytest

from apex_memory.app import App, open_app
from apex_memory.inbox.leases import take_back
from apex_memory.model import Document
from apex_memory.rollout import builds
from tests.e2e.conftest import MakeSettings, text_event
from tests.e2e.shadows import SOURCE, Changed
from tests.waiting import until

GOOD, BAD = "1.0-good", "1.1-bad"


def spoiled(document: Document) -> Document:
    return replace(document, text=f"spoiled {document.text}")


async def prepared(app: App) -> UUID:
    """Claim and prepare what is ready; return the batch."""
    batch = await app.steps.claim(SOURCE)
    assert len(batch.events) == 1
    await app.steps.prepare(SOURCE, batch.id)
    return batch.id


async def returned(app: App, build: str) -> None:
    """Take the unfinished events of a build back, as its rollback does."""
    async with app.db.transaction() as connection:
        assert len(await take_back(connection, build, wait=False)) == 1


async def outcome(app: App, id: UUID) -> tuple[str, str]:
    """Return the build that processed the event, and the text that readers see."""
    row = await app.db.fetch_one("SELECT build, doc_id, state FROM inbox WHERE id = %s", (id,))
    assert row and row["state"] == "done"
    return row["build"], (await app.search.document(row["doc_id"])).text


@pytest.mark.parametrize("late", [False, True], ids=["in time", "late"])
async def test_nothing_of_a_build_that_was_rolled_back_is_published(
    make_settings: MakeSettings, late: bool
) -> None:
    """Also when the worker of the bad build stores its manifest after the good build has made its own."""
    settings = make_settings()
    async with open_app(settings, build=GOOD) as good, open_app(settings, build=BAD) as bad:
        bad.sources[SOURCE] = Changed(bad.sources[SOURCE], spoiled)  # type: ignore[assignment]
        [landed] = await good.inbox.land([text_event(good, "a", "SHP-100045 left.", version=1)])
        await prepared(bad)
        await returned(good, BAD)
        batch = await prepared(good)
        if late:
            await good.db.execute(
                "UPDATE manifests SET created_at = clock_timestamp() WHERE pipeline LIKE %s",
                (f"%{BAD}",),
            )
        await good.steps.publish(batch)
        assert await outcome(good, landed.id) == (GOOD, "SHP-100045 left.")


async def test_a_build_that_gets_an_event_back_publishes_its_own_manifest(
    make_settings: MakeSettings,
) -> None:
    settings = make_settings()
    async with open_app(settings, build=GOOD) as good, open_app(settings, build=BAD) as bad:
        bad.sources[SOURCE] = Changed(bad.sources[SOURCE], spoiled)  # type: ignore[assignment]
        [landed] = await good.inbox.land([text_event(good, "a", "SHP-100045 left.", version=1)])
        await prepared(good)
        await returned(good, GOOD)
        await prepared(bad)
        await returned(good, BAD)
        await good.direct.drain(SOURCE)
        assert await outcome(good, landed.id) == (GOOD, "SHP-100045 left.")


async def test_a_build_that_claims_its_own_event_again_prepares_it_once(
    make_settings: MakeSettings,
) -> None:
    async with open_app(make_settings(), build=GOOD) as app:
        [landed] = await app.inbox.land([text_event(app, "a", "SHP-100045 left.", version=1)])
        await app.steps.release(await prepared(app))
        batch = await app.steps.claim(SOURCE)
        assert await app.inbox.unprepared(batch.id) == {}
        await app.steps.publish(batch.id)
        assert await outcome(app, landed.id) == (GOOD, "SHP-100045 left.")


async def test_a_rollback_waits_for_a_step_under_way_and_takes_its_events(
    make_settings: MakeSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A batch whose stages are just being opened holds its events: skipped, it would be published after the rollback."""
    settings = make_settings()
    async with open_app(settings, build=GOOD) as good, open_app(settings, build=BAD) as bad:
        for build in (GOOD, BAD):
            await builds.register(good.db, build, decides=True)
            await builds.record_check(good.db, build, passed=True, detail="")
        await builds.ramp(good.db, BAD, 100, actor="ann")
        bad.sources[SOURCE] = Changed(bad.sources[SOURCE], spoiled)  # type: ignore[assignment]
        [landed] = await good.inbox.land([text_event(good, "a", "SHP-100045 left.", version=1)])
        batch = await prepared(bad)
        holds, may_go_on = asyncio.Event(), asyncio.Event()
        manifests = bad.publication.manifests
        load = manifests.load

        async def slow(connection: Any, ids: Any) -> Any:
            holds.set()
            await may_go_on.wait()
            return await load(connection, ids)

        monkeypatch.setattr(manifests, "load", slow)
        publishing = asyncio.create_task(bad.steps.publish(batch))
        await holds.wait()
        rollback = asyncio.create_task(
            builds.rollback(good.db, actor="ann", reason="titles are wrong")
        )

        async def acts() -> bool:
            return not (await builds.routing(good.db)).candidate

        await until(acts, "the new routing acts while the step still holds its events")
        assert not rollback.done()
        may_go_on.set()
        assert (await rollback).taken_back == 1
        assert (await publishing).done == []
        await good.direct.drain(SOURCE)
        assert await outcome(good, landed.id) == (GOOD, "SHP-100045 left.")
