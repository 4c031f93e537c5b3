"""Front: e-mails, comments and the state of conversations, by webhook; a poll of `/events` fills what webhooks miss."""

from __future__ import annotations

import base64
import re
from collections.abc import AsyncIterator, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, ClassVar

from pydantic import Field, SecretStr

from apex_memory.errors import Misconfigured, Rejected, Unauthorized
from apex_memory.model import TOMBSTONE, Document, Event, Priority, micros, now
from apex_memory.sources.base import (
    InboundRequest,
    PulledSettings,
    PulledSource,
    Received,
    Reply,
    Sample,
    SourceSettings,
)
from apex_memory.sources.frontapp.api import Front, Reach
from apex_memory.sources.frontapp.documents import (
    Notice,
    comment_document,
    conversation_document,
    merged_document,
    message_document,
)
from apex_memory.sources.http import RateLimit
from apex_memory.sources.pages import ChangeHint, Page, PullContext
from apex_memory.sources.payloads import (
    as_string,
    canonical,
    malformed_event,
    parse_json,
    parse_object,
    sample,
    storable,
)
from apex_memory.sources.signatures import (
    Secret,
    check_time,
    digest,
    from_base64,
    signature_matches,
)


class FrontAppSettings(PulledSettings):
    """`[sources.frontapp]`"""

    signing_keys: list[Secret] = Field(
        default=[],
        max_length=2,
        description="Signing keys of the Front application; two while one replaces the other.",
    )
    api_secrets: list[Secret] = Field(
        default=[],
        max_length=2,
        description="API secrets of Front's older rule webhooks; two while one replaces the other.",
    )
    replay_seconds: float = Field(
        300, gt=0, description="How far the time of an application webhook may be from ours."
    )
    api_token: SecretStr = Field(
        SecretStr(""),
        description="API token for the poll that fills what webhooks miss. Without it there is no poll.",
    )
    base_url: str = Field("https://api2.frontapp.com", description="Front's API.")
    requests_per_minute: float = Field(
        40,
        gt=0,
        description="Calls a minute at most: plans allow 50, 100 or 200 for a whole company.",
    )
    first_poll_hours: float = Field(
        24, gt=0, description="How far back the very first poll goes; a backfill goes further."
    )


