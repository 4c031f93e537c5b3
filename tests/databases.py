"""Databases for tests: each test gets one with all migrations and nothing else in it, under a name of its own.

To copy a template takes a third of a second, as it has a thousand files. To empty what a test wrote takes a tenth of that. So a
database whose schema is as it was is emptied, renamed, and used again: whoever still knows the old name meets no database.
"""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import psycopg

from apex_memory.stores.graph import open_graph
from apex_memory.stores.schema import migrate
from tests.waiting import until

TEMPLATE = "apex_template"

# Everything in the schemas that users make: tables, columns, indexes, constraints, triggers, functions, rights, settings.
SCHEMA = """
SELECT md5(string_agg(line, E'\n' ORDER BY line)) FROM (
  SELECT concat_ws(' ', 'schema', nspname, nspacl) FROM pg_namespace WHERE nspname NOT LIKE 'pg\\_%'
  UNION ALL SELECT concat_ws(' ', 'class', relnamespace::regnamespace, relname, relkind, relowner, relacl, reloptions, relpersistence)
    FROM pg_class WHERE oid >= 16384 AND relkind <> 't' AND relname NOT LIKE 'pg\\_toast%'
  UNION ALL SELECT concat_ws(' ', 'column', attrelid::regclass, attnum, attname, atttypid, attnotnull, attisdropped, attacl)
    FROM pg_attribute WHERE attrelid >= 16384 AND attnum > 0 AND attrelid::regclass::text NOT LIKE 'pg\\_toast%'
  UNION ALL SELECT concat_ws(' ', 'index', indexrelid::regclass, pg_get_indexdef(indexrelid)) FROM pg_index WHERE indrelid >= 16384
    AND indrelid::regclass::text NOT LIKE 'pg\\_toast%'
  UNION ALL SELECT concat_ws(' ', 'constraint', conrelid::regclass, conname, pg_get_constraintdef(oid)) FROM pg_constraint
    WHERE conrelid >= 16384
  UNION ALL SELECT concat_ws(' ', 'trigger', tgrelid::regclass, tgname, tgenabled) FROM pg_trigger WHERE NOT tgisinternal
  UNION ALL SELECT concat_ws(' ', 'function', oid::regprocedure, md5(prosrc)) FROM pg_proc WHERE oid >= 16384
  UNION ALL SELECT concat_ws(' ', 'extension', extname) FROM pg_extension
  UNION ALL SELECT concat_ws(' ', 'default right', defaclnamespace, defaclacl) FROM pg_default_acl
  UNION ALL SELECT concat_ws(' ', 'publication', pubname) FROM pg_publication
  UNION ALL SELECT concat_ws(' ', 'setting', setrole, setconfig) FROM pg_db_role_setting s
    JOIN pg_database d ON d.oid = s.setdatabase WHERE d.datname = current_database()
  UNION ALL SELECT concat_ws(' ', 'database', datacl, datconnlimit, datallowconn) FROM pg_database WHERE datname = current_database()
) lines (line)
"""
OURS = "relnamespace IN ('public'::regnamespace, 'apex_graph'::regnamespace)"
TABLES = f"SELECT oid::regclass::text FROM pg_class WHERE relkind IN ('r', 'm') AND {OURS}"
WRITTEN = f"{TABLES} AND pg_relation_size(oid) > 0"
RESTART = f"""
SELECT setval(oid::regclass, (SELECT seqstart FROM pg_sequence WHERE seqrelid = oid), false)
FROM pg_class WHERE relkind = 'S' AND {OURS}
"""
END_SESSIONS = """
SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s AND backend_type = 'client backend'
"""


