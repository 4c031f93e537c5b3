"""Landing for many requests: shared commits, bounds, and what one bad event means for the others."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence

import pytest

from apex_memory.errors import Rejected, RetryLater, Unavailable
from apex_memory.gateway import group_commit as landing
from apex_memory.gateway.group_commit import GroupCommitter
from apex_memory.inbox import Inbox
from apex_memory.model import Event, LandResult, now
from apex_memory.stores.postgres import Postgres
from tests.waiting import until


@pytest.fixture
async def db(database_url: str) -> AsyncIterator[Postgres]:
    db = Postgres(database_url)
    await db.open()
    yield db
    await db.close()


def event(n: int, *, text: str = "x") -> Event:
    return Event(
        source="toy",
        event_id=f"e{n}",
        doc_key=f"{text}{n}",
        version=n,
        occurred_at=now(),
        payload=text.encode(),
    )


class Gated:
    """Lands for real, and notes how many events each commit had; the first waits for the gate."""

    def __init__(self, db: Postgres) -> None:
        self.commits: list[int] = []
        self.gate = asyncio.Event()
        self._inbox = Inbox(db)

    async def land(self, events: Sequence[Event]) -> list[LandResult]:
        self.commits.append(len(events))
        await self.gate.wait()
        return await self._inbox.land(events)


async def waiting(landings: GroupCommitter, count: int) -> None:
    await until(lambda: landings._inside >= count, f"{count} requests are inside", every=0)
    await asyncio.sleep(0)  # one more turn of the loop, in which the last one begins to wait


async def test_what_comes_during_a_commit_shares_the_next(db: Postgres) -> None:
    gated = Gated(db)
    landings = GroupCommitter(gated.land, at_once=1)
    first = asyncio.create_task(landings.land([event(0)]))
    await waiting(landings, 1)
    others = [asyncio.create_task(landings.land([event(n), event(n + 1)])) for n in range(1, 20)]
    await waiting(landings, 20)
    gated.gate.set()
    answers = [await first, *await asyncio.gather(*others)]
    assert gated.commits == [1, 38]
    assert [[item.event_id for item in answer] for answer in answers[1:]] == [
        [f"e{n}", f"e{n + 1}"] for n in range(1, 20)
    ]
    fresh = [item.event_id for answer in answers for item in answer if not item.duplicate]
    assert sorted(fresh) == sorted(f"e{n}" for n in range(21)), "each event is new exactly once"


async def test_one_refused_event_spoils_no_other_request(db: Postgres) -> None:
    gated = Gated(db)
    landings = GroupCommitter(gated.land, at_once=1)
    first = asyncio.create_task(landings.land([event(0)]))
    await waiting(landings, 1)
    good = asyncio.create_task(landings.land([event(1)]))
    bad = asyncio.create_task(landings.land([event(2, text="NUL\x00")]))
    await waiting(landings, 3)
    gated.gate.set()
    assert [(await request)[0].duplicate for request in (first, good)] == [False, False]
    with pytest.raises(Rejected):
        await bad


async def test_who_gives_up_takes_no_commit_along(db: Postgres) -> None:
    gated = Gated(db)
    landings = GroupCommitter(gated.land)
    first = asyncio.create_task(landings.land([event(1)]))
    two = asyncio.create_task(landings.land([event(2)]))
    await waiting(landings, 2)
    first.cancel()
    gated.gate.set()
    assert (await two)[0].event_id == "e2"
    assert [item.duplicate for item in await landings.land([event(1)])] == [True]


@pytest.mark.alone(reason="lands within 50 ms")
async def test_requests_inside_are_bounded_in_number_and_time(db: Postgres) -> None:
    gated = Gated(db)
    landings = GroupCommitter(gated.land, queued=1, seconds=0.05)
    first = asyncio.create_task(landings.land([event(1)]))
    await waiting(landings, 1)
    with pytest.raises(RetryLater):
        await landings.land([event(2)])
    with pytest.raises(RetryLater):
        await first
    gated.gate.set()

    async def lands() -> list[LandResult]:
        try:
            return await landings.land([event(3)])
        except RetryLater:  # a commit may take more than 50 ms
            return []

    assert await until(lands, "the next request lands")
    assert await landings.land([]) == []


async def test_commits_are_bounded_in_size(db: Postgres, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(landing, "MOST_EVENTS", 3)
    gated = Gated(db)
    landings = GroupCommitter(gated.land, at_once=1)
    tasks = [asyncio.create_task(landings.land([event(2 * n), event(2 * n + 1)])) for n in range(4)]
    await waiting(landings, 4)
    gated.gate.set()
    await asyncio.gather(*tasks)
    assert gated.commits == [2, 2, 2, 2]


async def test_while_postgresql_is_away_one_request_tries_for_all(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    moments = []

    async def land(events: Sequence[Event]) -> list[LandResult]:
        moments.append(events)
        raise Unavailable("documents", "gone")

    landings = GroupCommitter(land)
    for _ in range(5):
        with pytest.raises(Unavailable):
            await landings.land([event(1)])
    assert len(moments) == 1
    monkeypatch.setattr(landing, "monotonic", lambda: landings._away_until + 1)
    with pytest.raises(Unavailable):
        await landings.land([event(1)])
    assert len(moments) == 2
