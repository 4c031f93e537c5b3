"""Roles of builds in PostgreSQL, and what a claim makes of them."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from functools import partial

import pytest
import pytest_asyncio
from structlog.testing import capture_logs

from apex_memory import tasks
from apex_memory.errors import Conflict, NotFound
from apex_memory.inbox import Consumer, Inbox
from apex_memory.inbox.routing import bucket_of
from apex_memory.model import Event
from apex_memory.rollout import build_watch, builds
from apex_memory.rollout.build_watch import BuildWatch
from apex_memory.rollout.builds import Routing
from apex_memory.stores.postgres import Postgres
from apex_memory.tasks import Background
from tests.waiting import until

EVENTS = 200


@pytest_asyncio.fixture
async def db(database_url: str) -> AsyncIterator[Postgres]:
    db = Postgres(database_url)
    await db.open()
    yield db
    await db.close()


async def registered(db: Postgres, *names: str) -> None:
    for name in names:
        await builds.register(db, name, decides=True)
        await builds.record_check(db, name, passed=True, detail="replayed")


async def absent(db: Postgres, build: str) -> None:
    await db.execute(
        "UPDATE builds SET seen_at = clock_timestamp() - interval '31 s' WHERE build = %s", (build,)
    )


async def land(db: Postgres) -> None:
    await Inbox(db).land(
        [
            Event(
                source="documents",
                event_id=f"e{n}",
                doc_key=f"k{n}",
                version=1,
                occurred_at=datetime(2026, 3, 2, tzinfo=UTC),
                payload=b"{}",
            )
            for n in range(EVENTS)
        ]
    )


async def claimed(db: Postgres, build: str) -> set[int]:
    """Claim all that a build may claim; return the buckets of the documents."""
    batch = uuid.uuid4()
    await Inbox(db).claim(
        "documents", batch=batch, limit=EVENTS, lease=60, consumer=Consumer("temporal", build)
    )
    rows = await db.fetch("SELECT doc_id FROM inbox WHERE batch = %s", (batch,))
    return {bucket_of(row["doc_id"]) for row in rows}


async def test_the_first_build_is_current_and_later_ones_wait(db: Postgres) -> None:
    roles = await asyncio.gather(
        *(builds.register(db, name, decides=True) for name in ("a", "b", "c"))
    )
    assert sorted(roles) == ["current", "waiting", "waiting"]
    current = (await builds.routing(db)).current
    for name in ("a", "b", "c"):
        await builds.register(db, name, decides=True)
    assert (await builds.routing(db)).current == current


async def test_nobody_is_current_while_somebody_else_owns_the_routing(db: Postgres) -> None:
    assert await builds.register(db, "a", decides=False) == "waiting"
    assert await builds.routing(db) == Routing()


async def test_a_build_that_is_unchecked_absent_or_unknown_may_not_ramp(db: Postgres) -> None:
    await registered(db, "a")
    await builds.register(db, "b", decides=True)
    with pytest.raises(NotFound):
        await builds.ramp(db, "x", 10, actor="ann")
    with pytest.raises(Conflict, match="has not been checked"):
        await builds.ramp(db, "b", 10, actor="ann")
    await builds.record_check(db, "b", passed=False, detail="Drain x: nondeterminism")
    with pytest.raises(Conflict, match=r"did not pass.*nondeterminism"):
        await builds.promote(db, "b", actor="ann")
    await builds.record_check(db, "b", passed=True, detail="")
    await absent(db, "b")
    with pytest.raises(Conflict, match="has no worker"):
        await builds.ramp(db, "b", 10, actor="ann")
    await builds.register(db, "b", decides=True)
    with pytest.raises(Conflict, match="is the current build"):
        await builds.ramp(db, "a", 10, actor="ann")
    change = await builds.ramp(db, "b", 10, actor="ann", reason="try")
    assert change.routing == Routing("a", "", "b", 10)
    rows = await db.fetch("SELECT actor, action, subject, detail FROM audit ORDER BY id")
    assert rows[-1]["actor"] == "ann" and rows[-1]["action"] == "build ramped"
    assert rows[-1]["detail"] == {"share": 10, "reason": "try"}


async def test_another_candidate_has_to_wait(db: Postgres) -> None:
    await registered(db, "a", "b", "c")
    await builds.ramp(db, "b", 10, actor="ann")
    with pytest.raises(Conflict, match="b is the candidate"):
        await builds.ramp(db, "c", 10, actor="ann")


async def test_promote_and_rollback_move_the_roles(db: Postgres) -> None:
    await registered(db, "a", "b")
    await builds.ramp(db, "b", 50, actor="ann")
    assert (await builds.promote(db, "b", actor="ann")).routing == Routing("b", "a")
    assert (await builds.rollback(db, actor="ann")).routing == Routing("a")
    with pytest.raises(Conflict, match="no candidate"):
        await builds.rollback(db, actor="ann")


async def test_a_rollback_to_a_build_without_a_worker_is_refused(db: Postgres) -> None:
    await registered(db, "a", "b")
    await builds.promote(db, "b", actor="ann")
    await absent(db, "a")
    with pytest.raises(Conflict, match="a has no worker"):
        await builds.rollback(db, actor="ann")
    assert (await builds.routing(db)).current == "b"


async def test_whoever_is_alone_promotes_once_and_leaves_a_rollout_alone(db: Postgres) -> None:
    assert (await builds.promote(db, "a", actor="apex up", alone=True)).routing == Routing("a")
    await registered(db, "b")
    await builds.ramp(db, "b", 10, actor="ann")
    again = await builds.promote(db, "a", actor="apex up", alone=True)
    assert not again.changed and again.routing == Routing("a", "", "b", 10)


async def test_the_current_build_cannot_be_retired(db: Postgres) -> None:
    await registered(db, "a", "b")
    with pytest.raises(Conflict, match="processes documents"):
        await builds.retire(db, "a", actor="ann")
    await builds.ramp(db, "b", 10, actor="ann")
    with pytest.raises(Conflict, match="processes documents"):
        await builds.retire(db, "b", actor="ann")
    await builds.rollback(db, actor="ann")
    await builds.retire(db, "b", actor="ann")
    assert await builds.register(db, "b", decides=True) == "retired", "a restart changes nothing"


@pytest.mark.parametrize("share", [1, 10, 50, 99, 100])
async def test_each_build_claims_its_own_buckets(db: Postgres, share: int) -> None:
    await registered(db, "a", "b", "c")
    await builds.ramp(db, "b", share, actor="ann")
    await land(db)
    assert await claimed(db, "c") == set(), "a build that waits claims nothing"
    of_new, of_old = await claimed(db, "b"), await claimed(db, "a")
    assert all(bucket < share for bucket in of_new)
    assert all(bucket >= share for bucket in of_old)
    left = await db.fetch_one("SELECT count(*) AS n FROM inbox WHERE batch IS NULL")
    assert left and left["n"] == 0


async def test_an_old_build_claims_nothing_after_a_promotion(db: Postgres) -> None:
    await registered(db, "a", "b")
    await land(db)
    await builds.promote(db, "b", actor="ann")
    assert await claimed(db, "a") == set()
    assert len(await claimed(db, "b")) > 50


async def test_documents_of_a_candidate_without_a_worker_are_not_left_lying(db: Postgres) -> None:
    await registered(db, "a", "b")
    await builds.ramp(db, "b", 50, actor="ann")
    await land(db)
    await absent(db, "b")
    assert any(bucket < 50 for bucket in await claimed(db, "a"))


async def test_a_share_that_was_written_for_an_unknown_build_holds_nothing(db: Postgres) -> None:
    await registered(db, "a")
    await db.execute("INSERT INTO rollouts (subject, share, build) VALUES ('build', 50, 'typo')")
    await land(db)
    assert any(bucket < 50 for bucket in await claimed(db, "a"))


async def test_a_rollback_takes_the_unfinished_events_back(db: Postgres) -> None:
    await registered(db, "a", "b")
    await builds.ramp(db, "b", 100, actor="ann")
    await land(db)
    held = await claimed(db, "b")
    assert held and await claimed(db, "a") == set()
    change = await builds.rollback(db, actor="ann", reason="wrong titles")
    assert change.taken_back == EVENTS
    assert await claimed(db, "a") == held


async def test_without_builds_every_build_claims(db: Postgres) -> None:
    await land(db)
    assert len(await claimed(db, "any")) > 50


async def test_a_routing_that_is_followed_is_written_once(db: Postgres) -> None:
    await builds.register(db, "a", decides=False)
    assert await builds.follow(db, "a", "", 0)
    assert not await builds.follow(db, "a", "", 0)
    await builds.register(db, "b", decides=False)
    assert await builds.follow(db, "a", "b", 10)
    assert await builds.routing(db) == Routing("a", "", "b", 10)
    assert await builds.follow(db, "b", "", 0)
    assert await builds.routing(db) == Routing("b", "a")


async def test_a_current_build_without_workers_is_named_with_the_command_that_ends_it(
    db: Postgres,
) -> None:
    assert await builds.absence(db) is None, "no worker has run here yet"
    await registered(db, "old", "new", "gone")
    assert await builds.absence(db) is None
    await absent(db, "gone")
    await absent(db, "old")
    absence = await builds.absence(db)
    assert absence and (absence.build, absence.living) == ("old", ["new"])
    assert absence.seen_seconds and 31 <= absence.seen_seconds < 60
    assert "old" in absence.detail and "31 s" in absence.detail and "new" in absence.detail
    assert absence.remedy.startswith("`apex builds promote new`")
    await builds.promote(db, "new", actor="test")
    assert await builds.absence(db) is None, "the remedy ended it"


async def test_without_any_worker_the_remedy_is_to_start_one(db: Postgres) -> None:
    await registered(db, "only")
    await db.execute("UPDATE builds SET seen_at = '-infinity'")
    absence = await builds.absence(db)
    assert absence and absence.seen_seconds is None and absence.living == []
    assert "none was ever seen" in absence.detail and "start a worker of only" in absence.remedy
    await builds.promote(db, "only", actor="apex up", alone=True)
    assert await builds.absence(db) is None, "a supervisor that starts its worker is no alarm"


async def test_the_record_that_a_worker_runs_goes_on_after_an_unforeseen_failure(
    db: Postgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tasks, "PAUSE_SECONDS", 0.05)
    monkeypatch.setattr(build_watch, "SEEN_SECONDS", 0.02)
    monkeypatch.setattr(build_watch, "WATCH_SECONDS", 0.02)

    async def is_recorded() -> bool:
        row = await db.fetch_one(
            "SELECT FROM builds WHERE build = 'a' AND seen_at > now() - interval '1 s'"
        )
        return row is not None

    with capture_logs() as lines:
        async with Background() as background:
            work = partial(BuildWatch(db, "a").work, decides=True)
            background.run(work, name="record of the build")
            await until(is_recorded)
            await db.execute("ALTER TABLE builds RENAME TO builds_away")  # a mistake, undone
            await until(lambda: any(line["log_level"] == "error" for line in lines))
            await db.execute("ALTER TABLE builds_away RENAME TO builds")
            await absent(db, "a")
            await until(is_recorded, "the worker is recorded again")
    assert not background.failed
