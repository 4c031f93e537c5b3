"""Limits on request bodies: who may send one, its size, its time and rate, and the memory that all of them take.

A request without a valid API key, or a webhook without a signature, is refused before its body is read. Webhooks can
be checked only with their whole body, so their bodies have a short deadline and a share of memory of their own, with
a cap for each peer: what they hold cannot keep out requests with a key.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from apex_memory.config import Settings
from apex_memory.errors import ApexError, Unauthorized
from apex_memory.gateway.errors import problem, response_for, status_of
from apex_memory.sources.base import Source
from apex_memory.telemetry import REFUSED

JSON_BYTES = 1_000_000  # largest body of a route that belongs to no source
LINGER_SECONDS = (
    5  # how long a refused body is still read, so that its sender can read the response
)
RATE_SECONDS = 5.0  # period over which the least rate of a body is measured

Authenticate = Callable[[Request], Awaitable[object]]


def limit_of(source: Source, settings: Settings) -> int:
    """Return the largest body of a source in bytes: its own limit, or the settings' limit for its kind if that is smaller."""
    allowed = settings.max_upload_bytes if source.authenticated_by_key else settings.max_body_bytes
    return min(source.max_body_bytes, allowed)


@dataclass(frozen=True, slots=True)
class SourceRoute:
    """The POST route of a source, as far as its body matters."""

    source: Source
    limit: int
    """Largest body in bytes."""


@dataclass
class BodyMemory:
    """Memory for the bodies of one kind of request, in bytes. A `peer_bytes` of 0 means no cap for a peer."""

    most_bytes: int
    peer_bytes: int
    seconds: float
    """Longest that one body may take to arrive."""
    used: int = 0
    by_peer: Counter[str] = field(default_factory=Counter)

    def add(self, peer: str, size: int) -> None:
        """Count bytes in memory. Raises `HTTPException` 503 when the share, or the peer's part of it, is full."""
        self.used += size
        self.by_peer[peer] += size
        full = self.used > self.most_bytes
        peer_full = self.peer_bytes and self.by_peer[peer] > self.peer_bytes
        if full or peer_full:
            raise HTTPException(
                503, "too many bodies at once", headers={"Retry-After": "1", "Connection": "close"}
            )

    def remove(self, peer: str, size: int) -> None:
        """Give back the memory of a body."""
        self.used -= size
        self.by_peer[peer] -= size
        if self.by_peer[peer] <= 0:
            del self.by_peer[peer]


