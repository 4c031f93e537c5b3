"""The outermost middleware: Host check, request id, duration, access log, and the last `except`."""

from __future__ import annotations

import re
import uuid
from time import perf_counter
from typing import Any

from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from apex_memory.config import Settings
from apex_memory.gateway.errors import problem
from apex_memory.host_names import host_name, is_loopback
from apex_memory.telemetry import HTTP_SECONDS, logger
from apex_memory.telemetry.exemplars import observe
from apex_memory.telemetry.logs import bound_trace_id

METHODS = ("GET", "POST", "DELETE", "HEAD", "OPTIONS", "PUT", "PATCH")
QUIET = (
    "/healthz",
    "/readyz",
    "/metrics",
)  # probes call these every few seconds: logged at debug only
DISCONNECTED = 499  # the client disconnected before the response; this status is only logged
_REQUEST_ID = re.compile(rb"[A-Za-z0-9._-]{1,64}")


class Hosts:
    """Decides which Host headers are accepted.

    A gateway on loopback accepts only names of loopback: otherwise a web page could, by DNS
    rebinding, reach it through the browser of someone on this machine. Webhook routes are exempt:
    tunnels call them under the tunnel's name, and they carry their vendor's signature.
    """

    def __init__(self, settings: Settings) -> None:
        self._bound_to_loopback = is_loopback(settings.host)
        self._own = {settings.host.strip("[]").lower(), host_name(settings.url.partition("://")[2])}

    def accept(self, host: str, path: str) -> bool:
        if not self._bound_to_loopback or path.startswith("/hooks/"):
            return True
        name = host_name(host)
        return bool(name) and (is_loopback(name) or name in self._own)


class RequestMiddleware:
    """Checks the Host, then handles the request; logs and measures every one."""

    def __init__(self, app: ASGIApp, *, hosts: Hosts) -> None:
        self._app = app
        self._hosts = hosts
        self._log = logger(component="gateway")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        exchange = Exchange(scope, send)
        try:
            if self._hosts.accept(exchange.host, scope["path"]):
                await self._app(scope, receive, exchange.send)
            else:
                await problem(
                    421,
                    "wrong_host",
                    "the Host header names another server",
                    "call the gateway by a name of loopback, or set `url` to its public address",
                )(scope, receive, exchange.send)
        except ClientDisconnect:
            exchange.status = DISCONNECTED
        except Exception:  # noqa: BLE001 (outermost: nothing may end a request without an answer and a log line)
            self._log.exception("request failed", error_id=exchange.id)
            if not exchange.started:
                await problem(
                    500,
                    "internal",
                    "internal error",
                    "search the gateway's log for the id",
                    id=exchange.id,
                )(scope, receive, exchange.send)
        finally:
            self._record(scope, exchange)

    def _record(self, scope: Scope, exchange: Exchange) -> None:
        seconds = perf_counter() - exchange.began
        method = scope["method"] if scope["method"] in METHODS else "OTHER"
        route = getattr(scope.get("route"), "path_format", "unmatched")
        histogram = HTTP_SECONDS.labels(method, route, str(exchange.status))
        observe(histogram, seconds, trace_id=bound_trace_id())
        write = self._log.debug if route in QUIET else self._log.info
        # The template of the route, never the path or the query: both may hold e-mail addresses, names and keys.
        write(
            "request",
            method=method,
            path=route,
            status=exchange.status,
            ms=round(seconds * 1000, 1),
            request=exchange.id,
        )


class Exchange:
    """One request and the status of its response."""

    def __init__(self, scope: Scope, send: Send) -> None:
        headers: dict[bytes, bytes] = {}
        for name, value in scope["headers"]:
            if name in (b"host", b"x-request-id"):
                headers.setdefault(name, value)
        self.host = headers.get(b"host", b"").decode("latin-1")
        given = headers.get(b"x-request-id", b"")
        self.id = given.decode() if _REQUEST_ID.fullmatch(given) else uuid.uuid4().hex
        self.began = perf_counter()
        self.status = 500
        self.started = False
        self._send = send

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.started = True
            self.status = message["status"]
            headers: list[Any] = [
                *message.get("headers", ()),
                (b"x-request-id", self.id.encode()),
                (b"x-content-type-options", b"nosniff"),
            ]
            message = {**message, "headers": headers}
        await self._send(message)
