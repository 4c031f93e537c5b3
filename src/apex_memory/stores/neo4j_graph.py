"""The graph on Neo4j 5.21 or later, with the official driver (the extra `neo4j`)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import unquote, urlsplit

import neo4j
from neo4j import exceptions

from apex_memory.errors import ApexError, Misconfigured, Rejected, RetryLater, Unavailable
from apex_memory.stores.cypher import CypherGraph, Row
from apex_memory.tls import NO_FILES, STORE_REMEDY, ClientTls, tls_reason

CONNECTIONS = 16
IDLE_SECONDS = 2  # a connection idle for longer is tested before use: the server may be another one
SCHEMA = (
    "CREATE CONSTRAINT apex_entity IF NOT EXISTS FOR (n:Entity) REQUIRE n.id IS UNIQUE",
    "CREATE CONSTRAINT apex_assertion IF NOT EXISTS FOR (n:Assertion) REQUIRE n.id IS UNIQUE",
    "CREATE CONSTRAINT apex_stage IF NOT EXISTS FOR (n:Stage) REQUIRE n.id IS UNIQUE",
    "CALL db.awaitIndexes(300)",
)
CANNOT_SERVE = (
    exceptions.DatabaseUnavailable,
    exceptions.NotALeader,
    exceptions.ForbiddenOnReadOnlyDatabase,
)
# Deadlocks, lost races for a node, internal faults: the data is not the cause.
TRANSIENT = (exceptions.TransientError, exceptions.ConstraintError, exceptions.DatabaseError)
# An entity that a statement found was forgotten before it took its lock. The same again makes it anew.
FORGOTTEN = "Neo.ClientError.Statement.EntityNotFound"
# SHOW DATABASES reports a start time that outlives the process, so this asks the JVM.
PROCESS = """
CALL dbms.queryJmx('java.lang:type=Runtime') YIELD attributes
RETURN attributes.Name.value, toString(attributes.StartTime.value)
"""
DATABASE = "CALL db.info() YIELD id, creationDate RETURN id, creationDate"


class Neo4jGraph(CypherGraph):
    """`url` is `neo4j://user:password@host:port/database`, or `bolt`, each with `+s` for TLS; `timeout` in seconds a statement.

    Everything goes to the leader: a follower may not have yet what a commit in PostgreSQL already shows.
    """

    degree = "COUNT {{ ({})<--() }}"

    def __init__(self, url: str, *, timeout: float, tls: ClientTls = NO_FILES) -> None:
        parts = urlsplit(url)
        scheme = parts.scheme
        encryption: dict[str, Any] = {}
        if scheme.endswith("+s") and tls.given:
            # The driver takes files of ours only with a scheme that does not speak of TLS.
            scheme = scheme.removesuffix("+s")
            encryption = {"encrypted": True, "ssl_context": tls.context()}
        self._database = parts.path.strip("/") or "neo4j"
        self._timeout = timeout
        self._where = parts.netloc.rpartition("@")[2]
        auth = (unquote(parts.username or "neo4j"), unquote(parts.password or ""))
        try:
            self._driver = neo4j.AsyncGraphDatabase.driver(
                f"{scheme}://{self._where}",
                auth=auth,
                **encryption,
                connection_timeout=timeout,
                connection_acquisition_timeout=timeout,
                liveness_check_timeout=IDLE_SECONDS,
                max_connection_pool_size=CONNECTIONS,
                max_transaction_retry_time=0,
                notifications_min_severity="OFF",
                telemetry_disabled=True,
            )
        except (ValueError, exceptions.ConfigurationError):
            raise Misconfigured(
                "graph: the URL cannot be read",
                remedy="write neo4j://user:password@host:port/database",
            ) from None

    async def prepare(self) -> None:
        for statement in SCHEMA:
            await self._write(statement)
        await self._refuse_former()

    async def ping(self) -> None:
        await self._read("RETURN 1")

    async def version(self) -> str:
        async with self._bounded():
            return (await self._driver.get_server_info()).agent.replace("/", " ")

    async def incarnation(self) -> str:
        """Return process and start time of the leader. Costs a query, because the driver hides its connections.

        On a server without the procedure (a hosted one may lack it) this is the id of the database instead: a
        restart goes unnoticed then, and only another database is another incarnation.
        """
        try:
            ((process, started),) = await self._read(PROCESS)
        except Rejected:
            ((process, started),) = await self._read(DATABASE)
        return f"{process}:{started}"

    async def close(self) -> None:
        await self._driver.close()

    async def _read(self, statement: str, **parameters: Any) -> Sequence[Row]:
        return await self._run(statement, parameters)

    async def _write(self, statement: str, **parameters: Any) -> Sequence[Row]:
        return await self._run(statement, parameters)

    async def _run(self, statement: str, parameters: dict[str, Any]) -> Sequence[Row]:
        """Run one statement in one transaction; it is committed and on disk on return."""
        # Version 25 of the language has no `CALL { WITH … }`; FalkorDB has nothing else.
        query = neo4j.Query("CYPHER 5 " + statement, timeout=self._timeout)
        async with self._bounded(), self._driver.session(database=self._database) as session:
            result = await session.run(query, parameters)
            return [record.values() async for record in result]

    @asynccontextmanager
    async def _bounded(self) -> AsyncIterator[None]:
        try:
            async with asyncio.timeout(self._timeout):
                yield
        except TimeoutError:
            raise self._too_late() from None
        except (exceptions.Neo4jError, exceptions.DriverError, OSError) as error:
            if reason := tls_reason(error):
                raise self._unavailable(f"is not reached by TLS: {reason}", STORE_REMEDY) from None
            raise self._translated(error) from None

    def _translated(self, error: Exception) -> ApexError:
        """Translate an error. Messages of the server may quote values, so only the code is passed on."""
        code = getattr(error, "code", None) or type(error).__name__
        if isinstance(error, exceptions.AuthError | exceptions.Forbidden):
            return self._unavailable(
                f"refuses the credentials: {code}",
                "check user and password in the URL, and the user's rights",
            )
        if "DatabaseNotFound" in code:
            return self._unavailable(
                f"has no database {self._database}", "create it, or name another one in the URL"
            )
        if "TransactionTimedOut" in code:
            return self._too_late()
        if isinstance(error, CANNOT_SERVE) or not isinstance(error, exceptions.Neo4jError):
            return self._unavailable(f"cannot be reached or cannot serve: {code}")
        if isinstance(error, TRANSIENT) or code == FORGOTTEN:
            return RetryLater(f"graph: {code}", remedy="see the log of Neo4j if it lasts")
        return Rejected(f"graph: Neo4j refuses the statement: {code}")

    def _unavailable(self, message: str, remedy: str = "") -> Unavailable:
        return Unavailable(self.name, f"{self._where} {message}", remedy=remedy)

    def _too_late(self) -> Unavailable:
        return self._unavailable(f"did not respond within {self._timeout:g} s")
