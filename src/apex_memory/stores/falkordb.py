"""The graph on FalkorDB, over RESP (never its Bolt port: that crashes on the first parameterised MERGE)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from urllib.parse import urlsplit

from redis.exceptions import ResponseError

from apex_memory.errors import Misconfigured, NoWrites, Rejected, RetryLater, Unavailable
from apex_memory.stores.cypher import CypherGraph, Row
from apex_memory.stores.resp import RespServer
from apex_memory.tls import NO_FILES, ClientTls

SCHEMES = {"falkordb": "redis", "falkordbs": "rediss"}
INDEXES = (("Entity", "id"), ("Stage", "id"))
CONNECTIONS = 8  # the server runs one write at a time, and as many reads as it has threads


class FalkorGraph(CypherGraph):
    """`url` is `falkordb://user:password@host:port/graph` (`falkordbs` over TLS); `timeout` in seconds a statement.

    Durable on return only if the server runs with `appendonly yes` and `appendfsync always`.
    """

    degree = "indegree({})"

    def __init__(self, url: str, *, timeout: float, tls: ClientTls = NO_FILES) -> None:
        parts = urlsplit(url)
        if parts.scheme not in SCHEMES:
            raise Misconfigured(
                f"graph: {parts.scheme}:// is not FalkorDB",
                remedy="write falkordb://:password@host:port/graph",
            )
        self._graph = parts.path.strip("/") or "apex"
        self._timeout = timeout
        address = parts._replace(scheme=SCHEMES[parts.scheme], path="").geturl()
        self._server = RespServer(
            self.name, address, timeout=timeout, connections=CONNECTIONS, decode=True, tls=tls
        )

    async def prepare(self) -> None:
        for label, key in INDEXES:
            try:
                async with self._server.bounded() as client:
                    await client.execute_command(
                        "GRAPH.QUERY", self._graph, f"CREATE INDEX FOR (n:{label}) ON (n.{key})"
                    )
            except ResponseError as error:
                if "already indexed" not in str(error):
                    raise self._translated(error) from None
        await self._refuse_former()

    async def ping(self) -> None:
        await self._server.ping()

    async def version(self) -> str:
        async with self._server.bounded() as client:
            modules = await client.execute_command("MODULE", "LIST")
        for entry in modules:
            module = (
                entry
                if isinstance(entry, dict)
                else dict(zip(entry[::2], entry[1::2], strict=False))
            )
            if module["name"] == "graph":
                number = int(module["ver"])
                return f"FalkorDB {number // 10_000}.{number // 100 % 100}.{number % 100}"
        raise Unavailable(
            self.name, "the server has no graph module", remedy="point the URL at FalkorDB"
        )

    async def incarnation(self) -> str:
        return (await self._server.facts())["run_id"]

    async def close(self) -> None:
        await self._server.close()

    async def _read(self, statement: str, **parameters: Any) -> Sequence[Row]:
        """Give the server the same time limit, so that abandoned queries do not pile up there."""
        limit = max(1, int(self._timeout * 1000))
        try:
            return await self._rows("GRAPH.RO_QUERY", statement, parameters, "timeout", limit)
        except ResponseError as error:
            if "empty key" in str(error):  # nothing was ever written, or the data was lost
                return []
            raise self._translated(error) from None

    async def _write(self, statement: str, **parameters: Any) -> Sequence[Row]:
        try:
            return await self._rows("GRAPH.QUERY", statement, parameters)
        except ResponseError as error:
            raise self._translated(error) from None

    async def _rows(
        self, command: str, statement: str, parameters: dict[str, Any], *options: str | int
    ) -> Sequence[Row]:
        header = " ".join(f"{name}={literal(value)}" for name, value in parameters.items())
        text = f"CYPHER {header} {statement}" if header else statement
        async with self._server.bounded() as client:
            response = await client.execute_command(command, self._graph, text, *options)
        rows: Sequence[Row] = response[1] if len(response) == 3 else []
        return rows

    def _translated(self, error: ResponseError) -> Rejected | RetryLater | Unavailable:
        """Translate an error. From `errCtx` on its message quotes the query, which holds content: that part is cut."""
        text = str(error)
        if "timed out" in text:
            return Unavailable(self.name, f"did not respond within {self._timeout:g} s")
        if "Max pending queries" in text:
            return RetryLater("graph: the server's queue is full", after=1)
        if text.startswith(("MISCONF", "NOREPLICAS")):  # its disk is full: see `engines.falkordb`
            return NoWrites(
                self.name,
                f"the server accepts no writes ({text.split(maxsplit=1)[0]})",
                remedy="free space on its disk, which `apex doctor` names; events wait until then",
            )
        if text.startswith(("MASTERDOWN", "CLUSTERDOWN", "unknown command")):
            return Unavailable(self.name, f"the server cannot serve: {text.split(maxsplit=1)[0]}")
        return Rejected(
            f"graph: FalkorDB refuses the statement: {text.partition('errCtx')[0]:.200}"
        )


def literal(value: Any) -> str:
    """Return a value as Cypher text: FalkorDB takes parameters as text in front of the statement."""
    if isinstance(value, str):
        return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'
    if value is None:
        return "null"
    if isinstance(value, list):
        return "[" + ",".join([literal(item) for item in value]) + "]" if value else "[]"
    if isinstance(value, int):
        return str(value)
    raise TypeError(f"{type(value).__name__} has no Cypher literal here")
