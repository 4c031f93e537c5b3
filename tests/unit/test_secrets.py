"""Secrets at rest: sealed, bound to their names, read by whoever has the key and by nobody else."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta

import pytest
import pytest_asyncio

from apex_memory.credentials.tokens import VaultTokens
from apex_memory.credentials.vault import Vault, new_key, read_keys
from apex_memory.errors import Misconfigured, Unauthorized
from apex_memory.sources.auth import Token
from apex_memory.stores.postgres import Postgres

OLD, NEW = new_key(), new_key()


@pytest_asyncio.fixture
async def db(database_url: str) -> AsyncIterator[Postgres]:
    db = Postgres(database_url)
    await db.open()
    yield db
    await db.close()


def vault_of(db: Postgres, *keys: str) -> Vault:
    return Vault(db, read_keys(keys))


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
    with pytest.raises(Misconfigured, match="not here"):
        await vault_of(db, NEW).get("a")
    assert [row["readable"] for row in await vault_of(db, NEW).listed()] == [False]
    with pytest.raises(Misconfigured, match="nothing can be sealed"):
        await vault_of(db).put("b", 1, actor="test")


async def test_keys_rotate(db: Postgres) -> None:
    await vault_of(db, OLD).put("a", 1, actor="test")
    both = vault_of(db, NEW, OLD)
    assert await both.get("a") == 1
    assert await both.reseal() == 1
    assert await vault_of(db, NEW).get("a") == 1


async def test_a_secret_cannot_take_anothers_place(db: Postgres) -> None:
    vault = vault_of(db, OLD)
    await vault.put("a", "mine", actor="test")
    await vault.put("b", "yours", actor="test")
    await db.execute(
        "UPDATE secrets SET sealed = (SELECT sealed FROM secrets WHERE name = 'a') WHERE name = 'b'"
    )
    with pytest.raises(Misconfigured, match="tampered"):
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
        await asyncio.sleep(0.05)
        return Token(f"access-{len(spent)}", f"refresh-{len(spent)}")

    workers = [VaultTokens(vault_of(db, OLD)) for _ in range(5)]
    tokens = await asyncio.gather(*(one.renewed("qbo", None, renew) for one in workers))
    assert {token.access for token in tokens} == {"access-1"}
    again = await asyncio.gather(*(one.renewed("qbo", tokens[0], renew) for one in workers))
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
