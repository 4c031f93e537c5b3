"""Landing and claiming, on a real PostgreSQL."""

import asyncio
import re
import uuid
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

import apex_memory
from apex_memory.errors import Rejected, Unavailable
from apex_memory.inbox import Consumer, Inbox, WorkflowRun, leases
from apex_memory.model import Event, Priority, now
from apex_memory.stores.postgres import Postgres

TEMPORAL = Consumer("temporal", "build-1")


@pytest.fixture
async def db(database_url: str) -> AsyncIterator[Postgres]:
    db = Postgres(database_url)
    await db.open()
    yield db
    await db.close()


def event(
    n: int, *, priority: Priority = Priority.P0, source: str = "toy", payload: bytes = b"{}"
) -> Event:
    return Event(
        source=source,
        event_id=f"e{n}",
        doc_key=f"d{n}",
        version=n,
        occurred_at=now(),
        payload=payload,
        priority=priority,
    )


async def test_landing_returns_results_in_order_and_marks_redeliveries(db: Postgres) -> None:
    inbox = Inbox(db)
    first = await inbox.land([event(1), event(2), event(1)])
    assert [item.duplicate for item in first] == [False, False, True]
    again = await inbox.land([event(2, payload=b"other"), event(3)])
    assert [item.duplicate for item in again] == [True, False]
    assert (await inbox.event(again[0].id)).payload == b"{}", "a redelivery keeps the first payload"
    assert await inbox.land([]) == []


async def test_many_landers_of_one_event_make_one_row(db: Postgres) -> None:
    inbox = Inbox(db)
    answers = await asyncio.gather(*(inbox.land([event(1)]) for _ in range(8)))
    assert sorted(answer[0].duplicate for answer in answers) == [False] + [True] * 7


async def test_claims_are_exclusive_and_most_urgent_first(db: Postgres) -> None:
    inbox = Inbox(db)
    await inbox.land([event(n, priority=Priority.P2) for n in range(5)])
    await inbox.land([event(9, priority=Priority.P0)])
    first = await inbox.claim(
        "toy",
        batch=uuid.uuid4(),
        limit=3,
        lease=30,
        consumer=TEMPORAL,
        run=WorkflowRun("drain:toy", "r1"),
    )
    second = await inbox.claim("toy", batch=uuid.uuid4(), limit=10, lease=30, consumer=TEMPORAL)
    assert [item.event_id for item in first.events] == ["e9", "e0", "e1"]
    assert [item.event_id for item in second.events] == ["e2", "e3", "e4"]
    assert (first.more, second.more) == (True, False)
    assert (
        await inbox.claim("toy", batch=uuid.uuid4(), limit=10, lease=30, consumer=TEMPORAL)
    ).events == []


async def test_a_lease_that_ran_out_is_claimed_again_by_another_batch(db: Postgres) -> None:
    inbox = Inbox(db)
    await inbox.land([event(1)])
    lost, taken_over = uuid.uuid4(), uuid.uuid4()
    await inbox.claim("toy", batch=lost, limit=1, lease=-1, consumer=TEMPORAL)
    claim = await inbox.claim("toy", batch=taken_over, limit=1, lease=30, consumer=TEMPORAL)
    assert [item.event_id for item in claim.events] == ["e1"]
    assert await inbox.unprepared(lost) == {}, "the first owner has nothing left to do"
    assert await inbox.start(lost, [claim.events[0].id]) == [], "and cannot begin on it"
    assert await inbox.unprepared(taken_over) == {claim.events[0].id: 0}
    assert [item.event_id for item in await inbox.start(taken_over, [claim.events[0].id])] == ["e1"]


async def test_a_claim_whose_response_was_lost_can_be_repeated(db: Postgres) -> None:
    inbox = Inbox(db)
    await inbox.land([event(n) for n in range(4)])
    batch = uuid.uuid4()
    first = await inbox.claim("toy", batch=batch, limit=2, lease=30, consumer=TEMPORAL)
    again = await inbox.claim("toy", batch=batch, limit=2, lease=30, consumer=TEMPORAL)
    assert [item.id for item in again.events] == [item.id for item in first.events]
    rest = await inbox.claim("toy", batch=uuid.uuid4(), limit=5, lease=30, consumer=TEMPORAL)
    assert [item.event_id for item in rest.events] == ["e2", "e3"]


async def test_w7_a_claim_is_bounded_in_bytes_and_a_giant_is_alone(
    db: Postgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leases, "BATCH_BYTES", 1_000)
    monkeypatch.setattr(leases, "ALONE_BYTES", 600)
    inbox = Inbox(db)
    sizes = [400, 400, 400, 700, 100, 2_000, 5, 5]
    await inbox.land([event(n, payload=bytes(size)) for n, size in enumerate(sizes)])
    batches = []
    while True:
        claim = await inbox.claim("toy", batch=uuid.uuid4(), limit=5, lease=30, consumer=TEMPORAL)
        if not claim.events:
            break
        batches.append(([item.event_id for item in claim.events], claim.more))
    assert batches == [
        (["e0", "e1"], True),
        (["e2"], True),
        (["e3"], True),
        (["e4"], True),
        (["e5"], True),
        (["e6", "e7"], False),
    ]


async def test_what_postgresql_refuses_is_rejected_and_its_absence_is_unavailable(
    db: Postgres,
) -> None:
    with pytest.raises(Rejected):
        await Inbox(db).land(
            [
                Event(
                    source="toy",
                    event_id="a\x00b",
                    doc_key="d",
                    version=1,
                    occurred_at=now(),
                    payload=b"",
                )
            ]
        )
    with pytest.raises(Rejected):
        await Inbox(db).land(
            [
                Event(
                    source="toy",
                    event_id="a",
                    doc_key="d",
                    version=2**63,
                    occurred_at=now(),
                    payload=b"",
                )
            ]
        )
    gone = Postgres("postgresql://nobody:x@127.0.0.1:9/none", timeout=1)
    with pytest.raises(Unavailable):
        await asyncio.wait_for(gone.open(), 15)
    await gone.close()


async def test_the_claim_uses_its_index(db: Postgres) -> None:
    inbox = Inbox(db)
    await inbox.land([event(n, source=f"s{n % 7}") for n in range(20_000)])
    await db.execute("UPDATE inbox SET state = 'done' WHERE mod(version, 3) = 0")
    await db.execute("ANALYZE inbox")
    plan = await db.fetch(
        """EXPLAIN SELECT id FROM inbox WHERE open AND source = 's1' AND next_at <= clock_timestamp()
           ORDER BY priority, seq LIMIT 10 FOR NO KEY UPDATE SKIP LOCKED"""
    )
    text = "\n".join(row["QUERY PLAN"] for row in plan)
    assert "inbox_ready" in text and "Sort" not in text, text


WRITE = re.compile(
    r"\b(INSERT\s+INTO|UPDATE|DELETE\s+FROM|MERGE\s+INTO|TRUNCATE|COPY)\s+inbox\b", re.I
)


def test_only_the_inbox_package_writes_the_table_inbox() -> None:
    package = Path(apex_memory.__file__).parent
    writers: dict[str, int] = {}
    for file in package.rglob("*.py"):
        if count := len(WRITE.findall(file.read_text(encoding="utf-8"))):
            writers[str(file.relative_to(package))] = count
    assert set(writers) == {"inbox/landing.py", "inbox/leases.py", "inbox/transitions.py"}
    assert writers["inbox/landing.py"] == 1, "one INSERT"
