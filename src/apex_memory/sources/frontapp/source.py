"""Front: e-mails, comments and the state of conversations, by webhook; a poll of `/events` fetches what webhooks miss."""

from __future__ import annotations

import base64
import re
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from functools import partial
from itertools import chain
from typing import Any, ClassVar

from apex_memory.errors import ApexError, Misconfigured, Rejected, Unauthorized
from apex_memory.model import TOMBSTONE, Document, Event, Priority, micros
from apex_memory.sources.base import (
    InboundRequest,
    PulledSource,
    Received,
    Reply,
    Sample,
    SourceSettings,
)
from apex_memory.sources.fetch_back import FetchBack
from apex_memory.sources.fields import RecordFields
from apex_memory.sources.frontapp.api import Front, ListProgress, Seen
from apex_memory.sources.frontapp.documents import (
    FrontEvent,
    comment_document,
    conversation_document,
    merged_document,
    message_document,
)
from apex_memory.sources.frontapp.fields import COMMENT_FIELDS, CONVERSATION_FIELDS, MESSAGE_FIELDS
from apex_memory.sources.frontapp.settings import FrontAppSettings
from apex_memory.sources.http import RateLimit
from apex_memory.sources.pages import ChangeHint, Page, PullContext, Unfetched
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
    check_time,
    digest,
    from_base64,
    signature_matches,
)


