"""Limits on bodies, before they are read and while they come: size, time, and all of them together."""

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

JSON_BYTES = 1_000_000  # largest body of a route that is no source's
BODY_SECONDS = 120  # longest a body may take to arrive
LINGER_SECONDS = 5  # reading of what was refused, so that its sender sees why
HELD_BYTES = 256_000_000  # all bodies held at one time


def limit_of(source: Source, settings: Settings) -> int:
    """Largest body of a source: its own wish within what the settings allow its kind."""
    allowed = settings.max_upload_bytes if source.authenticated_by_key else settings.max_body_bytes
    return min(source.max_body_bytes, allowed)


class BodyLimitMiddleware:
    """ASGI layer. `limits` has the limit of each POST route that is a source's, `names` whose it is."""

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
            # Only here the connection must not be used again: the body is still on its way.
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
    """Answer at once, then read on for a while before closing.

    To close on a client that is still sending resets the connection: it would see that, not the answer.
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
            return await self._receive()  # waits for the client to leave
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
