"""Calls to SONAR: a token for a user's password, and the values of a series. A block by SONAR stops them at once."""

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
from apex_memory.sources.sonar.settings import SonarSettings

TOKEN_DAYS = 30  # after which a new token is fetched; SONAR's are valid for a year


class Blocked(RetryLater):
    """SONAR refuses calls for a while. Further calls prolong the block."""


@dataclass(frozen=True, slots=True)
class Step:
    """One call: a series (`OTRI/ATL`) and its first and last day, both inclusive."""

    series: str
    first: date
    last: date

    @property
    def name(self) -> str:
        return f"{self.series} {self.first}"


class SonarApi:
    """SONAR's API. A response of 429 or 451 ends the calls: more of them would prolong the block."""

    def __init__(self, client: VendorClient, settings: SonarSettings) -> None:
        self._client, self._settings = client, settings
        self._base = settings.base_url.rstrip("/")
        self._auth = OAuth(client.tokens, "sonar", self._token)

    async def values(self, step: Step) -> list[object]:
        """Return the records of a series in these days."""
        index, _, qualifier = step.series.partition("/")
        path = "/".join(quote(part, safe="") for part in (index, qualifier))
        url = f"{self._base}/data/{path}/{step.first}/{step.last}"
        response = await self._call("GET", url, auth=self._auth)
        return records_of(parse_json(response.content, "response"))

    async def _token(self, spent: Token | None) -> Token:
        settings = self._settings
        body = {"username": settings.username, "password": settings.password.get_secret_value()}
        response = await self._call("POST", f"{self._base}/Credential/authenticate", json=body)
        fields = {name.lower(): value for name, value in parse_object(response.content).items()}
        token = fields.get("token")
        if not isinstance(token, str) or not token:
            raise Unauthorized(
                "sonar: the response to the credentials has no token",
                remedy="check username and password under [sources.sonar]",
            )
        return Token(token, expires_at=now() + timedelta(days=TOKEN_DAYS))

    async def _call(self, method: str, url: str, **request: Any) -> httpx2.Response:
        response = await self._client.call(method, url, accept=(429, 451), **request)
        if response.status_code not in (429, 451):
            return response
        stated = retry_after(response.headers.get("retry-after")) or 0.0
        is_short = response.status_code == 429 and stated > 0
        raise Blocked(
            f"sonar: SONAR responds with status {response.status_code}: too many calls",
            after=stated if is_short else max(stated, self._settings.block_seconds),
            remedy="Apex continues after the block; poll fewer series if it returns",
        )
