"""Load a backup into an empty installation, in one transaction: all of it, or nothing.

The tables are made by the migrations that the backup names, filled, and brought to the schema of this build. The
stores beside PostgreSQL are not touched: without a row in `store_state` each of them counts as unverified, so that the
workers fill it from the manifests when they start, and searches report it as degraded until then.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from graphlib import TopologicalSorter
from pathlib import Path
from typing import Any

import psycopg
from psycopg import sql
from psycopg.types.json import Jsonb

from apex_memory.backup.folder import Backup, TableCopy, read_table, verify_backup
from apex_memory.backup.writing import LIMITS, Progress
from apex_memory.errors import Conflict, Misconfigured, Rejected
from apex_memory.stores.partitions import create_partition
from apex_memory.stores.postgres import translated
from apex_memory.stores.schema import (
    MIGRATION_LOCK,
    apply,
    migrations,
    prepare_migrations,
    tables_after,
)

APPLICATION = "apex restore"
# Tables that have rows after a first start, before anything came in.
HOUSEKEEPING = frozenset(
    {"api_keys", "audit", "builds", "data_keys", "flags", "installation", "leases", "store_state"}
    | {"memory_versions"}
)
# What processes of the former installation knew about it, and what no longer holds.
FORGOTTEN = ("leases", "store_state")
STEP = 16_000_000  # bytes of a table between two calls of `Progress`
NOT_EMPTY = "restore into a new data folder (APEX_DATA_DIR) or a new database (APEX_DOCUMENTS); nothing was changed here"

Connection = psycopg.AsyncConnection[Any]


@dataclass(frozen=True, slots=True)
class RestoreResult:
    """What was loaded: the backup, its rows by table, and the migrations applied to them afterwards."""

    backup: Backup
    rows: Mapping[str, int]
    migrated: Sequence[str]
    open_events: int
    """Events that were received and not finished when the backup was written. They go on."""


async def restore(url: str, folder: Path, progress: Progress = lambda *_: None) -> RestoreResult:
    """Load the backup in `folder` into an empty database.

    Raises `NotFound` or `Rejected` for a folder that is no backup or a damaged one, `Misconfigured` for a backup of a
    newer version, and `Conflict` when the database is not empty or processes of Apex use it. Nothing is changed then,
    nor when the process is killed.
    """
    backup = await asyncio.to_thread(verify_backup, folder)
    _require_known(backup)
    async with (
        translated(),
        await psycopg.AsyncConnection.connect(
            url, autocommit=True, connect_timeout=5, application_name=APPLICATION
        ) as connection,
    ):
        for limit in LIMITS:
            await connection.execute(limit.encode())
        await _require_unused(connection)
        async with connection.transaction():
            await _take_turn(connection)
            keys = await _clear(connection)
            await _create(connection, backup)
            rows = await _load_all(connection, folder, backup, progress)
            migrated = await _migrate(connection, backup)
            await _keep_keys(connection, keys)
            for table in FORGOTTEN:
                await connection.execute(sql.SQL("DELETE FROM {}").format(sql.Identifier(table)))
            await _audit(connection, backup)
            open_events = await _count(
                connection, "SELECT count(*) FROM inbox WHERE open OR state = 'parked'"
            )
        await connection.execute(
            "ANALYZE"
        )  # without statistics the first queries would read whole tables
    return RestoreResult(backup, rows, migrated, open_events)


def _require_known(backup: Backup) -> None:
    known = {name for name, _ in migrations()}
    unknown = [name for name in backup.migrations if name not in known]
    if unknown:
        raise Misconfigured(
            f"the backup was written by Apex {backup.version}, whose schema ({unknown[0]}) this version does not know",
            remedy=f"restore it with Apex {backup.version} or a later version",
        )
    expected = tables_after(backup.migrations)
    named = {table.name for table in backup.tables}
    if named != expected:
        differing = ", ".join(sorted(named ^ expected))
        raise Rejected(
            f"the backup does not have the tables of its schema: {differing}",
            remedy="restore it with the version of Apex that wrote it",
        )


async def _require_unused(connection: Connection) -> None:
    count = await _count(
        connection,
        """SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()
           AND application_name LIKE 'apex%' AND pid <> pg_backend_pid()""",
    )
    if count:
        raise Conflict(
            f"documents: processes of Apex use this database ({count} connections)",
            remedy="stop the gateways, the workers and other restores first; nothing was changed",
        )


async def _take_turn(connection: Connection) -> None:
    cursor = await connection.execute("SELECT pg_try_advisory_xact_lock(%s)", (MIGRATION_LOCK,))
    row = await cursor.fetchone()
    if not (row and row[0]):
        raise Conflict(
            "documents: another process migrates, backs up or restores this database",
            remedy="wait until it has ended; nothing was changed",
        )


async def _clear(connection: Connection) -> list[tuple[Any, ...]]:
    """Drop the tables of an installation that was never used, and return its API keys.

    Raises `Conflict` if it was used.
    """
    known = tables_after(name for name, _ in migrations())
    cursor = await connection.execute(
        """SELECT name FROM unnest(%s::text[]) AS name WHERE to_regclass(quote_ident(name)) IS NOT NULL ORDER BY 1""",
        ([*known, "migrations"],),
    )
    present = [row[0] for row in await cursor.fetchall()]
    for table in present:
        if table in HOUSEKEEPING or table == "migrations":
            continue
        held = await _count(
            connection,
            sql.SQL("SELECT count(*) FROM (SELECT FROM {} LIMIT 1000) AS held").format(
                sql.Identifier(table)
            ),
        )
        if held:
            number = f"{held}" if held < 1000 else "1,000 or more"
            raise Conflict(
                f"documents: this installation is not empty, its table {table} has {number} rows",
                remedy=NOT_EMPTY,
            )
    keys: list[tuple[Any, ...]] = []
    if "api_keys" in present:
        cursor = await connection.execute(
            "SELECT id, name, digest, scopes, created_at, used_at, revoked_at FROM api_keys"
        )
        keys = await cursor.fetchall()
    if present:
        await connection.execute(
            sql.SQL("DROP TABLE {}").format(sql.SQL(", ").join(map(sql.Identifier, present)))
        )
    return keys


async def _create(connection: Connection, backup: Backup) -> None:
    """Make the tables of the backup's schema, without rows."""
    await prepare_migrations(connection)
    for name, migration in migrations():
        if name in backup.migrations:
            await apply(connection, name, migration)
    for table in backup.tables:  # a migration may insert rows, which the backup has too
        await connection.execute(sql.SQL("TRUNCATE {} CASCADE").format(sql.Identifier(table.name)))
    for day in backup.partitions:
        await create_partition(connection, day)


