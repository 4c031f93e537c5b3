"""Checks and repairs of a store that take long, while other workers go on with theirs."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from apex_memory.app import App, open_app
from apex_memory.errors import Misconfigured, Unavailable
from apex_memory.model import LandResult
from apex_memory.saga.recovery import states
from tests.e2e.conftest import MakeSettings, land, live, state, text_event

pytestmark = pytest.mark.engine

LEASE = 1.0
LONGER = 1.6  # than a lease: a page of large documents on a slow store


@asynccontextmanager
async def _sweeping(app: App) -> AsyncIterator[None]:
    """Sweep all the time, as another worker does."""

    async def sweep() -> None:
        while True:
            await app.sweeper.sweep()
            await asyncio.sleep(0.1)

    task = asyncio.create_task(sweep())
    try:
        yield
    finally:
        task.cancel()


async def _lose_vectors(app: App, count: int) -> None:
    """Publish documents, then take their vectors away, as a server that lost what it had confirmed."""
    await land(
        app, *[text_event(app, f"d{n}", f"SHP-{100045 + n} left.", version=1) for n in range(count)]
    )
    await app.direct.drain("documents")
    await app.vectors.delete_stages(await _stages(app, count))
    await app.db.execute("UPDATE store_state SET incarnation = 'former' WHERE store = 'vectors'")


async def _stages(app: App, count: int) -> list[Any]:
    documents = [await live(app, f"d{n}") for n in range(count)]
    return [document["stage_id"] for document in documents if document]


async def test_a_repair_that_takes_longer_than_a_lease_is_published(
    make_settings: MakeSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_app(make_settings(lease_seconds=LEASE)) as app:
        await app.recovery.check_restarted_stores()
        await _lose_vectors(app, 3)
        upsert = app.vectors.upsert

        async def slow(*arguments: Any) -> None:
            await asyncio.sleep(LONGER)
            await upsert(*arguments)

        monkeypatch.setattr(app.vectors, "upsert", slow)
        async with _sweeping(app):
            [result] = await app.recovery.check_restarted_stores()
        assert (result.repaired, result.errors) == (3, [])
        assert len(await app.vectors.tally(await _stages(app, 3))) == 3
        assert await states(app.db, [app.vectors]) == {"vectors": "ready"}


async def test_a_store_is_not_trusted_after_a_repair_that_lost_its_lease(
    make_settings: MakeSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a worker that stood still for longer than its lease, say."""
    async with open_app(make_settings(lease_seconds=LEASE)) as app:
        await app.recovery.check_restarted_stores()
        await _lose_vectors(app, 3)
        upsert = app.vectors.upsert

        async def overtaken(*arguments: Any) -> None:
            await upsert(*arguments)
            await app.db.execute("UPDATE stages SET state = 'aborted' WHERE state = 'staging'")

        monkeypatch.setattr(app.vectors, "upsert", overtaken)
        [result] = await app.recovery.check_restarted_stores()
        assert result.repaired == 0 and "3 repaired documents" in result.errors[0]
        assert await states(app.db, [app.vectors]) == {"vectors": "recovering"}

        monkeypatch.setattr(app.vectors, "upsert", upsert)
        [again] = await app.recovery.check_restarted_stores()
        assert again.errors == [] and again.repaired == 3
        assert await states(app.db, [app.vectors]) == {"vectors": "ready"}


async def _parked_for_the_graph(app: App, monkeypatch: pytest.MonkeyPatch) -> LandResult:
    """Land an event and process it while the graph is away; return it, parked, with the graph back."""
    [landed] = await land(app, text_event(app, "a", "Shipment SHP-100045 left.", version=1))

    async def away(_: object) -> None:
        raise Unavailable("graph", "away")

    with monkeypatch.context() as patch:
        patch.setattr(app.graph, "upsert", away)
        await app.direct.drain("documents")
    assert await state(app, landed) == "parked"
    app.publication._resilient_stores["graph"].breaker._opened_at = None
    await app.db.execute("UPDATE store_state SET incarnation = 'former' WHERE store = 'vectors'")
    return landed


async def test_a_long_check_of_one_store_does_not_keep_what_waits_for_the_other(
    app: App, monkeypatch: pytest.MonkeyPatch
) -> None:
    landed = await _parked_for_the_graph(app, monkeypatch)
    may_go_on, check = asyncio.Event(), app.recovery.check

    async def long_check(name: str, **arguments: Any) -> Any:
        await may_go_on.wait()  # hours, where an emptied store is filled again
        return await check(name, **arguments)

    monkeypatch.setattr(app.recovery, "check", long_check)
    for _ in range(2):
        async with asyncio.timeout(20):
            await app.upkeep.sweep()
    assert await state(app, landed) != "parked"
    may_go_on.set()
    await app.upkeep.sweep()
    assert await states(app.db, [app.vectors]) == {"vectors": "ready"}


async def test_a_store_that_does_not_fit_does_not_end_the_sweeps(
    app: App, monkeypatch: pytest.MonkeyPatch
) -> None:
    landed = await _parked_for_the_graph(app, monkeypatch)

    async def does_not_fit() -> None:
        raise Misconfigured("vectors: the store holds 384 dimensions, the embedder makes 256")

    monkeypatch.setattr(app.vectors, "prepare", does_not_fit)
    await app.upkeep.sweep()
    assert await state(app, landed) != "parked"
    assert await states(app.db, [app.vectors]) == {"vectors": "recovering"}
