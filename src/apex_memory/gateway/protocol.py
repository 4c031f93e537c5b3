"""The HTTP/1.1 protocol of the gateway: uvicorn's, with limits on what a client can send before it is authenticated.

uvicorn itself limits neither the size of headers nor the time in which they arrive, and keeps every connection.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import orjson
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from apex_memory.config import Settings
from apex_memory.telemetry import CONNECTIONS_REFUSED, logger

LOG_SECONDS = 30.0  # between two log messages about refused connections


@dataclass
class Connections:
    """The open connections of this process by peer address, and the limits that hold for them."""

    settings: Settings
    by_peer: Counter[str] = field(default_factory=Counter)
    logged_at: float = float("-inf")

    def admit(self, peer: str) -> str:
        """Count a new connection. Return why it is refused, or an empty text."""
        self.by_peer[peer] += 1
        if self.by_peer.total() > self.settings.max_connections:
            return "connections"
        if self.by_peer[peer] > self.settings.max_connections_per_peer:
            return "connections_per_peer"
        return ""

    def remove(self, peer: str) -> None:
        """Forget a closed connection."""
        self.by_peer[peer] -= 1
        if self.by_peer[peer] <= 0:
            del self.by_peer[peer]

    def record(self, reason: str, peer: str) -> None:
        """Count a refusal, and log one every `LOG_SECONDS`."""
        CONNECTIONS_REFUSED.labels(reason).inc()
        now = asyncio.get_running_loop().time()
        if now - self.logged_at >= LOG_SECONDS:
            self.logged_at = now
            logger(component="gateway").warning("connection refused", reason=reason, peer=peer)


class LimitedProtocol(HttpToolsProtocol):
    """One connection. Use `limited_protocol`, which gives the class its `open_connections`."""

    open_connections: Connections

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._limits = self.open_connections.settings
        self._peer = ""
        self._in_body = False
        self._refused = False
        self._header_bytes = 0
        self._headers = 0
        self._unparsed = 0
        self._progressed = False
        self._header_timer: asyncio.TimerHandle | None = None

    # Connections

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._peer = self.client[0] if self.client else ""
        reason = self.open_connections.admit(self._peer)
        if reason:
            self._refuse(503, reason, "too many connections", "repeat the request in a moment")
            return
        self._start_header_timer()

    def connection_lost(self, exc: Exception | None) -> None:
        self.open_connections.remove(self._peer)
        self._stop_header_timer()
        super().connection_lost(exc)

    # Headers

    def data_received(self, data: bytes) -> None:
        if self._refused:
            return
        self._progressed = False
        super().data_received(data)
        if self._refused or self._progressed:
            self._unparsed = 0
            return
        # The parser keeps an unfinished header in memory: bytes that finish nothing are counted.
        self._unparsed += len(data)
        if self._unparsed > self._limits.max_header_bytes:
            self._refuse_headers()

    def on_message_begin(self) -> None:
        self._in_body = False
        self._header_bytes = 0
        self._headers = 0
        super().on_message_begin()
        if self._header_timer is None:
            self._start_header_timer()

    def on_url(self, url: bytes) -> None:
        if self._count(len(url), headers=0):
            super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        # Trailers after a chunked body come here too, and count together with the headers.
        if self._count(len(name) + len(value), headers=1) and not self._in_body:
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        self._stop_header_timer()
        self._in_body = True
        self._progressed = True
        if not self._refused:
            super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._progressed = True
        if not self._refused:
            super().on_body(body)

    def on_message_complete(self) -> None:
        self._progressed = True
        if not self._refused:
            super().on_message_complete()

    def _count(self, size: int, *, headers: int) -> bool:
        """Count a part of the headers. Return False, and refuse the request, when it is over a limit."""
        self._header_bytes += size
        self._headers += headers
        if (
            self._header_bytes > self._limits.max_header_bytes
            or self._headers > self._limits.max_headers
        ):
            self._refuse_headers()
        return not self._refused

    def _start_header_timer(self) -> None:
        self._header_timer = self.loop.call_later(self._limits.header_seconds, self._time_out)

    def _stop_header_timer(self) -> None:
        if self._header_timer is not None:
            self._header_timer.cancel()
            self._header_timer = None

    def _time_out(self) -> None:
        self._header_timer = None
        seconds = self._limits.header_seconds
        self._refuse(
            408, "header_timeout", f"headers: not complete within {seconds:g} s", "send them faster"
        )

    def _refuse_headers(self) -> None:
        limits = self._limits
        self._refuse(
            431,
            "headers_too_large",
            f"headers: more than {limits.max_header_bytes} bytes or {limits.max_headers} headers",
            "send fewer or shorter headers",
        )

    def _refuse(self, status: int, reason: str, message: str, remedy: str) -> None:
        """Send an error response, unless another response is under way, and close the connection."""
        if self._refused:
            return
        self._refused = True
        self._stop_header_timer()
        self.open_connections.record(reason, self._peer)
        if self.transport.is_closing():
            return
        if self.cycle is None or self.cycle.response_complete:
            body = orjson.dumps({"error": {"code": reason, "message": message, "remedy": remedy}})
            head = (
                f"HTTP/1.1 {status} \r\ncontent-type: application/json\r\n"
                f"content-length: {len(body)}\r\nconnection: close\r\n\r\n"
            )
            self.transport.write(head.encode() + body)
        self.transport.close()


def limited_protocol(settings: Settings) -> type[LimitedProtocol]:
    """Return the protocol class for one server, whose connections share the limits of these settings."""
    return type("Protocol", (LimitedProtocol,), {"open_connections": Connections(settings)})
