"""Write a backup while the installation works: every table as it was at one moment.

One connection holds a snapshot, and each table is copied on another one that shares it. So a lock on a table is held
while that table is copied, and no longer. What commits after the snapshot is not in the backup.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import psycopg
from psycopg import sql

from apex_memory import __version__
from apex_memory.backup.folder import (
    Backup,
    Sequence,
    TableCopy,
    TableFile,
    new_folder,
    write_manifest,
)
from apex_memory.build import build_id
from apex_memory.errors import Misconfigured, NoWrites, Rejected
from apex_memory.model import now
from apex_memory.stores.partitions import DAYS
from apex_memory.stores.postgres import translated
from apex_memory.stores.schema import MIGRATION_LOCK, SchemaState, read_state, tables_after

# Not `apex-…`: the collector waits for readers with such a name, and a backup needs nothing that it removes.
APPLICATION = "apex backup"
# A backup takes as long as it takes. The server's own limits are meant for statements that serve users.
LIMITS = (
    "SET statement_timeout = 0",
    "SET transaction_timeout = 0",
    "SET idle_in_transaction_session_timeout = 0",
    "SET lock_timeout = 0",
)
READINGS = "readings"
SEALED = ("secrets", "payload_objects", "data_keys")
"""Tables with the id of the key (`key_id`) under which something is sealed: a secret, an object outside PostgreSQL, or a data key."""
STEP = 16_000_000  # bytes of a table between two calls of `Progress`

Progress = Callable[[str, int, int, int], None]
"""Called with a table, its number, the number of all tables, and the bytes of it so far, uncompressed."""

Connection = psycopg.AsyncConnection[Any]


async def back_up(url: str, path: Path, progress: Progress = lambda *_: None) -> Backup:
    """Copy the database to a new folder at `path`, and return its manifest.

    Raises `Conflict` if `path` exists, `Misconfigured` for a database without Apex or one of a newer build, `NoWrites`
    when the disk of `path` is full, and `Unavailable` when PostgreSQL does not respond. Nothing is left then.
    """
    state = await read_state(url)
    _require_known(state)
    try:
        with new_folder(path) as folder:
            async with translated(), await _connect(url) as holder:
                # Shared with other backups, and not with migrations: the schema stays as it is.
                await holder.execute("SELECT pg_advisory_lock_shared(%s)", (MIGRATION_LOCK,))
                async with holder.transaction():
                    backup = await _copy(url, holder, folder, state, progress)
            write_manifest(folder, backup)
    except OSError as error:
        raise NoWrites(
            "backup",
            f"{path.parent}: {error.strerror or error}",
            remedy="free space there, or name a folder on another disk; nothing was left behind",
        ) from error
    return backup.sealed()


def _require_known(state: SchemaState) -> None:
    if not state.applied:
        raise Misconfigured(
            "documents: there is nothing to back up, the database has no tables of Apex",
            remedy="check APEX_DOCUMENTS, or APEX_DATA_DIR for an embedded one",
        )
    if state.unknown:
        raise Misconfigured(
            f"documents: a newer version of Apex added {state.unknown[0]}, whose tables this one does not know",
            remedy="run the backup with the newest version that uses this database",
        )


async def _connect(url: str) -> Connection:
    connection = await psycopg.AsyncConnection.connect(
        url, autocommit=True, connect_timeout=5, application_name=APPLICATION
    )
    for limit in LIMITS:
        await connection.execute(limit.encode())
    return connection


async def _copy(
    url: str, holder: Connection, folder: Path, state: SchemaState, progress: Progress
) -> Backup:
    await holder.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
    [snapshot] = await _row(holder, "SELECT pg_export_snapshot()")
    [server] = await _row(holder, "SELECT current_setting('server_version')")
    installation, embedder, dimension = await _row(
        holder, "SELECT id, embedder, dimension FROM installation"
    )
    cursor = await holder.execute(DAYS.encode())
    partitions = [row[0] for row in await cursor.fetchall()]
    # `readings` first: retention may drop a day's partition meanwhile, and what is past retention may be missing.
    tables = sorted(tables_after(state.applied), key=lambda name: (name != READINGS, name))
    sealed = [name for name in SEALED if name in tables]
    query = sql.SQL(" UNION ").join(
        sql.SQL("SELECT key_id FROM {}").format(sql.Identifier(name)) for name in sealed
    )
    secret_keys = sorted([row[0] async for row in await holder.execute(query)])
    copies: list[TableCopy] = []
    async with await _connect(url) as connection:
        for number, name in enumerate(tables, 1):
            async with connection.transaction():
                await connection.execute(
                    "SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY"
                )
                await connection.execute(
                    sql.SQL("SET TRANSACTION SNAPSHOT {}").format(sql.Literal(snapshot))
                )
                shown = partial(progress, name, number, len(tables))
                copies.append(await _copy_table(connection, folder, name, shown))
    return Backup(
        created_at=now(),
        version=__version__,
        build=build_id(),
        server=server,
        installation=installation,
        embedder=embedder,
        dimension=dimension,
        migrations=state.applied,
        secret_keys=secret_keys,
        tables=copies,
        # Last: a sequence belongs to no snapshot, and must not give out again what a row of the snapshot has.
        sequences=await _sequences(holder, tables),
        partitions=partitions,
    )


async def _copy_table(
    connection: Connection, folder: Path, name: str, progress: Callable[[int], None]
) -> TableCopy:
    columns = await _columns(connection, name)
    query = sql.SQL("COPY (SELECT {} FROM {}) TO STDOUT (FORMAT binary)").format(
        sql.SQL(", ").join(map(sql.Identifier, columns)), sql.Identifier(name)
    )
    table = TableCopy(name=name, columns=columns, rows=0, bytes=0, sha256="")
    read, shown = 0, 0
    with TableFile(folder / table.file) as file:
        async with connection.cursor() as cursor:
            async with cursor.copy(query) as copy:
                async for block in copy:
                    file.write(block)
                    read += len(block)
                    if read - shown >= STEP:
                        shown = read
                        progress(read)
                        await asyncio.sleep(0)  # a large table must not keep signals waiting
            rows = cursor.rowcount
        digest = file.finish()
        progress(read)
    return table.model_copy(update={"rows": rows, "bytes": file.bytes, "sha256": digest})


async def _columns(connection: Connection, table: str) -> list[str]:
    """Return the columns of a table, without those that PostgreSQL generates."""
    cursor = await connection.execute(
        """SELECT attname FROM pg_attribute WHERE attrelid = to_regclass(%s) AND attnum > 0
           AND NOT attisdropped AND attgenerated = '' ORDER BY attnum""",
        (table,),
    )
    columns = [row[0] for row in await cursor.fetchall()]
    if not columns:
        raise Rejected(
            f"documents: the table {table} is gone", remedy="restore the database from its backup"
        )
    return columns


async def _sequences(connection: Connection, tables: list[str]) -> list[Sequence]:
    cursor = await connection.execute(
        """SELECT c.relname, a.attname,
                  pg_sequence_last_value(pg_get_serial_sequence(quote_ident(c.relname), a.attname)::regclass)
           FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid
           WHERE c.oid = ANY(SELECT to_regclass(name) FROM unnest(%s::text[]) AS name)
             AND a.attidentity <> '' ORDER BY 1, 2""",
        (tables,),
    )
    rows = await cursor.fetchall()
    return [
        Sequence(table=table, column=column, value=value)
        for table, column, value in rows
        if value is not None  # it has given out none yet
    ]


async def _row(connection: Connection, query: str) -> Any:
    cursor = await connection.execute(query.encode())
    row = await cursor.fetchone()
    if row is None:
        raise Rejected(
            "documents: the installation row is gone", remedy="restore the database from its backup"
        )
    return row
