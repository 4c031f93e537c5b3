"""What PostgreSQL does to a session is an error that says what to do next."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from apex_memory.errors import Unavailable
from apex_memory.stores.postgres import Postgres

pytestmark = pytest.mark.engine


@pytest_asyncio.fixture(loop_scope="session")
async def db(database_url: str) -> AsyncIterator[Postgres]:
    db = Postgres(database_url, size=1)
    await db.open()
    yield db
    await db.close()


async def test_a_session_that_was_idle_in_a_transaction_is_unavailable(db: Postgres) -> None:
    with pytest.raises(Unavailable, match="idle in a transaction"):
        async with db.transaction() as connection:
            await connection.execute("SET LOCAL idle_in_transaction_session_timeout = 50")
            await asyncio.sleep(0.5)
            await connection.execute("SELECT 1")
    await db.ping()  # by another session
