"""CRM: companies, contacts and deals of HubSpot, by search; webhooks say what to fetch at once."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import AsyncIterator, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, ClassVar

from aiolimiter import AsyncLimiter
from pydantic import SecretStr

from apex_memory.errors import Misconfigured, Rejected, Unauthorized
from apex_memory.model import Document, Event, Priority, micros, now
from apex_memory.sources.base import (
    InboundRequest,
    Pattern,
    PulledSource,
    Received,
    Sample,
    SourceSettings,
)
from apex_memory.sources.hubspot.api import Calls, DailyLimit, Walk, copied, wait_for_reset
from apex_memory.sources.hubspot.documents import (
    KINDS,
    Notice,
    gone_event,
    nudge_key,
    record_document,
)
from apex_memory.sources.hubspot.settings import HubSpotSettings
from apex_memory.sources.pages import ChangeHint, Page, PullContext
from apex_memory.sources.payloads import (
    canonical,
    malformed_event,
    parse_json,
    sample,
)
from apex_memory.sources.signatures import check_time, digest, signature_matches

# HubSpot signs its URL with these decoded, and only these.
_DECODED = re.compile("%(3A|2F|3F|40|21|24|27|28|29|2A|2C|3B)", re.IGNORECASE)


class HubSpot(PulledSource[HubSpotSettings]):
    """Companies, contacts and deals of HubSpot: polled by search, with webhooks as change hints."""

    name: ClassVar[str] = "hubspot"
    title: ClassVar[str] = "HubSpot"
    priority: ClassVar[Priority] = Priority.P2
    pattern: ClassVar[Pattern] = Pattern.POLL
    Settings: ClassVar[type[SourceSettings]] = HubSpotSettings
    poll_seconds: ClassVar[float] = 300
    rate_limit: ClassVar[tuple[float, float]] = (9, 1)  # of 100 in ten seconds

    def __init__(self, settings: HubSpotSettings) -> None:
        super().__init__(settings)
        self._searches = AsyncLimiter(
            2, 0.5
        )  # HubSpot allows four or five a second, it is not certain

    @property
    def missing_settings(self) -> str:
        return "" if self.settings.access_token.get_secret_value() else "access_token"

    @property
    def signature_headers(self) -> Sequence[str]:
        return ("x-hubspot-signature-v3", "x-hubspot-signature")

    def receive(self, request: InboundRequest) -> Received:
        """A change hint per object; an event only for what needs no fetching: a contact erased for good."""
        self._verify(request)
        body = parse_json(request.body)
        if not isinstance(body, list):
            raise Rejected("body: expected a JSON array", remedy="is this HubSpot's webhook?")
        notices, wrong = _notices(body)
        if wrong and not notices:
            raise wrong[0][1]
        events = [
            malformed_event(self.name, item, why, request.received_at, self.priority)
            for item, why in wrong
        ]
        change_hints: dict[str, ChangeHint] = {}
        for notice in notices:
            kind = notice.kind
            if kind is None or kind.plural not in self.settings.objects or self._foreign(notice):
                continue
            for id in notice.ids:
                if notice.action == "privacyDeletion":
                    events.append(gone_event(kind, id, notice.at or request.received_at))
                    continue
                key = nudge_key(kind, id, restored=notice.action == "restore")
                known = change_hints.get(key)
                times = [at for at in (known and known.at, notice.at) if at]
                change_hints[key] = ChangeHint(key, max(times, default=None))
        return Received(events, change_hints=list(change_hints.values()))

    async def pull(self, context: PullContext) -> AsyncIterator[Page]:
        """What webhooks named, then what changed since the cursor, then what lies in the recycling bin."""
        position = copied(context.cursor)
        wait_for_reset(position)
        walk = Walk(
            Calls(context.link, self.settings, self._searches),
            self.settings,
            position,
            context.window,
        )
        try:
            if context.window is None:
                async for page in walk.answers(context.change_hints):
                    yield page
            for step in (walk.changes, walk.archived):
                for name in self.settings.objects:
                    async for page in step(KINDS[name]):
                        yield page
        except DailyLimit as spent:
            position["limit"] = {"until": (now() + timedelta(seconds=spent.after)).isoformat()}
            yield Page(cursor=copied(position))
            raise

    def document(self, event: Event) -> Document:
        """A `company`, a `contact` or a `deal`."""
        return record_document(event)

    def samples(self) -> Sequence[Sample]:
        own = parse_json(sample("hubspot", "own.json"))
        return [
            Sample(item["name"], canonical(item["body"]), events=item["events"]) for item in own
        ]

    def sign(self, body: bytes, at: datetime) -> Mapping[str, str]:
        """Headers of a v3 signature."""
        if not self.settings.client_secrets:
            raise Misconfigured(
                "sources.hubspot.client_secrets: not set", remedy="set a secret to sign with"
            )
        stamp = str(micros(at) // 1000)
        signed = _signed(self.settings.public_url, body, stamp)
        return {
            "x-hubspot-request-timestamp": stamp,
            "x-hubspot-signature-v3": _v3(self.settings.client_secrets[0], signed).decode(),
        }

    def _foreign(self, notice: Notice) -> bool:
        ours = self.settings.portal_id
        return bool(ours) and notice.portal != str(ours)

    def _verify(self, request: InboundRequest) -> None:
        secrets = self.settings.client_secrets
        if not secrets:
            raise Unauthorized(
                "no secret to check this HubSpot webhook with",
                remedy="set sources.hubspot.client_secrets to the client secret of the app in HubSpot",
            )
        if "x-hubspot-signature-v3" in request.headers:
            self._verify_v3(request, secrets)
        elif self.settings.legacy_signatures and "x-hubspot-signature" in request.headers:
            self._verify_legacy(request, secrets)
        else:
            raise Unauthorized(
                "no X-HubSpot-Signature-v3",
                remedy="for an older app that sends none, set sources.hubspot.legacy_signatures",
            )

    def _verify_v3(self, request: InboundRequest, secrets: Sequence[SecretStr]) -> None:
        stamp = request.headers.get("x-hubspot-request-timestamp", "")
        if not re.fullmatch(r"[0-9]{1,16}", stamp, re.ASCII):
            raise Unauthorized("X-HubSpot-Request-Timestamp is no number of milliseconds")
        signed = [_signed(url, request.body, stamp) for url in self._urls()]
        wanted = [_v3(secret, one) for secret in secrets for one in signed]
        _check(request, "X-HubSpot-Signature-v3", wanted)
        check_time(request, int(stamp) * 1000, self.name, self.settings.replay_seconds)

    def _verify_legacy(self, request: InboundRequest, secrets: Sequence[SecretStr]) -> None:
        second = request.headers.get("x-hubspot-signature-version") == "v2"
        heads = [b"POST" + url.encode() for url in self._urls()] if second else [b""]
        wanted = [_hashed(secret, head + request.body) for secret in secrets for head in heads]
        _check(request, "X-HubSpot-Signature", wanted)

    def _urls(self) -> list[str]:
        # Whether the signed URL has its characters decoded is not certain; the secret is needed either way.
        url = self.settings.public_url
        return [url, _decoded(url)]


def _notices(body: Sequence[Any]) -> tuple[list[Notice], list[tuple[Any, Rejected]]]:
    """The readable elements, creation first and then by time, and the others with what is wrong."""
    notices, wrong = [], []
    for n, item in enumerate(body):
        try:
            notices.append(Notice.read(item, f"body[{n}]"))
        except Rejected as error:
            wrong.append((item, error))
    return sorted(notices, key=lambda notice: notice.order), wrong


def _decoded(url: str) -> str:
    return _DECODED.sub(lambda match: chr(int(match[1], 16)), url)


def _signed(url: str, body: bytes, stamp: str) -> bytes:
    return b"POST" + url.encode() + body + stamp.encode()


def _v3(secret: SecretStr, signed: bytes) -> bytes:
    return base64.b64encode(digest(secret, signed))


def _hashed(secret: SecretStr, signed: bytes) -> bytes:
    return hashlib.sha256(secret.get_secret_value().encode() + signed).hexdigest().encode()


def _check(request: InboundRequest, header: str, wanted: Sequence[bytes]) -> None:
    if not signature_matches(wanted, request.headers[header.lower()]):
        raise Unauthorized(
            f"{header} does not fit the body",
            remedy="compare sources.hubspot.client_secrets and sources.hubspot.public_url with the app in HubSpot",
        )
