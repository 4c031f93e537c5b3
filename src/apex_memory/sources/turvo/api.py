"""Calls to Turvo: a token for a user's password, a page of the list of shipments, one shipment."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import quote

from apex_memory.errors import Rejected, Unauthorized
from apex_memory.model import now
from apex_memory.sources.auth import OAuth, Token
from apex_memory.sources.http import VendorClient, VendorFault
from apex_memory.sources.payloads import as_mapping, as_string, parse_object
from apex_memory.sources.turvo.settings import TurvoSettings


class Failed(VendorFault):
    """Turvo reports a failure of this one call. It does not say which failures are permanent."""

    def __init__(self, message: str, *, code: str = "", remedy: str) -> None:
        super().__init__(message, after=60, remedy=remedy)
        self.code = code


class Api:
    """Calls to Turvo. Each needs a bearer token and the API key."""

    def __init__(self, client: VendorClient, settings: TurvoSettings) -> None:
        self._client, self._settings = client, settings
        self._base = settings.base_url.rstrip("/")
        self._key = {"x-api-key": settings.api_key.get_secret_value()}
        self._auth = OAuth(client.tokens, "turvo", self._token, more=self._key)

    async def shipment(self, id: str) -> Mapping[str, Any] | None:
        """Return the record, None if there is none."""
        url = f"{self._base}/shipments/{quote(id, safe='')}"
        response = await self._client.call("GET", url, auth=self._auth, accept=(404, 410))
        if response.status_code in (404, 410):
            return None
        try:
            return _details(response.content, id)
        except Failed as error:
            if error.code in self._settings.gone_codes:
                return None
            raise

    async def listed(self, start: int, since: int) -> tuple[list[Mapping[str, Any]], bool]:
        """Return a page of the list, and whether there may be more. Two page objects are known; both are optional."""
        params: dict[str, Any] = {"start": start, "pageSize": self._settings.page_size}
        if self._settings.updated_filter and since > 0:
            params[self._settings.updated_filter] = _iso(since)
        url = f"{self._base}/shipments/list"
        response = await self._client.call("GET", url, auth=self._auth, params=params)
        details = _details(response.content, "list")
        rows = details.get("shipments")
        if not isinstance(rows, list):
            raise Rejected(
                "turvo: the list of shipments has no `details.shipments`",
                remedy="see docs/howto/sources/turvo.md: Turvo's API may have changed",
            )
        more = as_mapping(details.get("pagination")).get("moreAvailable") is not False
        return [row if isinstance(row, dict) else {"row": row} for row in rows], more

    async def _token(self, spent: Token | None) -> Token:
        """Return a token for the user's password. The refresh token is not used, as Turvo's other clients do not use it."""
        known = self._settings
        credentials = {"client_id": known.client_id, "client_secret": known.client_secret.get_secret_value()}  # fmt: skip
        body = {
            "grant_type": "password",
            **credentials,
            "username": known.username,
            "password": known.password.get_secret_value(),
            "scope": "read+trust+write",
            "type": "business",
        }
        url = f"{self._base}/oauth/token"
        response = await self._client.call(
            "POST", url, params=credentials, json=body, headers=self._key
        )
        body_fields = parse_object(response.content)
        access, lasts = body_fields.get("access_token"), body_fields.get("expires_in")
        if not isinstance(access, str) or not access:
            raise Unauthorized(
                "turvo: no access_token in the response to the credentials",
                remedy="check client_id, username and password under [sources.turvo]",
            )
        if isinstance(lasts, int | float) and 0 < lasts < 10**9:
            return Token(access, expires_at=now() + timedelta(seconds=lasts))
        return Token(access)


def _details(body: bytes, of: str) -> Mapping[str, Any]:
    """Return the `details` of a response. Turvo reports failures with HTTP 200 too, in `Status`.

    Raises `Failed` for a reported failure.
    """
    try:
        fields = parse_object(body)
    except Rejected as error:
        raise Failed(f"turvo: {of}: {error}", remedy="Apex retries it") from None
    details, status = fields.get("details"), as_string(fields.get("Status"))
    if status.upper() == "SUCCESS" and isinstance(details, dict):
        return details
    reason = as_mapping(details).get("errorCode")
    code = str(reason)[:60] if isinstance(reason, str | int) else ""
    raise Failed(
        f"turvo: {of}: responded with Status {status[:40] or 'missing'}{f' ({code})' if code else ''}",
        code=code,
        remedy="Apex retries it; if it lasts, ask Turvo's support what this code means",
    )


def _iso(stamp: int) -> str:
    at = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=stamp)
    return at.strftime("%Y-%m-%dT%H:%M:%SZ")
