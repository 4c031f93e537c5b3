"""A clock that was ahead and was set back: what was stored meanwhile lies in the future, and holds no source."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta, tzinfo
from time import time
from types import SimpleNamespace
from typing import Any, cast
from uuid import uuid4

import pytest

from apex_memory.config import Settings
from apex_memory.errors import RetryLater
from apex_memory.fetching.windows import Readings
from apex_memory.inbox import Inbox, transitions
from apex_memory.mirror import queue as mirror_queue
from apex_memory.model import Event, micros, now
from apex_memory.rollout import builds, shadow_queue
from apex_memory.saga.collector import Collector
from apex_memory.saga.sweeper import Sweeper
from apex_memory.sources.hubspot.api import DailyLimit, HubSpotPull, wait_for_reset
from apex_memory.sources.hubspot.object_types import OBJECT_TYPES, ObjectType
from apex_memory.sources.hubspot.settings import HubSpotSettings
from apex_memory.sources.pages import PullContext
from apex_memory.sources.sonar.source import _State
from apex_memory.sources.turvo.source import _ListScan
from apex_memory.steps.rhythm import Rhythm
from apex_memory.stores.lease import acquire
from apex_memory.stores.partitions import create_partition
from apex_memory.stores.postgres import Postgres
from tests.unit.test_front_poll import front

AHEAD = timedelta(days=365)


def in_time(**distance: float) -> datetime:
    return now() + timedelta(**distance)


@pytest.mark.parametrize(
    "listed, rests", [({"seconds": -10}, True), ({"hours": 1}, False), ({"hours": -1}, False)]
)
def test_turvo_lists_again(listed: dict[str, float], rests: bool) -> None:
    context = PullContext(client=cast(Any, None), cursor={"listed": micros(in_time(**listed))})
    assert (_ListScan.started(context, pause=60) is None) is rests


def test_hubspot_calls_again() -> None:
    with pytest.raises(DailyLimit):
        wait_for_reset({"limit": {"until": in_time(hours=20).isoformat()}})
    wait_for_reset({"limit": {"until": (now() + AHEAD).isoformat()}})


class Bin:
    """HubSpot's recycling bin, which is empty. Counts the requests."""

    requests = 0

    async def archived(self, type: ObjectType, after: str) -> tuple[list[Any], None]:
        self.requests += 1
        return [], None


@pytest.mark.parametrize("swept, requests", [({"seconds": -10}, 0), ({"hours": 1}, 1)])
async def test_hubspot_lists_its_recycling_bin_again(
    swept: dict[str, float], requests: int
) -> None:
    position = {"contacts": {"swept": in_time(**swept).isoformat()}}
    bin = Bin()
    settings = HubSpotSettings(archived_seconds=3_600)
    pull = HubSpotPull(cast(Any, bin), settings, position, None)
    _ = [page async for page in pull.archived(OBJECT_TYPES["contacts"])]
    assert bin.requests == requests


async def test_sonar_calls_again() -> None:
    with pytest.raises(RetryLater):
        await _State.read({"until": micros(in_time(hours=1))}).wait()
    await _State.read({"until": micros(now() + AHEAD)}).wait()


@pytest.fixture
async def db(database_url: str) -> AsyncIterator[Postgres]:
    db = Postgres(database_url)
    await db.open()
    yield db
    await db.close()


@pytest.mark.parametrize("ago, due", [("0 seconds", False), ("1 day", True), ("-1 hour", True)])
async def test_a_pull_is_due_again_without_temporal(db: Postgres, ago: str, due: bool) -> None:
    await db.execute(
        f"INSERT INTO sources (name, pulled_at) VALUES ('frontapp', now() - interval '{ago}')"
    )

    async def may_pull(source: str) -> bool:
        return True

    fetcher = SimpleNamespace(states=SimpleNamespace(may_pull=may_pull))
    rhythm = Rhythm(db, cast(Any, fetcher), cast(Any, None), {}, cast(Any, None), wake=print)
    assert await rhythm._is_due(front()) is due


async def test_a_lease_of_a_process_that_died_is_free(db: Postgres) -> None:
    first, second = uuid4(), uuid4()
    assert await acquire(db, "duty", first, 10)
    assert not await acquire(db, "duty", second, 10)
    await db.execute("UPDATE leases SET until = until + interval '1 hour'")
    assert await acquire(db, "duty", second, 10)
    assert not await acquire(db, "duty", first, 10)


