"""The target of a mirror: one POST with a webhook's headers and body as they came, and what its response means."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import httpcore2
import httpx2

from apex_memory.errors import Misconfigured, Unavailable
from apex_memory.mirror.copies import Headers
from apex_memory.mirror.guard import GuardedBackend, Network
from apex_memory.sources.http import stated_wait

SEND_SECONDS = 15.0  # from the resolution of the name to the status of the response
READ_BYTES = 65_536  # of a response, so that its connection can serve the next request
TRANSIENT = frozenset((408, 425, 429))  # statuses below 500 that are no verdict on the webhook


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one request.

    `refused`: the target responds and does not want this webhook. `failed`: the target is away, slow or busy, or its
    address is not permitted; `after` is the number of seconds that it asks for.
    """

    kind: Literal["delivered", "refused", "failed"]
    reason: str = ""
    after: float | None = None


class Target:
    """Connections to one `mirror_url`, which is followed nowhere else."""

    def __init__(self, url: str, networks: Sequence[Network]) -> None:
        parsed = httpx2.URL(url)
        encrypted = parsed.scheme == "https"
        self._scheme = parsed.raw_scheme
        self._host = parsed.raw_host
        self._port = parsed.port
        self._host_header = (b"host", parsed.netloc)
        self._path, _, self._query = parsed.raw_path.partition(b"?")
        # Without HTTP proxies of the environment: they would connect to addresses that nobody has checked.
        self._pool = httpcore2.AsyncConnectionPool(
            ssl_context=httpx2.create_ssl_context() if encrypted else None,
            max_connections=1,
            keepalive_expiry=30,
            network_backend=GuardedBackend(networks, encrypted=encrypted),
        )

    async def send(self, query: bytes, headers: Headers, body: bytes) -> Outcome:
        """Send one webhook and return the outcome. Redirects are not followed."""
        joined = b"&".join(part for part in (self._query, query) if part)
        target = self._path + b"?" + joined if joined else self._path
        url = httpcore2.URL(scheme=self._scheme, host=self._host, port=self._port, target=target)
        try:
            async with (
                asyncio.timeout(SEND_SECONDS),
                self._pool.stream(
                    "POST", url, headers=[self._host_header, *headers], content=body
                ) as response,
            ):
                await _read_little(response)
        except (httpcore2.LocalProtocolError, ValueError):
            return Outcome("refused", "its query or headers cannot be sent by HTTP/1.1")
        except (TimeoutError, httpcore2.TimeoutException):
            return Outcome("failed", f"the target does not respond within {SEND_SECONDS:.0f} s")
        except (Misconfigured, Unavailable) as error:
            return Outcome("failed", str(error).removeprefix("mirror: "))
        except (httpcore2.NetworkError, httpcore2.ProtocolError, OSError) as error:
            return Outcome("failed", f"the target cannot be reached ({type(error).__name__})")
        return outcome_of(response.status, _header(response, b"retry-after"))

    async def close(self) -> None:
        await self._pool.aclose()


def outcome_of(status: int, retry: str | None) -> Outcome:
    """Return what a status means for the webhook; `retry` is the header `Retry-After`."""
    if 200 <= status < 300:
        return Outcome("delivered")
    if status >= 500 or status in TRANSIENT:
        return Outcome(
            "failed", f"the target responds with status {status}", stated_wait(retry or "")
        )
    if 300 <= status < 400:
        return Outcome("refused", f"the target redirects ({status}), which is not followed")
    return Outcome("refused", f"the target refuses it with status {status}")


def _header(response: httpcore2.Response, name: bytes) -> str | None:
    for given, value in response.headers:
        if given.lower() == name:
            return value.decode("latin-1")
    return None


async def _read_little(response: httpcore2.Response) -> None:
    """Read a short response to its end. The connection of a longer one is closed."""
    size = 0
    async for chunk in response.aiter_stream():
        size += len(chunk)
        if size > READ_BYTES:
            return
