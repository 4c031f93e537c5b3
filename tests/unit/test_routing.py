"""Buckets: stable, even, nested by share, and the same in Python and in SQL."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator
from uuid import NAMESPACE_URL, UUID, uuid4, uuid5

import pytest

from apex_memory.inbox import Consumer, Inbox
from apex_memory.inbox.routing import BUCKET_SQL, bucket_of
from apex_memory.model import Event, now
from apex_memory.rollout.shares import Shares
from apex_memory.stores.postgres import Postgres

DOCUMENTS = [uuid5(NAMESPACE_URL, f"document {n}") for n in range(20_000)]


@pytest.fixture
async def db(database_url: str) -> AsyncIterator[Postgres]:
    db = Postgres(database_url)
    await db.open()
    yield db
    await db.close()


def test_a_share_takes_about_that_share_of_the_documents() -> None:
    counts = Counter(map(bucket_of, DOCUMENTS))
    assert set(counts) == set(range(100))
    # 200 expected in each bucket; the standard deviation is 14.
    assert all(120 < count < 280 for count in counts.values())
    tenth = sum(count for bucket, count in counts.items() if bucket < 10)
    assert 1_850 < tenth < 2_150


def test_the_bucket_of_a_document_never_changes() -> None:
    assert bucket_of(UUID("00000000-0000-5000-8000-00000fffffff")) == 55
    assert bucket_of(UUID("11111111-1111-5111-8111-11111000002a")) == 42


async def test_sql_gives_the_bucket_that_python_gives(db: Postgres) -> None:
    rows = await db.fetch(
        f"SELECT doc_id, {BUCKET_SQL} AS bucket FROM unnest(%s::uuid[]) AS t (doc_id)",
        (DOCUMENTS[:2_000],),
    )
    assert {row["doc_id"]: row["bucket"] for row in rows} == {
        id: bucket_of(id) for id in DOCUMENTS[:2_000]
    }


async def land(db: Postgres, source: str = "toy", count: int = 300) -> dict[UUID, int]:
    """Land an event for each of `count` documents; return the bucket by event id."""
    events = [
        Event(
            source=source,
            event_id=f"e{n}",
            doc_key=f"d{n}",
            version=1,
            occurred_at=now(),
            payload=b"{}",
        )
        for n in range(count)
    ]
    await Inbox(db).land(events)
    return {event.id: bucket_of(event.doc_id) for event in events}


async def claimed(db: Postgres, consumer: Consumer, source: str = "toy") -> set[UUID]:
    """Claim all that is ready for the consumer; return the ids of the events."""
    ids: set[UUID] = set()
    while True:
        claim = await Inbox(db).claim(source, batch=uuid4(), limit=50, lease=30, consumer=consumer)
        if not claim.events:
            return ids
        ids |= {event.id for event in claim.events}


async def stamps(db: Postgres) -> dict[UUID, tuple[str, str]]:
    """Return path and build by event id."""
    rows = await db.fetch("SELECT id, path, build FROM inbox")
    return {row["id"]: (row["path"], row["build"]) for row in rows}


async def set_build_share(db: Postgres, build: str, share: int) -> None:
    await db.execute(
        "INSERT INTO rollouts (subject, share, build) VALUES ('build', %s, %s)", (share, build)
    )


async def test_without_a_row_temporal_processes_everything(db: Postgres) -> None:
    buckets = await land(db)
    assert await claimed(db, Consumer("direct", "b1")) == set()
    assert await claimed(db, Consumer("temporal", "b1")) == set(buckets)
    assert set((await stamps(db)).values()) == {("temporal", "b1")}


@pytest.mark.parametrize("share", [0, 1, 10, 50, 99, 100])
async def test_a_share_is_exact_by_bucket(db: Postgres, share: int) -> None:
    buckets = await land(db)
    await Shares(db).set("source:toy", share, actor="test")
    await Shares(db).set("source:other", 100 - share, actor="test")  # of another source
    by_temporal = await claimed(db, Consumer("temporal", "b1"))
    by_direct = await claimed(db, Consumer("direct", "b1"))
    assert by_temporal == {id for id, bucket in buckets.items() if bucket < share}
    assert by_direct == set(buckets) - by_temporal
    expected = {id: "temporal" if bucket < share else "direct" for id, bucket in buckets.items()}
    assert {id: path for id, (path, _) in (await stamps(db)).items()} == expected


async def test_a_changed_share_acts_with_the_next_claim(db: Postgres) -> None:
    buckets = await land(db)
    shares = Shares(db)
    await shares.set("source:toy", 0, actor="test")
    assert await claimed(db, Consumer("temporal", "b1")) == set()
    await shares.set("source:toy", 30, actor="test")
    expected = {id for id, bucket in buckets.items() if bucket < 30}
    assert await claimed(db, Consumer("temporal", "b1")) == expected
    await shares.set("source:toy", 100, actor="test")
    rest = set(buckets) - expected
    assert await claimed(db, Consumer("temporal", "b1")) == rest


async def test_the_fallback_takes_the_documents_of_both_paths(db: Postgres) -> None:
    buckets = await land(db)
    await Shares(db).set("source:toy", 60, actor="test")
    assert await claimed(db, Consumer("direct", "b1", everything=True)) == set(buckets)


async def test_a_repeated_claim_keeps_its_events_when_the_share_changed(db: Postgres) -> None:
    await land(db, count=40)
    inbox, batch, temporal = Inbox(db), uuid4(), Consumer("temporal", "b1")
    first = await inbox.claim("toy", batch=batch, limit=20, lease=30, consumer=temporal)
    await Shares(db).set("source:toy", 0, actor="test")
    again = await inbox.claim("toy", batch=batch, limit=20, lease=30, consumer=temporal)
    assert [item.id for item in again.events] == [item.id for item in first.events]
    assert len(again.events) == 20


@pytest.mark.parametrize("share", [0, 25, 100])
async def test_the_candidate_build_processes_its_share_of_the_documents(
    db: Postgres, share: int
) -> None:
    buckets = await land(db)
    await set_build_share(db, "new", share)
    by_new = await claimed(db, Consumer("temporal", "new"))
    assert by_new == {id for id, bucket in buckets.items() if bucket < share}
    assert await claimed(db, Consumer("temporal", "old")) == set(buckets) - by_new
    assert set((await stamps(db)).values()) <= {("temporal", "new"), ("temporal", "old")}


async def test_the_fallback_of_a_build_takes_its_own_documents_only(db: Postgres) -> None:
    buckets = await land(db)
    await set_build_share(db, "new", 20)
    await Shares(db).set("source:toy", 50, actor="test")
    by_new = await claimed(db, Consumer("direct", "new", everything=True))
    assert by_new == {id for id, bucket in buckets.items() if bucket < 20}
    by_old = await claimed(db, Consumer("direct", "old"))
    assert by_old == {id for id, bucket in buckets.items() if bucket >= 50}


@pytest.mark.parametrize("share", [0, 25, 100])
async def test_events_claimed_by_their_ids_are_of_documents_of_that_build(
    db: Postgres, share: int
) -> None:
    """As by a gateway that processes one event at once: it may be of another build than the worker."""
    buckets = await land(db)
    for build, role in (("old", "current"), ("retired", "retired"), ("new", "waiting")):
        await db.execute(
            "INSERT INTO builds (build, role, seen_at) VALUES (%s, %s, now())", (build, role)
        )
    await set_build_share(db, "new", share)

    async def of(build: str) -> set[UUID]:
        consumer = Consumer("direct", build, everything=True)
        return set(
            await Inbox(db).claim_events(list(buckets), batch=uuid4(), lease=30, consumer=consumer)
        )

    assert await of("retired") == await of("waiting") == set()
    by_new = await of("new")
    assert by_new == {id for id, bucket in buckets.items() if bucket < share}
    assert await of("old") == set(buckets) - by_new


async def test_a_change_of_a_share_is_in_the_audit_trail(db: Postgres) -> None:
    await Shares(db).set("source:toy", 10, shadow=True, actor="key-1", reason="first step")
    [row] = await db.fetch("SELECT actor, action, subject, detail FROM audit")
    assert row == {
        "actor": "key-1",
        "action": "rollout",
        "subject": "source:toy",
        "detail": {"event": "set", "share": 10, "shadow": True, "reason": "first step"},
    }
