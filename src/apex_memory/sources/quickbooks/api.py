"""Calls to the books of one company in QuickBooks Online, and the meaning of its errors."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx2

from apex_memory.errors import Forbidden, Rejected, RetryLater, Unauthorized
from apex_memory.model import now
from apex_memory.sources.auth import Auth, OAuth, Token, basic
from apex_memory.sources.http import VendorClient, retry_after
from apex_memory.sources.payloads import (
    as_mapping,
    as_string,
    parse_datetime,
    parse_object,
    sequence,
)
from apex_memory.sources.quickbooks.records import SOURCE, RecordKey, updated_seconds
from apex_memory.sources.quickbooks.settings import QuickBooksSettings

MINOR_VERSION = 75
MAX_CHANGES = (
    1000  # records in a response of the change operation, which leaves out any others silently
)
MAX_ROWS = 1000  # of a query
OVERLAP_ROWS = 100  # of the next page within one second, which may have shifted meanwhile
THROTTLED = ("3001", "003001")
NOT_FOUND = "610"
MAY_BE_INACTIVE = ("Customer", "Vendor", "Item", "Account", "Employee", "Class", "Department")

FetchedRecord = tuple[str, Any]
"""An entity's name, and one of its records."""


@dataclass(frozen=True, slots=True)
class ChangeResponse:
    """A response of the change operation: the changed records, and QuickBooks' time."""

    records: Sequence[FetchedRecord]
    time: datetime

    @property
    def complete(self) -> bool:
        return len(self.records) < MAX_CHANGES


@dataclass(frozen=True, slots=True)
class QueryPosition:
    """The position of a listing: a second since 1970, or a row among the records that changed in exactly that second.

    It is never a row among all records: a record that changes meanwhile moves to the end, and another one would be skipped.
    """

    at: int | None = None
    row: int = 1
    within: bool = False

    def after(self, entity: str, records: Sequence[Any]) -> QueryPosition | None:
        """Return the position behind these records; None at the end."""
        if self.within and self.at is not None:
            if len(records) < MAX_ROWS:
                return QueryPosition(self.at + 1)
            return QueryPosition(self.at, self.row + MAX_ROWS - OVERLAP_ROWS, within=True)
        if len(records) < MAX_ROWS:
            return None
        seconds = (updated_seconds(record) for record in records)
        times = [second for second in seconds if second is not None]
        if not times:
            raise Rejected(
                f"{len(records)} {entity} of QuickBooks without a readable LastUpdatedTime",
                remedy="check that sources.quickbooks.base_url is QuickBooks' API",
            )
        last = max(times)
        if self.at is None or last > self.at:
            return QueryPosition(last)
        return QueryPosition(self.at, within=True)

    def query(self, entity: str, until: int | None) -> str:
        """Return the query for up to 1,000 records from here on, in order of change."""
        field = "MetaData.LastUpdatedTime"
        conditions = ["Active in (true, false)"] if entity in MAY_BE_INACTIVE else []
        if self.at is not None:
            conditions.append(f"{field} >= '{_stamp(self.at)}'")
        end = self.at + 1 if self.within and self.at is not None else until
        if end is not None:
            conditions.append(f"{field} < '{_stamp(end)}'")
        where = f" where {' and '.join(conditions)}" if conditions else ""
        return f"select * from {entity}{where} orderby {field} STARTPOSITION {self.row} MAXRESULTS {MAX_ROWS}"


def _stamp(seconds: int) -> str:
    at = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(seconds=seconds)
    return at.isoformat(timespec="seconds")