class FrontApp(PulledSource[FrontAppSettings]):
    """E-mails, comments and conversation state from Front's application and rule webhooks.

    With an `api_token` a poll of `/events` fetches what no webhook brought: mass actions, imports, lost deliveries. It
    lands the same events under the same ids. An event without the body of its message is kept as the conversation's
    state, and the body is fetched as an event of its own, `event id/message id`.
    """

    name: ClassVar[str] = "frontapp"
    title: ClassVar[str] = "Front"
    priority: ClassVar[Priority] = Priority.P0
    poll_seconds: ClassVar[float] = 120
    Settings: ClassVar[type[SourceSettings]] = FrontAppSettings
    key_prefixes: ClassVar[Sequence[str]] = ("message:", "comment:", "conversation:")
    records: ClassVar[Sequence[RecordFields]] = (
        MESSAGE_FIELDS,
        COMMENT_FIELDS,
        CONVERSATION_FIELDS,
    )
    id_refs: ClassVar[Sequence[str]] = ("conversation:",)
    called: ClassVar[Mapping[str, str]] = {
        "": "front inbox",
        "email": "mail wrote write sent asked complained",
        "message": "text sms chat",
        "comment": "note internal",
        "conversation": "thread",
    }

    @property
    def rate_limits(self) -> Sequence[RateLimit]:
        # The calls per second alone would let bursts use up the company's minute.
        return (self.rate_limit, (self.settings.requests_per_minute, 60))

    @property
    def expects_webhooks(self) -> bool:
        return bool(self.settings.signing_keys)

    @property
    def missing_settings(self) -> str:
        return "" if self.settings.api_token.get_secret_value() else "api_token"

    @property
    def signature_headers(self) -> Sequence[str]:
        return ("x-front-signature",)

    def receive(self, request: InboundRequest) -> Received:
        """Return one event, or the response to Front's challenge while the webhook is being set up."""
        self._verify(request)
        body = parse_object(request.body)
        if body.get("type") == "sync" and "payload" not in body:
            return _handshake(request.headers.get("x-front-challenge"))
        notice = FrontEvent.read(body)
        # Without a token no pull would ever acknowledge the change hint.
        change_hints = (
            [ChangeHint(notice.id, notice.at)] if notice.thin and not self.missing_settings else []
        )
        return Received(self._events(notice, body, request.body), change_hints=change_hints)

    async def pull(self, context: PullContext) -> AsyncIterator[Page]:
        """Yield the bodies that previews lack, then the events since the cursor, oldest first, one of Front's pages at a time."""
        front = Front(context.client, self.settings.base_url, self.settings.api_token)
        fetch_back = FetchBack()
        if context.window:
            progress: ListProgress | None = ListProgress.start(context.cursor, context.window.since)
        else:
            hints = [[hint] for hint in context.change_hints]
            async for page in fetch_back.pages(hints, partial(self._hinted, front)):
                yield page
            progress = await self._since(front, context)
        if progress is None:
            return
        until = context.window.until if context.window else None
        async for records, more in front.listing(progress.since, until):
            parts = [await self._listed(front, record, progress, fetch_back) for record in records]
            page = Page(
                events=list(chain.from_iterable(part.events for part in parts)),
                hints=list(chain.from_iterable(part.hints for part in parts)),
                unfetched=list(chain.from_iterable(part.unfetched for part in parts)),
            )
            if page.events or progress.moved or fetch_back.failed:
                yield replace(page, cursor=progress.cursor(ended=not more))

    def document(self, event: Event) -> Document:
        """Return an `email` or `message`, a `comment`, or the state of a `conversation`."""
        body = parse_object(event.payload)
        notice = FrontEvent.read(body)
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
        third_party = [
            Sample(name, sample("frontapp", f"{name}.json"))
            for name in ("inbound_received", "conversation_archived")
        ]
        own = parse_json(sample("frontapp", "own.json"))
        return third_party + [Sample(item["name"], canonical(item["body"])) for item in own]

    def sign(self, body: bytes, at: datetime) -> Mapping[str, str]:
        """Return an application webhook's headers, or a rule webhook's where only `api_secrets` is set."""
        if keys := self.settings.signing_keys:
            stamp = str(micros(at) // 1000)
            signature = digest(keys[0], stamp.encode() + b":" + body)
            headers = {"x-front-request-timestamp": stamp}
        elif secrets := self.settings.api_secrets:
            signature, headers = digest(secrets[0], body, "sha1"), {}
        else:
            raise Misconfigured(
                "sources.frontapp.signing_keys: not set", remedy="set a key to sign with"
            )
        return {**headers, "x-front-signature": base64.b64encode(signature).decode()}

    def _events(self, notice: FrontEvent, body: Mapping[str, Any], payload: bytes) -> list[Event]:
        """Return the event itself, and one for each conversation that it merges into another."""
        events = [self._event(notice, notice.id, notice.key, payload)]
        for id in notice.merged:
            event = body.get("payload", body)
            merged = canonical({**event, "apex_merged": id})
            events.append(self._event(notice, f"{notice.id}/{id}", f"conversation:{id}", merged))
        return events

    def _event(
        self,
        notice: FrontEvent,
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

    async def _since(self, front: Front, context: PullContext) -> ListProgress | None:
        """Return where to continue: at the very first poll some hours before the newest event, None if there is none."""
        if context.cursor:
            return ListProgress.start(context.cursor, None)
        newest = await front.newest()
        if newest is None:
            return None
        return ListProgress.start({}, newest - timedelta(hours=self.settings.first_poll_hours))

    async def _listed(
        self, front: Front, record: object, progress: ListProgress, fetch_back: FetchBack
    ) -> Page:
        """Return what one record of the list brings; nothing if the same record was listed before.

        A record with other content is an event again. The body of its message is not fetched again: it never changes.
        A body that Front does not return is left as a change hint, so that the list goes on.
        """
        try:
            if not isinstance(record, dict):
                raise Rejected(
                    "event: expected an object",
                    remedy="check that sources.frontapp.base_url is Front's API",
                )
            event: dict[str, Any] = storable(record)
            notice = FrontEvent.read(event)
        except Rejected as reason:
            malformed = malformed_event(self.name, record, reason, progress.newest, self.priority)
            return Page(events=[malformed])
        payload = canonical(event)
        seen = progress.add(notice.id, notice.at, payload)
        if seen is Seen.SAME:
            return Page()
        events = self._events(notice, event, payload)
        if not notice.thin or seen is not Seen.NEW:
            return Page(events=events)
        hint = ChangeHint(notice.id, notice.at)
        if fetch_back.exhausted:
            return Page(events=events, hints=[hint])
        whole = await fetch_back.attempt([hint], lambda _: self._whole(front, event))
        if isinstance(whole, ApexError):
            return Page(events=events, unfetched=[Unfetched(hint, whole)])
        return Page(events=[*events, *whole])

    async def _hinted(self, front: Front, hints: Sequence[ChangeHint]) -> Sequence[Event]:
        (hint,) = hints
        record = await front.event(hint.key)
        return await self._whole(front, record) if record else []

    async def _whole(self, front: Front, record: Mapping[str, Any]) -> list[Event]:
        """Return a version of the message or comment that a preview is about, under an id of its own.

        The preview's own id belongs to the preview, which may have arrived by webhook before.
        """
        notice = FrontEvent.read(record)
        if notice.thin:
            if notice.fetch is None:
                return []
            kind, id = notice.fetch
            fetched = await front.thing(kind, id)
            if fetched is None:  # deleted at Front since, so its document is deleted too
                key = f"{kind.removesuffix('s')}:{id}"
                return [self._event(notice, f"{notice.id}/{id}", key, b"", TOMBSTONE)]
            record = await front.completed(record, kind, {**fetched, "id": id})
            notice = FrontEvent.read(record)
        if notice.about == "conversation":
            return []  # it still has no body: there is nothing to read
        payload = canonical(storable(record))
        return [self._event(notice, f"{notice.id}/{notice.about_id}", notice.key, payload)]

    def _verify(self, request: InboundRequest) -> None:
        # The time header decides the kind of webhook: only application webhooks have it, and only their keys
        # are tried then, so that an application's message cannot pass as an older rule's.
        stamp = request.headers.get("x-front-request-timestamp")
        if stamp is None:
            keys, setting = self.settings.api_secrets, "api_secrets"
            expected = [digest(key, request.body, "sha1") for key in keys]
        elif re.fullmatch(r"[0-9]{1,16}", stamp):
            keys, setting = self.settings.signing_keys, "signing_keys"
            expected = [digest(key, stamp.encode() + b":" + request.body) for key in keys]
        else:
            raise Unauthorized("X-Front-Request-Timestamp is not a number of milliseconds")
        if not keys:
            raise Unauthorized(
                "no key is set to verify this Front webhook",
                remedy=f"set sources.frontapp.{setting} to the key shown in Front",
            )
        signature = from_base64(request.headers.get("x-front-signature", ""))
        if not signature_matches(expected, signature):
            raise Unauthorized(
                "X-Front-Signature does not match the body",
                remedy=f"compare sources.frontapp.{setting} with the key shown in Front",
            )
        if stamp is not None:
            check_time(request, int(stamp) * 1000, self.name, self.settings.replay_seconds)


def _handshake(challenge: str | None) -> Received:
    if challenge is None:
        return Received()
    if not challenge.isascii():
        raise Rejected(
            "X-Front-Challenge: expected ASCII", remedy="check that the request comes from Front"
        )
    return Received(reply=Reply(challenge.encode(), "text/plain"))