class FrontApp(PulledSource[FrontAppSettings]):
    """E-mails, comments and conversation state from Front's application and rule webhooks.

    With an `api_token` a poll of `/events` brings what no webhook told: mass actions, imports, lost deliveries. It
    lands the same events under the same ids. Events that come without the body of their message are kept as the
    conversation's state, and the body is fetched: as an event of its own, `event id/message id`.
    """

    name: ClassVar[str] = "frontapp"
    title: ClassVar[str] = "Front"
    priority: ClassVar[Priority] = Priority.P0
    poll_seconds: ClassVar[float] = 120
    Settings: ClassVar[type[SourceSettings]] = FrontAppSettings

    @property
    def rate_limits(self) -> Sequence[RateLimit]:
        # The calls per second alone would let bursts use up the company's minute.
        return (self.rate_limit, (self.settings.requests_per_minute, 60))

    @property
    def missing_settings(self) -> str:
        return "" if self.settings.api_token.get_secret_value() else "api_token"

    def receive(self, request: InboundRequest) -> Received:
        """One event, or the answer to Front's challenge when the webhook is being set up."""
        self._verify(request)
        body = parse_object(request.body)
        if body.get("type") == "sync" and "payload" not in body:
            return _handshake(request.headers.get("x-front-challenge"))
        notice = Notice.read(body)
        # Without a token nothing would ever answer the change hint.
        change_hints = (
            [ChangeHint(notice.id, notice.at)] if notice.thin and not self.missing_settings else []
        )
        return Received(self._events(notice, body, request.body), change_hints=change_hints)

    async def pull(self, context: PullContext) -> AsyncIterator[Page]:
        """The bodies that previews lacked, then the events since the cursor, oldest first, a page of Front's at a time."""
        known = self.settings
        front = Front(context.link, known.base_url, known.api_token)
        if context.window:
            reach: Reach | None = Reach.start(context.cursor, context.window.since)
        else:
            for hint in context.change_hints:
                record = await front.event(hint.key)
                events = await self._fetched(front, record) if record else []
                yield Page(events=events, acknowledged=[hint])
            reach = await self._since(front, context)
        if reach is None:
            return
        until = context.window.until if context.window else None
        async for records, more in front.listing(reach.since, until):
            events = []
            for record in records:
                events += await self._listed(front, record, reach)
            if events or reach.moved:
                cursor = reach.cursor(ended=not more)
                yield Page(events=events, cursor=cursor)

    def document(self, event: Event) -> Document:
        """An `email` or `message`, a `comment`, or the state of a `conversation`."""
        body = parse_object(event.payload)
        notice = Notice.read(body)
        if merged := as_string(body.get("apex_merged")):
            return merged_document(notice, merged)
        if notice.deleted:
            return Document(kind="conversation", title="", occurred_at=notice.at, deleted=True)
        if notice.about == "message":
            return message_document(notice)
        if notice.about == "comment":
            return comment_document(notice)
        return conversation_document(notice)

    def samples(self) -> Sequence[Sample]:
        real = [
            Sample(name, sample("frontapp", f"{name}.json"))
            for name in ("inbound_received", "conversation_archived")
        ]
        own = parse_json(sample("frontapp", "own.json"))
        return real + [Sample(item["name"], canonical(item["body"])) for item in own]

    def sign(self, body: bytes, at: datetime) -> Mapping[str, str]:
        """An application webhook's headers, or a rule webhook's where only `api_secrets` is set."""
        if keys := self.settings.signing_keys:
            stamp = str(micros(at) // 1000)
            made = digest(keys[0], stamp.encode() + b":" + body)
            headers = {"x-front-request-timestamp": stamp}
        elif secrets := self.settings.api_secrets:
            made, headers = digest(secrets[0], body, "sha1"), {}
        else:
            raise Misconfigured(
                "sources.frontapp.signing_keys: not set", remedy="set a key to sign with"
            )
        return {**headers, "x-front-signature": base64.b64encode(made).decode()}

    def _events(self, notice: Notice, body: Mapping[str, Any], payload: bytes) -> list[Event]:
        """The event itself, and one for each conversation that it says was merged away."""
        events = [self._event(notice, notice.id, notice.key, payload)]
        for id in notice.merged:
            event = body.get("payload", body)
            told = canonical({**event, "apex_merged": id})
            events.append(self._event(notice, f"{notice.id}/{id}", f"conversation:{id}", told))
        return events

    def _event(
        self,
        notice: Notice,
        id: str,
        key: str,
        payload: bytes,
        content_type: str = "application/json",
    ) -> Event:
        return Event(
            source=self.name,
            event_id=id,
            doc_key=key,
            version=micros(notice.at),
            occurred_at=notice.at,
            payload=payload,
            content_type=content_type,
            priority=self.priority,
        )

    async def _since(self, front: Front, context: PullContext) -> Reach | None:
        """Where to go on; at the very first poll some hours before the newest event, None if there is none."""
        if context.cursor:
            return Reach.start(context.cursor, None)
        newest = await front.newest()
        if newest is None:
            return None
        return Reach.start({}, newest - timedelta(hours=self.settings.first_poll_hours))

    async def _listed(self, front: Front, record: object, reach: Reach) -> list[Event]:
        """The events of one record of the list; none if it was seen before."""
        try:
            if not isinstance(record, dict):
                raise Rejected("event: expected an object", remedy="is this Front's answer?")
            told: dict[str, Any] = storable(record)
            notice = Notice.read(told)
        except Rejected as reason:
            return [malformed_event(self.name, record, reason, reach.newest, self.priority)]
        if not reach.reached(notice.id, notice.at):
            return []
        events = self._events(notice, told, canonical(told))
        return events + (await self._fetched(front, told) if notice.thin else [])

    async def _fetched(self, front: Front, record: Mapping[str, Any]) -> list[Event]:
        """What a preview tells of, in full; a dead letter to be where Front's answer cannot be read."""
        try:
            return await self._whole(front, record)
        except Rejected as reason:
            return [malformed_event(self.name, record, reason, now(), self.priority)]

    async def _whole(self, front: Front, record: Mapping[str, Any]) -> list[Event]:
        """A version of the message or comment that a preview tells of, under an id of its own.

        The preview's own id stands for the preview, which may have come by webhook before.
        """
        notice = Notice.read(record)
        if notice.thin:
            if notice.fetch is None:
                return []
            kind, id = notice.fetch
            found = await front.thing(kind, id)
            if found is None:  # gone since: so is what we may have of it
                key = f"{kind.removesuffix('s')}:{id}"
                return [self._event(notice, f"{notice.id}/{id}", key, b"", TOMBSTONE)]
            record = await front.completed(record, kind, {**found, "id": id})
            notice = Notice.read(record)
        if notice.about == "conversation":
            return []  # without a body even so: there is nothing to read
        payload = canonical(storable(record))
        return [self._event(notice, f"{notice.id}/{notice.about_id}", notice.key, payload)]

    def _verify(self, request: InboundRequest) -> None:
        # The time decides the kind: only application webhooks carry one, and only their keys are
        # tried then, so an application's message cannot pass as an older rule's.
        stamp = request.headers.get("x-front-request-timestamp")
        if stamp is None:
            keys, setting = self.settings.api_secrets, "api_secrets"
            wanted = [digest(key, request.body, "sha1") for key in keys]
        elif re.fullmatch(r"[0-9]{1,16}", stamp):
            keys, setting = self.settings.signing_keys, "signing_keys"
            wanted = [digest(key, stamp.encode() + b":" + request.body) for key in keys]
        else:
            raise Unauthorized("X-Front-Request-Timestamp is no number of milliseconds")
        if not keys:
            raise Unauthorized(
                "no key to check this Front webhook with",
                remedy=f"set sources.frontapp.{setting} to the key shown in Front",
            )
        if not signature_matches(wanted, from_base64(request.headers.get("x-front-signature", ""))):
            raise Unauthorized(
                "X-Front-Signature does not fit the body",
                remedy=f"compare sources.frontapp.{setting} with the key shown in Front",
            )
        if stamp is not None:
            check_time(request, int(stamp) * 1000, self.name, self.settings.replay_seconds)


def _handshake(challenge: str | None) -> Received:
    if challenge is None:
        return Received()
    if not challenge.isascii():
        raise Rejected("X-Front-Challenge: expected ASCII", remedy="is this Front's challenge?")
    return Received(reply=Reply(challenge.encode(), "text/plain"))
