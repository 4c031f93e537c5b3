"""PostgreSQL, the authority: connections and transactions. SQL stands with the functions that run it."""

from __future__ import annotations

import asyncio
import os
import re
import select
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from typing import Any, LiteralString, TypeVar, cast
from uuid import UUID

import psycopg
from psycopg.rows import DictRow, class_row, dict_row
from psycopg_pool import AsyncConnectionPool, PoolTimeout

from apex_memory.errors import (
    CHANGED_EMBEDDER,
    Conflict,
    Deadlock,
    Misconfigured,
    NoWrites,
    Rejected,
    RetryLater,
    Unavailable,
)
from apex_memory.tls import STORE_REMEDY

Connection = psycopg.AsyncConnection[DictRow]


class _Pooled(psycopg.AsyncConnection[DictRow]):
    """A connection with the time of its return to the pool, so that one just used is not checked again."""

    returned_at = float("-inf")


Row = TypeVar("Row")
Parameters = Sequence[Any] | Mapping[str, Any]

# A pooled connection that does not answer an empty statement in time is dropped.
CHECK_SECONDS = 2.0
# A connection returned this recently is not checked: under load that is all of them.
FRESH_SECONDS = 1.0
# The most that counts of the time in which this process could not look.
TICK_SECONDS = 0.25
# For a connection, of which a machine at a tenth of its speed makes one in some seconds.
CONNECT_SECONDS = 10
TLS_REASON = re.compile(
    r"(?:SSL error: |server certificate |root certificate |server does not support SSL)[^\n]*"
)
"""What libpq writes where TLS is why a connection fails: names of hosts and files, no content."""


@asynccontextmanager
async def translated() -> AsyncIterator[None]:
    """Translate PostgreSQL's errors into `Unavailable`, `RetryLater` and `Rejected`. Any other error is a bug and passes."""
    try:
        yield
    except (psycopg.errors.DeadlockDetected, psycopg.errors.SerializationFailure) as error:
        raise Deadlock(f"documents: {type(error).__name__}", after=0.05) from error
    except (psycopg.errors.QueryCanceled, psycopg.errors.TransactionTimeout) as error:
        raise RetryLater("documents: the statement took too long", after=1) from error
    except psycopg.DataError as error:
        raise Rejected(
            f"documents: PostgreSQL refuses a value ({type(error).__name__})",
            remedy="text must be free of NUL, numbers within 64 bits",
        ) from error
    except psycopg.errors.DiskFull as error:
        raise NoWrites(
            "documents",
            "the disk is full",
            remedy="free space on the disk of PostgreSQL; events wait until then",
        ) from error
    except psycopg.errors.ReadOnlySqlTransaction as error:
        raise Unavailable(
            "documents",
            "the server accepts no writes: it is a standby",
            remedy="name all servers in the URL, with target_session_attrs=read-write, or lead it to the primary",
        ) from error
    except psycopg.errors.LockNotAvailable as error:
        raise RetryLater(
            "documents: another session holds what is to be locked", after=1
        ) from error
    except psycopg.errors.IdleInTransactionSessionTimeout as error:
        # To psycopg an internal error, not an operational one. The server ended the session: as if it had stopped.
        raise Unavailable(
            "documents",
            "PostgreSQL ended a session that was idle in a transaction",
            remedy="set idle_in_transaction_session_timeout of its role to 0 or at least 30 s",
        ) from error
    except (psycopg.OperationalError, psycopg.InterfaceError, PoolTimeout) as error:
        if reason := TLS_REASON.search(str(error)):
            raise Unavailable(
                "documents",
                f"no connection with TLS to PostgreSQL: {reason[0]:.200}",
                remedy=STORE_REMEDY,
            ) from error
        raise Unavailable(
            "documents", f"PostgreSQL does not respond ({type(error).__name__})"
        ) from error


