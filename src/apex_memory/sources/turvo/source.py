"""Turvo: shipments and their status. Webhooks say that one changed; it is fetched from Turvo's API.

What webhooks miss is found by reading Turvo's list of shipments now and then and comparing when each last changed.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from typing import Any, ClassVar

from pydantic import SecretStr

from apex_memory.errors import Misconfigured, Rejected, RetryLater, Unauthorized
from apex_memory.model import Document, Event, Priority, micros, now
from apex_memory.sources.base import (
    InboundRequest,
    PulledSource,
    Received,
    Sample,
    SourceSettings,
)
from apex_memory.sources.pages import ChangeHint, Page, PullContext
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
from apex_memory.sources.turvo.api import Api, Failed
from apex_memory.sources.turvo.documents import changed_at, shipment_document, time_of
from apex_memory.sources.turvo.settings import TurvoSettings

SHIPMENT = "shipment:"
RESTARTS = 5  # of one reading of the list, before it is left for later
_BEARER = re.compile(r"bearer\s+", re.IGNORECASE)


class Turvo(PulledSource[TurvoSettings]):
    """Shipments with their stops, parties, numbers and status from Turvo, fetched when a webhook names them."""

    name: ClassVar[str] = "turvo"
    title: ClassVar[str] = "Turvo"
    priority: ClassVar[Priority] = Priority.P0
    poll_seconds: ClassVar[float] = 300
    Settings: ClassVar[type[SourceSettings]] = TurvoSettings

    @property
    def missing_settings(self) -> str:
        """The first credential of the API that is not set."""
        given: dict[str, SecretStr | str] = {
            name: getattr(self.settings, name)
            for name in ("client_id", "client_secret", "api_key", "username", "password")
        }
        return next((name for name, value in given.items() if not _plain(value)), "")

    def receive(self, request: InboundRequest) -> Received:
        """A change hint for the shipment that the notice names. Notices of other things hold nothing for memory."""
        self._verify(request)
        body = parse_object(request.body)
        if not as_string(body.get("eventName")):
            raise Rejected("eventName: expected text", remedy="is this a webhook of Turvo?")
        if not as_string(body.get("eventName")).upper().startswith("SHIPMENT"):
            return Received()
        about = as_mapping(body.get("eventPayload"))
        load = as_mapping(about.get("load")).get("id")
        id = parse_identifier(
            load if about.get("id") is None else about.get("id"), "eventPayload.id"
        )
        # The id is all that is needed: a time in a form that nobody has seen yet costs no update.
        return Received(change_hints=[ChangeHint(SHIPMENT + id, time_of(body.get("eventTime")))])

    async def pull(self, context: PullContext) -> AsyncIterator[Page]:
        """First the shipments that webhooks named, then, when it is time, those that the list shows as changed.

        What webhooks name meanwhile comes before the list's next shipment.
        """
        api = Api(context.link, self.settings)
        failed: list[Failed] = []
        if context.window is None:
            async for page in self._named(api, context.change_hints, failed):
                yield page
        async for page in self._listing(api, context, failed):
            yield page
        if failed:
            raise failed[0]

    async def _named(
        self, api: Api, change_hints: Sequence[ChangeHint], failed: list[Failed]
    ) -> AsyncIterator[Page]:
        for hint in change_hints:
            kind, _, id = hint.key.partition(":")
            try:
                events = [await self._fetched(api, id, hint.at)] if f"{kind}:" == SHIPMENT else []
            except Failed as error:  # the change hint stays, and its neighbours go on
                failed.append(error)
                continue
            yield Page(events=events, acknowledged=[hint])

    def document(self, event: Event) -> Document:
        """A `shipment`. A cancelled one stays, with that status; a deleted one is a tombstone."""
        return shipment_document(parse_object(event.payload), event)

    def samples(self) -> Sequence[Sample]:
        return [
            Sample(item["name"], canonical(item["body"]), events=0)
            for item in parse_json(sample("turvo", "own.json"))
        ]

    def sign(self, body: bytes, at: datetime) -> Mapping[str, str]:
        """The token's header, and the signature's where a key is set."""
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
                "no token to check this Turvo webhook with",
                remedy="set sources.turvo.webhook_tokens to the token in Turvo's webhook profile",
            )
        given = request.headers.get(known.webhook_header.lower(), "")
        tokens = [token.get_secret_value().encode() for token in known.webhook_tokens]
        if tokens and not signature_matches(tokens, given, _BEARER.sub("", given, count=1)):
            raise Unauthorized(
                f"the token in {known.webhook_header} is not ours",
                remedy="compare sources.turvo.webhook_tokens and webhook_header with Turvo's webhook profile",
            )
        wanted = [digest(key, request.body) for key in known.hmac_keys]
        signature = _signature(request.headers.get(known.hmac_header.lower(), ""))
        if wanted and not signature_matches(wanted, signature):
            raise Unauthorized(
                f"{known.hmac_header} does not fit the body",
                remedy="compare sources.turvo.hmac_keys with the key of who signs",
            )

    async def _fetched(self, api: Api, id: str, at: datetime | None) -> Event:
        """The shipment as it is now; a tombstone if it is gone (`at`: when we heard of it).

        Raises `Failed` when Turvo reports a failure, `RetryLater` and `Unauthorized` as the link does.
        """
        try:
            record = await api.shipment(id)
            return self._event(id, record) if record is not None else self._gone(id, at)
        except Rejected as error:
            return malformed_event(self.name, {"shipment": id}, error, at or now(), self.priority)

    def _event(self, id: str, record: Mapping[str, Any]) -> Event:
        payload = canonical(record)
        changed = changed_at(record)
        # Turvo's times have milliseconds: the digits below tell changes within one apart, by the length of the history.
        later = min(999, len(record["statusHistory"])) if isinstance(record.get("statusHistory"), list) else 0  # fmt: skip
        stamp = micros(changed) + later if changed else 0
        digest = hashlib.sha256(payload).hexdigest()[:24]
        return Event(
            source=self.name,
            event_id=f"{SHIPMENT}{id}@{stamp}:{digest}",
            doc_key=SHIPMENT + id,
            # A record that does not say when it changed is ordered by when it was seen.
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
        self, api: Api, context: PullContext, failed: list[Failed]
    ) -> AsyncIterator[Page]:
        """Read the list page by page, and fetch what changed in it. The cursor says how far, so it goes on after a crash.

        Each page begins with the last row of the page before. Where that row is missing, rows went away
        above it and others slid past us: the list is begun anew.
        """
        reading = _Reading.begun(context, self.settings.listing_seconds)
        seen, restarts = ["?"], 0
        while reading:
            rows, more = await api.listed(reading.start, reading.since)
            ids = [as_string(row.get("id")) or str(row.get("id")) for row in rows]
            slid = bool(reading.start) and reading.anchor not in ids
            if slid or (rows and ids == seen):
                restarts += 1
                if restarts > RESTARTS:
                    raise RetryLater(
                        "turvo: the list of shipments changes faster than it can be read",
                        after=10,
                        remedy="it is read again by itself; set sources.turvo.updated_filter if your Turvo knows one",
                    )
            if slid:
                reading = replace(reading, start=0, anchor="")
                continue
            seen = ids
            before = len(failed)
            fresh = [row for row, id in zip(rows, ids, strict=True) if id != reading.anchor]
            for row in filter(reading.wants, fresh):
                try:
                    yield Page(events=[await self._listed(api, row)])
                except Failed as error:
                    failed.append(error)
                async for page in self._named(api, await context.new_hints(), failed):
                    yield page
            reading = reading.past(rows, ids, failed=len(failed) > before)
            if not more or not fresh:
                yield Page(cursor=reading.ended(self.settings.overlap_seconds))
                return
            yield Page(cursor=reading.cursor())
            async for page in self._named(api, await context.new_hints(), failed):
                yield page

    async def _listed(self, api: Api, row: Mapping[str, Any]) -> Event:
        """The shipment of a row of the list."""
        at = changed_at(row)
        try:
            return await self._fetched(api, parse_identifier(row.get("id"), "id"), at)
        except Rejected as error:
            return malformed_event(self.name, row, error, at or now(), self.priority)


@dataclass(frozen=True, slots=True)
class _Reading:
    """One reading of the list, as the cursor keeps it. Times are microseconds since 1970.

    What changed at or after `since` (and before `until`, in a backfill) is fetched. `newest` is the last change seen,
    `listed` when the reading before this one ended, `began` when this one began; `anchor` is the row at `start`.
    """

    since: int = 0
    until: int = 0
    listed: int = 0
    began: int = 0
    newest: int = 0
    start: int = 0
    anchor: str = ""
    failed: bool = False

    @classmethod
    def begun(cls, context: PullContext, pause: float) -> _Reading | None:
        """The reading to go on with, a new one, or none while the last is not long ago."""
        known = {name: context.cursor[name] for name in cls.__slots__ if name in context.cursor}
        reading = cls(**known)
        if reading.start:
            return reading
        if context.window:
            return cls(
                since=micros(context.window.since),
                until=micros(context.window.until),
                began=micros(now()),
            )
        if micros(now()) - reading.listed < pause * 1_000_000:
            return None
        return cls(since=reading.since, listed=reading.listed, began=micros(now()))

    def wants(self, row: Mapping[str, Any]) -> bool:
        """Whether the row may have changed since: one without a time cannot be compared, and is fetched."""
        changed = changed_at(row)
        if changed is None:
            return True
        return self.since <= micros(changed) and (not self.until or micros(changed) < self.until)

    def past(self, rows: Sequence[Mapping[str, Any]], ids: Sequence[str], *, failed: bool) -> _Reading:  # fmt: skip
        """Behind a page."""
        times = [micros(at) for at in map(changed_at, rows) if at]
        return replace(
            self,
            newest=max([self.newest, *times]),
            start=self.start + len(ids) - 1 if ids else self.start,
            anchor=ids[-1] if ids else self.anchor,
            failed=self.failed or failed,
        )

    def cursor(self) -> dict[str, Any]:
        return asdict(self)

    def ended(self, overlap: float) -> dict[str, Any]:
        """The cursor behind the last page.

        The next reading looks back to the newest change seen, but never past the beginning of this one: rows that
        were already read may have changed meanwhile, and a clock that runs ahead must not hide what follows.
        """
        since = min(self.newest, self.began) - int(overlap * 1_000_000)
        return asdict(
            _Reading(
                since=self.since if self.failed else max(self.since, since),
                listed=micros(now()),
            )
        )


def _plain(value: SecretStr | str) -> str:
    return value.get_secret_value() if isinstance(value, SecretStr) else value


def _signature(text: str) -> bytes:
    text = text.removeprefix("sha256=")
    if re.fullmatch(r"[0-9a-fA-F]{64}", text):
        return bytes.fromhex(text)
    return from_base64(text)
