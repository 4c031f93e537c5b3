"""Waiting for events: one question for all, on a real PostgreSQL."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from uuid import UUID, uuid4

import pytest

from apex_memory.errors import RetryLater
from apex_memory.gateway import completion as module
from apex_memory.gateway.completion import CompletionWaiter
from apex_memory.inbox import Inbox
from apex_memory.model import Event, now
from apex_memory.stores.postgres import Postgres
from tests.waiting import until


class Asked(Inbox):
    """An inbox that notes the ids of each query."""

    def __init__(self, db: Postgres) -> None:
        super().__init__(db)
        self.questions: list[int] = []

    async def finished(self, ids: Sequence[UUID]) -> set[UUID]:
        self.questions.append(len(ids))
        return await super().finished(ids)


@pytest.fixture
async def db(database_url: str) -> AsyncIterator[Postgres]:
    db = Postgres(database_url, size=2)
    await db.open()
    yield db
    await db.close()


@pytest.fixture
def inbox(db: Postgres) -> Asked:
    return Asked(db)


@pytest.fixture
async def waiting(inbox: Asked) -> AsyncIterator[CompletionWaiter]:
    waiting = CompletionWaiter(inbox)
    task = asyncio.create_task(waiting.run())
    yield waiting
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def landed(db: Postgres, count: int) -> list[UUID]:
    events = [
        Event(
            source="toy",
            event_id=f"e{n}",
            doc_key=f"d{n}",
            version=n,
            occurred_at=now(),
            payload=b"{}",
        )
        for n in range(count)
    ]
    return [item.id for item in await Inbox(db).land(events)]


async def test_a_hundred_waiters_share_two_connections_and_their_questions(
    db: Postgres, inbox: Asked, waiting: CompletionWaiter
) -> None:
    ids = await landed(db, 100)
    waits = [asyncio.create_task(waiting.until_ended([id], 20)) for id in ids]
    await until(lambda: 100 in inbox.questions, "one question is about all hundred")
    assert not any(wait.done() for wait in waits)
    await db.execute("UPDATE inbox SET state = 'done'")
    assert await asyncio.gather(*waits) == [True] * 100
    assert waiting._waiters == {}


async def test_time_runs_out_for_one_alone(db: Postgres, waiting: CompletionWaiter) -> None:
    first, second = await landed(db, 2)
    both = asyncio.create_task(waiting.until_ended([first, second], 20))
    await db.execute("UPDATE inbox SET state = 'done' WHERE id = %s", (first,))
    assert await waiting.until_ended([first], 20) is True
    assert await waiting.until_ended([second], 0.05) is False
    assert not both.done()
    await db.execute("UPDATE inbox SET state = 'parked' WHERE id = %s", (second,))
    assert await both is True
    assert await waiting.until_ended([], 0) is True


async def test_nobody_waits_nobody_asks(
    db: Postgres, inbox: Asked, waiting: CompletionWaiter
) -> None:
    [event] = await landed(db, 1)
    assert await waiting.until_ended([event], 0.05) is False
    queries = len(inbox.questions)
    await asyncio.sleep(5 * module.TURN_SECONDS)  # that nothing happens is what is tested
    assert len(inbox.questions) <= queries + 1


async def test_waiters_are_bounded(
    waiting: CompletionWaiter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_WAITERS", 1)
    first = asyncio.create_task(waiting.until_ended([uuid4()], 0.1))
    await asyncio.sleep(0)  # one turn of the loop, in which it begins
    with pytest.raises(RetryLater):
        await waiting.until_ended([uuid4()], 1)
    assert await first is False
