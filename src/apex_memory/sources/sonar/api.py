"""SONAR's calls: a token for a user's password, and the values of a series. They stop at once when SONAR wants it."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date, timedelta
from typing import Any
from urllib.parse import quote

import httpx2

from apex_memory.errors import RetryLater, Unauthorized
from apex_memory.model import now
from apex_memory.sources.auth import OAuth, Token
from apex_memory.sources.http import VendorClient, retry_after
from apex_memory.sources.payloads import parse_json, parse_object
from apex_memory.sources.sonar.documents import records_of

TOKEN_DAYS = 30  # after which a new one is asked for; the vendor's last a year


class Blocked(RetryLater):
    """SONAR refuses to answer for a while. Asking on makes it longer."""


@dataclass(frozen=True, slots=True)
class Step:
    """One call: a series (`OTRI/ATL`), from a day to a day, both included."""

    series: str
    first: date
    last: date

    @property
    def name(self) -> str:
        return f"{self.series} {self.first}"


class Api:
    """SONAR's calls. They never go on after 429 or 451: that would block us for longer."""

    def __init__(self, link: VendorClient, settings: Any) -> None:
        self._link, self._settings = link, settings
        self._base = settings.base_url.rstrip("/")
        self._auth = OAuth(link.tokens, "sonar", self._token)

    async def values(self, step: Step) -> list[object]:
        """The records of a series in these days."""
        index, _, qualifier = step.series.partition("/")
        path = "/".join(quote(one, safe="") for one in (index, qualifier))
        url = f"{self._base}/data/{path}/{step.first}/{step.last}"
        answer = await self._call("GET", url, auth=self._auth)
        return records_of(parse_json(answer.content, "answer"))

    async def _token(self, spent: Token | None) -> Token:
        known = self._settings
        body = {"username": known.username, "password": known.password.get_secret_value()}
        answer = await self._call("POST", f"{self._base}/Credential/authenticate", json=body)
        told = {name.lower(): value for name, value in parse_object(answer.content).items()}
        token = told.get("token")
        if not isinstance(token, str) or not token:
            raise Unauthorized(
                "sonar: no token in the answer to our credentials",
                remedy="check username and password under [sources.sonar]",
            )
        return Token(token, expires_at=now() + timedelta(days=TOKEN_DAYS))

    async def _call(self, method: str, url: str, **request: Any) -> httpx2.Response:
        answer = await self._link.call(method, url, accept=(429, 451), **request)
        if answer.status_code not in (429, 451):
            return answer
        context = retry_after(answer.headers.get("retry-after")) or 0.0
        block: float = self._settings.block_seconds
        short = answer.status_code == 429 and context > 0
        raise Blocked(
            f"sonar: SONAR answers {answer.status_code}: too many calls",
            after=context if short else max(context, block),
            remedy="nothing to do: it is asked again when the block is over; poll fewer series if it comes back",
        )
