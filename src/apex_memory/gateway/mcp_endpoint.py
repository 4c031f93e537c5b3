"""`/mcp`: the memory for agents by the Model Context Protocol, and the metadata of that resource (RFC 9728).

A call of a tool becomes requests of this gateway's own API with the caller's key, within the process: keys, scopes and
limits are the API's. The SDK is an extra, and importing it takes seconds of processor time, so the first request does
that, in a thread.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import httpx2
from fastapi import APIRouter, FastAPI, Request
from starlette.datastructures import MutableHeaders
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from apex_memory.client import AsyncApex
from apex_memory.config import Settings
from apex_memory.errors import Forbidden, require_extra
from apex_memory.gateway.body_limit import JSON_BYTES
from apex_memory.gateway.dependencies import authenticate, gateway_of, presented
from apex_memory.gateway.errors import problem
from apex_memory.host_names import host_name, is_loopback

if TYPE_CHECKING:
    from mcp.server.streamable_http_manager import StreamableHTTPSessionManager

PATH = "/mcp"
METADATA_PATH = "/.well-known/oauth-protected-resource"
OWN_URL = "http://127.0.0.1"  # a name of loopback, which the Host check accepts; no packet is sent
BUSY_SECONDS = 5.0  # longest that a call repeats a request while a store is away; then the agent is told when to come back


class McpEndpoint:
    """The ASGI application at `/mcp`: streamable HTTP without sessions, JSON responses."""

    def __init__(self, api: FastAPI) -> None:
        self._memory = AsyncApex(
            OWN_URL, "", transport=httpx2.ASGITransport(app=api), patience=BUSY_SECONDS
        )
        self._opening = asyncio.Lock()
        self._manager: StreamableHTTPSessionManager | None = None
        self.route = Route(PATH, endpoint=self)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        scope["route"] = self.route  # for metrics and the access log
        request = Request(scope, receive)
        if request.method != "POST":
            # No stream of a server without sessions can bring anything, so there is none to open (GET) or end (DELETE).
            refusal = problem(
                405,
                "method_not_allowed",
                "only POST",
                "send each message by POST",
                headers={"Allow": "POST"},
            )
            await refusal(scope, receive, send)
            return
        require_own_origin(request)
        await authenticate(request)
        # Read here: where the caller disconnects before its end, the SDK would log a traceback and answer with a 500.
        body = await request.body()
        manager = self._manager or await self._open(request)
        await manager.handle_request(scope, _replaying(body, receive), send)

    async def _open(self, request: Request) -> StreamableHTTPSessionManager:
        """Import the SDK and start its server, once. Raises `Misconfigured` without the extra `mcp`."""
        require_extra("mcp", extra="mcp", feature=PATH)
        async with self._opening:
            if self._manager is None:
                manager = await asyncio.to_thread(self._make_manager)
                running = asyncio.Event()
                task = asyncio.create_task(_run(manager, running), name="mcp")
                tasks = gateway_of(request).tasks
                tasks.add(task)
                task.add_done_callback(tasks.discard)
                await running.wait()
                self._manager = manager
        return self._manager

    def _make_manager(self) -> StreamableHTTPSessionManager:
        from apex_memory.mcp.server import make_http_manager

        # A line for each message at level info would repeat the access log.
        logging.getLogger("mcp").setLevel(logging.WARNING)
        return make_http_manager(self._memory_of, max_bytes=JSON_BYTES)

    def _memory_of(self, context: Any) -> AsyncApex:
        """Return the client with the API key of the HTTP request that brought a message."""
        return self._memory.with_key(presented(context.request) or "")


def _replaying(body: bytes, receive: Receive) -> Receive:
    """Return a `receive` that returns the body, then what the connection brings."""
    messages: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def replay() -> Message:
        return messages.pop() if messages else await receive()

    return replay


async def _run(manager: StreamableHTTPSessionManager, running: asyncio.Event) -> None:
    async with manager.run():
        running.set()
        await asyncio.Event().wait()


def require_own_origin(request: Request) -> None:
    """Raise `Forbidden` for a request from a web page of another host: the protocol demands it against DNS rebinding."""
    origin = request.headers.get("origin")
    if origin is None:
        return
    name = urlsplit(origin).hostname or ""
    if name and name == host_name(request.headers.get("host", "")):
        return
    if is_loopback(name):
        return
    raise Forbidden(
        "the Origin header names another host",
        remedy="connect from a program, or from a page of this gateway's own host",
    )


class ResourceMetadata:
    """Names the metadata of the resource in each 401 of `/mcp` (RFC 9728, section 5.1)."""

    def __init__(self, app: ASGIApp, *, settings: Settings) -> None:
        self._app = app
        self._settings = settings

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] != PATH:
            await self._app(scope, receive, send)
            return
        url = public_url(self._settings, Request(scope)) + METADATA_PATH + PATH

        async def send_named(message: Message) -> None:
            if message["type"] == "http.response.start" and message["status"] == 401:
                headers = MutableHeaders(raw=list(message.get("headers", ())))
                headers["WWW-Authenticate"] = f'Bearer realm="apex", resource_metadata="{url}"'
                message = {**message, "headers": headers.raw}
            await send(message)

        await self._app(scope, receive, send_named)


def public_url(settings: Settings, request: Request) -> str:
    """Return the address of the gateway as its callers know it: the setting `url`, or that of the request."""
    return settings.url.rstrip("/") or str(request.base_url).rstrip("/")


def metadata_router(settings: Settings) -> APIRouter:
    """Return the routes of the metadata, which need no key."""
    router = APIRouter()

    async def show(request: Request) -> dict[str, Any]:
        return {
            "resource": public_url(settings, request) + PATH,
            "resource_name": "Apex Memory",
            "bearer_methods_supported": ["header"],
            "scopes_supported": ["read", "ingest"],
        }

    for path in (METADATA_PATH, METADATA_PATH + PATH):
        router.add_api_route(path, show, methods=["GET"], include_in_schema=False)
    return router
