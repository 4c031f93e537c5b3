"""The roles of docs/howto/production.md on a real PostgreSQL: the page's own statements, and the memory as the role that works."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from urllib.parse import urlsplit

import psycopg
import pytest

from apex_memory.app import App, open_app
from apex_memory.backup import back_up, restore
from apex_memory.credentials.api_keys import create_key
from apex_memory.gateway.facts import FactGauges
from apex_memory.model import now
from apex_memory.stores.partitions import create_partition, partition_name
from apex_memory.stores.schema import migrate
from tests.e2e.conftest import MakeSettings, delete_event, land, live, state, text_event

PAGE = Path(__file__).parents[2] / "docs" / "howto" / "production.md"
DATABASE, OWNER, WORKS = "privileged", "privileged_owner", "privileged_works"
RESTORED = "privileged_restored"


def statements() -> list[list[str]]:
    """Return the statements of each block of SQL on the page, for other names: the test server has a role `apex` already."""
    blocks = []
    for block in re.findall(r"```sql\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL):
        text = re.sub(r"\bapex_owner\b", OWNER, block)
        text = re.sub(r"\bDATABASE apex\b", f"DATABASE {DATABASE}", text)
        text = re.sub(r"\bapex\b(?!-)", WORKS, text)
        # A block with a body of its own is sent whole, as psql would; CREATE DATABASE must stand alone.
        parts = [text] if "DO $$" in text else text.split(";")
        blocks.append([part.strip() for part in parts if part.strip()])
    return blocks


async def run(url: str, block: list[str]) -> None:
    async with await psycopg.AsyncConnection.connect(url, autocommit=True) as connection:
        for statement in block:
            await connection.execute(statement.encode())


def url_of(server: str, role: str, password: str) -> str:
    return f"postgresql://{role}:{password}@{urlsplit(server).netloc.rpartition('@')[2]}/{DATABASE}"


@pytest.fixture
async def urls(postgres_url: str) -> AsyncIterator[tuple[str, str]]:
    """Addresses of a migrated database, as its owner and as the role that works."""
    roles, schema, readings = statements()
    owner = url_of(postgres_url, OWNER, "owner-password")
    try:
        await run(postgres_url, roles)
        await run(postgres_url.removesuffix("/postgres") + f"/{DATABASE}", schema)
        await migrate(owner)
        await run(owner, readings)
        yield owner, url_of(postgres_url, WORKS, "apex-password")
    finally:
        removed = [f"DROP DATABASE IF EXISTS {name} WITH (FORCE)" for name in (DATABASE, RESTORED)]
        removed += [f"DROP ROLE IF EXISTS {OWNER}", f"DROP ROLE IF EXISTS {WORKS}"]
        await run(postgres_url, removed)


@pytest.fixture
async def app(urls: tuple[str, str], make_settings: MakeSettings) -> AsyncIterator[App]:
    async with open_app(make_settings(documents=urls[1])) as app:
        await app.recovery.check_restarted_stores()
        yield app


async def test_the_role_that_works_can_do_all_its_work(app: App) -> None:
    texts = [text_event(app, f"d{n}", f"SHP-10000{n} waits at dock {n}.", version=1) for n in "123"]
    await land(app, *texts)
    await app.direct.drain("documents")
    changed = text_event(app, "d1", "SHP-100001 has left.", version=2)
    landed = await land(app, changed, delete_event(texts[1], version=5))
    await app.direct.drain("documents")
    assert [await state(app, item) for item in landed] == ["done", "done"]
    document = await live(app, "d1")
    assert document and document["text"] == "SHP-100001 has left."
    assert await live(app, "d2") is None

    await app.vault.put("sources.plaid.secret", "open sesame", actor="test")
    await create_key(app.db, "agent", ["read"])
    facts = FactGauges(app, seconds=10.0)
    assert await facts.read()
    await facts.end()
    await app.upkeep.sweep()

    old = (now() - timedelta(days=400)).date()
    async with app.db.transaction() as connection:
        await app.fetcher.readings._make_partitions(connection, {old, now().date()})
    await app.db.execute("UPDATE stages SET ended_at = ended_at - interval '1 hour'")
    assert await app.upkeep.collect() >= 2  # the former version, and the deleted document
    kept = await app.db.fetch_one(
        "SELECT to_regclass(%s) AS old, to_regclass(%s) AS today",
        (partition_name(old), partition_name(now().date())),
    )
    assert kept and kept["old"] is None and kept["today"] is not None


async def test_the_role_that_works_goes_on_after_a_restore(
    urls: tuple[str, str], postgres_url: str, make_settings: MakeSettings, tmp_path: Path
) -> None:
    old = (now() - timedelta(days=400)).date()
    async with await psycopg.AsyncConnection.connect(urls[1]) as connection:
        await create_partition(connection, old)
    await back_up(urls[0], tmp_path / "backup")

    roles, schema, last = statements()
    of_database = [statement for statement in roles if re.search(r"\bDATABASE\b", statement)]
    await run(
        postgres_url,
        [re.sub(rf"\b{DATABASE}\b", RESTORED, statement) for statement in of_database],
    )
    await run(postgres_url.removesuffix("/postgres") + f"/{RESTORED}", schema)
    owner, works = (url.removesuffix(DATABASE) + RESTORED for url in urls)
    await restore(owner, tmp_path / "backup")
    drop = f"DROP TABLE {partition_name(old)}"
    with pytest.raises(psycopg.errors.InsufficientPrivilege):  # why the page says to run it
        await run(works, [drop])
    await run(owner, last)

    async with open_app(make_settings(documents=works)) as app:
        await app.recovery.check_restarted_stores()
        [landed] = await land(app, text_event(app, "d1", "SHP-100001 waits.", version=1))
        await app.direct.drain("documents")
        assert await state(app, landed) == "done"
        await app.upkeep.collect()
        kept = await app.db.fetch_one("SELECT to_regclass(%s) AS old", (partition_name(old),))
        assert kept and kept["old"] is None
    with pytest.raises(psycopg.errors.InsufficientPrivilege):
        await run(works, ["DELETE FROM migrations"])


@pytest.mark.parametrize(
    "statement",
    [
        "DROP TABLE inbox",
        "TRUNCATE inbox",
        "ALTER TABLE documents ADD COLUMN mine text",
        "ALTER TABLE inbox DISABLE TRIGGER ALL",
        "CREATE INDEX ON documents (doc_key)",
        "DELETE FROM migrations",
        "CREATE ROLE another",
        "CREATE DATABASE another",
        "CREATE SCHEMA another",
        f"ALTER SCHEMA public OWNER TO {WORKS}",
        "SELECT pg_read_file('postgresql.conf')",
        "COPY inbox TO PROGRAM 'cat'",
        f"SET ROLE {OWNER}",
    ],
)
async def test_the_role_that_works_is_refused_what_the_owner_may_do(
    urls: tuple[str, str], statement: str
) -> None:
    async with await psycopg.AsyncConnection.connect(urls[1], autocommit=True) as connection:
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            await connection.execute(statement.encode())


async def test_the_owner_changes_every_table_and_reads_it(urls: tuple[str, str]) -> None:
    """A later migration may change any table, also the one that belongs to the role that works; and backups read all."""
    async with await psycopg.AsyncConnection.connect(urls[0]) as connection:
        cursor = await connection.execute(
            "SELECT relname FROM pg_class WHERE relnamespace = 'public'::regnamespace AND relkind IN ('r', 'p')"
        )
        tables = [row[0] for row in await cursor.fetchall()]
        assert {"inbox", "documents", "readings"} <= set(tables)
        for table in tables:
            await connection.execute(f"ALTER TABLE {table} ADD COLUMN later text".encode())
            await connection.execute(f"SELECT count(*) FROM {table}".encode())
        await connection.rollback()


async def test_another_role_cannot_even_connect(urls: tuple[str, str], postgres_url: str) -> None:
    await run(postgres_url, ["CREATE ROLE privileged_stranger LOGIN PASSWORD 'x'"])
    try:
        with pytest.raises(psycopg.OperationalError, match="permission denied for database"):
            await psycopg.AsyncConnection.connect(url_of(postgres_url, "privileged_stranger", "x"))
    finally:
        await run(postgres_url, ["DROP ROLE privileged_stranger"])
