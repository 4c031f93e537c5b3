"""Front: e-mails, comments and the state of conversations, by webhook."""

from __future__ import annotations

import base64
import binascii
import hmac
import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Annotated, ClassVar

from pydantic import Field, SecretStr

from apex_memory.errors import Misconfigured, Rejected, Unauthorized
from apex_memory.model import Document, Event, Priority, micros
from apex_memory.sources import Received, Reply, Request, Sample, Source, SourceSettings
from apex_memory.sources._front import (
    Notice,
    comment_document,
    conversation_document,
    message_document,
)
from apex_memory.sources._wire import canonical, parse_json, parse_object, sample

Secret = Annotated[SecretStr, Field(min_length=1)]  # an empty key would make forging easy


class FrontAppSettings(SourceSettings):
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


class FrontApp(Source):
    """E-mails, comments and conversation state from Front's application and rule webhooks."""

    name: ClassVar[str] = "frontapp"
    title: ClassVar[str] = "Front"
    priority: ClassVar[Priority] = Priority.P0
    Settings: ClassVar[type[SourceSettings]] = FrontAppSettings

    def receive(self, request: Request) -> Received:
        """One event, or the answer to Front's challenge when the webhook is being set up."""
        self._verify(request)
        body = parse_object(request.body)
        if body.get("type") == "sync" and "payload" not in body:
            return _handshake(request.headers.get("x-front-challenge"))
        notice = Notice.read(body)
        event = Event(
            source=self.name,
            event_id=notice.id,
            doc_key=notice.key,
            version=micros(notice.at),
            occurred_at=notice.at,
            payload=request.body,
            priority=self.priority,
        )
        return Received([event])

    def document(self, event: Event) -> Document:
        """An `email` or `message`, a `comment`, or the state of a `conversation`."""
        notice = Notice.read(parse_object(event.payload))
        if notice.deleted:
            return Document(kind="conversation", title="", occurred_at=notice.at, deleted=True)
        if notice.about == "message":
            return message_document(notice)
        if notice.about == "comment":
            return comment_document(notice)
        return conversation_document(notice)

    def samples(self) -> Sequence[Sample]:
        real = [
            Sample(name, sample(f"third_party/front_{name}.json"))
            for name in ("inbound_received", "conversation_archived")
        ]
        own = parse_json(sample("frontapp.json"))
        return real + [Sample(item["name"], canonical(item["body"])) for item in own]

    def sign(self, body: bytes, at: datetime) -> Mapping[str, str]:
        """An application webhook's headers, or a rule webhook's where only `api_secrets` is set."""
        if keys := self.settings.signing_keys:
            stamp = str(micros(at) // 1000)
            digest = _digest(keys[0], stamp.encode() + b":" + body, "sha256")
            headers = {"x-front-request-timestamp": stamp}
        elif secrets := self.settings.api_secrets:
            digest, headers = _digest(secrets[0], body, "sha1"), {}
        else:
            raise Misconfigured(
                "sources.frontapp.signing_keys: not set", remedy="set a key to sign with"
            )
        return {**headers, "x-front-signature": base64.b64encode(digest).decode()}

    def _verify(self, request: Request) -> None:
        # The time decides the kind: only application webhooks carry one, and only their keys are
        # tried then, so an application's message cannot pass as an older rule's.
        stamp = request.headers.get("x-front-request-timestamp")
        if stamp is None:
            keys, setting, signed, algorithm = (
                self.settings.api_secrets,
                "api_secrets",
                request.body,
                "sha1",
            )
        elif re.fullmatch(r"[0-9]{1,16}", stamp):
            keys, setting, algorithm = self.settings.signing_keys, "signing_keys", "sha256"
            signed = stamp.encode() + b":" + request.body
        else:
            raise Unauthorized("X-Front-Request-Timestamp is no number of milliseconds")
        if not keys:
            raise Unauthorized(
                "no key to check this Front webhook with",
                remedy=f"set sources.frontapp.{setting} to the key shown in Front",
            )
        try:
            given = base64.b64decode(request.headers.get("x-front-signature", ""), validate=True)
        except (binascii.Error, ValueError):
            given = b""
        # A list, so that every key is compared and time tells nothing about which one fits.
        fits = [hmac.compare_digest(given, _digest(key, signed, algorithm)) for key in keys]
        if not any(fits):
            raise Unauthorized(
                "X-Front-Signature does not fit the body",
                remedy=f"compare sources.frontapp.{setting} with the key shown in Front",
            )
        late = abs(micros(request.received_at) / 1000 - int(stamp)) if stamp is not None else 0
        if late > self.settings.replay_seconds * 1000:
            raise Unauthorized(
                f"signed {late / 1000:.0f} s away from our time",
                remedy="check this machine's clock, or sources.frontapp.replay_seconds",
            )


def _handshake(challenge: str | None) -> Received:
    if challenge is None:
        return Received()
    if not challenge.isascii():
        raise Rejected("X-Front-Challenge: expected ASCII", remedy="is this Front's challenge?")
    return Received(reply=Reply(challenge.encode(), "text/plain"))


def _digest(key: SecretStr, signed: bytes, algorithm: str) -> bytes:
    return hmac.digest(key.get_secret_value().encode(), signed, algorithm)
