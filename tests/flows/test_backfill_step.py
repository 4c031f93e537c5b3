"""The step of a backfill: it ends a backfill only for who ordered that, or for what cannot succeed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
import pytest_asyncio
from temporalio.activity import ActivityCancellationDetails
from temporalio.testing import ActivityEnvironment

from apex_memory.app import App, open_app
from apex_memory.errors import ApexError, Conflict, Rejected, RetryLater, Unavailable
from apex_memory.fetching.backfills import RecordedBackfill
from apex_memory.flows.fetch.activities import PullActivities
from apex_memory.flows.fetch.messages import BackfillInput
from tests.e2e.conftest import MakeSettings
from tests.flows.toys import TOYS
from tests.waiting import until

pytestmark = pytest.mark.engine

SOURCE = "polled"


class _Wakes:
    """The drains of a Temporal that takes wakes, or fails with `error`."""

    error: ApexError | None = None

    async def wake(self, source: str, *, paused: bool = False) -> None:
        assert source == SOURCE
        if self.error:
            raise self.error


@pytest_asyncio.fixture
async def app(make_settings: MakeSettings, tmp_path: Path) -> AsyncIterator[App]:
    (tmp_path / "code").mkdir()
    (tmp_path / "toys").mkdir()
    (tmp_path / "code" / "toys.py").write_text(TOYS)
    (tmp_path / "toys" / "lines").write_text("".join(f"line {n}\n" for n in range(40)))
    settings = make_settings(
        sources={SOURCE: {"folder": str(tmp_path / "toys")}}, source_path=tmp_path / "code"
    )
    async with open_app(settings) as app:
        yield app


async def _ordered(app: App) -> RecordedBackfill:
    since = datetime.now(UTC) - timedelta(hours=1)
    id = await app.backfills.create(SOURCE, "backfill", since, datetime.now(UTC), actor="ann")
    return await app.backfills.get(id)


def _step(app: App, wakes: _Wakes) -> PullActivities:
    drains: Any = wakes
    return PullActivities(app, drains)


async def _carry_out(
    app: App, id: UUID, wakes: _Wakes, *, environment: ActivityEnvironment | None = None
) -> None:
    environment = environment or ActivityEnvironment()
    await environment.run(_step(app, wakes).backfill, BackfillInput(SOURCE, str(id)))


@pytest.mark.parametrize(
    ("details", "state"),
    [
        (ActivityCancellationDetails(cancel_requested=True), "cancelled"),
        (ActivityCancellationDetails(timed_out=True), "running"),
        (ActivityCancellationDetails(not_found=True), "running"),
        (ActivityCancellationDetails(worker_shutdown=True), "running"),
    ],
    ids=["by somebody", "late heartbeat", "run is gone", "worker stops"],
)
async def test_only_who_cancels_it_ends_it(
    app: App, details: ActivityCancellationDetails, state: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    backfill = await _ordered(app)
    progress = app.backfills.progress

    async def slow(id: UUID, **counts: Any) -> bool:
        recorded = await progress(id, **counts)
        await asyncio.sleep(0.2)
        return recorded

    monkeypatch.setattr(app.backfills, "progress", slow)
    environment = ActivityEnvironment()
    step = asyncio.create_task(_carry_out(app, backfill.id, _Wakes(), environment=environment))

    async def has_begun() -> bool:
        return bool((await app.backfills.get(backfill.id)).seen)

    await until(has_begun, "a page landed", seconds=20)
    environment.cancel(details)
    with pytest.raises(asyncio.CancelledError):
        await step
    assert (await app.backfills.get(backfill.id)).state == state


@pytest.mark.parametrize(
    "error",
    [
        Unavailable("temporal", "wake failed (UNAVAILABLE)"),
        RetryLater("the vendor is busy"),
        Conflict("the cursor was moved"),
    ],
    ids=["temporal is away", "vendor is busy", "an earlier attempt goes on"],
)
async def test_what_passes_leaves_it_running_for_the_next_attempt(
    app: App, error: ApexError
) -> None:
    backfill, wakes = await _ordered(app), _Wakes()
    wakes.error = error
    with pytest.raises((Unavailable, RetryLater)):
        await _carry_out(app, backfill.id, wakes)
    assert (await app.backfills.get(backfill.id)).state == "running"

    wakes.error = None
    await _carry_out(app, backfill.id, wakes)
    ended = await app.backfills.get(backfill.id)
    assert (ended.state, ended.error) == ("done", None)
    [row] = await app.db.fetch(
        "SELECT count(DISTINCT doc_id) AS documents FROM inbox WHERE source = %s", (SOURCE,)
    )
    assert row["documents"] == 40


async def test_what_cannot_succeed_ends_it_and_says_why(app: App) -> None:
    backfill, wakes = await _ordered(app), _Wakes()
    wakes.error = Rejected("the vendor knows no such range")
    await _carry_out(app, backfill.id, wakes)
    ended = await app.backfills.get(backfill.id)
    assert (ended.state, ended.error) == ("failed", "the vendor knows no such range")