@dataclass
class Databases:
    """The databases of one server. `url` is `postgresql://user:password@host:port/postgres`, a superuser's."""

    url: str
    schema: str = ""
    """The digest of the template's schema."""
    rows: dict[str, str] = field(default_factory=dict)
    """The template's rows as JSON, by table; a table that is not here is empty."""
    idle: list[str] = field(default_factory=list)
    numbers: Iterator[int] = field(default_factory=lambda: itertools.count(1))

    def url_of(self, name: str) -> str:
        return self.url.removesuffix("/postgres") + f"/{name}"

    async def prepare(self) -> None:
        """Make the template: the tables of the documents and of the graph."""
        await self._as_admin(f"CREATE DATABASE {TEMPLATE}")
        await migrate(self.url_of(TEMPLATE))
        graph = open_graph(self.url_of(TEMPLATE), timeout=30)
        await graph.prepare()
        await graph.close()
        async with await psycopg.AsyncConnection.connect(self.url_of(TEMPLATE)) as connection:
            self.schema = await _value(connection, SCHEMA)
            for table in await _column(connection, WRITTEN):
                rows = f"SELECT coalesce(json_agg(t), '[]')::text FROM {table} t"
                self.rows[table] = await _value(connection, rows)

    @asynccontextmanager
    async def database(self) -> AsyncIterator[str]:
        """The URL of a database that has all migrations and is nobody else's."""
        name = await self._take()
        yield self.url_of(name)
        await self._give_back(name)

    async def _take(self) -> str:
        """Return the name of a database that has all migrations, and that nobody had before under this name."""
        name = f"test_{next(self.numbers)}"
        if self.idle:
            await self._as_admin(f"ALTER DATABASE {self.idle.pop()} RENAME TO {name}")
        else:
            await self._as_admin(f"CREATE DATABASE {name} TEMPLATE {TEMPLATE}")
        return name

    async def _give_back(self, name: str) -> None:
        """Empty the database for the next test, or drop it if its schema was changed."""
        idle = f"idle_{name}"
        try:
            await self._rename(name, idle)
            async with await psycopg.AsyncConnection.connect(self.url_of(idle)) as connection:
                is_clean = await _value(connection, SCHEMA) == self.schema
                if is_clean:
                    await self._empty(connection)
        except psycopg.Error:  # the test dropped it, or lets nobody in
            for left in (name, idle):
                await self._as_admin(f"DROP DATABASE IF EXISTS {left} WITH (FORCE)")
            return
        if is_clean:
            self.idle.append(idle)
        else:
            await self._as_admin(f"DROP DATABASE {idle} WITH (FORCE)")

    async def _rename(self, name: str, idle: str) -> None:
        async with await psycopg.AsyncConnection.connect(self.url, autocommit=True) as admin:

            async def renamed() -> bool:
                await admin.execute(END_SESSIONS, [name])
                try:
                    await admin.execute(f"ALTER DATABASE {name} RENAME TO {idle}".encode())
                except psycopg.errors.ObjectInUse:  # a session still ends, or another one has begun
                    return False
                return True

            await until(renamed, f"nobody uses the database {name}")

    async def _empty(self, connection: psycopg.AsyncConnection[Any]) -> None:
        """Make the content equal to the template's."""
        written = await _column(connection, WRITTEN)
        if written:
            await connection.execute(f"TRUNCATE {', '.join(written)} CASCADE".encode())
        for table in await _column(connection, TABLES):
            if table in self.rows:
                restored = f"INSERT INTO {table} OVERRIDING SYSTEM VALUE SELECT * FROM json_populate_recordset(null::{table}, %s)"
                await connection.execute(restored.encode(), [self.rows[table]])
        await connection.execute(RESTART)

    async def _as_admin(self, statement: str) -> None:
        async with await psycopg.AsyncConnection.connect(self.url, autocommit=True) as admin:
            await admin.execute(statement.encode())


async def _value(connection: psycopg.AsyncConnection[Any], query: str) -> Any:
    row = await (await connection.execute(query.encode())).fetchone()
    assert row is not None
    return row[0]


async def _column(connection: psycopg.AsyncConnection[Any], query: str) -> list[str]:
    return [value for (value,) in await (await connection.execute(query.encode())).fetchall()]
