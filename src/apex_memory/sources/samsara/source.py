"""Samsara: where the trucks are, by the stats feed; what happens to them, by webhook."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Mapping, Sequence
from datetime import datetime
from typing import ClassVar

from pydantic import SecretStr

from apex_memory.errors import Misconfigured, Unauthorized
from apex_memory.model import Document, Event, Priority, micros
from apex_memory.sources.base import (
    InboundRequest,
    Pattern,
    Received,
    Sample,
    SourceSettings,
    StreamSource,
)
from apex_memory.sources.fields import RecordFields
from apex_memory.sources.pages import Page, PullContext, Reading
from apex_memory.sources.payloads import canonical, parse_json, parse_object, sample
from apex_memory.sources.samsara.api import SamsaraApi
from apex_memory.sources.samsara.documents import (
    EVENT_FIELDS,
    WebhookEvent,
    event_document,
    iso,
)
from apex_memory.sources.samsara.pull import StatsPull
from apex_memory.sources.samsara.settings import SamsaraSettings
from apex_memory.sources.samsara.stats import (
    PRIORITY,
    SOURCE,
    WINDOW_FIELDS,
    WINDOW_SECONDS,
    summarise,
    window_document,
)
from apex_memory.sources.signatures import (
    check_time,
    digest,
    from_base64,
    signature_matches,
)

WINDOW = "application/vnd.apex.samsara-window+json"
"""Content type of a window's summary; a webhook's event is plain JSON."""


class Samsara(StreamSource[SamsaraSettings]):
    """Positions, engine states and fuel of vehicles from Samsara's stats feed, and its webhooks' events."""

    name: ClassVar[str] = SOURCE
    title: ClassVar[str] = "Samsara"
    priority: ClassVar[Priority] = PRIORITY
    pattern: ClassVar[Pattern] = Pattern.STREAM
    Settings: ClassVar[type[SourceSettings]] = SamsaraSettings
    records: ClassVar[Sequence[RecordFields]] = (EVENT_FIELDS, WINDOW_FIELDS)
    key_prefixes: ClassVar[Sequence[str]] = ("vehicle:", "driver:", "address:", "event:")
    id_refs: ClassVar[Sequence[str]] = ("vehicle:SAMSARA-",)
    called: ClassVar[Mapping[str, str]] = {
        "": "samsara truck vehicle fleet",
        "vehicle_event": "event alert speeding inspection dvir defect fault braking",
        "vehicle_window": "position location where now gps driving fuel odometer",
    }
    poll_seconds: ClassVar[float] = 5  # the least that Samsara asks for
    window_seconds: ClassVar[int] = WINDOW_SECONDS

    @property
    def missing_settings(self) -> str:
        return "" if self.settings.api_token.get_secret_value() else "api_token"

    @property
    def signature_headers(self) -> Sequence[str]:
        return ("x-samsara-signature",)

    def receive(self, request: InboundRequest) -> Received:
        """Return one event; none for a ping."""
        self._verify(request)
        webhook = WebhookEvent.read(parse_object(request.body))
        if webhook.ping:
            return Received()
        event = Event(
            source=self.name,
            event_id=f"event:{webhook.id}",
            doc_key=webhook.key,
            version=webhook.version,
            occurred_at=webhook.at,
            payload=request.body,
            priority=self.priority,
        )
        return Received([event])

    async def pull(self, context: PullContext) -> AsyncIterator[Page]:
        """Yield the feed from its cursor on, or the history of a backfill's window. There are no change hints."""
        stats = StatsPull(SamsaraApi(context.client, self.settings), self.settings, context.cursor)
        pages = stats.feed() if context.window is None else stats.history(context.window)
        async for page in pages:
            yield page

    def aggregate_window(
        self, series: str, start: datetime, readings: Sequence[Reading], version: int
    ) -> Event:
        """Return the event of a vehicle's five minutes."""
        key = f"window:{series}:{iso(start)}"
        return Event(
            source=self.name,
            event_id=f"{key}:{version}",
            doc_key=key,
            version=version,
            occurred_at=start,
            payload=canonical(summarise(series, start, self.window_seconds, readings)),
            content_type=WINDOW,
            priority=self.priority,
        )

    def document(self, event: Event) -> Document:
        """Return a `vehicle_window`, a `vehicle_event`, or the record of an `address`, `driver` or `vehicle`."""
        body = parse_object(event.payload)
        if event.content_type == WINDOW:
            return window_document(body)
        return event_document(WebhookEvent.read(body))

    def samples(self) -> Sequence[Sample]:
        own = parse_json(sample("samsara", "own.json"))
        return [Sample(item["name"], canonical(item["body"])) for item in own]

    def sign(self, body: bytes, at: datetime) -> Mapping[str, str]:
        if not self.settings.webhook_secrets:
            raise Misconfigured(
                "sources.samsara.webhook_secrets: not set", remedy="set a secret to sign with"
            )
        stamp = str(micros(at) // 1_000_000)
        return {
            "x-samsara-timestamp": stamp,
            "x-samsara-signature": _signature(self.settings.webhook_secrets[0], stamp, body),
        }

    def _verify(self, request: InboundRequest) -> None:
        if not self.settings.webhook_secrets:
            raise Unauthorized(
                "no secret is set to verify this Samsara webhook",
                remedy="set sources.samsara.webhook_secrets to the webhook's secret key in Samsara",
            )
        stamp = request.headers.get("x-samsara-timestamp", "")
        if not re.fullmatch(r"[0-9]{1,12}", stamp):
            raise Unauthorized("X-Samsara-Timestamp is not a number of seconds")
        secrets = self.settings.webhook_secrets
        expected = [_signature(secret, stamp, request.body).encode() for secret in secrets]
        if not signature_matches(expected, request.headers.get("x-samsara-signature", "")):
            raise Unauthorized(
                "X-Samsara-Signature does not match the body",
                remedy="compare sources.samsara.webhook_secrets with the webhook's secret key in Samsara",
            )
        check_time(request, int(stamp) * 1_000_000, self.name, self.settings.replay_seconds)


def _signature(secret: SecretStr, stamp: str, body: bytes) -> str:
    signed = b":".join((b"v1", stamp.encode(), body))
    return "v1=" + digest(_key(secret.get_secret_value()), signed).hex()


def _key(secret: str) -> bytes:
    """Return the bytes of a secret: decoded base64, any other text as it is."""
    return from_base64(secret.strip()) or secret.encode()
