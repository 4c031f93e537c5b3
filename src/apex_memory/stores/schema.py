"""The schema of PostgreSQL: numbered migrations, which tables they make, and which builds may use the result.

Migrations expand and contract: a release adds what it needs beside what its predecessor uses, and a later one drops
what nobody uses any more. So both run side by side while an upgrade is under way. A migration must not stop the
builds that run: it waits only briefly for a lock, and takes a limited time.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any

import psycopg

from apex_memory.errors import Misconfigured, RetryLater
from apex_memory.stores.postgres import translated
from apex_memory.telemetry import logger

# Names the advisory lock under which one process at a time migrates. A backup shares it.
MIGRATION_LOCK = 0x41504558
TURN_SECONDS = 600  # patience with another process that migrates, or with a backup
# While a migration waits for a lock, all who come after it wait too. So it gives up soon, and tries again.
LOCK_SECONDS = 3
LOCK_TRIES = 20
LOCK_PAUSE = 1.0
STATEMENT_SECONDS = 600

REQUIRES = re.compile(r"-- requires (\d{4})\n")
TABLE_CHANGE = re.compile(
    r"^\s*(?:CREATE TABLE (?P<created>\w+)"
    r"|DROP TABLE (?P<dropped>\w+)"
    r"|ALTER TABLE (?P<former>\w+) RENAME TO (?P<renamed>\w+))",
    re.MULTILINE,
)

Connection = psycopg.AsyncConnection[Any]


@dataclass(frozen=True, slots=True)
class SchemaState:
    """What a database holds, compared with what this build knows. Names of migrations, in order."""

    applied: list[str]
    missing: list[str]
    """Known here, and not applied."""
    unknown: list[str]
    """Applied by a newer build, and compatible with this one."""


def migrations() -> list[tuple[str, str]]:
    """Return (name, SQL) of every migration in the package, in order."""
    folder = resources.files("apex_memory.stores.migrations")
    files = sorted((item.name, item) for item in folder.iterdir() if item.name.endswith(".sql"))
    return [(name, item.read_text(encoding="utf-8")) for name, item in files]


def required_number(sql: str) -> str | None:
    """Return the number in the first line of a migration, `-- requires 0006`; None without one.

    It names the newest migration that a build must know to work on the schema after this one. None means that a build
    must know this migration itself.
    """
    match = REQUIRES.match(sql)
    return match[1] if match else None


def tables_after(names: Iterable[str]) -> set[str]:
    """Return the tables that exist after these migrations, without partitions and the table `migrations`."""
    wanted = set(names)
    tables: set[str] = set()
    for name, sql in migrations():
        if name not in wanted:
            continue
        for change in TABLE_CHANGE.finditer(sql):
            if change["created"]:
                tables.add(change["created"])
            elif change["dropped"]:
                tables.discard(change["dropped"])
            else:
                tables.remove(change["former"])
                tables.add(change["renamed"])
    return tables


async def migrate(url: str) -> list[str]:
    """Apply the migrations that the database lacks, each in its transaction. Return their names.

    A newer build may have applied migrations that this one does not know, while both run side by side. That is fine as
    long as this build knows what each of them requires. Raises `Misconfigured` otherwise, and `RetryLater` when another
    session holds a table, or the turn to migrate, for too long. What was applied until then stays.
    """
    async with (
        translated(),
        await psycopg.AsyncConnection.connect(
            url, autocommit=True, connect_timeout=5
        ) as connection,
    ):
        # Without the lock: a process that has nothing to migrate does not wait for a backup.
        if await _has_migrations(connection) and not (await _state(connection)).missing:
            return []
        await _limit(connection, "statement_timeout", STATEMENT_SECONDS)
        await _take_turn(connection)
        await prepare_migrations(connection)
        missing = set((await _state(connection)).missing)
        applied = []
        for name, sql in migrations():
            if name in missing:
                await _apply_soon(connection, name, sql)
                applied.append(name)
        return applied


async def read_state(url: str) -> SchemaState:
    """Compare a database with this build, and change nothing. Raises `Misconfigured` if a newer build contracted it."""
    async with (
        translated(),
        await psycopg.AsyncConnection.connect(
            url, autocommit=True, connect_timeout=5
        ) as connection,
    ):
        if not await _has_migrations(connection):
            return SchemaState([], [name for name, _ in migrations()], [])
        return await _state(connection)


async def prepare_migrations(connection: Connection) -> None:
    """Create the table that records migrations."""
    await connection.execute(
        """CREATE TABLE IF NOT EXISTS migrations
             (name text PRIMARY KEY, applied_at timestamptz NOT NULL DEFAULT now(), requires text)"""
    )
    await connection.execute("ALTER TABLE migrations ADD COLUMN IF NOT EXISTS requires text")


async def apply(connection: Connection, name: str, sql: str) -> None:
    """Run one migration and record it, inside the caller's transaction."""
    await connection.execute(sql.encode())
    await connection.execute(
        "INSERT INTO migrations (name, requires) VALUES (%s, %s)", (name, required_number(sql))
    )


