"""QuickBooks Online: invoices, payments, bills, customers and vendors, by its change operation and webhooks."""

from __future__ import annotations

import base64
from collections.abc import AsyncIterator, Mapping, Sequence
from datetime import datetime
from itertools import product
from typing import ClassVar

from pydantic import SecretStr

from apex_memory.errors import Misconfigured, Unauthorized
from apex_memory.model import Document, Event, Priority
from apex_memory.sources.base import (
    InboundRequest,
    Pattern,
    PulledSource,
    Received,
    Sample,
    SourceSettings,
)
from apex_memory.sources.fields import RecordFields
from apex_memory.sources.pages import ChangeHint, Page, PullContext
from apex_memory.sources.payloads import canonical, malformed_event, parse_json, sample
from apex_memory.sources.quickbooks.documents import record_document
from apex_memory.sources.quickbooks.fields import FIELDS, OTHER_FIELDS
from apex_memory.sources.quickbooks.pull import QuickBooksPull
from apex_memory.sources.quickbooks.records import RecordKey, deleted_event, read_changes
from apex_memory.sources.quickbooks.settings import QuickBooksSettings
from apex_memory.sources.signatures import digest, signature_matches


class QuickBooks(PulledSource[QuickBooksSettings]):
    """Invoices, payments, bills, customers and vendors of QuickBooks Online: polled, with webhooks as change hints."""

    name: ClassVar[str] = "quickbooks"
    title: ClassVar[str] = "QuickBooks Online"
    priority: ClassVar[Priority] = Priority.P2
    pattern: ClassVar[Pattern] = Pattern.POLL
    Settings: ClassVar[type[SourceSettings]] = QuickBooksSettings
    records: ClassVar[Sequence[RecordFields]] = (*FIELDS.values(), OTHER_FIELDS)
    called: ClassVar[Mapping[str, str]] = {
        "": "books accounting quickbooks",
        "invoice": "billed owes receivable unpaid overdue open outstanding due",
        "bill": "owe payable unpaid overdue open outstanding due settle",
        "payment": "paid received",
        "customer": "client",
        "vendor": "supplier",
    }
    poll_seconds: ClassVar[float] = 300
    rate_limit: ClassVar[tuple[float, float]] = (100, 20)  # at most 400 in any minute, of 500

    def own_key_prefixes(self) -> Sequence[str]:
        """Return what stands before a record's id in keys: its company and the entity."""
        pairs = product(self.settings.realm_ids, self.settings.entities)
        return [f"{realm}:{entity}:" for realm, entity in pairs]

    @property
    def expects_webhooks(self) -> bool:
        return bool(self.settings.verifier_tokens)

    @property
    def missing_settings(self) -> str:
        settings = self.settings
        if not settings.client_id:
            return "client_id"
        if not settings.client_secret.get_secret_value():
            return "client_secret"
        if not settings.realm_ids:
            return "realm_ids"
        return "" if len(settings.refresh_tokens) >= len(settings.realm_ids) else "refresh_tokens"

    @property
    def signature_headers(self) -> Sequence[str]:
        return ("intuit-signature",)

    def receive(self, request: InboundRequest) -> Received:
        """Return a change hint for each record; an event only for one that a merge removed, which cannot be fetched."""
        self._verify(request)
        changes, malformed = read_changes(parse_json(request.body), self.settings.entities)
        if malformed and not changes:
            raise malformed[0][1]
        events = [
            malformed_event(self.name, item, reason, request.received_at, self.priority)
            for item, reason in malformed
        ]
        change_hints: dict[str, ChangeHint] = {}
        for change in changes:
            if self.settings.realm_ids and change.key.realm not in self.settings.realm_ids:
                continue
            if change.merged:
                merged = RecordKey(change.key.realm, change.key.entity, change.merged)
                events.append(deleted_event(merged, change.at or request.received_at))
            key = f"{change.key}:deleted" if change.operation == "delete" else str(change.key)
            earlier = change_hints.get(key)
            times = [at for at in (earlier and earlier.at, change.at) if at]
            change_hints[key] = ChangeHint(key, max(times, default=None))
        return Received(events, change_hints=list(change_hints.values()))

    async def pull(self, context: PullContext) -> AsyncIterator[Page]:
        """Yield the records that webhooks named, then each company's changes since the cursor; or the records of a window."""
        async for page in QuickBooksPull(context, self.settings).pages():
            yield page

    def document(self, event: Event) -> Document:
        """Return an `invoice`, `payment`, `bill`, `customer`, `vendor`, or a document of another kind."""
        return record_document(event)

    def samples(self) -> Sequence[Sample]:
        own = parse_json(sample("quickbooks", "own.json"))
        return [
            Sample(item["name"], canonical(item["body"]), events=item["events"]) for item in own
        ]

    def sign(self, body: bytes, at: datetime) -> Mapping[str, str]:
        """Return the header of a webhook. It has no time."""
        if not self.settings.verifier_tokens:
            raise Misconfigured(
                "sources.quickbooks.verifier_tokens: not set", remedy="set a token to sign with"
            )
        return {"intuit-signature": _signature(self.settings.verifier_tokens[0], body).decode()}

    def _verify(self, request: InboundRequest) -> None:
        tokens = self.settings.verifier_tokens
        if not tokens:
            raise Unauthorized(
                "no token to check this QuickBooks webhook with",
                remedy="set sources.quickbooks.verifier_tokens to the verifier token shown in the Intuit application",
            )
        expected = [_signature(token, request.body) for token in tokens]
        if not signature_matches(expected, request.headers.get("intuit-signature", "")):
            raise Unauthorized(
                "intuit-signature does not fit the body",
                remedy="compare sources.quickbooks.verifier_tokens with the verifier token in the Intuit application",
            )


def _signature(token: SecretStr, body: bytes) -> bytes:
    return base64.b64encode(digest(token, body))
