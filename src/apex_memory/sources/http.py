"""The way out to a vendor: its rate limit, its `Retry-After`, back-off, and a token renewed once on 401."""

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

from apex_memory.errors import Rejected, RetryLater, Unauthorized
from apex_memory.sources.auth import Auth, Tokens
from apex_memory.telemetry import VENDOR_CALLS

RateLimit = tuple[float, float]
"""Calls in so many seconds."""

FIRST_WAIT, LONGEST_WAIT = 0.5, 30.0  # seconds between tries without a `Retry-After`


class VendorClient:
    """Calls to one vendor, from all pulls of this process.

    `rate_limits` returns the limits that hold at the moment, each (calls, seconds); a limit that changes at run
    time holds from the next call. `patience` is how long (seconds) passing faults are
    waited out inside one call before the whole step is given back to be tried later.
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
        """One call, answered 2xx or with a status in `accept`.

        `patience` (seconds) other than the link's is for calls that must not be repeated by themselves: 0.
        `request` takes `params`, `json`, `content`, `data`, `headers`. Raises `RetryLater` when 429, 5xx or a
        broken connection outlast the patience, `Unauthorized` for 401 (after one renewal) and 403,
        `Rejected` for any other status: repeating that call cannot help.
        """
        given = request.pop("headers", {})
        began, tried, renewed = monotonic(), 0, False
        while True:
            headers = {**given, **(await auth.headers() if auth else {})}
            answer, wait = await self._try(method, url, headers, request, tried)
            status = answer.status_code if answer is not None else 0
            if answer is not None and (answer.is_success or status in accept):
                return answer
            if status == 401 and auth and not renewed and await auth.renew():
                renewed = True
                continue
            if wait is None:
                raise self._refused(status)
            if monotonic() - began + wait > (self._patience if patience is None else patience):
                why = f"answers {status}" if status else "cannot be reached"
                raise RetryLater(
                    f"{self.source}: the vendor {why}",
                    after=wait,
                    remedy="it is tried again by itself; see the vendor's status page if it lasts",
                )
            tried += 1
            await asyncio.sleep(wait)

    async def _try(
        self, method: str, url: str, headers: Mapping[str, str], request: dict[str, Any], tried: int
    ) -> tuple[httpx2.Response | None, float | None]:
        """The answer, and the seconds after which to try again where that makes sense."""
        backoff = min(LONGEST_WAIT, FIRST_WAIT * 2**tried) * (0.5 + random.random())  # noqa: S311 -- jitter
        await self._wait_for_limits()
        try:
            answer = await self._http.request(method, url, headers=headers, **request)
        except httpx2.TransportError:
            VENDOR_CALLS.labels(self.source, "unreachable").inc()
            return None, backoff
        VENDOR_CALLS.labels(self.source, f"{answer.status_code // 100}xx").inc()
        if answer.status_code == 429:
            return answer, retry_after(answer.headers.get("retry-after")) or backoff
        if answer.status_code >= 500:
            return answer, retry_after(answer.headers.get("retry-after")) or backoff
        return answer, None

    async def _wait_for_limits(self) -> None:
        """Wait until every rate limit allows a call. A limit that is new starts unused."""
        current = self._rate_limits()
        self._limiters = {
            limit: self._limiters.get(limit) or AsyncLimiter(*limit) for limit in current
        }
        for limiter in list(self._limiters.values()):
            await limiter.acquire()

    def _refused(self, status: int) -> Unauthorized | Rejected:
        if status in (401, 403):
            return Unauthorized(
                f"{self.source}: the vendor refuses our credentials ({status})",
                remedy=f"check the secrets under [sources.{self.source}], and what they may do there",
            )
        return Rejected(
            f"{self.source}: the vendor answers {status}",
            remedy="the call cannot succeed as it is; see the vendor's documentation of this status",
        )


def retry_after(text: str | None) -> float | None:
    """Seconds in a `Retry-After`: whole or fractional seconds, or an HTTP date."""
    if not text:
        return None
    try:
        return max(0.0, float(text))
    except ValueError:
        pass
    try:
        return max(0.0, (parsedate_to_datetime(text) - datetime.now(UTC)).total_seconds())
    except (ValueError, TypeError):
        return None
