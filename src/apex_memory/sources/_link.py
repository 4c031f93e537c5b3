"""The way out to a vendor: its rate limit, its `Retry-After`, back-off, and a token renewed once on 401."""

from __future__ import annotations

import asyncio
import base64
import random
from collections.abc import Awaitable, Callable, Collection, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from time import monotonic
from typing import Any, Protocol

import httpx2
from aiolimiter import AsyncLimiter

from apex_memory.errors import Rejected, RetryLater, Unauthorized
from apex_memory.telemetry import VENDOR_CALLS

FIRST_WAIT, LONGEST_WAIT = 0.5, 30.0  # seconds between tries without a `Retry-After`
EXPIRY_SECONDS = 60  # a token is renewed that long before it ends


@dataclass(frozen=True, slots=True)
class Token:
    """An OAuth token. Never logged; encrypted where it is stored."""

    access: str
    refresh: str = ""
    expires_at: datetime | None = None

    @property
    def ending(self) -> bool:
        return self.expires_at is not None and self.expires_at < datetime.now(UTC) + timedelta(
            seconds=EXPIRY_SECONDS
        )

    def __repr__(self) -> str:
        return f"Token(expires_at={self.expires_at})"


Renew = Callable[[Token | None], Awaitable[Token]]


class Tokens(Protocol):
    """Tokens at rest, shared by all processes."""

    async def current(self, name: str) -> Token | None:
        """The newest token under this name."""

    async def renewed(self, name: str, spent: Token | None, renew: Renew) -> Token:
        """Another token than `spent`: a newer one that is stored already, else what `renew` makes of the stored one.

        Under a lock over all processes, and stored before the lock ends: no refresh token is spent twice.
        """


class Auth(Protocol):
    """What authenticates a call."""

    async def headers(self) -> Mapping[str, str]: ...

    async def renew(self) -> bool:
        """After a 401: True when there are other headers to try once more with."""


@dataclass(frozen=True, slots=True)
class Fixed:
    """Headers that stay: an API token, a key and a secret."""

    values: Mapping[str, str]

    async def headers(self) -> Mapping[str, str]:
        return self.values

    async def renew(self) -> bool:
        return False


def bearer(token: str) -> Fixed:
    return Fixed({"Authorization": f"Bearer {token}"})


class OAuth:
    """A bearer token that is kept in `tokens` and renewed when it ends or is refused."""

    def __init__(
        self, tokens: Tokens, name: str, renew: Renew, *, more: Mapping[str, str] | None = None
    ) -> None:
        self._tokens, self._name, self._renew = tokens, name, renew
        self._more = more or {}
        self._used: Token | None = None

    async def headers(self) -> Mapping[str, str]:
        token = await self._tokens.current(self._name)
        if token is None or token.ending:
            token = await self._tokens.renewed(self._name, token, self._renew)
        self._used = token
        return {"Authorization": f"Bearer {token.access}", **self._more}

    async def renew(self) -> bool:
        self._used = await self._tokens.renewed(self._name, self._used, self._renew)
        return True


def basic(user: str, password: str) -> Fixed:
    """HTTP basic authentication."""
    pair = base64.b64encode(f"{user}:{password}".encode()).decode()
    return Fixed({"Authorization": f"Basic {pair}"})


class Link:
    """Calls to one vendor, from all pulls of this process.

    `calls` in `seconds` is the vendor's rate limit; `patience` is how long (seconds) passing faults are
    waited out inside one call before the whole step is given back to be tried later.
    """

    def __init__(
        self,
        source: str,
        http: httpx2.AsyncClient,
        tokens: Tokens,
        *,
        calls: float = 10,
        seconds: float = 1,
        patience: float = 30,
    ) -> None:
        self.source = source
        self.tokens = tokens
        self._http = http
        self._limit = AsyncLimiter(calls, seconds)
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
        async with self._limit:
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