async def landed(db: Postgres) -> Event:
    event = Event(
        source="frontapp", event_id="e", doc_key="d", version=1, occurred_at=now(), payload=b"x"
    )
    await Inbox(db).land([event])
    return event


@pytest.mark.parametrize("ahead, corrected", [("10 seconds", 0), ("1 day", 1)])
async def test_waiting_events_and_copies_are_ready(
    db: Postgres, ahead: str, corrected: int
) -> None:
    event = await landed(db)
    await db.execute(f"UPDATE inbox SET next_at = now() + interval '{ahead}'")
    await db.execute(
        f"""INSERT INTO shadows (subject, inbox_id, source, next_at)
            VALUES ('source:frontapp', %s, 'frontapp', now() + interval '{ahead}')""",
        (event.id,),
    )
    async with db.connection() as connection:
        assert await transitions.correct_deadlines(connection, lease=60) == corrected
        assert await shadow_queue.correct_deadlines(connection, furthest=120) == corrected


async def test_a_window_is_due(db: Postgres) -> None:
    await db.execute(
        """INSERT INTO windows (source, series, start, due_at) VALUES
             ('toy', 'open', now(), now() + interval '1 hour'), ('toy', 'ahead', now(), now() + interval '3 days')"""
    )
    assert await Readings(db, keep=timedelta(days=1)).correct_deadlines() == 1
    [row] = await db.fetch("SELECT series FROM windows WHERE due_at <= now()")
    assert row["series"] == "ahead"


async def test_a_process_whose_clock_is_far_ahead_removes_nothing(
    db: Postgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    event = await landed(db)
    await db.execute("UPDATE inbox SET state = 'done'")
    await db.execute(
        """INSERT INTO manifests (id, inbox_id, doc_id, source, doc_key, pipeline, kind, title, text, occurred_at, metadata,
                                  deleted, chunks, vectors, assertions, entities, hash)
           VALUES (gen_random_uuid(), %s, %s, 'frontapp', 'd', 'p', 'email', '', '', now(), '{}', false, '', '', '', '{}', '')""",
        (event.id, event.doc_id),
    )
    day = now().date() - timedelta(days=3)
    async with db.connection() as connection:
        await create_partition(connection, day)

    class Ahead(datetime):
        @classmethod
        def now(cls, tz: tzinfo | None = None) -> Ahead:
            return cls.fromtimestamp(time() + 10 * AHEAD.total_seconds(), tz)

    monkeypatch.setattr("apex_memory.model.datetime", Ahead)
    assert now().year > datetime.now(UTC).year + 8
    nothing = cast(Any, None)
    await Collector(db, nothing, nothing, Settings())._drop_expired()
    assert await Readings(db, keep=timedelta(days=30)).forget() == []
    [left] = await db.fetch(
        "SELECT (SELECT count(*) FROM payloads) AS payloads, (SELECT count(*) FROM manifests) AS manifests"
    )
    assert left == {"payloads": 1, "manifests": 1}


async def test_deadlines_are_looked_at_once_a_minute(
    db: Postgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The look reads every open event, and a sweep comes every few seconds."""
    looks = 0

    async def look(*_: object, **__: object) -> int:
        nonlocal looks
        looks += 1
        return 0

    monkeypatch.setattr(transitions, "correct_deadlines", look)
    nothing = cast(Any, None)
    sweeper = Sweeper(db, nothing, nothing, [], {}, lease=60)
    for _ in range(3):
        await sweeper.sweep()
    assert looks == 1
    monkeypatch.setattr("apex_memory.saga.sweeper.DEADLINES_SECONDS", 0)
    await sweeper.sweep()
    assert looks == 2


@pytest.mark.parametrize("failed, due", [("0 seconds", False), ("1 hour", True)])
async def test_the_target_of_a_mirror_is_tried(db: Postgres, failed: str, due: bool) -> None:
    await db.execute("INSERT INTO mirror_copies (source, body, bytes) VALUES ('frontapp', '', 0)")
    await db.execute(
        f"""INSERT INTO mirrors (source, error_at, next_at)
            VALUES ('frontapp', now() + interval '{failed}', now() + interval '61 minutes')"""
    )
    assert bool(await mirror_queue.due(db, ["frontapp"])) is due


async def test_a_build_whose_workers_died_is_absent(db: Postgres) -> None:
    await builds.register(db, "a", decides=True)
    assert await builds.living(db) == ["a"] and await builds.absence(db) is None
    await db.execute("UPDATE builds SET seen_at = seen_at + interval '1 hour'")
    assert await builds.living(db) == []
    absence = await builds.absence(db)
    assert absence and absence.build == "a"