class BodyLimitMiddleware:
    """Refuses bodies without authentication, and bodies that are too large, too slow, or too many at once.

    `routes` maps the POST route of each source to its limits. `authenticate` checks the API key of a request and
    raises `Unauthorized`; without it (in tests of other parts) every request with a body passes.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        settings: Settings,
        routes: Mapping[str, SourceRoute],
        authenticate: Authenticate | None = None,
    ) -> None:
        self._app = app
        self._routes = routes
        self._authenticate = authenticate
        self._least_rate = settings.min_body_rate
        largest = max((route.limit for route in routes.values()), default=JSON_BYTES)
        self._keyed = BodyMemory(
            max(settings.keyed_body_memory, 2 * largest), 0, settings.body_seconds
        )
        self._webhooks = BodyMemory(
            settings.webhook_body_memory,
            settings.webhook_body_memory // 4,
            settings.webhook_body_seconds,
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        route = self._routes.get(scope["path"]) if scope["method"] == "POST" else None
        headers = Headers(scope=scope)
        error = await self._refusal(scope, headers, route)
        if error is not None:
            await _refuse(error, scope, receive, send)
            return
        share = (
            self._keyed if route is None or route.source.authenticated_by_key else self._webhooks
        )
        peer = scope["client"][0] if scope.get("client") else ""
        limit = route.limit if route else JSON_BYTES
        body = _BodyReader(receive, limit, share, peer, self._least_rate)
        try:
            await self._app(scope, body.read, send)
        finally:
            share.remove(peer, body.size)

    async def _refusal(
        self, scope: Scope, headers: Headers, route: SourceRoute | None
    ) -> ASGIApp | None:
        """Return the response that refuses the request before its body is read, or None."""
        stated = headers.get("content-length", "0")
        limit = route.limit if route else JSON_BYTES
        if not stated.isdecimal() or len(stated) > 18 or int(stated) > limit:
            self._count(route, "too_large")
            # The connection cannot be used again: the body is still being sent.
            return problem(
                413,
                "too_large",
                f"body: larger than {limit} bytes",
                "send less at once; limits are in /v1/sources and the settings",
                headers={"Connection": "close"},
            )
        has_body = int(stated) > 0 or "transfer-encoding" in headers
        if not has_body:
            return None
        try:
            if route is not None and not route.source.authenticated_by_key:
                _require_signature(route.source, headers)
            elif self._authenticate is not None:
                await self._authenticate(Request(scope))
        except ApexError as error:
            response = response_for(error, keyed=not scope["path"].startswith("/hooks/"))
            response.headers["Connection"] = "close"
            self._count(route, status_of(error)[1])
            return response
        return None

    def _count(self, route: SourceRoute | None, reason: str) -> None:
        if route is not None:
            REFUSED.labels(route.source.name, reason).inc()


def _require_signature(source: Source, headers: Headers) -> None:
    """Raise `Unauthorized` for a webhook that cannot be genuine, since it has no signature."""
    names = source.signature_headers
    if names and not any(name in headers for name in names):
        raise Unauthorized(
            f"no signature: the header {' or '.join(names)} is missing",
            remedy="check that the request comes from the vendor, and that its webhooks are signed",
        )


async def _refuse(response: ASGIApp, scope: Scope, receive: Receive, send: Send) -> None:
    """Send the response at once, then keep reading for a while before closing.

    Closing while the client still sends resets the connection, and the client would not see the response.
    """

    async def send_open(message: Message) -> None:
        if message["type"] == "http.response.body":
            message = {**message, "more_body": True}
        await send(message)

    await response(scope, receive, send_open)
    with suppress(TimeoutError):
        async with asyncio.timeout(LINGER_SECONDS):
            while (await receive()).get("more_body"):
                pass
    await send({"type": "http.response.body", "body": b""})


class _BodyReader:
    """The body of one request, while it is read."""

    def __init__(
        self, receive: Receive, limit: int, share: BodyMemory, peer: str, least_rate: int
    ) -> None:
        self._receive = receive
        self._limit = limit
        self._share = share
        self._peer = peer
        self._least_rate = least_rate
        self._deadline: float | None = None
        self._period_ends = 0.0
        self._period_bytes = 0
        self._ended = False
        self.size = 0

    async def read(self) -> Message:
        """Return the next part. Raises `HTTPException`: 408 too slow, 413 too large, 503 without memory."""
        if self._ended:
            return await self._receive()  # waits for the client to disconnect
        now = asyncio.get_running_loop().time()
        if self._deadline is None:
            self._deadline = now + self._share.seconds
            self._period_ends = now + RATE_SECONDS
        try:
            async with asyncio.timeout_at(min(self._deadline, self._period_ends)):
                message = await self._receive()
        except TimeoutError:
            return await self._next_period()
        part = len(message.get("body", b""))
        self.size += part
        self._period_bytes += part
        self._ended = not message.get("more_body", False)
        if self.size > self._limit:
            self._share.by_peer[self._peer] += part
            self._share.used += part
            raise HTTPException(413, f"body: larger than {self._limit} bytes")
        self._share.add(self._peer, part)
        if not self._ended and asyncio.get_running_loop().time() >= self._period_ends:
            self._start_period()
        return message

    async def _next_period(self) -> Message:
        """Go on reading after a period that brought enough bytes."""
        assert self._deadline is not None
        if asyncio.get_running_loop().time() >= self._deadline:
            raise HTTPException(408, f"body: not complete within {self._share.seconds:g} s")
        self._start_period()
        return await self.read()

    def _start_period(self) -> None:
        """Begin the next period of measuring. Raises `HTTPException` 408 when the last one was too slow."""
        if self._period_bytes < self._least_rate * RATE_SECONDS:
            raise HTTPException(408, f"body: slower than {self._least_rate} bytes per second")
        self._period_bytes = 0
        self._period_ends = asyncio.get_running_loop().time() + RATE_SECONDS
