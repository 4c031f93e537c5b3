"""A task that waits for a connection ends when it is cancelled, at whatever moment."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from apex_memory.stores.postgres import Postgres

pytestmark = pytest.mark.engine


@pytest_asyncio.fixture(loop_scope="session")
async def db(database_url: str) -> AsyncIterator[Postgres]:
    db = Postgres(database_url, size=1)
    await db.open()
    yield db
    await db.close()


@pytest.mark.parametrize("later", range(12))
async def test_a_task_that_gets_its_connection_and_is_cancelled_ends(
    db: Postgres, later: int
) -> None:
    """Up to Python 3.11 `asyncio.wait_for`, by which the pool waits, loses a cancellation at the moment of success."""

    async def work_for_ever() -> None:
        async with db.connection():
            pass
        await asyncio.Event().wait()

    async with db.connection():
        task = asyncio.create_task(work_for_ever())
        while not db._pool.get_stats().get("requests_waiting"):
            await asyncio.sleep(0)
    for _ in range(later):  # turns of the loop between the connection's return and the cancellation
        await asyncio.sleep(0)
    task.cancel()
    done, _ = await asyncio.wait([task], timeout=2)
    assert done and task.cancelled()
    await db.ping()  # the connection is back
