"""Samsara: where the trucks are, by the stats feed; what happens to them, by webhook."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any, ClassVar

from pydantic import SecretStr

from apex_memory.errors import Misconfigured, Rejected, RetryLater, Unauthorized
from apex_memory.model import Document, Event, Priority, micros, now
from apex_memory.sources.auth import bearer
from apex_memory.sources.base import (
    InboundRequest,
    Pattern,
    Received,
    Sample,
    SourceSettings,
    StreamSource,
)
from apex_memory.sources.pages import Page, PullContext, Reading, TimeRange
from apex_memory.sources.payloads import (
    as_mapping,
    as_string,
    canonical,
    malformed_event,
    parse_datetime,
    parse_json,
    parse_object,
    sample,
)
from apex_memory.sources.samsara.documents import WebhookEvent, event_document, iso
from apex_memory.sources.samsara.settings import SamsaraSettings
from apex_memory.sources.samsara.stats import KINDS, read_vehicle, summarise, window_document
from apex_memory.sources.signatures import (
    check_time,
    digest,
    from_base64,
    signature_matches,
)

WINDOW = "application/vnd.apex.samsara-window+json"
"""Content type of a window's summary; a webhook's event is plain JSON."""
OVERLAP = timedelta(hours=6)  # fetched again when a feed starts anew, as points may arrive late
RETRY_SECONDS = 30  # before an invalid page is requested again


class Samsara(StreamSource[SamsaraSettings]):
    """Positions, engine states and fuel of vehicles from Samsara's stats feed, and its webhooks' events."""

    name: ClassVar[str] = "samsara"
    title: ClassVar[str] = "Samsara"
    priority: ClassVar[Priority] = Priority.P1
    pattern: ClassVar[Pattern] = Pattern.STREAM
    Settings: ClassVar[type[SourceSettings]] = SamsaraSettings
    poll_seconds: ClassVar[float] = 5  # the least that Samsara asks for
    window_seconds: ClassVar[int] = 300

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
            version=micros(webhook.at) + webhook.rank,
            occurred_at=webhook.at,
            payload=request.body,
            priority=self.priority,
        )
        return Received([event])

    async def pull(self, context: PullContext) -> AsyncIterator[Page]:
        """Yield the feed from its cursor on, or the history of a backfill's window. There are no change hints."""
        calls = _Calls(context, self.settings, self.window_seconds, self.priority)
        async for page in calls.feed() if context.window is None else calls.history(context.window):
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


@dataclass(slots=True)
class _Calls:
    """The calls of one pull. Its start decides which times of readings are sane."""

    context: PullContext
    settings: SamsaraSettings
    seconds: int
    priority: Priority
    began: datetime = field(default_factory=now)

    async def feed(self) -> AsyncIterator[Page]:
        """Yield what arrived since the cursor. A cursor that Samsara no longer accepts is replaced, and the gap filled."""
        before = as_string(self.context.cursor.get("after"))
        seen = parse_datetime(self.context.cursor.get("seen", 0), "seen")
        body = await self._page("feed", _after(before), lenient=bool(before))
        if body is None:
            # The new cursor is stored only when the gap is filled, so that nothing between the two is missed.
            before, body = "", await self._page("feed", {})
            since = max(seen - OVERLAP, self._sane.since)
            async for page in self._listed(TimeRange(since, self.began), ""):
                yield replace(page, cursor=None)
        while body is not None:
            after, more = self._position("feed", body, before)
            page = self._read(body)
            times = [reading.at for reading in page.readings if reading.at <= self.began]
            seen = max([seen, *times])
            if page.readings or page.events or after != before:
                yield replace(page, cursor={"after": after, "seen": iso(seen)})
            before, body = after, await self._page("feed", _after(after)) if more else None

    async def history(self, window: TimeRange) -> AsyncIterator[Page]:
        if not self.context.cursor.get("done"):
            async for page in self._listed(window, as_string(self.context.cursor.get("after"))):
                yield page

    async def _listed(self, window: TimeRange, after: str) -> AsyncIterator[Page]:
        times, more = {"startTime": iso(window.since), "endTime": iso(window.until)}, True
        while more and (body := await self._page("history", {**times, **_after(after)})):
            after, more = self._position("history", body, after)
            yield replace(self._read(body), cursor={"after": after, "done": not more})

    async def _page(
        self, what: str, context: Mapping[str, str], *, lenient: bool = False
    ) -> Mapping[str, Any] | None:
        """Return a page; None when a lenient call gets status 400, for a cursor that is not valid any more."""
        response = await self.context.link.call(
            "GET",
            f"{self.settings.base_url.rstrip('/')}/fleet/vehicles/stats/{what}",
            auth=bearer(self.settings.api_token.get_secret_value()),
            params={"types": ",".join(KINDS), **context},
            accept=(400,) if lenient else (),
        )
        if response.status_code == 400:
            return None
        try:
            body = parse_object(response.content)
            if not isinstance(body.get("data"), list):
                raise Rejected("data: expected a list")
        except Rejected as error:
            raise RetryLater(
                f"samsara: not a page of the {what}: {error}",
                after=RETRY_SECONDS,
                remedy="Apex retries it; check sources.samsara.base_url if it lasts",
            ) from None
        return body

    def _position(self, what: str, body: Mapping[str, Any], before: str) -> tuple[str, bool]:
        """Return the cursor after this page, and whether more pages follow. A page without a cursor leaves it."""
        paging = as_mapping(body.get("pagination"))
        after, more = (
            as_string(paging.get("endCursor")) or before,
            paging.get("hasNextPage") is True,
        )
        if more and after == before:
            raise RetryLater(
                f"samsara: the {what} announces more pages without a cursor",
                after=RETRY_SECONDS,
                remedy="Apex retries it; see Samsara's status page if it lasts",
            )
        return after, more

    @property
    def _sane(self) -> TimeRange:
        return TimeRange(
            self.began - timedelta(days=self.settings.oldest_days),
            self.began + timedelta(days=self.settings.ahead_days),
        )

    def _read(self, body: Mapping[str, Any]) -> Page:
        """Return a page's readings. The unreadable points of a vehicle become one event, which ends as a dead letter."""
        readings: list[Reading] = []
        events: list[Event] = []
        for n, item in enumerate(body["data"]):
            try:
                vehicle_readings, unread = read_vehicle(
                    item, f"data[{n}]", self._sane, self.seconds
                )
            except Rejected as reason:
                events.append(self._broken(item, reason))
                continue
            readings += vehicle_readings
            if unread:
                record = {name: item.get(name) for name in ("id", "name", "externalIds")}
                events.append(self._broken({**record, **unread.points}, unread.reason))
        return Page(events=events, readings=readings)

    def _broken(self, record: object, reason: Rejected) -> Event:
        return malformed_event(Samsara.name, record, reason, self.began, self.priority)


def _after(cursor: str) -> dict[str, str]:
    return {"after": cursor} if cursor else {}
