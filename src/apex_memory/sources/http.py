"""The HTTP client for a vendor: rate limits, `Retry-After`, back-off, one token renewal after a 401, bounded responses."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Collection, Mapping, Sequence
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from time import monotonic
from typing import Any

import httpx2
from aiolimiter import AsyncLimiter

from apex_memory.errors import Forbidden, Rejected, RetryLater, Unauthorized
from apex_memory.sources.auth import Auth, Tokens
from apex_memory.telemetry import VENDOR_CALLS

RateLimit = tuple[float, float]
"""Number of calls, and the seconds that they are counted in."""

FIRST_WAIT, LONGEST_WAIT = 0.5, 30.0  # seconds between attempts without a `Retry-After`
MAX_RESPONSE_BYTES = 32_000_000  # decoded; the fullest page that a vendor documents has a tenth
MAX_RESPONSE_SECONDS = 120.0  # from the request to the last byte of its response


class VendorFault(RetryLater):
    """The vendor fails this one call: with a status 5xx, a broken connection, or a response that reports a failure.

    One record may be to blame, or the vendor may be away: that the other calls tell.
    """


_BODY_HEADERS = ("content-encoding", "content-length", "transfer-encoding")
"""Headers that no longer hold for a body that is decoded and complete."""


class VendorClient:
    """Calls to one vendor, from all pulls of this process.

    `rate_limits` returns the limits that hold at the moment, each (calls, seconds); a limit that changes at run
    time holds from the next call. `patience` is the time in seconds for which one call retries transient faults; after that the
    caller gets `RetryLater`, and the whole step is retried later.
    """

    def __init__(
        self,
        source: str,
        http: httpx2.AsyncClient,
        tokens: Tokens,
        *,
        rate_limits: Callable[[], Sequence[RateLimit]] = lambda: [(10, 1)],
        patience: float = 30,
    ) -> None:
        self.source = source
        self.tokens = tokens
        self._http = http
        self._rate_limits = rate_limits
        self._limiters: dict[RateLimit, AsyncLimiter] = {}
        self._patience = patience

    async def call(
        self,
        method: str,
        url: str,
        *,
        auth: Auth | None = None,
        accept: Collection[int] = (),
        patience: float | None = None,
        **request: Any,
    ) -> httpx2.Response:
        """Send one request and return the response, which is 2xx or has a status in `accept`.

        `patience` (seconds) overrides the client's; 0 is for calls that must not be retried.
        `request` takes `params`, `json`, `content`, `data`, `headers`. Raises `RetryLater` when 429 outlasts the
        patience, `VendorFault` when 5xx or a broken connection does, `Unauthorized` for 401 (after one renewal),
        `Forbidden` for 403, and `Rejected` for any other status, which no retry can change, and for a response of more than `MAX_RESPONSE_BYTES`.
        """
        given = request.pop("headers", {})
        started, attempts, renewed = monotonic(), 0, False
        while True:
            headers = {**given, **(await auth.headers() if auth else {})}
            response, wait = await self._try(method, url, headers, request, attempts)
            status = response.status_code if response is not None else 0
            if response is not None and (response.is_success or status in accept):
                return response
            if status == 401 and auth and not renewed and await auth.renew():
                renewed = True
                continue
            if wait is None:
                raise self._refused(status)
            if monotonic() - started + wait > (self._patience if patience is None else patience):
                why = f"responds with status {status}" if status else "cannot be reached"
                kind = RetryLater if status == 429 else VendorFault
                raise kind(
                    f"{self.source}: the vendor {why}",
                    after=wait,
                    remedy="Apex retries it; see the vendor's status page if it lasts",
                )
            attempts += 1
            await asyncio.sleep(wait)

    async def _try(
        self,
        method: str,
        url: str,
        headers: Mapping[str, str],
        request: dict[str, Any],
        attempts: int,
    ) -> tuple[httpx2.Response | None, float | None]:
        """Return the response, None without a connection; and the seconds before a retry, None where no retry helps."""
        backoff = min(LONGEST_WAIT, FIRST_WAIT * 2**attempts) * (0.5 + random.random())  # noqa: S311 -- jitter
        await self._wait_for_limits()
        try:
            async with asyncio.timeout(MAX_RESPONSE_SECONDS):
                response = await self._send(method, url, headers, request)
        except (httpx2.TransportError, TimeoutError):
            VENDOR_CALLS.labels(self.source, "unreachable").inc()
            return None, backoff
        VENDOR_CALLS.labels(self.source, f"{response.status_code // 100}xx").inc()
        if response.status_code == 429 or response.status_code >= 500:
            return response, retry_after(response.headers.get("retry-after")) or backoff
        return response, None

    async def _send(
        self, method: str, url: str, headers: Mapping[str, str], request: Mapping[str, Any]
    ) -> httpx2.Response:
        """Return the response with its whole body. Raises `Rejected` as soon as the body exceeds `MAX_RESPONSE_BYTES`.

        Bytes are counted after decompression, so that a small compressed body cannot fill the memory.
        """
        sent = self._http.build_request(method, url, headers=headers, **request)
        response = await self._http.send(sent, stream=True)
        try:
            chunks: list[bytes] = []
            size = 0
            async for chunk in response.aiter_bytes():
                size += len(chunk)
                if size > MAX_RESPONSE_BYTES:
                    raise self._too_large(response.status_code)
                chunks.append(chunk)
        finally:
            await response.aclose()
        return httpx2.Response(
            response.status_code,
            headers=[
                (name, value)
                for name, value in response.headers.multi_items()
                if name not in _BODY_HEADERS
            ],
            content=b"".join(chunks),
            request=sent,
        )

    async def _wait_for_limits(self) -> None:
        """Wait until every rate limit allows a call. A limit that is new starts unused."""
        current = self._rate_limits()
        self._limiters = {
            limit: self._limiters.get(limit) or AsyncLimiter(*limit) for limit in current
        }
        for limiter in list(self._limiters.values()):
            await limiter.acquire()

    def _too_large(self, status: int) -> Rejected:
        VENDOR_CALLS.labels(self.source, f"{status // 100}xx").inc()
        return Rejected(
            f"{self.source}: the vendor's response is larger than {MAX_RESPONSE_BYTES // 1_000_000} MB",
            remedy=f"check that sources.{self.source}.base_url is the vendor's address; "
            "a record of this size has to be made smaller at the vendor",
        )

    def _refused(self, status: int) -> Unauthorized | Rejected:
        if status in (401, 403):
            kind = Forbidden if status == 403 else Unauthorized
            return kind(
                f"{self.source}: the vendor refuses the credentials ({status})",
                remedy=f"check the secrets in [sources.{self.source}], and their rights at the vendor",
            )
        return Rejected(
            f"{self.source}: the vendor responds with status {status}",
            remedy="the call cannot succeed as it is; see the vendor's documentation of this status",
        )


LONGEST_RETRY_AFTER = 26 * 3600.0
"""Seconds until the next midnight of any time zone, the longest that a vendor's limit lasts."""


def retry_after(text: str | None) -> float | None:
    """Return the seconds in a `Retry-After` header (RFC 9110, 10.2.3): a number, also fractional, or an HTTP date; else None.

    None also for more than `LONGEST_RETRY_AFTER`, such as a time in seconds since 1970 or milliseconds: a source that waited
    for it would stand still.
    """
    seconds = stated_wait(text or "")
    return seconds if seconds is not None and seconds <= LONGEST_RETRY_AFTER else None


def stated_wait(text: str) -> float | None:
    """Return the seconds in a `Retry-After` header, however many; None for anything else."""
    try:
        return max(0.0, float(text))
    except ValueError:
        pass
    try:
        at = parsedate_to_datetime(text)
        # RFC 9110 allows GMT alone; a date without a zone is read so, too.
        at = at.replace(tzinfo=UTC) if at.tzinfo is None else at
        return max(0.0, (at - datetime.now(UTC)).total_seconds())
    except (ValueError, TypeError, OverflowError):
        return None
