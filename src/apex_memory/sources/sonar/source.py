"""SONAR: freight market indexes, polled from FreightWaves' API; values and alerts also through a signed relay.

FreightWaves sends no webhooks: a relay is a program of the user or a partner that signs by Standard Webhooks.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import re
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime, timedelta
from typing import Any, ClassVar

from pydantic import SecretStr

from apex_memory.errors import ApexError, Misconfigured, Rejected, RetryLater, Unauthorized
from apex_memory.model import Document, Event, Priority, micros, now
from apex_memory.sources.base import (
    InboundRequest,
    Pattern,
    PulledSource,
    Received,
    Sample,
    SourceSettings,
)
from apex_memory.sources.fields import RecordFields
from apex_memory.sources.pages import Page, PullContext
from apex_memory.sources.payloads import (
    as_mapping,
    as_string,
    canonical,
    malformed_event,
    parse_datetime,
    parse_identifier,
    parse_json,
    parse_object,
    sample,
)
from apex_memory.sources.signatures import (
    check_time,
    digest,
    from_base64,
    signature_matches,
)
from apex_memory.sources.sonar.api import Blocked, SonarApi, Step
from apex_memory.sources.sonar.documents import (
    ALERT_FIELDS,
    VALUE_FIELDS,
    IndexValue,
    alert_document,
    value_document,
    with_series,
)
from apex_memory.sources.sonar.settings import FIRST_DAYS, SonarSettings, relay_key

MAX_RECORDS = 1_000  # in one message of the relay
CHUNK_DAYS = 366  # of one call of a backfill
LONGEST_BLOCK = 86_400.0
"""Seconds that SONAR blocks calls at most. An end further ahead was stored before somebody set the clock back."""
SHORT_WAIT = 2.0  # longest rest of a block that a pull waits for, in seconds


class Sonar(PulledSource[SonarSettings]):
    """Freight market indexes and alerts from FreightWaves SONAR, polled, and relayed with a signature."""

    name: ClassVar[str] = "sonar"
    title: ClassVar[str] = "FreightWaves SONAR"
    priority: ClassVar[Priority] = Priority.P2
    pattern: ClassVar[Pattern] = Pattern.POLL
    poll_seconds: ClassVar[float] = 21_600
    # At most 80 in any minute, of SONAR's 100: 40 at once, and as many again in the minute after.
    rate_limit: ClassVar[tuple[float, float]] = (40, 60)
    Settings: ClassVar[type[SourceSettings]] = SonarSettings
    records: ClassVar[Sequence[RecordFields]] = (VALUE_FIELDS, ALERT_FIELDS)
    key_prefixes: ClassVar[Sequence[str]] = ("alert:",)
    called: ClassVar[Mapping[str, str]] = {
        "": "market sonar",
        "market_index": "rate index lane reject rejection outbound volume capacity",
        "market_alert": "warning",
    }

    @property
    def missing_settings(self) -> str:
        """The first of user, password and series that is not set."""
        settings = self.settings
        needed = {
            "username": settings.username,
            "password": settings.password.get_secret_value(),
            "series": settings.series,
        }
        return next((name for name, value in needed.items() if not value), "")

    @property
    def signature_headers(self) -> Sequence[str]:
        return ("webhook-signature",)

    def receive(self, request: InboundRequest) -> Received:
        """Return the events of an `index.value`, with a record or a list of them, or of an `alert`.

        docs/howto/sources/sonar.md has the form of a message.
        """
        id = self._verify(request)
        body = parse_object(request.body)
        kind, data = as_string(body.get("type")), body.get("data")
        stated = parse_datetime(body.get("timestamp"), "timestamp")
        at = min(
            stated, request.received_at
        )  # a clock that runs ahead must not hide later messages
        if kind == "alert" and isinstance(data, dict):
            return Received([self._alert(id, at, body, data)])
        if kind == "index.value" and isinstance(data, dict):
            return Received([self._value(id, at, data)])
        if kind == "index.value" and isinstance(data, list) and 0 < len(data) <= MAX_RECORDS:
            return Received(
                [self._value_or_malformed(f"{id}#{n}", at, record) for n, record in enumerate(data)]
            )
        raise Rejected(
            "type, data: expected an alert, or an index.value with 1 to 1,000 records",
            remedy="see docs/howto/sources/sonar.md for the form of a message",
        )

    async def pull(self, context: PullContext) -> AsyncIterator[Page]:
        """Yield a page for each series, with its new and restated values. After a block by SONAR no call is made until it ends."""
        state = _State.read(context.cursor)
        await state.wait()
        api = SonarApi(context.client, self.settings)
        failed: list[ApexError] = []
        for step in self._steps(state, context):
            try:
                records = await api.values(step)
            except Blocked as error:
                failed = [error]
                state = replace(state, until=micros(now()) + int(error.after * 1_000_000))
                yield Page(cursor=state.cursor())
                break
            except Rejected as error:  # such as an unknown index: the other series go on
                failed.append(error)
                continue
            # A backfill stores all values again: it remembers its steps, not values.
            seen = state.seen.get(step.series, {}) if context.window is None else {}
            events, seen = self._changes(step, records, seen)
            if context.window is None:
                state = replace(state, seen={**state.seen, step.series: seen})
            else:
                state = replace(state, done=(*state.done, step.name))
            yield Page(events=events, cursor=state.cursor())
        if failed:
            raise failed[0]

    def document(self, event: Event) -> Document:
        """Return the `market_index` of one day, or a `market_alert`."""
        body = parse_object(event.payload)
        if event.doc_key.startswith("alert:"):
            return alert_document(body, event.occurred_at)
        return value_document(IndexValue.read(body), body)

    def samples(self) -> Sequence[Sample]:
        return [
            Sample(item["name"], canonical(item["body"]), events=item["events"])
            for item in parse_json(sample("sonar", "own.json"))
        ]

    def sign(self, body: bytes, at: datetime) -> Mapping[str, str]:
        """Return a relay's headers. The id is made of the body, so that a repeated message has the same one."""
        secrets = self.settings.relay_secrets
        if not secrets:
            raise Misconfigured(
                "sources.sonar.relay_secrets: not set", remedy="set a secret to sign with"
            )
        id, stamp = f"msg_{hashlib.sha256(body).hexdigest()[:24]}", str(micros(at) // 1_000_000)
        made = base64.b64encode(_digest(secrets[0], id, stamp, body)).decode()
        return {"webhook-id": id, "webhook-timestamp": stamp, "webhook-signature": f"v1,{made}"}

    def _verify(self, request: InboundRequest) -> str:
        """Return the message's id. Raises `Unauthorized` for a message that the relay did not sign."""
        secrets = self.settings.relay_secrets
        if not secrets:
            raise Unauthorized(
                "no secret to check this message of the relay with",
                remedy="set sources.sonar.relay_secrets to the secret that the relay signs with",
            )
        id, stamp, given = (
            request.headers.get(f"webhook-{name}", "") for name in ("id", "timestamp", "signature")
        )
        if not (id.isascii() and re.fullmatch(r"[0-9]{1,12}", stamp, re.ASCII)):
            raise Unauthorized(
                "webhook-id or webhook-timestamp is missing or wrong",
                remedy="the relay must send the headers of Standard Webhooks",
            )
        expected = [_digest(secret, id, stamp, request.body) for secret in secrets]
        if not signature_matches(expected, *map(_decoded, given.split(" ")[:10])):
            raise Unauthorized(
                "webhook-signature does not fit the body",
                remedy="compare sources.sonar.relay_secrets with the secret that the relay signs with",
            )
        check_time(request, int(stamp) * 1_000_000, self.name, self.settings.replay_seconds)
        return parse_identifier(id, "webhook-id")

    def _alert(self, id: str, at: datetime, body: Mapping[str, Any], data: Mapping[str, Any]) -> Event:  # fmt: skip
        named = data.get("id")
        key = id if named is None else parse_identifier(named, "data.id")
        return self._event(id, f"alert:{key}", at, at, canonical(body))

    def _value(self, id: str, at: datetime, record: object) -> Event:
        value = IndexValue.read(record)
        return self._event(id, value.key, at, value.at, canonical(record))

    def _value_or_malformed(self, id: str, at: datetime, record: object) -> Event:
        """Return the event of one record of many; of a record that cannot be read, the event that becomes a dead letter."""
        try:
            return self._value(id, at, record)
        except Rejected as error:
            return malformed_event(self.name, record, error, at, self.priority)

    def _event(self, id: str, key: str, seen: datetime, at: datetime, payload: bytes) -> Event:
        return Event(
            source=self.name,
            event_id=id,
            doc_key=key,
            version=micros(seen),  # SONAR has no versions: the value seen last is the newest
            occurred_at=at,
            payload=payload,
            priority=self.priority,
        )

    def _steps(self, state: _State, context: PullContext) -> list[Step]:
        """Return the calls to make: each series from its last read day on, or a backfill's days in parts."""
        if context.window is None:
            return [self._step(series, state) for series in map(str.upper, self.settings.series)]
        first, last = context.window.since.date(), context.window.until.date()
        starts = range(0, (last - first).days + 1, CHUNK_DAYS)
        steps: list[Step] = []
        for series in self.settings.series:
            for n in starts:
                end = min(last, first + timedelta(days=n + CHUNK_DAYS - 1))
                steps.append(Step(series.upper(), first + timedelta(days=n), end))
        return [step for step in steps if step.name not in state.done]

    def _step(self, series: str, state: _State) -> Step:
        today = now().date()
        known = state.seen.get(series)
        if known:
            first = date.fromisoformat(max(known)[:10]) - timedelta(days=self.settings.reread_days)
        else:
            first = self.settings.since or today - timedelta(days=FIRST_DAYS)
        return Step(series, first, max(first, today))

    def _changes(
        self, step: Step, records: Sequence[object], seen: Mapping[str, str]
    ) -> tuple[list[Event], dict[str, str]]:
        """Return the events of values that differ from those seen last, and the values seen now by day."""
        index, _, qualifier = step.series.partition("/")
        began, events, known = now(), [], dict(seen)
        for n, raw in enumerate(records):
            record = with_series(raw, index, qualifier)
            at = began + timedelta(
                microseconds=n
            )  # of a day that occurs twice the second value counts
            try:
                value = IndexValue.read(record)
            except Rejected as error:
                events.append(malformed_event(self.name, record, error, at, self.priority))
                continue
            series = f"{value.index}/{value.qualifier}"
            name = value.day.isoformat() + (f" {series}" if series != step.series else "")
            if known.get(name, "") != value.shown:
                id = f"{value.key}@{micros(at)}"
                events.append(self._event(id, value.key, at, value.at, canonical(record)))
                known[name] = value.shown
        newest = date.fromisoformat(max(known, default="0001-01-01")[:10])
        oldest = newest - min(timedelta(days=self.settings.reread_days), newest - date.min)
        return events, {name: shown for name, shown in known.items() if name[:10] >= str(oldest)}


@dataclass(frozen=True, slots=True)
class _State:
    """The cursor: each series' values seen last by day, the end of a block in microseconds since 1970, a backfill's done steps."""

    seen: Mapping[str, Mapping[str, str]]
    until: int
    done: tuple[str, ...]

    @classmethod
    def read(cls, cursor: Mapping[str, Any]) -> _State:
        return cls(as_mapping(cursor.get("seen")), cursor.get("until", 0), tuple(cursor.get("done", ())))  # fmt: skip

    def cursor(self) -> dict[str, Any]:
        return {"seen": self.seen, "until": self.until, "done": list(self.done)}

    async def wait(self) -> None:
        """Wait for the end of a block if it is near. Raises `RetryLater` otherwise."""
        left = (self.until - micros(now())) / 1_000_000
        if left > LONGEST_BLOCK:
            left = 0.0
        if left > SHORT_WAIT:
            end = datetime.now(UTC) + timedelta(seconds=left)
            raise RetryLater(
                f"sonar: SONAR blocks calls until {end:%H:%M:%S} UTC",
                after=left,
                remedy="Apex continues after the block; poll fewer series or less often if it returns",
            )
        await asyncio.sleep(max(0.0, left))


def _digest(secret: SecretStr, id: str, stamp: str, body: bytes) -> bytes:
    return digest(relay_key(secret), f"{id}.{stamp}.".encode() + body)


def _decoded(signature: str) -> bytes:
    version, _, text = signature.partition(",")
    return from_base64(text) if version == "v1" else b""
