"""Two processes that land the same new events at the same time."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from datetime import UTC, datetime

import pytest

from apex_memory.errors import Deadlock, RetryLater
from apex_memory.gateway.group_commit import GroupCommitter
from apex_memory.inbox import Inbox
from apex_memory.model import Event, LandResult
from apex_memory.stores.postgres import Postgres

pytestmark = pytest.mark.engine


def _events(turn: int) -> list[Event]:
    return [
        Event(
            source="documents",
            event_id=f"{turn}:{n}",
            doc_key=f"{turn}:{n}",
            version=1,
            occurred_at=datetime(2026, 3, 2, tzinfo=UTC),
            payload=b"{}",
        )
        for n in range(200)
    ]


async def test_a_request_lands_beside_a_pull_that_brings_the_same_events_in_another_order(
    database_url: str,
) -> None:
    """One of them may be the victim of a deadlock. A pull repeats its page; a vendor would have to repeat its webhook."""
    of_gateway, of_worker = Postgres(database_url), Postgres(database_url)
    await of_gateway.open()
    await of_worker.open()
    try:
        commits = GroupCommitter(Inbox(of_gateway).land)
        for turn in range(25):
            events = _events(turn)
            landed, pulled = await asyncio.gather(
                commits.land(events), Inbox(of_worker).land(events[::-1]), return_exceptions=True
            )
            assert isinstance(landed, list) and len(landed) == len(events)
            assert isinstance(pulled, (list, RetryLater))
        [row] = await of_gateway.fetch("SELECT count(*) AS events FROM inbox")
        assert row["events"] == 25 * 200
    finally:
        await of_gateway.close()
        await of_worker.close()


async def test_a_request_that_is_the_victim_again_and_again_lands(database_url: str) -> None:
    victim, seen = _events(0), 0

    async def land(events: Sequence[Event]) -> list[LandResult]:
        nonlocal seen
        seen += 1
        if seen <= 4:
            raise Deadlock("documents: DeadlockDetected", after=0.01)
        return await Inbox(db).land(events)

    db = Postgres(database_url)
    await db.open()
    try:
        commits = GroupCommitter(land)
        assert len(await commits.land(victim)) == len(victim)
        seen = 0
        assert len(await commits.land(victim, alone=land)) == len(victim)

        async def always(_: Sequence[Event]) -> list[LandResult]:
            raise Deadlock("documents: DeadlockDetected", after=0.01)

        with pytest.raises(RetryLater, match="no commit within"):
            await GroupCommitter(always, seconds=0.2).land(victim)
    finally:
        await db.close()


async def test_events_are_processed_in_the_order_in_which_they_landed(database_url: str) -> None:
    db = Postgres(database_url)
    await db.open()
    try:
        events = _events(0)
        await Inbox(db).land([*events, events[3]])
        rows = await db.fetch("SELECT event_id FROM inbox ORDER BY seq")
        assert [row["event_id"] for row in rows] == [event.event_id for event in events]
    finally:
        await db.close()
