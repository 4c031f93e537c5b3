"""A server that speaks the Redis protocol: a pool, one time-out per call, no retries.

FalkorDB and the cache share it. Each connection reads the server's `run_id` when it opens. When one
breaks, all older connections are renewed too, so that no state of a stopped server is used.
"""

from __future__ import annotations

import asyncio
import re
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

from redis import exceptions
from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.connection import Connection, SSLConnection, parse_url
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from apex_memory.errors import Misconfigured, NoWrites, Unavailable
from apex_memory.tls import NO_FILES, STORE_REMEDY, ClientTls, tls_reason


class Pool(BlockingConnectionPool):  # type: ignore[misc]  # redis is not followed by mypy
    """A pool that renews connections of earlier generations when they are next taken."""

    generation = 0

    async def ensure_connection(self, connection: Any) -> None:
        if getattr(connection, "generation", self.generation) != self.generation:
            await connection.disconnect(nowait=True)
        await super().ensure_connection(connection)


class _VerifiedConnection(SSLConnection):  # type: ignore[misc]
    """A connection over TLS with a context of ours: redis-py's own would trust the system's authorities too."""

    def __init__(self, *, tls_context: ssl.SSLContext, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.ssl_context.context = tls_context


class _PrimaryConnection(Connection):  # type: ignore[misc]
    """A connection to the server that is the primary when it connects, as `find_primary` says."""

    def __init__(
        self, *, find_primary: Callable[[], Awaitable[tuple[str, int]]], **arguments: Any
    ) -> None:
        super().__init__(**arguments)
        self._find_primary = find_primary

    async def _connect(self) -> None:
        self.host, self.port = await self._find_primary()
        await super()._connect()


class _VerifiedPrimaryConnection(_PrimaryConnection, _VerifiedConnection):
    """The same over TLS."""


class _OwnTlsPrimaryConnection(_PrimaryConnection, SSLConnection):  # type: ignore[misc]
    """The same over TLS, as the parameters `ssl_…` of the URL say."""


@dataclass(frozen=True, slots=True)
class Sentinels:
    """Redis Sentinels that know the primary of `service`. Each is (host, port); they may have a password of their own."""

    addresses: tuple[tuple[str, int], ...]
    service: str
    password: str | None = None


class RespServer:
    """`client` runs commands inside `bounded()`, which turns every missing response into `Unavailable`.

    `timeout` is in seconds and covers the whole call: waiting for a connection, connecting, the response.
    With `sentinels` each connection goes to the server that is the primary then; the URL gives all but its address.
    A `rediss` URL uses TLS, with the files of `tls` unless its parameters `ssl_…` name others.
    Raises `Misconfigured` when the URL cannot be read, or a file of `tls` cannot be used.
    """

    def __init__(
        self,
        store: str,
        url: str,
        *,
        timeout: float,
        connections: int,
        decode: bool,
        tls: ClientTls = NO_FILES,
        sentinels: Sentinels | None = None,
    ) -> None:
        try:
            address = parse_url(url)
        except ValueError:
            raise Misconfigured(
                f"{store}: the URL cannot be read",
                remedy="write it as scheme://user:password@host:port/name",
            ) from None
        self._store = store
        self._timeout = timeout
        self._where = f"{address.get('host', 'localhost')}:{address.get('port', 6379)}"
        overrides = {
            "max_connections": connections,
            "timeout": None,  # `bounded` is the limit of everything
            "socket_timeout": None,
            "socket_connect_timeout": timeout,
            "retry": Retry(NoBackoff(), 0),
            "protocol": 2,
            "decode_responses": decode,
            "redis_connect_func": self._greet,
        }
        own_files = any(name.startswith("ssl_") for name in address)
        if tls.given and not own_files and address.get("connection_class") is SSLConnection:
            overrides |= {"connection_class": _VerifiedConnection, "tls_context": tls.context()}
        if sentinels:
            overrides |= _through(sentinels, {**address, **overrides}, timeout)
            self._where = f"the primary of {sentinels.service}"
        self._pool = Pool(**{**address, **overrides})
        self.client = Redis(connection_pool=self._pool)

    async def _greet(self, connection: Any) -> None:
        """Do the client's own handshake, and keep section `server` of INFO with the connection."""
        try:
            await connection.on_connect()
            await connection.send_command("INFO", "server")
            response = await connection.read_response()
        except (exceptions.AuthenticationError, exceptions.NoPermissionError):
            raise
        except exceptions.ResponseError as error:
            raise exceptions.ConnectionError(f"refused INFO: {error}") from None
        text = response if isinstance(response, str) else response.decode()
        connection.facts = dict(re.findall(r"^(\w+):(.*?)\r?$", text, re.MULTILINE))
        if "cluster" in (connection.facts.get("redis_mode"), connection.facts.get("server_mode")):
            raise exceptions.ConnectionError("it is a node of a cluster, which Apex does not use")
        connection.generation = self._pool.generation

    @asynccontextmanager
    async def bounded(self) -> AsyncIterator[Redis]:
        """Run commands on `client`. Errors other than a missing response pass through."""
        try:
            async with asyncio.timeout(self._timeout):
                yield self.client
        except (
            exceptions.AuthenticationError,
            exceptions.AuthorizationError,
            exceptions.NoPermissionError,
        ) as error:
            raise Unavailable(
                self._store,
                f"{self._where} refuses the credentials: {error}",
                remedy="check user and password in the URL, and the user's rights",
            ) from None
        except (exceptions.OutOfMemoryError, exceptions.ReadOnlyError) as error:
            if isinstance(error, exceptions.ReadOnlyError):
                self._pool.generation += 1  # another server may be the primary now
            raise NoWrites(
                self._store,
                f"{self._where} accepts no writes: {error}",
                remedy="give the server memory, or point the URL at the primary",
            ) from None
        except (TimeoutError, exceptions.TimeoutError):
            self._pool.generation += 1
            raise Unavailable(
                self._store, f"{self._where} did not respond within {self._timeout:g} s"
            ) from None
        except (exceptions.ConnectionError, exceptions.InvalidResponse, OSError) as error:
            self._pool.generation += 1
            raise Unavailable(
                self._store,
                f"{self._where} cannot be reached: {error!s:.200}",
                remedy=STORE_REMEDY if tls_reason(error) else "",
            ) from None

    async def facts(self) -> dict[str, str]:
        """Return section `server` of INFO, as an open connection read it when it opened."""
        # Two turns of the loop let it notice a server that hung up, even if nothing else ran since.
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        async with self.bounded():
            connection = await self._pool.get_connection()
            try:
                facts: dict[str, str] = connection.facts
            finally:
                await self._pool.release(connection)
        return facts

    async def ping(self) -> None:
        async with self.bounded() as client:
            await client.ping()

    async def close(self) -> None:
        await self.client.aclose()
        await self._pool.aclose()


def _through(sentinels: Sentinels, options: dict[str, Any], timeout: float) -> dict[str, Any]:
    """Return the options of connections that ask the Sentinels for their address. These use TLS as the servers do."""
    base = options.get("connection_class", Connection)
    classes = {
        _VerifiedConnection: _VerifiedPrimaryConnection,
        SSLConnection: _OwnTlsPrimaryConnection,
    }
    asking = {name: value for name, value in options.items() if name.startswith(("ssl_", "tls_"))}
    asking |= {"retry": Retry(NoBackoff(), 0), "protocol": 2, "password": sentinels.password}
    # One that is away must not use up the time of the whole call.
    asking |= {"socket_timeout": timeout / 4, "socket_connect_timeout": timeout / 4}
    return {
        "connection_class": classes.get(base, _PrimaryConnection),
        "find_primary": partial(_primary_of, sentinels, base, asking),
    }


async def _primary_of(
    sentinels: Sentinels, connection_class: type[Any], options: dict[str, Any]
) -> tuple[str, int]:
    """Return host and port of the primary, from the first Sentinel that names it."""
    reasons = []
    for host, port in sentinels.addresses:
        connection = connection_class(host=host, port=port, **options)
        try:
            await connection.connect()
            await connection.send_command("SENTINEL", "GET-MASTER-ADDR-BY-NAME", sentinels.service)
            named = await connection.read_response()
        except (exceptions.RedisError, OSError) as error:
            reasons.append(f"{host}:{port} {error!s:.100}")
            continue
        finally:
            await connection.disconnect(nowait=True)
        if named:
            return named[0].decode(), int(named[1])
        reasons.append(f"{host}:{port} knows no such service")
    raise exceptions.ConnectionError(f"no Sentinel names it: {'; '.join(reasons)}")
