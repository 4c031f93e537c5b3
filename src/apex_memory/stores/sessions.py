"""Sessions of a PostgreSQL server that is a store beside `documents`.

`stores.postgres` waits for a server that is away. A store that the saga writes to must say at once that it is away, and why,
so that its breaker counts and its events are parked. So these sessions are opened by the call that needs one.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import psycopg
from psycopg import errors

from apex_memory.errors import ApexError, Misconfigured, NoWrites, Rejected, RetryLater, Unavailable
from apex_memory.stores.postgres import (
    CHECK_SECONDS,
    FRESH_SECONDS,
    TLS_REASON,
    cut_after,
    hung_up,
    shut,
)
from apex_memory.tls import STORE_REMEDY

CANCEL_SECONDS = 0.3  # that a server may take to end a statement nobody waits for
CONNECT_SECONDS = 5.0  # to reach one server of several, at most
CREDENTIALS = "check user and password in the URL, and the user's rights"
STANDBY = (
    "name all servers in the URL, with target_session_attrs=read-write, or lead it to the primary"
)
TRANSIENT = (
    errors.DeadlockDetected,
    errors.SerializationFailure,
    errors.LockNotAvailable,
    errors.IntegrityError,  # what a statement refers to was removed meanwhile
)
MISSING = (errors.UndefinedTable, errors.InvalidSchemaName)
CANNOT_SERVE = (*MISSING, errors.InsufficientPrivilege)


class Session(psycopg.AsyncConnection[tuple[Any, ...]]):
    """A connection that knows before which breakdown it was opened, and when it was used last."""

    generation = 0
    returned_at = 0.0

    async def _try_cancel(self, *, timeout: float = 5.0) -> None:
        """Ask the server to end the statement of a caller that was cancelled, and cut the connection if it does not at once.

        psycopg waits ten seconds for a server that hangs. A session whose caller was cancelled is not used again.
        """
        asyncio.get_running_loop().call_later(CANCEL_SECONDS, shut, self)
        await super()._try_cancel(timeout=min(timeout, CANCEL_SECONDS))


class Sessions:
    """At most `size` sessions. `timeout` is in seconds and covers a whole use: waiting for a session, opening it, its statements.

    `options` are parameters of each session. When a session breaks, all older ones are renewed before their next use, so
    that no state of a stopped server is used. Raises `Misconfigured` when the URL cannot be read.
    """

    def __init__(
        self, store: str, url: str, *, size: int, timeout: float, options: dict[str, str]
    ) -> None:
        try:
            address = psycopg.conninfo.conninfo_to_dict(url)
            ports = str(address.get("port") or 5432)
            if not all(port.isdigit() for port in ports.split(",")):
                raise ValueError
        except (ValueError, psycopg.Error):
            raise Misconfigured(
                f"{store}: the URL cannot be read",
                remedy="write postgresql://user:password@host:port/database",
            ) from None
        hosts = str(address.get("host") or "localhost").split(",")
        # psycopg tries one server after the other: the last of them must still be reached in time. 2 s is its least.
        self._connect_seconds = max(2, int(min(CONNECT_SECONDS, timeout / (len(hosts) + 1))))
        self._store = store
        self._where = f"{address.get('host') or 'localhost'}:{ports}"
        self._url = url
        self._timeout = timeout
        self._options = " ".join(f"-c {name}={value}" for name, value in options.items())
        self._turns = asyncio.Semaphore(size)
        self._idle: list[Session] = []
        self._generation = 0

    @asynccontextmanager
    async def session(self) -> AsyncIterator[Session]:
        """Lend a session on which each statement is a transaction of its own. Errors of the server are translated."""
        began = time.monotonic()
        try:
            async with asyncio.timeout(self._timeout):
                await self._turns.acquire()
        except TimeoutError:
            raise RetryLater(f"{self._store}: all its connections are in use") from None
        session: Session | None = None
        try:
            async with asyncio.timeout(self._timeout):
                session = await self._take()
            with cut_after(session, max(0.001, self._timeout - (time.monotonic() - began))):
                yield session
            self._give_back(session)
            session = None
        except (psycopg.Error, TimeoutError, OSError) as error:
            if session is not None and not session.closed and _is_whole(session):
                self._give_back(session)
                session = None
            elif not isinstance(error, psycopg.DatabaseError) or _is_lost(error):
                self._generation += 1
            raise self._translated(error, time.monotonic() - began) from None
        finally:
            self._turns.release()
            if session is not None:
                await session.close()

    async def close(self) -> None:
        while self._idle:
            await self._idle.pop().close()

    async def _take(self) -> Session:
        while self._idle:
            session = self._idle.pop()
            if session.generation == self._generation and await self._responds(session):
                return session
            await session.close()
            if session.generation == self._generation:
                self._generation += 1
        generation = self._generation
        session = await Session.connect(
            self._url,
            autocommit=True,
            prepare_threshold=0,
            application_name="apex_graph",
            options=self._options,
            connect_timeout=self._connect_seconds,
        )
        session.generation = generation
        return session

    async def _responds(self, session: Session) -> bool:
        """Return whether an idle session can be used. The kernel reports a closed one at once; a hanging one needs a statement."""
        closed = hung_up(session)
        if closed:
            return False
        if closed is False and time.monotonic() - session.returned_at < FRESH_SECONDS:
            return True
        try:
            # Shorter than the time limit of the use: what that cancels would wait for the server again.
            with cut_after(session, min(CHECK_SECONDS, self._timeout / 2)):
                await session.execute("")
        except (psycopg.Error, OSError):
            return False
        return True

    def _give_back(self, session: Session) -> None:
        session.returned_at = time.monotonic()
        self._idle.append(session)

    def _translated(self, error: Exception, seconds: float) -> ApexError:
        """Translate an error. Messages of the server may quote values, so only its kind is passed on."""
        kind = type(error).__name__
        if isinstance(error, TRANSIENT):
            return RetryLater(f"{self._store}: {kind}", after=0.05)
        if isinstance(error, psycopg.DataError):
            return Rejected(
                f"{self._store}: PostgreSQL refuses a value ({kind})",
                remedy="text must be free of NUL, numbers within 64 bits",
            )
        if isinstance(error, psycopg.ProgrammingError) and not isinstance(error, CANNOT_SERVE):
            raise error  # a bug of ours
        if isinstance(error, errors.DiskFull):
            return NoWrites(
                self._store,
                f"the disk of {self._where} is full",
                remedy="free space on the disk of PostgreSQL; events wait until then",
            )
        return self._unavailable(error, seconds)

    def _unavailable(self, error: Exception, seconds: float) -> Unavailable:
        kind, remedy = type(error).__name__, ""
        reason = TLS_REASON.search(str(error))
        if isinstance(error, errors.InsufficientPrivilege) or "authentication failed" in str(error):
            problem, remedy = f"refuses the credentials ({kind})", CREDENTIALS
        elif isinstance(error, errors.ReadOnlySqlTransaction):
            problem, remedy = "accepts no writes: it is a standby", STANDBY
        elif isinstance(error, TimeoutError | errors.QueryCanceled) or seconds >= self._timeout:
            problem = f"did not respond within {self._timeout:g} s"
        elif reason:
            problem, remedy = f"is not reached by TLS: {reason[0]:.200}", STORE_REMEDY
        else:
            problem = f"cannot be reached or cannot serve ({kind})"
        return Unavailable(self._store, f"{self._where} {problem}", remedy=remedy)


def _is_whole(session: Session) -> bool:
    return session.info.transaction_status == psycopg.pq.TransactionStatus.IDLE


def _is_lost(error: psycopg.DatabaseError) -> bool:
    """Return whether the server is away or ended the session, rather than refused a statement."""
    ended = errors.AdminShutdown, errors.CrashShutdown, errors.CannotConnectNow
    is_broken = isinstance(error, psycopg.OperationalError) and error.sqlstate is None
    return is_broken or isinstance(error, ended)