class Postgres:
    """Two pools of connections, one for work and one for readers' snapshots; rows are dictionaries.

    Every transaction has a time limit: `timeout` seconds for work, `snapshot_seconds` for a snapshot,
    set when a connection opens, so that neither costs a round trip later.

    `pooled` is for a pooler in transaction mode (PgBouncer), which gives each transaction any session: nothing is set
    for a session then, and no statement is prepared. The time limit of a transaction is that of the role.
    """

    name = "documents"

    def __init__(
        self,
        url: str,
        *,
        pooled: bool = False,
        size: int = 8,
        readers: int = 8,
        timeout: float = 20,
        snapshot_seconds: float = 20,
    ) -> None:
        # PostgreSQL ends statements that take too long; this limit is for a server that hangs.
        self._patience = max(timeout, snapshot_seconds) + 2
        self._pool = _pool(url, size, timeout, limit=timeout, pooled=pooled)
        self._readers = _pool(
            url, readers, timeout, limit=snapshot_seconds, pooled=pooled, configure=_as_reader
        )

    async def open(self, *, wait: bool = True) -> None:
        """Open the pools. Raises `Unavailable` without PostgreSQL, unless `wait` is false: then each call does."""
        async with translated():
            await self._pool.open(wait=wait, timeout=10)
            await self._readers.open()

    async def close(self) -> None:
        await self._readers.close()
        await self._pool.close()

    @asynccontextmanager
    async def connection(self) -> AsyncIterator[Connection]:
        """A connection on which each statement is a transaction of its own, so that one statement is one round trip."""
        async with translated(), self._lent(self._pool) as connection:
            yield connection

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[Connection]:
        """A read-committed transaction: commits at the end of the block, rolls back on an exception."""
        async with self.connection() as connection, connection.transaction():
            yield connection

    @asynccontextmanager
    async def snapshot(self) -> AsyncIterator[Connection]:
        """A repeatable-read, read-only transaction that PostgreSQL ends after `snapshot_seconds`.

        PostgreSQL takes the snapshot with the first statement.
        """
        async with translated(), self._lent(self._readers) as connection, connection.transaction():
            yield connection

    @asynccontextmanager
    async def _lent(self, pool: AsyncConnectionPool[Connection]) -> AsyncIterator[Connection]:
        cancellations = _cancellations()
        async with pool.connection() as connection:
            # Up to Python 3.11 `asyncio.wait_for`, by which the pool waits, loses a cancellation at the moment of success.
            # A loop without an end would then never stop, and a time limit not hold.
            if _cancellations() > cancellations:
                raise asyncio.CancelledError
            with cut_after(connection, self._patience):
                yield connection
            assert isinstance(connection, _Pooled)
            connection.returned_at = time.monotonic()

    async def fetch(self, query: LiteralString, parameters: Parameters = ()) -> list[DictRow]:
        """Return all rows of one statement, which is a transaction of its own."""
        async with self.connection() as connection:
            return await (await connection.execute(query, parameters)).fetchall()

    async def fetch_one(self, query: LiteralString, parameters: Parameters = ()) -> DictRow | None:
        """Return the first row of one statement, which is a transaction of its own; None if it has none."""
        rows = await self.fetch(query, parameters)
        return rows[0] if rows else None

    async def fetch_rows(
        self, row_type: type[Row], query: LiteralString, parameters: Parameters = ()
    ) -> list[Row]:
        """Return all rows of one statement, which is a transaction of its own, as `fetch_rows` does."""
        async with self.connection() as connection:
            return await fetch_rows(connection, row_type, query, parameters)

    async def fetch_row(
        self, row_type: type[Row], query: LiteralString, parameters: Parameters = ()
    ) -> Row | None:
        """Return the first row of one statement, which is a transaction of its own; None if it has none."""
        async with self.connection() as connection:
            return await fetch_row(connection, row_type, query, parameters)

    async def execute(self, query: LiteralString, parameters: Parameters = ()) -> int:
        """Run one statement, which is a transaction of its own. Return the number of rows it touched."""
        async with self.connection() as connection:
            return (await connection.execute(query, parameters)).rowcount

    async def ping(self) -> None:
        await self.fetch("SELECT 1")

    async def version(self) -> str:
        row = await self.fetch_one("SELECT current_setting('server_version') AS version")
        return f"PostgreSQL {row['version'] if row else '?'}"

    async def incarnation(self) -> str:
        row = await self.fetch_one("SELECT pg_postmaster_start_time()::text AS started")
        return row["started"] if row else ""


async def fetch_rows(
    connection: Connection,
    row_type: type[Row],
    query: LiteralString,
    parameters: Parameters = (),
    *,
    prepare: bool | None = None,
) -> list[Row]:
    """Return all rows of one statement. Each column is a field of `row_type`, so that the type checker knows it."""
    async with connection.cursor(row_factory=class_row(row_type)) as cursor:
        await cursor.execute(query, parameters, prepare=prepare)
        return await cursor.fetchall()


async def fetch_row(
    connection: Connection,
    row_type: type[Row],
    query: LiteralString,
    parameters: Parameters = (),
) -> Row | None:
    """Return the first row of one statement, as `fetch_rows` does; None if it has none."""
    async with connection.cursor(row_factory=class_row(row_type)) as cursor:
        await cursor.execute(query, parameters)
        return await cursor.fetchone()


@contextmanager
def cut_after(connection: psycopg.AsyncConnection[Any], seconds: float) -> Iterator[None]:
    """Shut the connection's socket after `seconds`: whoever waits on it fails as if the server had stopped.

    Cancelling is not enough: psycopg asks the hanging server to cancel, and waits for its response. The time is counted in
    ticks, so that a second in which this process was stopped counts like one tick: on a machine that slows both
    sides down, a server that responds would otherwise look as if it hung, and each new connection costs more than the answer.
    """
    loop = asyncio.get_running_loop()
    timer: asyncio.TimerHandle | None = None

    def wait(left: float) -> None:
        nonlocal timer
        if left > 0:
            tick = min(TICK_SECONDS, left)
            timer = loop.call_later(tick, wait, left - tick)
        else:
            shut(connection)

    wait(seconds)
    try:
        yield
    finally:
        if timer:
            timer.cancel()


