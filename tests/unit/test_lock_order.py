"""One order of locks everywhere (`saga/journal.py` defines it), on a real PostgreSQL: no deadlock."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator
from typing import Any

import numpy as np
import pytest

from apex_memory.inbox import Consumer, Inbox
from apex_memory.model import Event, Manifest, now
from apex_memory.saga.dead_letters import DeadLetters
from apex_memory.saga.journal import CommitResult, Journal
from apex_memory.saga.manifests import Manifests
from apex_memory.saga.stage import Stage
from apex_memory.saga.sweeper import Sweeper
from apex_memory.stores.postgres import Postgres
from tests.waiting import until


@pytest.fixture
async def db(database_url: str) -> AsyncIterator[Postgres]:
    db = Postgres(database_url)
    await db.open()
    yield db
    await db.close()


class Saga:
    """The journal, and what stands before it, for a source with one document."""

    def __init__(self, db: Postgres) -> None:
        self.db = db
        self.inbox = Inbox(db)
        self.manifests = Manifests()
        self.journal = Journal(db, self.manifests, lease=30)

    async def prepared(self, version: int, *, key: str = "d", lease: float = 30) -> uuid.UUID:
        """A batch with a version of a document, ready to begin."""
        event = Event(
            source="toy",
            event_id=f"e{version}",
            doc_key=key,
            version=version,
            occurred_at=now(),
            payload=b"{}",
        )
        await self.inbox.land([event])
        batch = await self.claimed(lease=lease)
        async with self.db.transaction() as connection:
            await self.manifests.insert(connection, [_manifest(event)])
        await self.db.execute("UPDATE inbox SET state = 'prepared' WHERE id = %s", (event.id,))
        return batch

    async def claimed(self, *, lease: float = 30) -> uuid.UUID:
        batch = uuid.uuid4()
        claim = await self.inbox.claim(
            "toy", batch=batch, limit=10, lease=lease, consumer=Consumer("temporal", "b")
        )
        assert len(claim.events) == 1
        return batch

    async def commit(self, batch: uuid.UUID, stages: list[Stage]) -> CommitResult:
        return await self.journal.commit(batch, stages, graph_at=now(), vectors_at=now())

    async def wait(self, count: int) -> None:
        """Return when so many connections wait for a lock."""

        async def wait() -> bool:
            row = await self.db.fetch_one(
                """SELECT count(*) AS n FROM pg_stat_activity
                   WHERE datname = current_database() AND wait_event_type = 'Lock'"""
            )
            return row is not None and row["n"] == count

        await until(wait, f"{count} connections wait for a lock")


def _manifest(event: Event) -> Manifest:
    return Manifest(
        id=uuid.uuid4(),
        inbox_id=event.id,
        doc_id=event.doc_id,
        source=event.source,
        doc_key=event.doc_key,
        pipeline="p",
        kind="k",
        title="t",
        text=f"text {event.version}",
        occurred_at=event.occurred_at,
        metadata={},
        parent_id=None,
        deleted=False,
        chunks=(),
        vectors=np.zeros((0, 0), np.float32),
        assertions=(),
        entities=(),
    )


@pytest.fixture
async def saga(db: Postgres) -> Saga:
    """Version 1 is live."""
    saga = Saga(db)
    batch = await saga.prepared(1)
    assert (await saga.commit(batch, (await saga.journal.begin(batch)).stages)).done
    return saga


async def test_a_late_commit_and_the_attempt_that_took_over_do_not_wait_for_each_other(
    saga: Saga,
) -> None:
    late = await saga.prepared(2, lease=-1)
    stages = (await saga.journal.begin(late)).stages
    taken = await saga.claimed()
    async with saga.db.transaction() as connection:
        # The commit comes as far as the document, with its own locks in hand.
        await connection.execute("SELECT FROM documents FOR UPDATE")
        committing = asyncio.create_task(saga.commit(late, stages))
        await saga.wait(1)
        beginning = asyncio.create_task(saga.journal.begin(taken))
        await saga.wait(2)
    assert (await committing).done == [stages[0].manifest.inbox_id]
    assert (await beginning).stages == [], "the event was at its end when its turn came"


async def test_a_commit_that_waited_for_the_attempt_that_took_over_is_refused(saga: Saga) -> None:
    late = await saga.prepared(2, lease=-1)
    stages = (await saga.journal.begin(late)).stages
    taken = await saga.claimed()
    async with saga.db.transaction() as connection:
        await connection.execute("SELECT FROM stages WHERE state = 'staging' FOR UPDATE")
        beginning = asyncio.create_task(saga.journal.begin(taken))
        await saga.wait(1)
        committing = asyncio.create_task(saga.commit(late, stages))
        await saga.wait(2)
    begun = await beginning
    lost = await committing
    assert (lost.done, lost.lost) == ([], [stages[0].manifest.inbox_id])
    assert (await saga.commit(taken, begun.stages)).done == [stages[0].manifest.inbox_id]


async def test_a_sweep_passes_over_the_stage_that_a_commit_holds(saga: Saga) -> None:
    batch = await saga.prepared(2)
    await saga.journal.begin(batch)
    await saga.db.execute("UPDATE stages SET lease_until = now() - interval '1 s'")
    nothing: Any = None  # the sweep's first step needs no other store
    sweeper = Sweeper(saga.db, nothing, nothing, [], {}, lease=60)
    async with saga.db.transaction() as connection:
        await connection.execute("SELECT FROM stages WHERE state = 'staging' FOR UPDATE")
        async with asyncio.timeout(5):
            assert await sweeper._expire() == 0
    assert await sweeper._expire() == 1


async def test_a_redrive_waits_for_the_event_before_it_holds_the_dead_letter(saga: Saga) -> None:
    await saga.prepared(2)
    await saga.db.execute("UPDATE inbox SET state = 'dead' WHERE version = 2")
    letter = await saga.db.fetch_one(
        """INSERT INTO dead_letters (inbox_id, source, doc_id, version, event_id, step, error_class, fingerprint, message,
                                     attempts, first_at, pipeline)
           SELECT id, source, doc_id, version, event_id, 'stage', 'Rejected', 'f', 'm', 1, now(), 'p'
           FROM inbox WHERE version = 2 RETURNING id"""
    )
    assert letter
    async with saga.db.transaction() as connection:
        # As a commit does: the event first, the dead letter at the end.
        await connection.execute("SELECT FROM inbox WHERE version = 2 FOR NO KEY UPDATE")
        redriving = asyncio.create_task(DeadLetters(saga.db).redrive([letter["id"]], actor="test"))
        await saga.wait(1)
        await connection.execute("UPDATE dead_letters SET message = 'again'")
    assert [letter.message for letter in await redriving] == ["again"]


async def test_eight_batches_begin_at_once_and_none_needs_a_second_connection(db: Postgres) -> None:
    """A begin that loads manifests from PostgreSQL uses the connection of its transaction, as the pool has no more."""
    saga = Saga(db)
    batches = [await saga.prepared(version, key=f"d{version}") for version in range(8)]
    cold = Journal(db, Manifests(), lease=30)  # a worker that prepared none of them
    begun = await asyncio.gather(*(cold.begin(batch) for batch in batches))
    assert [len(result.stages) for result in begun] == [1] * 8
