"""Migrations keep neighbouring builds side by side: an older build works on a schema whose changes it can live with."""

from __future__ import annotations

import asyncio
import time

import psycopg
import pytest

from apex_memory.cli.upgrade import plan_of
from apex_memory.errors import Misconfigured, RetryLater
from apex_memory.stores import schema
from apex_memory.stores.schema import (
    SchemaState,
    migrate,
    migrations,
    read_state,
    required_number,
    tables_after,
)

FIRST_WITH_A_RULE = "0007"


async def apply_newer(url: str, requires: str | None) -> None:
    """Record a migration that this build does not know, as a newer build does."""
    async with await psycopg.AsyncConnection.connect(url, autocommit=True) as connection:
        await connection.execute(
            "INSERT INTO migrations (name, requires) VALUES ('9999_newer.sql', %s)", (requires,)
        )


@pytest.mark.parametrize("requires", ["0001", "0006", migrations()[-1][0][:4]])
async def test_an_expanded_schema_serves_the_older_build(database_url: str, requires: str) -> None:
    await apply_newer(database_url, requires)
    assert await migrate(database_url) == []


@pytest.mark.parametrize("requires", [None, "9998", "9999"])
async def test_a_contracted_schema_refuses_the_older_build(
    database_url: str, requires: str | None
) -> None:
    await apply_newer(database_url, requires)
    with pytest.raises(Misconfigured, match="9999_newer"):
        await migrate(database_url)


async def test_the_database_records_what_each_migration_requires(database_url: str) -> None:
    async with await psycopg.AsyncConnection.connect(database_url) as connection:
        cursor = await connection.execute("SELECT name, requires FROM migrations")
        recorded: dict[str, str | None] = dict(await cursor.fetchall())
    assert recorded == {name: required_number(sql) for name, sql in migrations()}


async def test_a_database_of_an_earlier_release_gets_the_column(database_url: str) -> None:
    async with await psycopg.AsyncConnection.connect(database_url, autocommit=True) as connection:
        await connection.execute("ALTER TABLE migrations DROP COLUMN requires")
    assert await migrate(database_url) == []


@pytest.mark.parametrize("name, sql", migrations(), ids=[name for name, _ in migrations()])
def test_every_migration_names_what_a_build_must_know(name: str, sql: str) -> None:
    required = required_number(sql)
    if name < FIRST_WITH_A_RULE:
        assert required is None, "released before the rule; its file never changes"
        return
    assert required is not None, "the first line must be `-- requires NNNN`, see docs/adr"
    assert required <= name[:4]


@pytest.mark.parametrize(
    "sql, required",
    [
        ("-- requires 0006\nSELECT 1", "0006"),
        ("-- Requires 0006\nSELECT 1", None),
        ("SELECT 1; -- requires 0006\n", None),
        ("\n-- requires 0006\n", None),
        ("-- requires 6\n", None),
    ],
)
def test_only_the_first_line_states_the_requirement(sql: str, required: str | None) -> None:
    assert required_number(sql) == required


NEWEST = "9990_newest.sql"


@pytest.fixture
def newest_release(monkeypatch: pytest.MonkeyPatch) -> None:
    """A build with another migration, which changes a table that everything uses."""
    known = [*migrations(), (NEWEST, "-- requires 0006\nALTER TABLE inbox ADD COLUMN newest text;")]
    monkeypatch.setattr(schema, "migrations", lambda: known)
    monkeypatch.setattr(schema, "LOCK_SECONDS", 0.2)
    monkeypatch.setattr(schema, "LOCK_PAUSE", 0.2)


async def _reads_inbox(url: str, seconds: float) -> float:
    """Return the longest that a query of the inbox took, of many in a row."""
    longest, end = 0.0, time.monotonic() + seconds
    async with await psycopg.AsyncConnection.connect(url, autocommit=True) as reader:
        while time.monotonic() < end:
            began = time.monotonic()
            await reader.execute("SELECT count(*) FROM inbox")
            longest = max(longest, time.monotonic() - began)
    return longest


@pytest.mark.usefixtures("newest_release")
async def test_a_migration_gives_way_to_who_uses_its_table_and_goes_on_after_it(
    database_url: str,
) -> None:
    """A lock that waits makes all who come after it wait too: so it waits for moments, again and again."""
    async with await psycopg.AsyncConnection.connect(database_url) as holder:
        await holder.execute(
            "SELECT count(*) FROM inbox"
        )  # holds the table until its transaction ends
        migrating = asyncio.create_task(migrate(database_url))
        longest = await _reads_inbox(database_url, 1.5)
        assert not migrating.done()
        await holder.commit()
    assert longest < 1.2, "the readers waited for the migration"
    assert await migrating == [NEWEST]
    assert (await read_state(database_url)).missing == []


@pytest.mark.usefixtures("newest_release")
async def test_a_migration_that_never_gets_its_table_fails_with_a_remedy_and_leaves_nothing(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(schema, "LOCK_TRIES", 2)
    async with await psycopg.AsyncConnection.connect(database_url) as holder:
        await holder.execute("SELECT count(*) FROM inbox")
        with pytest.raises(RetryLater, match=NEWEST) as refused:
            await migrate(database_url)
        assert "pg_stat_activity" in refused.value.remedy
    state = await read_state(database_url)
    assert state.missing == [NEWEST] and state.unknown == []
    assert await migrate(database_url) == [NEWEST]


@pytest.mark.usefixtures("newest_release")
async def test_a_migration_waits_for_its_turn_and_says_for_what(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(schema, "TURN_SECONDS", 0.3)
    async with await psycopg.AsyncConnection.connect(database_url, autocommit=True) as backup:
        await backup.execute("SELECT pg_advisory_lock_shared(%s)", (schema.MIGRATION_LOCK,))
        with pytest.raises(RetryLater) as refused:
            await migrate(database_url)
    assert "apex backup" in refused.value.remedy
    assert await migrate(database_url) == [NEWEST]


async def test_a_statement_of_a_migration_ends_after_its_time(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = [*migrations(), (NEWEST, "-- requires 0006\nSELECT pg_sleep(60);")]
    monkeypatch.setattr(schema, "migrations", lambda: known)
    monkeypatch.setattr(schema, "STATEMENT_SECONDS", 0.3)
    with pytest.raises(RetryLater, match="too long"):
        await migrate(database_url)
    assert (await read_state(database_url)).missing == [NEWEST]


async def test_the_tables_of_the_migrations_are_those_of_the_database(database_url: str) -> None:
    """What a backup copies. A migration that makes a table in another way is noticed here."""
    async with await psycopg.AsyncConnection.connect(database_url) as connection:
        cursor = await connection.execute(
            """SELECT relname FROM pg_class WHERE relnamespace = 'public'::regnamespace AND relkind IN ('r', 'p')
               AND NOT relispartition"""
        )
        held = {row[0] for row in await cursor.fetchall()}
    assert tables_after(name for name, _ in migrations()) == held - {"migrations"}


def test_an_upgrade_over_migrations_that_only_add_lets_the_former_version_run() -> None:
    names = [name for name, _ in migrations()]
    after_rule = [name for name in names if name >= FIRST_WITH_A_RULE]
    before = [name for name in names if name < FIRST_WITH_A_RULE]
    assert plan_of(SchemaState(before, after_rule, [])).beside
    plan = plan_of(SchemaState(names[:2], names[2:], []))
    assert not plan.beside and plan.stops[0] == names[2]
    assert plan_of(SchemaState([], names, [])).beside, "nothing runs on an empty database"
