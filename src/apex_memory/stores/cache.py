"""The cache: Redis or Valkey. It decides nothing, so it may be unavailable, empty or stale without harm."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import TypeVar
from urllib.parse import SplitResult, parse_qs, urlencode, urlsplit
from uuid import UUID

from redis.asyncio import Redis
from redis.exceptions import ResponseError

from apex_memory import telemetry
from apex_memory.errors import Misconfigured, Unavailable
from apex_memory.stores.resp import RespServer, Sentinels
from apex_memory.tls import NO_FILES, ClientTls

SCHEMES = {"redis": "redis", "rediss": "rediss", "valkey": "redis", "valkeys": "rediss"}
SENTINEL = "+sentinel"  # after a scheme: the hosts are Sentinels, and the path is service/database
SENTINEL_PORT = 26379
PREFIX = "apex:"  # of all keys
PAUSE_SECONDS = 2.0
LOG_SECONDS = 30.0
CONNECTIONS = 16

T = TypeVar("T")

UNLOCK = """
for i, key in ipairs(KEYS) do
  if redis.call('GET', key) == ARGV[1] then redis.call('DEL', key) end
end
"""


class Cache:
    """Locks and cached answers. `url` is `redis://user:password@host:port/0` (`rediss` over TLS); Redis 7 or later, or Valkey.

    `redis+sentinel://user:password@a:26379,b:26379/service/0` is the primary that Sentinels name; their own password is
    the parameter `sentinel_password`.

    Every method returns its neutral value when the server does not respond within `timeout` seconds. After a
    failure no call is sent for `PAUSE_SECONDS`, so an unavailable cache costs microseconds. Only `ping`, `version`
    and `incarnation` raise `Unavailable`.
    """

    name = "cache"

    def __init__(
        self,
        url: str,
        *,
        timeout: float = 0.25,
        clock: Callable[[], float] = time.monotonic,
        tls: ClientTls = NO_FILES,
    ) -> None:
        parts, sentinels = _without_sentinels(urlsplit(url))
        if parts.scheme not in SCHEMES:
            raise Misconfigured(
                f"cache: {parts.scheme}:// is not Redis",
                remedy="write redis://:password@host:port/0",
            )
        self._server = RespServer(
            self.name,
            parts._replace(scheme=SCHEMES[parts.scheme]).geturl(),
            timeout=timeout,
            connections=CONNECTIONS,
            decode=False,
            tls=tls,
            sentinels=sentinels,
        )
        self._unlock = self._server.client.register_script(UNLOCK)
        self._clock = clock
        self._paused_until = 0.0
        self._logged_at = float("-inf")
        self._log = telemetry.logger(store=self.name)

    async def lock(self, doc_ids: Sequence[UUID], owner: UUID, seconds: float) -> set[UUID]:
        """Return the locks that `owner` holds, for `seconds` since it first got them; all, when the cache does not respond.

        Locks save work that would lose anyway. Nothing may depend on them.
        """

        async def ask(client: Redis) -> set[UUID]:
            async with client.pipeline(transaction=False) as batch:
                for doc_id in doc_ids:
                    batch.set(_lock(doc_id), owner.bytes, nx=True, get=True, px=_millis(seconds))
                former_holders = await batch.execute()
            ok = (None, owner.bytes)  # free before, or held by this owner already
            holders = zip(doc_ids, former_holders, strict=True)
            return {doc_id for doc_id, holder in holders if holder in ok}

        return await self._answer("lock", ask, otherwise=set(doc_ids)) if doc_ids else set()

    async def unlock(self, doc_ids: Sequence[UUID], owner: UUID) -> None:
        """Release the locks that the owner still holds."""

        async def ask(client: Redis) -> None:
            await self._unlock(
                keys=[_lock(doc_id) for doc_id in doc_ids], args=[owner.bytes], client=client
            )

        if doc_ids:
            await self._answer("unlock", ask, otherwise=None)

    async def get_many(self, keys: Sequence[str]) -> dict[str, bytes]:
        async def ask(client: Redis) -> dict[str, bytes]:
            values = await client.mget([_cached(key) for key in keys])
            return {k: v for k, v in zip(keys, values, strict=True) if v is not None}

        return await self._answer("get_many", ask, otherwise={}) if keys else {}

    async def put_many(self, items: Mapping[str, bytes], seconds: float) -> None:
        async def ask(client: Redis) -> None:
            async with client.pipeline(transaction=False) as batch:
                for key, value in items.items():
                    batch.set(_cached(key), value, px=_millis(seconds))
                await batch.execute()

        if items:
            await self._answer("put_many", ask, otherwise=None)

    async def drop(self, keys: Sequence[str]) -> None:
        async def ask(client: Redis) -> None:
            await client.unlink(*map(_cached, keys))

        if keys:
            await self._answer("drop", ask, otherwise=None)

    async def clear(self) -> int:
        """Remove everything that Apex keeps in the cache, and return the number of entries. Raises `Unavailable`."""
        removed = 0
        cursor = 0
        while True:
            async with self._server.bounded() as client:
                cursor, keys = await client.scan(cursor, match=f"{PREFIX}*", count=1_000)
                if keys:
                    removed += await client.unlink(*keys)
            if not cursor:
                return removed

    async def ping(self) -> None:
        """Send a call even in a pause, and end the pause when the server responds."""
        await self._server.ping()
        self._paused_until = 0.0

    async def version(self) -> str:
        facts = await self._server.facts()
        if "valkey_version" in facts:
            return f"Valkey {facts['valkey_version']}"
        return f"Redis {facts['redis_version']}"

    async def incarnation(self) -> str:
        return (await self._server.facts())["run_id"]

    async def close(self) -> None:
        await self._server.close()

    async def _answer(self, call: str, ask: Callable[[Redis], Awaitable[T]], *, otherwise: T) -> T:
        """Return the result of `ask`, or `otherwise`. After a failure and its pause, one caller probes for all."""
        now = self._clock()
        if now < self._paused_until:
            telemetry.CACHE_FAILURES.labels(call=call).inc()
            return otherwise
        if self._paused_until:
            self._paused_until = now + PAUSE_SECONDS
        try:
            async with self._server.bounded() as client:
                result = await ask(client)
        except (Unavailable, ResponseError) as error:
            self._fail(call, error)
            return otherwise
        self._paused_until = 0.0
        return result

    def _fail(self, call: str, error: Exception) -> None:
        telemetry.CACHE_FAILURES.labels(call=call).inc()
        now = self._clock()
        self._paused_until = now + PAUSE_SECONDS
        if now - self._logged_at >= LOG_SECONDS:
            self._logged_at = now
            self._log.warning(
                "the cache does not respond; continuing without it", call=call, error=str(error)
            )


def _lock(doc_id: UUID) -> str:
    return f"{PREFIX}lock:{doc_id}"


def _cached(key: str) -> str:
    return f"{PREFIX}cache:{key}"


def _millis(seconds: float) -> int:
    return max(1, round(seconds * 1000))


def _without_sentinels(parts: SplitResult) -> tuple[SplitResult, Sentinels | None]:
    """Return a URL as that of a single server, and the Sentinels that it names instead of one. Raises `Misconfigured`."""
    if not parts.scheme.endswith(SENTINEL):
        return parts, None
    user, _, hosts = parts.netloc.rpartition("@")
    service, _, database = parts.path.strip("/").partition("/")
    try:
        addresses = tuple(map(_sentinel_address, hosts.split(",")))
    except ValueError:
        addresses = ()
    if not service or not addresses:
        raise Misconfigured(
            "cache: the URL names no Sentinels, or no service",
            remedy="write redis+sentinel://:password@host:26379,host:26379/service/0",
        )
    query = parse_qs(parts.query)
    password = query.pop("sentinel_password", [None])[0]
    plain = SplitResult(
        scheme=parts.scheme.removesuffix(SENTINEL),
        netloc=f"{user}@{service}" if user else service,
        path=f"/{database or 0}",
        query=urlencode(query, doseq=True),
        fragment="",
    )
    return plain, Sentinels(addresses, service, password)


def _sentinel_address(host: str) -> tuple[str, int]:
    """Return host and port. Raises `ValueError`."""
    parts = urlsplit(f"//{host}")
    if not parts.hostname:
        raise ValueError("no host")
    return parts.hostname, parts.port or SENTINEL_PORT