async def _apply_soon(connection: Connection, name: str, sql: str) -> None:
    """Run one migration in its transaction. While another session holds a table, give way to it and try again."""
    await _limit(connection, "lock_timeout", LOCK_SECONDS)
    for attempt in range(1, LOCK_TRIES + 1):
        try:
            async with connection.transaction():
                await apply(connection, name, sql)
            return
        except psycopg.errors.LockNotAvailable:
            logger(component="migrations").warning(
                "a migration waits for a table", migration=name, attempt=attempt
            )
            await asyncio.sleep(LOCK_PAUSE)
    raise RetryLater(
        f"documents: {name} was not applied, another session holds a table that it changes",
        after=LOCK_PAUSE,
        remedy="end long transactions (see pg_stat_activity), then start again; nothing of it was applied",
    )


async def _take_turn(connection: Connection) -> None:
    await _limit(connection, "lock_timeout", TURN_SECONDS)
    try:
        await connection.execute("SELECT pg_advisory_lock(%s)", (MIGRATION_LOCK,))
    except psycopg.errors.LockNotAvailable:
        raise RetryLater(
            f"documents: migrations wait for another process for {TURN_SECONDS} s",
            remedy="wait until `apex backup`, or the other process that migrates, has ended",
        ) from None


async def _limit(connection: Connection, name: str, seconds: float) -> None:
    """Set a time limit of PostgreSQL for this connection."""
    await connection.execute(
        "SELECT set_config(%s, %s, false)", (name, f"{round(seconds * 1000)}ms")
    )


async def _has_migrations(connection: Connection) -> bool:
    cursor = await connection.execute("SELECT to_regclass('migrations') IS NOT NULL")
    row = await cursor.fetchone()
    return bool(row and row[0])


async def _state(connection: Connection) -> SchemaState:
    # Through JSON: in a database of 0.2.0 the table has no column `requires`.
    cursor = await connection.execute(
        "SELECT name, to_jsonb(m) ->> 'requires' FROM migrations m ORDER BY name"
    )
    applied: dict[str, str | None] = dict(await cursor.fetchall())
    known = [name for name, _ in migrations()]
    _require_compatible(applied, known)
    return SchemaState(
        list(applied),
        [name for name in known if name not in applied],
        [name for name in applied if name not in known],
    )


def _require_compatible(applied: Mapping[str, str | None], known: Sequence[str]) -> None:
    """Raise `Misconfigured` if the database holds a migration of a newer build on which this build cannot work."""
    newest = max(known)
    for name, requires in sorted(applied.items()):
        if name in known or (requires is not None and requires <= newest):
            continue
        raise Misconfigured(
            f"documents: the database holds {name}, on which this version cannot work (it knows {newest})",
            remedy="run the newer version of Apex, or name another database",
        )
