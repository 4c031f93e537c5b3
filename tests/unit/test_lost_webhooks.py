"""Webhooks that were lost: the pull that brings their events counts them, and operators see it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import asdict
from datetime import timedelta
from typing import Any

import pytest
from prometheus_client import REGISTRY
from structlog.testing import capture_logs

from apex_memory.cli import doctor
from apex_memory.fetching.source_states import ListedSource, SourceStates
from apex_memory.inbox import Inbox
from apex_memory.model import event_uuid, now
from apex_memory.stores.postgres import Postgres
from tests.unit.test_front_poll import START, front
from tests.unit.test_front_poll import record_of as listed_event
from tests.unit.test_reused_ids import Company


@pytest.fixture
async def company(database_url: str) -> AsyncIterator[Company]:
    """An installation whose source was complete two minutes ago."""
    db = Postgres(database_url)
    await db.open()
    company = Company(db)
    await company.pull(listed_event("evt_old", seconds_ago(3_600)))
    await db.execute("UPDATE sources SET pulled_at = now() - interval '2 minutes'")
    yield company
    await db.close()


def seconds_ago(seconds: float) -> float:
    """Return when an event happened, as the script's list has it."""
    return (now() - timedelta(seconds=seconds)).timestamp() - START


def counted() -> float:
    return REGISTRY.get_sample_value("apex_webhooks_healed_total", {"source": "frontapp"}) or 0.0


async def row(company: Company) -> ListedSource:
    [row] = await SourceStates(company.db, {"frontapp": front()}).listed()
    return row


async def test_an_event_whose_webhook_never_came_is_counted_named_and_shown(
    company: Company,
) -> None:
    assert (await row(company)).healed == 0, "the first pull fetches the past"
    before = counted()
    with capture_logs() as lines:
        assert await company.pull(listed_event("evt_1", seconds_ago(60))) == 1
    assert counted() == before + 1
    [line] = [line for line in lines if line["event"].startswith("webhooks were lost")]
    assert line["events"] == [str(event_uuid("frontapp", "evt_1"))]
    listed = await row(company)
    assert listed.healed == 1 and listed.healed_at
    assert now() - listed.healed_at < timedelta(minutes=1)
    shown = {**asdict(listed), "healed_at": listed.healed_at.isoformat()}
    [finding] = [f for f in doctor._sources([shown]) if f.what.endswith("webhooks")]
    assert finding.state == "note" and "1 in all" in finding.detail and finding.remedy
    later = {**shown, "healed_at": (now() - timedelta(hours=2)).isoformat()}
    assert not [f for f in doctor._sources([later]) if f.what.endswith("webhooks")]


async def test_what_its_webhook_brought_or_may_still_bring_is_not_lost(company: Company) -> None:
    record = listed_event("evt_1", seconds_ago(60))
    [event] = (await pulled_events(company, record))[-1:]
    await Inbox(company.db).land([event])
    before = counted()
    await company.pull(record, listed_event("evt_2", seconds_ago(3)))
    assert counted() == before
    assert (await row(company)).healed == 0


async def pulled_events(company: Company, record: dict[str, Any]) -> list[Any]:
    """Return the event of a record as a pull reads it, which is the event that its webhook has."""
    await company.pull(record)
    event = await Inbox(company.db).event(event_uuid("frontapp", record["id"]))
    await company.db.execute("DELETE FROM inbox WHERE id = %s", (event.id,))
    await company.db.execute("DELETE FROM cursors")
    await company.db.execute(
        "UPDATE sources SET healed = 0, pulled_at = now() - interval '2 minutes'"
    )
    return [event]


FACTS = {"compared": 40, "mismatched": 0, "failed": 0, "by_field": {}}


@pytest.mark.parametrize(
    "facts, state",
    [
        (FACTS, "good"),
        (FACTS | {"mismatched": 3, "by_field": {"text": 3}}, "note"),
        (FACTS | {"failed": 1}, "note"),
    ],
)
def test_doctor_says_what_a_shadow_found(facts: dict[str, Any], state: str) -> None:
    [finding] = doctor._shadows([("frontapp", facts)])
    assert finding.state == state and "40 copies" in finding.detail
    assert ("apex rollout report frontapp" in finding.remedy) == (state == "note")