async def _load_all(
    connection: Connection, folder: Path, backup: Backup, progress: Progress
) -> dict[str, int]:
    rows: dict[str, int] = {}
    tables = await _in_order(connection, backup.tables)
    for number, table in enumerate(tables, 1):
        rows[table.name] = await _load(connection, folder, table, number, len(tables), progress)
    for sequence in backup.sequences:
        await connection.execute(
            "SELECT setval(pg_get_serial_sequence(quote_ident(%s), %s), %s)",
            (sequence.table, sequence.column, sequence.value),
        )
    return rows


async def _in_order(connection: Connection, tables: Sequence[TableCopy]) -> list[TableCopy]:
    """Return the tables so that each comes after those that it refers to."""
    cursor = await connection.execute(
        """SELECT c.relname, f.relname FROM pg_constraint k JOIN pg_class c ON c.oid = k.conrelid
           JOIN pg_class f ON f.oid = k.confrelid WHERE k.contype = 'f' AND k.conrelid <> k.confrelid"""
    )
    references: dict[str, set[str]] = {table.name: set() for table in tables}
    for referring, referred in await cursor.fetchall():
        if referring in references and referred in references:
            references[referring].add(referred)
    by_name = {table.name: table for table in tables}
    return [by_name[name] for name in TopologicalSorter(references).static_order()]


async def _load(
    connection: Connection,
    folder: Path,
    table: TableCopy,
    number: int,
    of: int,
    progress: Progress,
) -> int:
    statement = sql.SQL("COPY {} ({}) FROM STDIN (FORMAT binary)").format(
        sql.Identifier(table.name), sql.SQL(", ").join(map(sql.Identifier, table.columns))
    )
    sent, shown = 0, 0
    async with connection.cursor() as cursor:
        async with cursor.copy(statement) as copy:
            for block in read_table(folder, table):
                await copy.write(block)
                sent += len(block)
                if sent - shown >= STEP:
                    shown = sent
                    progress(table.name, number, of, sent)
        rows = cursor.rowcount
    progress(table.name, number, of, sent)
    if rows != table.rows:
        raise Rejected(
            f"{folder / table.file}: {rows:,} rows were loaded, and {table.rows:,} were written",
            remedy="use another backup; nothing was changed",
        )
    return rows


async def _keep_keys(connection: Connection, keys: Sequence[tuple[Any, ...]]) -> None:
    """Keep the API keys of the installation that is restored into, beside those of the backup."""
    for key in keys:
        await connection.execute(
            """INSERT INTO api_keys (id, name, digest, scopes, created_at, used_at, revoked_at)
               VALUES (%s, %s, %s, %s, %s, %s, %s) ON CONFLICT DO NOTHING""",
            key,
        )


async def _migrate(connection: Connection, backup: Backup) -> list[str]:
    """Apply the migrations that are newer than the backup; return their names."""
    newer = [(name, text) for name, text in migrations() if name not in backup.migrations]
    for name, text in newer:
        await apply(connection, name, text)
    return [name for name, _ in newer]


async def _audit(connection: Connection, backup: Backup) -> None:
    await connection.execute(
        "INSERT INTO audit (actor, action, subject, detail) VALUES ('apex restore', 'restore', %s, %s)",
        (
            str(backup.installation),
            Jsonb({"created_at": backup.created_at.isoformat(), "build": backup.build}),
        ),
    )


async def _count(connection: Connection, query: str | sql.Composed) -> int:
    statement = query.encode() if isinstance(query, str) else query
    cursor = await connection.execute(statement)
    row = await cursor.fetchone()
    return int(row[0]) if row else 0
