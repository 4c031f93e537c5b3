"""Books: invoices, payments, bills, customers and vendors of QuickBooks Online, by its change operation and webhooks."""

from __future__ import annotations

import base64
from collections.abc import AsyncIterator, Mapping, Sequence
from datetime import datetime
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
from apex_memory.sources.pages import ChangeHint, Page, PullContext
from apex_memory.sources.payloads import canonical, malformed_event, parse_json, sample
from apex_memory.sources.quickbooks.documents import record_document
from apex_memory.sources.quickbooks.pull import Walk
from apex_memory.sources.quickbooks.records import Key, deleted_event, read_notices
from apex_memory.sources.quickbooks.settings import QuickBooksSettings
from apex_memory.sources.signatures import digest, signature_matches


class QuickBooks(PulledSource[QuickBooksSettings]):
    """Invoices, payments, bills, customers and vendors of QuickBooks Online: polled, with webhooks as change hints."""

    name: ClassVar[str] = "quickbooks"
    title: ClassVar[str] = "QuickBooks Online"
    priority: ClassVar[Priority] = Priority.P2
    pattern: ClassVar[Pattern] = Pattern.POLL
    Settings: ClassVar[type[SourceSettings]] = QuickBooksSettings
    poll_seconds: ClassVar[float] = 300
    rate_limit: ClassVar[tuple[float, float]] = (100, 20)  # at most 400 in any minute, of 500

    @property
    def missing_settings(self) -> str:
        held = self.settings
        if not held.client_id or not held.client_secret.get_secret_value():
            return "client_secret" if held.client_id else "client_id"
        if not held.realm_ids:
            return "realm_ids"
        return "" if len(held.refresh_tokens) >= len(held.realm_ids) else "refresh_tokens"

    @property
    def signature_headers(self) -> Sequence[str]:
        return ("intuit-signature",)

    def receive(self, request: InboundRequest) -> Received:
        """A change hint per record; an event only for what a merge took away, of which nothing can be fetched."""
        self._verify(request)
        notices, wrong = read_notices(parse_json(request.body), self.settings.entities)
        if wrong and not notices:
            raise wrong[0][1]
        events = [
            malformed_event(self.name, item, why, request.received_at, self.priority)
            for item, why in wrong
        ]
        change_hints: dict[str, ChangeHint] = {}
        for notice in notices:
            if self.settings.realm_ids and notice.key.realm not in self.settings.realm_ids:
                continue
            if notice.merged:
                lost = Key(notice.key.realm, notice.key.entity, notice.merged)
                events.append(deleted_event(lost, notice.at or request.received_at))
            key = f"{notice.key}:deleted" if notice.operation == "delete" else str(notice.key)
            known = change_hints.get(key)
            times = [at for at in (known and known.at, notice.at) if at]
            change_hints[key] = ChangeHint(key, max(times, default=None))
        return Received(events, change_hints=list(change_hints.values()))

    async def pull(self, context: PullContext) -> AsyncIterator[Page]:
        """What webhooks named, then each company's changes since the cursor; or what a window holds."""
        async for page in Walk(context, self.settings).pages():
            yield page

    def document(self, event: Event) -> Document:
        """An `invoice`, `payment`, `bill`, `customer`, `vendor`, or what else is held."""
        return record_document(event)

    def samples(self) -> Sequence[Sample]:
        own = parse_json(sample("quickbooks", "own.json"))
        return [
            Sample(item["name"], canonical(item["body"]), events=item["events"]) for item in own
        ]

    def sign(self, body: bytes, at: datetime) -> Mapping[str, str]:
        """The header of a webhook. It carries no time."""
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
        wanted = [_signature(token, request.body) for token in tokens]
        if not signature_matches(wanted, request.headers.get("intuit-signature", "")):
            raise Unauthorized(
                "intuit-signature does not fit the body",
                remedy="compare sources.quickbooks.verifier_tokens with the verifier token in the Intuit application",
            )


def _signature(token: SecretStr, body: bytes) -> bytes:
    return base64.b64encode(digest(token, body))
