"""Secrets at rest: sealed, bound to their names, read by whoever has the key and by nobody else."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import pytest_asyncio

from apex_memory.credentials import vault
from apex_memory.credentials.tokens import VaultTokens
from apex_memory.credentials.vault import ResealResult, Vault
from apex_memory.errors import Misconfigured, Unauthorized, Unavailable
from apex_memory.sealing import Keyring, new_key, read_keys
from apex_memory.sources.auth import Token
from apex_memory.stores.lease import leased
from apex_memory.stores.postgres import Postgres
from tests.waiting import until

OLD, NEW = new_key(), new_key()


@pytest_asyncio.fixture
async def db(database_url: str) -> AsyncIterator[Postgres]:
    async with reopened(database_url) as db:
        yield db


@asynccontextmanager
async def reopened(database_url: str) -> AsyncIterator[Postgres]:
    db = Postgres(database_url)
    await db.open()
    try:
        yield db
    finally:
        await db.close()


def vault_of(db: Postgres, *keys: str) -> Vault:
    return Vault(db, Keyring(read_keys(keys)))


async def test_a_secret_comes_back_and_is_not_in_the_table(db: Postgres) -> None:
    vault = vault_of(db, OLD)
    await vault.put("source/plaid/secret", ["s3cret-value"], actor="test")
    assert await vault.get("source/plaid/secret") == ["s3cret-value"]
    row = await db.fetch_one("SELECT * FROM secrets")
    assert row and b"s3cret-value" not in bytes(row["sealed"])
    audit = await db.fetch_one("SELECT action, subject, detail::text FROM audit")
    assert audit and (audit["action"], audit["subject"]) == ("secret set", "source/plaid/secret")
    assert await vault.all("source/") == {"source/plaid/secret": ["s3cret-value"]}
    assert await vault.all("token/") == {}


async def test_another_key_opens_nothing(db: Postgres) -> None:
    await vault_of(db, OLD).put("a", 1, actor="test")
    with pytest.raises(Misconfigured, match="not configured"):
        await vault_of(db, NEW).get("a")
    assert [row.readable for row in await vault_of(db, NEW).listed()] == [False]
    with pytest.raises(Misconfigured, match="nothing can be sealed"):
        await vault_of(db).put("b", 1, actor="test")


async def test_keys_rotate(db: Postgres) -> None:
    await vault_of(db, OLD).put("a", 1, actor="test")
    both = vault_of(db, NEW, OLD)
    assert await both.get("a") == 1
    assert await both.reseal(actor="test") == ResealResult(resealed=1)
    assert await vault_of(db, NEW).get("a") == 1
    assert await both.reseal(actor="test") == ResealResult(), "safe to repeat"


async def test_a_reseal_goes_on_past_a_secret_whose_key_is_missing(db: Postgres) -> None:
    await vault_of(db, new_key()).put("a", 1, actor="test")
    await vault_of(db, OLD).put("b", 2, actor="test")
    result = await vault_of(db, NEW, OLD).reseal(actor="test")
    assert result == ResealResult(resealed=1, unreadable=["a"])
    assert await vault_of(db, NEW).get("b") == 2


async def test_a_reseal_keeps_the_value_that_is_set_meanwhile(db: Postgres) -> None:
    await vault_of(db, OLD).put("a", "old", actor="test")
    both = vault_of(db, NEW, OLD)
    async with db.transaction() as connection:
        await connection.execute("SELECT FROM secrets FOR UPDATE")
        resealing = asyncio.create_task(both.reseal(actor="test"))
        await _until_blocked(db)
        await vault_of(db, OLD)._write(connection, "a", "new", "test")
    await resealing
    assert await vault_of(db, NEW).get("a") == "new"


async def test_a_removal_is_noticed_whichever_secret_it_is(db: Postgres) -> None:
    vault = vault_of(db, OLD)
    await vault.put("a", 1, actor="test")
    await vault.put("b", 2, actor="test")
    before = await vault.revision()
    await vault.remove("a", actor="test")
    assert await vault.revision() != before


async def test_a_secret_cannot_take_anothers_place(db: Postgres) -> None:
    vault = vault_of(db, OLD)
    await vault.put("a", "mine", actor="test")
    await vault.put("b", "yours", actor="test")
    await db.execute(
        "UPDATE secrets SET sealed = (SELECT sealed FROM secrets WHERE name = 'a') WHERE name = 'b'"
    )
    with pytest.raises(Misconfigured, match="changed outside"):
        await vault.get("b")


@pytest.mark.parametrize("text", ["short", "%%%", "QUJD"])
def test_what_is_no_key_is_refused(text: str) -> None:
    with pytest.raises(Misconfigured, match="32 bytes"):
        read_keys([text])


async def test_two_workers_spend_a_refresh_token_once(db: Postgres) -> None:
    spent: list[str] = []

    async def renew(old: Token | None) -> Token:
        refresh = old.refresh if old else "first"
        assert refresh not in spent, "a refresh token was spent twice"
        spent.append(refresh)
        await asyncio.sleep(0.05)  # a vendor's time, in which the other workers come
        return Token(f"access-{len(spent)}", f"refresh-{len(spent)}")

    workers = [VaultTokens(vault_of(db, OLD)) for _ in range(5)]
    tokens = await asyncio.gather(*(worker.renewed("qbo", None, renew) for worker in workers))
    assert {token.access for token in tokens} == {"access-1"}
    again = await asyncio.gather(*(worker.renewed("qbo", tokens[0], renew) for worker in workers))
    assert {token.access for token in again} == {"access-2"}
    assert spent == ["first", "refresh-1"]


async def test_a_refused_renewal_keeps_what_was_there(db: Postgres) -> None:
    tokens = VaultTokens(vault_of(db, OLD))
    soon = datetime.now(UTC) + timedelta(seconds=5)

    async def first(old: Token | None) -> Token:
        return Token("a", "r", soon)

    async def refused(old: Token | None) -> Token:
        raise Unauthorized("invalid_grant", remedy="connect again")

    await tokens.renewed("qbo", None, first)
    with pytest.raises(Unauthorized):
        await tokens.renewed("qbo", None, refused)
    kept = await tokens.current("qbo")
    assert kept and kept.refresh == "r" and kept.ending
    assert repr(kept) == f"Token(expires_at={soon})", "a token is never written to a log"


async def test_a_vendor_slower_than_a_transaction_may_last_still_gets_its_token_stored(
    database_url: str,
) -> None:
    db = Postgres(database_url, timeout=0.5, snapshot_seconds=0.5)
    await db.open()
    try:
        tokens = VaultTokens(vault_of(db, OLD))

        async def renew(old: Token | None) -> Token:
            await asyncio.sleep(0.8)  # longer than a transaction may last
            return Token("access", "refresh")

        assert (await tokens.renewed("qbo", None, renew)).access == "access"
        assert (await tokens.current("qbo")) == Token("access", "refresh")
    finally:
        await db.close()


async def test_a_renewal_whose_caller_is_cancelled_is_stored(db: Postgres) -> None:
    tokens = VaultTokens(vault_of(db, OLD))
    spent, answer = asyncio.Event(), asyncio.Event()

    async def renew(old: Token | None) -> Token:
        spent.set()
        await answer.wait()
        return Token("access", "refresh")

    caller = asyncio.create_task(tokens.renewed("qbo", None, renew))
    await spent.wait()
    caller.cancel()
    with pytest.raises(asyncio.CancelledError):
        await caller
    answer.set()
    await until(lambda: tokens.current("qbo"), "the token is stored")


async def test_a_renewal_under_way_at_the_end_of_a_process_is_stored(database_url: str) -> None:
    """SIGTERM cancels the pull after the vendor has spent the old token, and before the new one has arrived."""
    db = Postgres(database_url)
    await db.open()
    closed = vault_of(db, OLD)
    tokens, spent = VaultTokens(closed), asyncio.Event()

    async def renew(old: Token | None) -> Token:
        spent.set()
        await asyncio.sleep(0.3)  # the vendor's response is on its way
        return Token("access", "refresh")

    async def unwanted(old: Token | None) -> Token:
        raise AssertionError("a renewal began after the vault was closed")

    caller = asyncio.create_task(tokens.renewed("qbo", None, renew))
    await spent.wait()
    waiting = asyncio.create_task(
        tokens.renewed("qbo", None, unwanted)
    )  # for the first one's lease
    await asyncio.sleep(0)
    caller.cancel()
    await asyncio.gather(caller, return_exceptions=True)
    await closed.close()
    with pytest.raises(Unavailable, match="this process ends"):
        await waiting
    await db.close()
    async with reopened(database_url) as db:
        assert await VaultTokens(vault_of(db, OLD)).current("qbo") == Token("access", "refresh")


async def test_the_end_of_a_process_waits_a_bounded_time_for_a_vendor(
    db: Postgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vault, "CLOSE_SECONDS", 0.2)
    closed, spent = vault_of(db, OLD), asyncio.Event()

    async def renew(old: Token | None) -> Token:
        spent.set()
        await asyncio.Event().wait()
        raise AssertionError("unreachable")

    renewing = asyncio.create_task(VaultTokens(closed).renewed("qbo", None, renew))
    await spent.wait()
    async with asyncio.timeout(5):
        await closed.close()
    with pytest.raises(asyncio.CancelledError):
        await renewing


async def test_a_new_token_waits_for_postgresql(db: Postgres) -> None:
    class Away(Vault):
        failures = 2

        async def _replace(self, name: str, before: Any, after: Any, actor: str) -> Any:
            if self.failures:
                self.failures -= 1
                raise Unavailable("documents", "down")
            return await super()._replace(name, before, after, actor)

    async def renew(old: Token | None) -> Token:
        return Token("access", "refresh")

    tokens = VaultTokens(Away(db, Keyring(read_keys([OLD]))))
    assert (await tokens.renewed("qbo", None, renew)).access == "access"
    assert await tokens.current("qbo") == Token("access", "refresh")


async def test_a_lease_is_held_by_one_renewed_and_taken_over_from_a_holder_that_died(db: Postgres) -> None:  # fmt: skip
    order: list[str] = []

    async def hold(name: str, seconds: float) -> None:
        async with leased(db, "x", seconds=0.3):
            order.append(f"{name} in")
            await asyncio.sleep(seconds)  # how long the lease is held is what is tested
            order.append(f"{name} out")

    first = asyncio.create_task(hold("first", 0.9))  # longer than the lease, which it renews
    await until(lambda: order, "the first holds it")
    async with asyncio.timeout(10):
        await hold("second", 0)
        await first
    assert order == ["first in", "first out", "second in", "second out"]
    await db.execute(
        "INSERT INTO leases VALUES ('x', gen_random_uuid(), clock_timestamp() + interval '0.3 s')"
    )
    async with asyncio.timeout(10):
        await hold("third", 0)
    assert await db.fetch("SELECT FROM leases") == []


async def _until_blocked(db: Postgres) -> None:
    """Return when a connection waits for a lock."""
    query = """SELECT FROM pg_stat_activity
               WHERE datname = current_database() AND wait_event_type = 'Lock'"""
    await until(lambda: db.fetch(query), "a connection waits for a lock")
