"""API keys on a real PostgreSQL: made, checked from memory, revoked."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import LiteralString

import pytest

from apex_memory.credentials import api_keys as keys
from apex_memory.credentials.api_keys import KeyRing, ValidKey, create_key, list_keys, revoke_key
from apex_memory.errors import Conflict, Forbidden, NotFound, Rejected, Unauthorized, Unavailable
from apex_memory.stores.postgres import Parameters, Postgres, Row


class Counted(Postgres):
    """A PostgreSQL that counts the looks into the table of keys."""

    looks = 0

    async def fetch_rows(
        self, row_type: type[Row], query: LiteralString, parameters: Parameters = ()
    ) -> list[Row]:
        self.looks += "FROM api_keys WHERE revoked_at IS NULL" in query
        return await super().fetch_rows(row_type, query, parameters)


@pytest.fixture
async def db(database_url: str) -> AsyncIterator[Counted]:
    db = Counted(database_url)
    await db.open()
    yield db
    await db.close()


async def test_a_key_is_known_by_its_digest_alone(db: Counted) -> None:
    made = await create_key(db, "agent", ["read"])
    assert made.key.startswith(f"apex_{made.id}_") and len(made.key) > 55
    row = await db.fetch_one("SELECT * FROM api_keys")
    assert row and made.key.rsplit("_", 1)[1] not in str(row)
    assert (await KeyRing(db).check(made.key, "read")).id == made.id


async def test_checking_known_keys_queries_postgresql_once(db: Counted) -> None:
    made = await create_key(db, "agent", ["ingest"])
    ring = KeyRing(db)
    for _ in range(50):
        await ring.check(made.key, "ingest")
    assert db.looks == 1


async def test_a_key_made_meanwhile_is_taken_and_guessing_does_not_cost_a_look_each(
    db: Counted,
) -> None:
    ring = KeyRing(db)
    first = await create_key(db, "first", ["read"])
    await ring.check(first.key, "read")
    second = await create_key(db, "second", ["read"])
    await ring.check(second.key, "read")
    before = db.looks
    guesses = [ring.check(f"apex_{n:012x}_guess", "read") for n in range(100)]
    answers = await asyncio.gather(*guesses, return_exceptions=True)
    assert {type(answer) for answer in answers} == {Unauthorized}
    assert db.looks - before <= 2


@pytest.mark.parametrize(
    "wrong", ["", "apex", "apex__", "nonsense", "apex_x_y_z", "Ä" * 300, "apex_\udcff_x"]
)
async def test_what_is_no_key_is_unauthorized(db: Counted, wrong: str) -> None:
    await create_key(db, "agent", ["read"])
    with pytest.raises(Unauthorized):
        await KeyRing(db).check(wrong, "read")


async def test_the_id_alone_does_not_help(db: Counted) -> None:
    made = await create_key(db, "agent", ["read"])
    with pytest.raises(Unauthorized):
        await KeyRing(db).check(f"apex_{made.id}_{'A' * 43}", "read")


async def test_scopes(db: Counted) -> None:
    ring = KeyRing(db)
    read = await create_key(db, "read", ["read"])
    admin = await create_key(db, "admin", ["admin"])
    with pytest.raises(Forbidden):
        await ring.check(read.key, "ingest")
    for scope in keys.SCOPES:
        await ring.check(admin.key, scope)
    for wrong in ([], ["read", "root"]):
        with pytest.raises(Rejected):
            await create_key(db, "wrong", wrong)


async def test_a_revoked_key_is_refused_and_the_last_admin_key_stays(db: Counted) -> None:
    ring = KeyRing(db)
    admin = await create_key(db, "admin", ["admin"])
    read = await create_key(db, "read", ["read"])
    await ring.check(read.key, "read")
    await revoke_key(db, read.id, actor="test")
    ring.expire()
    with pytest.raises(Unauthorized):
        await ring.check(read.key, "read")
    with pytest.raises(NotFound):
        await revoke_key(db, read.id, actor="test")
    with pytest.raises(Conflict):
        await revoke_key(db, admin.id, actor="test")
    await create_key(db, "other admin", ["admin"])
    assert (await revoke_key(db, admin.id, actor="test")).revoked_at
    audit = await db.fetch("SELECT action, subject FROM audit ORDER BY id")
    assert [row["action"] for row in audit].count("key revoked") == 2


async def test_while_postgresql_is_away_known_keys_pass_and_all_ask_once(
    db: Counted, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = await create_key(db, "agent", ["read"])
    ring = KeyRing(db)
    await ring.check(made.key, "read")
    await db.close()
    ring.expire()
    before = db.looks
    unknown = f"apex_{'0' * 12}_unknown"
    checks = [ring.check(key, "read") for key in [made.key, unknown] * 20]
    answers = await asyncio.gather(*checks, return_exceptions=True)
    assert {type(answer) for answer in answers[1::2]} == {Unavailable}, "unknown is not wrong"
    assert all(isinstance(answer, ValidKey) for answer in answers[::2])
    assert db.looks - before <= 2
    monkeypatch.setattr(keys, "STALE_SECONDS", 0.0)
    with pytest.raises(Unavailable):
        await ring.check(made.key, "read")


async def test_when_a_key_was_used_is_written_later(db: Counted) -> None:
    made = await create_key(db, "agent", ["read"])
    ring = KeyRing(db)
    await ring.check(made.key, "read")
    assert (await list_keys(db))[0].used_at is None
    await ring.write_used()
    assert (await list_keys(db))[0].used_at is not None