class QuickBooksApi:
    """The books of one company, for one pull."""

    def __init__(
        self, client: VendorClient, settings: QuickBooksSettings, realm: str, initial: str
    ) -> None:
        self._client = client
        self._settings = settings
        self._realm = realm
        self._initial = initial
        self._auth: Auth = OAuth(client.tokens, f"{SOURCE}/{realm}", self._renewed)

    async def changes(self, entities: Sequence[str], since: datetime) -> ChangeResponse:
        """Return what changed after `since`: at most 1,000 records, without any order."""
        stamp = since.astimezone(UTC).isoformat(timespec="seconds")
        body = await self._get("cdc", {"entities": ",".join(entities), "changedSince": stamp})
        records: list[FetchedRecord] = []
        for part in _list(body, "CDCResponse"):
            for response in _list(part, "QueryResponse"):
                for entity in entities:
                    changed = sequence(as_mapping(response).get(entity))
                    records += [(entity, record) for record in changed]
        return ChangeResponse(records, parse_datetime(body.get("time"), "time"))

    async def query(
        self, entity: str, position: QueryPosition, until: int | None
    ) -> tuple[Sequence[Any], datetime]:
        """Return up to 1,000 records from `position` on, changed before `until` (seconds), and QuickBooks' time."""
        body = await self._get("query", {"query": position.query(entity, until)})
        if not isinstance(body.get("QueryResponse"), dict):
            raise _missing("QueryResponse")
        return sequence(body["QueryResponse"].get(entity)), parse_datetime(body.get("time"), "time")

    async def record(self, key: RecordKey) -> Any | None:
        """Return a record; None if it does not exist, or no longer."""
        body = await self._get(f"{key.entity.lower()}/{key.id}", {}, may_be_missing=True)
        return body.get(key.entity) if body else None

    async def _get(
        self, path: str, params: Mapping[str, str], *, may_be_missing: bool = False
    ) -> dict[str, Any]:
        """Return the body of a response; an empty one for a record that is not found, with `may_be_missing`."""
        base = self._settings.base_url.rstrip("/")
        response = await self._client.call(
            "GET",
            f"{base}/v3/company/{self._realm}/{path}",
            auth=self._auth,
            accept=(400, 403),
            params={**params, "minorversion": str(MINOR_VERSION)},
            headers={"Accept": "application/json"},
        )
        if response.is_success:
            return parse_object(response.content)
        code = _fault(response)
        if code in THROTTLED:
            raise RetryLater(
                "quickbooks: QuickBooks reports too many calls",
                after=retry_after(response.headers.get("retry-after")) or 60,
                remedy="Apex retries it",
            )
        if may_be_missing and code == NOT_FOUND:
            return {}
        trace = re.sub(r"[^\w-]", "", response.headers.get("intuit_tid", ""))[:64]
        problem = (
            f"quickbooks: QuickBooks responds with status {response.status_code}, code {code or 'none'}, "
            f"intuit_tid {trace or 'none'}"
        )
        if response.status_code == 403:
            raise Forbidden(problem, remedy="check the rights of the connected user in QuickBooks")
        raise Rejected(problem, remedy="see QuickBooks' documentation of that code")

    async def _renewed(self, spent: Token | None) -> Token:
        """Return a new access token for the newest refresh token.

        If QuickBooks refuses that one, the token of the settings is tried: so a company is connected anew.
        """
        newest = spent.refresh if spent else ""
        for refresh in dict.fromkeys(filter(None, (newest, self._initial))):
            response = await self._client.call(
                "POST",
                self._settings.token_url,
                auth=basic(
                    self._settings.client_id, self._settings.client_secret.get_secret_value()
                ),
                accept=(400, 401),
                data={"grant_type": "refresh_token", "refresh_token": refresh},
                headers={"Accept": "application/json"},
            )
            if response.is_success:
                return _token(parse_object(response.content), refresh)
            if _grant_error(response) != "invalid_grant":
                raise Unauthorized(
                    f"quickbooks: QuickBooks refuses the application ({response.status_code})",
                    remedy="check sources.quickbooks.client_id and sources.quickbooks.client_secret",
                )
        raise Unauthorized(
            f"quickbooks: the connection to company {self._realm} has ended (invalid_grant)",
            remedy="connect the company anew in QuickBooks and set its new token in sources.quickbooks.refresh_tokens",
        )


def _token(body: Mapping[str, Any], spent: str) -> Token:
    access, lasts = as_string(body.get("access_token")), body.get("expires_in")
    if not access:
        raise _missing("access_token")
    seconds = lasts if isinstance(lasts, int) and 0 < lasts < 10**7 else 3600
    return Token(
        access, as_string(body.get("refresh_token")) or spent, now() + timedelta(seconds=seconds)
    )


def _grant_error(response: httpx2.Response) -> str:
    try:
        return as_string(parse_object(response.content).get("error"))
    except Rejected:
        return ""


def _fault(response: httpx2.Response) -> str:
    """Return the digits of the first error code: of a JSON fault, or of the XML that QuickBooks' gateway sends."""
    try:
        fault = as_mapping(parse_object(response.content).get("Fault"))
    except Rejected:
        code = re.search(rb'(?:\bcode="|errorCode=)(\d{1,10})\b', response.content[:10_000])
        return code[1].decode() if code else ""
    errors = sequence(fault.get("Error"))
    return re.sub(r"\D", "", str(as_mapping(errors[0]).get("code", "")))[:10] if errors else ""


def _list(body: Any, name: str) -> list[Any]:
    value = as_mapping(body).get(name)
    if not isinstance(value, list):
        raise _missing(name)
    return value


def _missing(name: str) -> Rejected:
    return Rejected(
        f"quickbooks: a response of QuickBooks without {name}",
        remedy="check that sources.quickbooks.base_url is QuickBooks' API",
    )
