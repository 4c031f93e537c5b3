"""Turvo: shipments and their status. Webhooks only name a changed shipment; it is fetched from Turvo's API.

Changes that webhooks miss are found by scan Turvo's list of shipments regularly and comparing the times of change.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from typing import Any, ClassVar

from pydantic import SecretStr

from apex_memory.errors import ApexError, Misconfigured, Rejected, RetryLater, Unauthorized
from apex_memory.model import Document, Event, Priority, micros, now
from apex_memory.sources.base import (
    InboundRequest,
    PulledSource,
    Received,
    Sample,
    SourceSettings,
)
from apex_memory.sources.fetch_back import FetchBack, check_missing
from apex_memory.sources.fields import RecordFields
from apex_memory.sources.pages import ChangeHint, Page, PullContext, Unfetched
from apex_memory.sources.payloads import (
    as_mapping,
    as_string,
    canonical,
    malformed_event,
    parse_identifier,
    parse_json,
    parse_object,
    sample,
)
from apex_memory.sources.signatures import digest, from_base64, signature_matches
from apex_memory.sources.turvo.api import Api
from apex_memory.sources.turvo.documents import (
    SHIPMENT_FIELDS,
    changed_at,
    shipment_document,
    time_of,
)
from apex_memory.sources.turvo.settings import TurvoSettings

SHIPMENT = "shipment:"
RESTARTS = 5  # of one scan of the list, before it is left for a later pull
_BEARER = re.compile(r"bearer\s+", re.IGNORECASE)


class Turvo(PulledSource[TurvoSettings]):
    """Shipments with their stops, parties, numbers and status from Turvo, fetched when a webhook names them."""

    name: ClassVar[str] = "turvo"
    title: ClassVar[str] = "Turvo"
    priority: ClassVar[Priority] = Priority.P0
    poll_seconds: ClassVar[float] = 300
    Settings: ClassVar[type[SourceSettings]] = TurvoSettings
    key_prefixes: ClassVar[Sequence[str]] = (SHIPMENT,)
    records: ClassVar[Sequence[RecordFields]] = (SHIPMENT_FIELDS,)
    called: ClassVar[Mapping[str, str]] = {
        "shipment": "load shipping tms",
    }
    numbered: ClassVar[Mapping[str, str]] = {"shipment": "load"}

    @property
    def expects_webhooks(self) -> bool:
        return bool(self.settings.webhook_tokens or self.settings.hmac_keys)

    @property
    def missing_settings(self) -> str:
        """The first credential of the API that is not set."""
        credentials: dict[str, SecretStr | str] = {
            name: getattr(self.settings, name)
            for name in ("client_id", "client_secret", "api_key", "username", "password")
        }
        return next((name for name, value in credentials.items() if not _plain(value)), "")

    @property
    def signature_headers(self) -> Sequence[str]:
        return (self.settings.webhook_header.lower(), self.settings.hmac_header.lower())

    def receive(self, request: InboundRequest) -> Received:
        """Return a change hint for the shipment that the webhook names. Webhooks about other objects are ignored."""
        self._verify(request)
        body = parse_object(request.body)
        if not as_string(body.get("eventName")):
            raise Rejected(
                "eventName: expected text", remedy="check that the request comes from Turvo"
            )
        if not as_string(body.get("eventName")).upper().startswith("SHIPMENT"):
            return Received()
        about = as_mapping(body.get("eventPayload"))
        load = as_mapping(about.get("load")).get("id")
        id = parse_identifier(
            load if about.get("id") is None else about.get("id"), "eventPayload.id"
        )
        # Only the id is needed: a time in an unknown form must not cost an update.
        return Received(change_hints=[ChangeHint(SHIPMENT + id, time_of(body.get("eventTime")))])

    async def pull(self, context: PullContext) -> AsyncIterator[Page]:
        """Yield the shipments that webhooks named, then, when a scan is due, those that the list shows as changed.

        Shipments that webhooks name meanwhile come before the next shipment of the list. A shipment of the list that
        Turvo does not return is left as a change hint, so that the list goes on.
        """
        api, fetch_back = Api(context.client, self.settings), FetchBack()
        if context.window is None:
            async for page in self._named(api, context.change_hints, fetch_back):
                yield page
        async for page in self._listing(api, context, fetch_back):
            yield page

    def _named(
        self, api: Api, change_hints: Sequence[ChangeHint], fetch_back: FetchBack
    ) -> AsyncIterator[Page]:
        async def fetch(hints: Sequence[ChangeHint]) -> Sequence[Event]:
            (hint,) = hints
            kind, _, id = hint.key.partition(":")
            return [await self._fetched(api, id, hint.at)] if f"{kind}:" == SHIPMENT else []

        return fetch_back.pages([[hint] for hint in change_hints], fetch)

    def document(self, event: Event) -> Document:
        """Return a `shipment`. A cancelled one stays, with that status; a deleted one is a tombstone."""
        return shipment_document(parse_object(event.payload), event)

    def samples(self) -> Sequence[Sample]:
        return [
            Sample(item["name"], canonical(item["body"]), events=0)
            for item in parse_json(sample("turvo", "own.json"))
        ]

    def sign(self, body: bytes, at: datetime) -> Mapping[str, str]:
        """Return the header with the token, and the one with the signature where a key is set."""
        known, headers = self.settings, {}
        if not known.webhook_tokens and not known.hmac_keys:
            raise Misconfigured(
                "sources.turvo.webhook_tokens: not set", remedy="set a token to sign with"
            )
        for token in known.webhook_tokens[:1]:
            headers[known.webhook_header.lower()] = token.get_secret_value()
        for key in known.hmac_keys[:1]:
            headers[known.hmac_header.lower()] = digest(key, body).hex()
        return headers

    def _verify(self, request: InboundRequest) -> None:
        known = self.settings
        if not known.webhook_tokens and not known.hmac_keys:
            raise Unauthorized(
                "no token is set to verify this Turvo webhook",
                remedy="set sources.turvo.webhook_tokens to the token in Turvo's webhook profile",
            )
        given = request.headers.get(known.webhook_header.lower(), "")
        tokens = [token.get_secret_value().encode() for token in known.webhook_tokens]
        if tokens and not signature_matches(tokens, given, _BEARER.sub("", given, count=1)):
            raise Unauthorized(
                f"the token in {known.webhook_header} is wrong",
                remedy="compare sources.turvo.webhook_tokens and webhook_header with Turvo's webhook profile",
            )
        expected = [digest(key, request.body) for key in known.hmac_keys]
        signature = _signature(request.headers.get(known.hmac_header.lower(), ""))
        if expected and not signature_matches(expected, signature):
            raise Unauthorized(
                f"{known.hmac_header} does not match the body",
                remedy="compare sources.turvo.hmac_keys with the key of the signing proxy",
            )

    async def _fetched(self, api: Api, id: str, at: datetime | None) -> Event:
        """Return the shipment as it is now, or a tombstone if it does not exist. `at` is the time of the change hint.

        Raises what `check_missing` raises, `Failed` when Turvo reports a failure, and what `VendorClient.call` raises.
        """
        record = await api.shipment(id)
        if record is None:
            check_missing(self.name, f"shipment {id}", at)
        try:
            return self._event(id, record) if record is not None else self._gone(id, at)
        except Rejected as error:
            return malformed_event(self.name, {"shipment": id}, error, at or now(), self.priority)

    def _event(self, id: str, record: Mapping[str, Any]) -> Event:
        payload = canonical(record)
        changed = changed_at(record)
        # Turvo's times have milliseconds: the digits below order changes within one, by the length of the history.
        later = min(999, len(record["statusHistory"])) if isinstance(record.get("statusHistory"), list) else 0  # fmt: skip
        stamp = micros(changed) + later if changed else 0
        digest = hashlib.sha256(payload).hexdigest()[:24]
        return Event(
            source=self.name,
            event_id=f"{SHIPMENT}{id}@{stamp}:{digest}",
            doc_key=SHIPMENT + id,
            # A record without a time of change is ordered by the time of this fetch.
            version=stamp or micros(now()),
            occurred_at=changed or now(),
            payload=payload,
            priority=self.priority,
        )

    def _gone(self, id: str, at: datetime | None) -> Event:
        deleted = max(filter(None, [at, now()]))
        version = micros(deleted) + 999  # above every version of the same millisecond
        return Event(
            source=self.name,
            event_id=f"{SHIPMENT}{id}@{version}:gone",
            doc_key=SHIPMENT + id,
            version=version,
            occurred_at=deleted,
            payload=canonical({"id": id, "deleted": True}),
            priority=self.priority,
        )

    async def _listing(
        self, api: Api, context: PullContext, fetch_back: FetchBack
    ) -> AsyncIterator[Page]:
        """Read the list page by page and fetch the changed shipments. The cursor holds the position, also over a crash.

        Each page starts with the last row of the page before. Where that row is missing, rows above it were removed and
        others moved up unseen: the scan starts again.
        """
        scan = _ListScan.started(context, self.settings.listing_seconds)
        if scan is None and fetch_back.failed:
            await api.listed(0, micros(now()))  # shows whether Turvo responds to other calls
            yield Page(cursor=context.cursor)
        seen, restarts = ["?"], 0
        while scan:
            rows, more = await api.listed(scan.start, scan.since)
            ids = [as_string(row.get("id")) or str(row.get("id")) for row in rows]
            slid = bool(scan.start) and scan.anchor not in ids
            if slid or (rows and ids == seen):
                restarts += 1
                if restarts > RESTARTS:
                    raise RetryLater(
                        "turvo: the list of shipments changes faster than it can be read",
                        after=10,
                        remedy="Apex reads it again; set sources.turvo.updated_filter if your Turvo supports one",
                    )
            if slid:
                scan = replace(scan, start=0, anchor="")
                continue
            seen = ids
            fresh = [row for row, id in zip(rows, ids, strict=True) if id != scan.anchor]
            for row in filter(scan.wants, fresh):
                yield await self._listed(api, row, fetch_back)
                async for page in self._named(api, await context.new_hints(), fetch_back):
                    yield page
            scan = scan.past(rows, ids)
            if not more or not fresh:
                yield Page(cursor=scan.ended(self.settings.overlap_seconds))
                return
            yield Page(cursor=scan.cursor())
            async for page in self._named(api, await context.new_hints(), fetch_back):
                yield page

    async def _listed(self, api: Api, row: Mapping[str, Any], fetch_back: FetchBack) -> Page:
        """Return the page of the shipment in a row of the list: its event, or a change hint where it is not returned."""
        at = changed_at(row)
        try:
            id = parse_identifier(row.get("id"), "id")
        except Rejected as error:
            return Page(events=[malformed_event(self.name, row, error, at or now(), self.priority)])
        hint = ChangeHint(SHIPMENT + id, at)
        if fetch_back.exhausted:
            return Page(hints=[hint])

        async def fetch(_: Sequence[ChangeHint]) -> Sequence[Event]:
            return [await self._fetched(api, id, at)]

        fetched = await fetch_back.attempt([hint], fetch)
        if isinstance(fetched, ApexError):
            return Page(unfetched=[Unfetched(hint, fetched)])
        return Page(events=fetched)


@dataclass(frozen=True, slots=True)
class _ListScan:
    """One scan of the list, as the cursor stores it. Times are microseconds since 1970.

    Shipments that changed at or after `since` (and before `until`, in a backfill) are fetched. `newest` is the last
    change seen, `listed` the end of the scan before, `began` the start of this one; `anchor` is the row at `start`.
    """

    since: int = 0
    until: int = 0
    listed: int = 0
    began: int = 0
    newest: int = 0
    start: int = 0
    anchor: str = ""

    @classmethod
    def started(cls, context: PullContext, pause: float) -> _ListScan | None:
        """Return the scan to continue, a new one, or None while the last scan is recent."""
        known = {name: context.cursor[name] for name in cls.__slots__ if name in context.cursor}
        scan = cls(**known)
        if scan.start:
            return scan
        if context.window:
            return cls(
                since=micros(context.window.since),
                until=micros(context.window.until),
                began=micros(now()),
            )
        # A time ahead of the clock was stored before somebody set the clock back: it holds nothing.
        if 0 <= micros(now()) - scan.listed < pause * 1_000_000:
            return None
        return cls(since=scan.since, listed=scan.listed, began=micros(now()))

    def wants(self, row: Mapping[str, Any]) -> bool:
        """Return whether the row may have changed: one without a time cannot be compared, so it is fetched."""
        changed = changed_at(row)
        if changed is None:
            return True
        return self.since <= micros(changed) and (not self.until or micros(changed) < self.until)

    def past(self, rows: Sequence[Mapping[str, Any]], ids: Sequence[str]) -> _ListScan:
        """Behind a page."""
        times = [micros(at) for at in map(changed_at, rows) if at]
        return replace(
            self,
            newest=max([self.newest, *times]),
            start=self.start + len(ids) - 1 if ids else self.start,
            anchor=ids[-1] if ids else self.anchor,
        )

    def cursor(self) -> dict[str, Any]:
        return asdict(self)

    def ended(self, overlap: float) -> dict[str, Any]:
        """Return the cursor after the last page.

        The next scan starts at the newest change seen, but not after the start of this scan: rows may have changed
        after they were read, and a vendor's clock that is ahead must not hide later changes.
        """
        since = min(self.newest, self.began) - int(overlap * 1_000_000)
        return asdict(_ListScan(since=max(self.since, since), listed=micros(now())))


def _plain(value: SecretStr | str) -> str:
    return value.get_secret_value() if isinstance(value, SecretStr) else value


def _signature(text: str) -> bytes:
    text = text.removeprefix("sha256=")
    if re.fullmatch(r"[0-9a-fA-F]{64}", text):
        return bytes.fromhex(text)
    return from_base64(text)
