"""Limits on request bodies, before and while they are read: size, time, and the sum of all bodies in memory."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from contextlib import suppress

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from apex_memory.config import Settings
from apex_memory.gateway.errors import problem
from apex_memory.sources.base import Source
from apex_memory.telemetry import REFUSED

JSON_BYTES = 1_000_000  # largest body of a route that belongs to no source
BODY_SECONDS = 120  # longest a body may take to arrive
LINGER_SECONDS = (
    5  # how long a refused body is still read, so that its sender can read the response
)
HELD_BYTES = 256_000_000  # all bodies in memory at one time


def limit_of(source: Source, settings: Settings) -> int:
    """Return the largest body of a source in bytes: its own limit, or the settings' limit for its kind if that is smaller."""
    allowed = settings.max_upload_bytes if source.authenticated_by_key else settings.max_body_bytes
    return min(source.max_body_bytes, allowed)


class BodyLimitMiddleware:
    """Refuses bodies that are too large, too slow, or too many at once.

    `limits` maps the POST route of each source to its limit in bytes, `names` maps it to the source's name.
    """

    def __init__(
        self, app: ASGIApp, *, limits: Mapping[str, int], names: Mapping[str, str]
    ) -> None:
        self._app = app
        self._limits = limits
        self._names = names
        self._held = 0
        self._budget = max(HELD_BYTES, 2 * max(limits.values(), default=0))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        source = self._names.get(scope["path"]) if scope["method"] == "POST" else None
        limit = self._limits[scope["path"]] if source else JSON_BYTES
        stated = Headers(scope=scope).get("content-length", "0")
        if not stated.isdecimal() or int(stated) > limit:
            if source:
                REFUSED.labels(source, "too_large").inc()
            # The connection cannot be used again: the body is still being sent.
            answer = problem(
                413,
                "too_large",
                f"body: larger than {limit} bytes",
                "send less at once; limits are in /v1/sources and the settings",
                headers={"Connection": "close"},
            )
            await _refuse(answer, scope, receive, send)
            return
        body = _Body(receive, limit)
        try:
            await self._app(scope, lambda: self._read(body), send)
        finally:
            self._held -= body.size

    async def _read(self, body: _Body) -> Message:
        before = body.size
        try:
            message = await body.read()
        finally:
            self._held += body.size - before
        if self._held > self._budget:
            raise HTTPException(
                503, "too many bodies at once", headers={"Retry-After": "1", "Connection": "close"}
            )
        return message


async def _refuse(answer: ASGIApp, scope: Scope, receive: Receive, send: Send) -> None:
    """Send the response at once, then keep reading for a while before closing.

    Closing while the client still sends resets the connection, and the client would not see the response.
    """

    async def send_open(message: Message) -> None:
        if message["type"] == "http.response.body":
            message = {**message, "more_body": True}
        await send(message)

    await answer(scope, receive, send_open)
    with suppress(TimeoutError):
        async with asyncio.timeout(LINGER_SECONDS):
            while (await receive()).get("more_body"):
                pass
    await send({"type": "http.response.body", "body": b""})


class _Body:
    def __init__(self, receive: Receive, limit: int) -> None:
        self._receive = receive
        self._limit = limit
        self._deadline = asyncio.get_running_loop().time() + BODY_SECONDS
        self._ended = False
        self.size = 0

    async def read(self) -> Message:
        if self._ended:
            return await self._receive()  # waits for the client to disconnect
        try:
            async with asyncio.timeout_at(self._deadline):
                message = await self._receive()
        except TimeoutError:
            raise HTTPException(408, f"body: not here within {BODY_SECONDS} s") from None
        self.size += len(message.get("body", b""))
        self._ended = not message.get("more_body", False)
        if self.size > self._limit:
            raise HTTPException(413, f"body: larger than {self._limit} bytes")
        return message