def _cancellations() -> int:
    """Return how often the running task was cancelled."""
    task = asyncio.current_task()
    return task.cancelling() if task else 0


def shut(connection: psycopg.AsyncConnection[Any]) -> None:
    """Shut the connection's socket, if it is still open."""
    with (
        suppress(OSError, psycopg.Error),
        socket.socket(fileno=os.dup(connection.fileno())) as line,
    ):
        line.shutdown(socket.SHUT_RDWR)


def hung_up(connection: psycopg.AsyncConnection[Any]) -> bool | None:
    """Return whether the server has closed the connection, as far as the kernel knows; None where it cannot be asked."""
    if not hasattr(select, "POLLRDHUP"):  # not on Linux
        return None
    poll = select.poll()
    poll.register(connection.fileno(), select.POLLRDHUP)
    return bool(poll.poll(0))


async def _check(connection: Connection) -> None:
    """Raise for a broken connection. The kernel reports a closed one at once; a hanging one needs a statement."""
    assert isinstance(connection, _Pooled)
    is_recent = time.monotonic() - connection.returned_at < FRESH_SECONDS
    if is_recent and hung_up(connection) is False:
        return
    with cut_after(connection, CHECK_SECONDS):
        await AsyncConnectionPool.check_connection(connection)


async def _as_reader(connection: Connection) -> None:
    """Let every transaction of a connection be a snapshot. It stands in BEGIN, so it holds through a pooler too."""
    await connection.set_isolation_level(psycopg.IsolationLevel.REPEATABLE_READ)
    await connection.set_read_only(True)


def _pool(
    url: str,
    size: int,
    timeout: float,
    *,
    limit: float,
    pooled: bool,
    configure: Callable[[Connection], Awaitable[None]] | None = None,
) -> AsyncConnectionPool[Connection]:
    """Return a pool whose transactions end after `limit` seconds. Connections wait `timeout` seconds for each other."""
    session: dict[str, Any] = {"options": f"-c transaction_timeout={round(limit * 1000)}"}
    if pooled:
        session = {"prepare_threshold": None}
    return AsyncConnectionPool(
        url,
        connection_class=cast(type[Connection], _Pooled),
        min_size=1,
        max_size=size,
        timeout=min(timeout, 5),
        open=False,
        check=_check,
        configure=configure,
        # After an outage the pool would wait twice as long before each try, for up to five minutes.
        reconnect_timeout=1,
        kwargs={
            "row_factory": dict_row,
            # A single statement then is one round trip; `connection.transaction()` opens longer ones.
            "autocommit": True,
            "application_name": f"apex-{os.getpid()}",
            "connect_timeout": CONNECT_SECONDS,
            **session,
        },
    )


@dataclass(frozen=True, slots=True)
class _Installation:
    """The only row of `installation`. A first start fixes the embedder and the dimension of its vectors."""

    id: UUID
    embedder: str | None
    dimension: int | None


async def claim_installation(db: Postgres, *, embedder: str, dimension: int) -> UUID:
    """Return the id of this installation. The first start fixes the embedder; `Misconfigured` for another one later."""
    installation = await db.fetch_row(
        _Installation,
        """UPDATE installation SET embedder = coalesce(embedder, %s), dimension = coalesce(dimension, %s)
           RETURNING id, embedder, dimension""",
        (embedder, dimension),
    )
    if installation is None:
        raise _installation_gone()
    _require_same_embedder(installation, embedder, dimension)
    return installation.id


async def read_installation(db: Postgres) -> tuple[UUID, int | None]:
    """Return the id of this installation, and the dimension of its vectors; None before a first start fixed the embedder."""
    installation = await _installation(db)
    if installation is None:
        raise _installation_gone()
    return installation.id, installation.dimension


async def check_embedder(db: Postgres, *, embedder: str, dimension: int) -> None:
    """Raise `Misconfigured` if the memory was embedded with another embedder. Changes nothing."""
    installation = await _installation(db)
    if installation is not None and installation.embedder is not None:
        _require_same_embedder(installation, embedder, dimension)


async def _installation(db: Postgres) -> _Installation | None:
    return await db.fetch_row(_Installation, "SELECT id, embedder, dimension FROM installation")


def _installation_gone() -> Conflict:
    return Conflict(
        "documents: the installation row is gone", remedy="restore the database from its backup"
    )


def _require_same_embedder(installation: _Installation, embedder: str, dimension: int) -> None:
    if (installation.embedder, installation.dimension) != (embedder, dimension):
        raise Misconfigured(
            f"embedder: this memory was embedded with {installation.embedder} ({installation.dimension} dimensions),"
            f" the settings choose {embedder} ({dimension})",
            remedy=CHANGED_EMBEDDER,
        )
