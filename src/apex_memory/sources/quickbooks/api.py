"""The calls to one company's books in QuickBooks Online: what is asked, and what its answers and refusals mean."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx2

from apex_memory.errors import Rejected, RetryLater, Unauthorized
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
from apex_memory.sources.quickbooks.records import SOURCE, Key, updated
from apex_memory.sources.quickbooks.settings import QuickBooksSettings

MINOR_VERSION = 75
CAP = 1000  # objects in an answer of changes; what is beyond is missing without a word
ROWS, SHARED = 1000, 100  # rows of a query; those that the next page of one second shows again
THROTTLED = ("3001", "003001")
NOT_FOUND = "610"
MAY_BE_INACTIVE = ("Customer", "Vendor", "Item", "Account", "Employee", "Class", "Department")

Found = tuple[str, Any]  # entity, record


@dataclass(frozen=True, slots=True)
class Changes:
    """An answer of the change operation: what changed, and QuickBooks' time."""

    found: Sequence[Found]
    time: datetime

    @property
    def whole(self) -> bool:
        return len(self.found) < CAP


@dataclass(frozen=True, slots=True)
class Place:
    """Where a query stands: at a second since 1970, or at a row among what changed in just that second.

    Not at a row among all: a record that changes meanwhile moves to the end, and a row further on is skipped.
    """

    at: int | None = None
    row: int = 1
    within: bool = False

    def after(self, entity: str, records: Sequence[Any]) -> Place | None:
        """Where it goes on behind these records; None at the end."""
        if self.within and self.at is not None:
            if len(records) < ROWS:
                return Place(self.at + 1)
            return Place(self.at, self.row + ROWS - SHARED, within=True)
        if len(records) < ROWS:
            return None
        times = [at for record in records if (at := updated(record)) is not None]
        if not times:
            raise Rejected(
                f"{len(records)} {entity} of QuickBooks without a readable LastUpdatedTime",
                remedy="is sources.quickbooks.base_url QuickBooks' API?",
            )
        last = max(times)
        return Place(last) if self.at is None or last > self.at else Place(self.at, within=True)

    def query(self, entity: str, until: int | None) -> str:
        """The query of up to 1,000 records from here on, in order of change."""
        field = "MetaData.LastUpdatedTime"
        conditions = ["Active in (true, false)"] if entity in MAY_BE_INACTIVE else []
        if self.at is not None:
            conditions.append(f"{field} >= '{_stamp(self.at)}'")
        end = self.at + 1 if self.within and self.at is not None else until
        if end is not None:
            conditions.append(f"{field} < '{_stamp(end)}'")
        where = f" where {' and '.join(conditions)}" if conditions else ""
        return f"select * from {entity}{where} orderby {field} STARTPOSITION {self.row} MAXRESULTS {ROWS}"


def _stamp(seconds: int) -> str:
    at = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(seconds=seconds)
    return at.isoformat(timespec="seconds")


