"""`apex migrate`: the schema and the first admin key of a database of one's own."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from apex_memory.credentials.api_keys import (
    KeyRing,
    create_key,
    register_first_key,
    revoke_key,
)
from apex_memory.errors import Misconfigured
from apex_memory.stores.postgres import Postgres
from apex_memory.stores.schema import migrations

KEY = "apex_0123456789ab_" + "k" * 43


@pytest.fixture
async def db(database_url: str) -> AsyncIterator[Postgres]:
    db = Postgres(database_url, size=2)
    await db.open()
    yield db
    await db.close()


@pytest.fixture
async def empty_database(postgres_url: str) -> AsyncIterator[str]:
    async with await psycopg.AsyncConnection.connect(postgres_url, autocommit=True) as admin:
        await admin.execute("CREATE DATABASE empty_for_migrate")
        yield postgres_url.removesuffix("/postgres") + "/empty_for_migrate"
        await admin.execute("DROP DATABASE empty_for_migrate WITH (FORCE)")


async def run_migrate(**variables: str) -> dict[str, Any]:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "apex_memory.cli", "migrate", "--json"),
        env={**os.environ, **variables},
        stdout=asyncio.subprocess.PIPE,
    )
    output, _ = await process.communicate()
    assert process.returncode == 0
    result: dict[str, Any] = json.loads(output)
    return result


async def test_an_empty_database_gets_its_schema_and_its_first_key_once(
    empty_database: str, tmp_path: Path
) -> None:
    (tmp_path / "documents").write_text(empty_database)
    (tmp_path / "key").write_text(KEY + "\n")
    variables = {
        "APEX_DOCUMENTS_FILE": str(tmp_path / "documents"),
        "APEX_API_KEY_FILE": str(tmp_path / "key"),
    }
    first = await run_migrate(**variables)
    assert first == {"applied": [name for name, _ in migrations()], "first_key": True}
    assert await run_migrate(**variables) == {"applied": [], "first_key": False}
    db = Postgres(empty_database, size=1)
    await db.open()
    try:
        assert (await KeyRing(db).check(KEY, "admin")).name == "first key"
    finally:
        await db.close()


async def test_a_key_is_not_registered_beside_a_live_admin_key(db: Postgres) -> None:
    await create_key(db, "agent", ["read"])
    assert await register_first_key(db, KEY, "first key")
    assert not await register_first_key(db, KEY, "first key")
    assert not await register_first_key(db, KEY.replace("0123", "4567"), "another")
    rows = await db.fetch("SELECT name FROM api_keys ORDER BY name")
    assert [row["name"] for row in rows] == ["agent", "first key"]


async def test_two_jobs_at_once_register_one_key(db: Postgres) -> None:
    keys = [KEY, KEY.replace("0123", "4567")]
    registered = await asyncio.gather(*(register_first_key(db, key, "key") for key in keys))
    assert sorted(registered) == [False, True]


async def test_a_revoked_key_does_not_come_back(db: Postgres) -> None:
    await register_first_key(db, KEY, "first key")
    other = await create_key(db, "other", ["admin"])
    await revoke_key(db, "0123456789ab", actor="test")
    assert not await register_first_key(db, KEY, "first key")
    await db.execute("UPDATE api_keys SET revoked_at = now() WHERE id = %s", (other.id,))
    with pytest.raises(Misconfigured, match="revoked"):
        await register_first_key(db, KEY, "first key")


@pytest.mark.parametrize(
    "key",
    [
        "secret",
        "apex_0123456789ab_short",
        "apex_0123456789AB_" + "k" * 43,
        "apex__" + "k" * 43,
        KEY + " ",
        KEY + "\n",
    ],
)
async def test_a_weak_or_malformed_key_is_refused(db: Postgres, key: str) -> None:
    with pytest.raises(Misconfigured, match="api_key"):
        await register_first_key(db, key, "first key")