class Calls:
    """The calls of a pull to one company's books."""

    def __init__(
        self, link: VendorClient, settings: QuickBooksSettings, realm: str, initial: str
    ) -> None:
        self._link = link
        self._settings = settings
        self._realm = realm
        self._initial = initial
        self._auth: Auth = OAuth(link.tokens, f"{SOURCE}/{realm}", self._renewed)

    async def changes(self, entities: Sequence[str], since: datetime) -> Changes:
        """What changed after `since`, at most 1,000 objects and without any order."""
        stamp = since.astimezone(UTC).isoformat(timespec="seconds")
        body = await self._get("cdc", {"entities": ",".join(entities), "changedSince": stamp})
        answers = [one for part in _list(body, "CDCResponse") for one in _list(part, "QueryResponse")]  # fmt: skip
        found = [
            (entity, record)
            for answer in answers
            for entity in entities
            for record in sequence(as_mapping(answer).get(entity))
        ]
        return Changes(found, parse_datetime(body.get("time"), "time"))

    async def query(
        self, entity: str, place: Place, until: int | None
    ) -> tuple[Sequence[Any], datetime]:
        """Up to 1,000 records from `place` on, changed before `until` (s), and QuickBooks' time."""
        body = await self._get("query", {"query": place.query(entity, until)})
        if not isinstance(body.get("QueryResponse"), dict):
            raise _strange("QueryResponse")
        return sequence(body["QueryResponse"].get(entity)), parse_datetime(body.get("time"), "time")

    async def one(self, key: Key) -> Any | None:
        """A record; None where there is none (any more)."""
        body = await self._get(f"{key.entity.lower()}/{key.id}", {}, missing=True)
        return body.get(key.entity) if body else None

    async def _get(
        self, path: str, params: Mapping[str, str], *, missing: bool = False
    ) -> dict[str, Any]:
        """The answer; empty for a thing that is not found, if it may be missing."""
        base = self._settings.base_url.rstrip("/")
        answer = await self._link.call(
            "GET",
            f"{base}/v3/company/{self._realm}/{path}",
            auth=self._auth,
            accept=(400, 403),
            params={**params, "minorversion": str(MINOR_VERSION)},
            headers={"Accept": "application/json"},
        )
        if answer.is_success:
            return parse_object(answer.content)
        code = _fault(answer)
        if code in THROTTLED:
            raise RetryLater(
                "quickbooks: QuickBooks reports too many calls",
                after=retry_after(answer.headers.get("retry-after")) or 60,
                remedy="Apex retries it",
            )
        if missing and code == NOT_FOUND:
            return {}
        trace = re.sub(r"[^\w-]", "", answer.headers.get("intuit_tid", ""))[:64]
        told = f"quickbooks: QuickBooks answers {answer.status_code}, code {code or 'none'}, intuit_tid {trace or 'none'}"
        if answer.status_code == 403:
            raise Unauthorized(told, remedy="check what the connected user may do in QuickBooks")
        raise Rejected(told, remedy="see QuickBooks' documentation of that code")

    async def _renewed(self, spent: Token | None) -> Token:
        """Another access token for the newest refresh token; for that of the settings where the newest fails,
        which is how a company is connected anew."""
        kept = spent.refresh if spent else ""
        for refresh in dict.fromkeys(filter(None, (kept, self._initial))):
            answer = await self._link.call(
                "POST",
                self._settings.token_url,
                auth=basic(
                    self._settings.client_id, self._settings.client_secret.get_secret_value()
                ),
                accept=(400, 401),
                data={"grant_type": "refresh_token", "refresh_token": refresh},
                headers={"Accept": "application/json"},
            )
            if answer.is_success:
                return _token(parse_object(answer.content), refresh)
            if _grant_error(answer) != "invalid_grant":
                raise Unauthorized(
                    f"quickbooks: QuickBooks refuses the application ({answer.status_code})",
                    remedy="check sources.quickbooks.client_id and sources.quickbooks.client_secret",
                )
        raise Unauthorized(
            f"quickbooks: the connection to company {self._realm} has ended (invalid_grant)",
            remedy="connect the company anew in QuickBooks and set its new token in sources.quickbooks.refresh_tokens",
        )


def _token(body: Mapping[str, Any], spent: str) -> Token:
    access, lasts = as_string(body.get("access_token")), body.get("expires_in")
    if not access:
        raise _strange("access_token")
    seconds = lasts if isinstance(lasts, int) and 0 < lasts < 10**7 else 3600
    return Token(
        access, as_string(body.get("refresh_token")) or spent, now() + timedelta(seconds=seconds)
    )


def _grant_error(answer: httpx2.Response) -> str:
    try:
        return as_string(parse_object(answer.content).get("error"))
    except Rejected:
        return ""


def _fault(answer: httpx2.Response) -> str:
    """Return the digits of the first error code: of a JSON fault, or of the XML that QuickBooks' gateway sends."""
    try:
        fault = as_mapping(parse_object(answer.content).get("Fault"))
    except Rejected:
        code = re.search(rb'(?:\bcode="|errorCode=)(\d{1,10})\b', answer.content[:10_000])
        return code[1].decode() if code else ""
    errors = sequence(fault.get("Error"))
    return re.sub(r"\D", "", str(as_mapping(errors[0]).get("code", "")))[:10] if errors else ""


def _list(body: Any, name: str) -> list[Any]:
    found = as_mapping(body).get(name)
    if not isinstance(found, list):
        raise _strange(name)
    return found


def _strange(name: str) -> Rejected:
    return Rejected(
        f"quickbooks: an answer of QuickBooks without {name}",
        remedy="is sources.quickbooks.base_url QuickBooks' API?",
    )
