"""HubSpot, the CRM: companies, contacts and deals by search; webhooks name what to fetch at once."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import AsyncIterator, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, ClassVar

from aiolimiter import AsyncLimiter
from pydantic import SecretStr

from apex_memory.errors import ApexError, Misconfigured, Rejected, Unauthorized
from apex_memory.model import Document, Event, Priority, micros, now
from apex_memory.sources.base import (
    InboundRequest,
    Pattern,
    PulledSource,
    Received,
    Sample,
    SourceSettings,
)
from apex_memory.sources.fetch_back import RECORD_FAULTS
from apex_memory.sources.fields import RecordFields
from apex_memory.sources.hubspot.api import (
    DailyLimit,
    HubSpotApi,
    HubSpotPull,
    copied,
    wait_for_reset,
)
from apex_memory.sources.hubspot.documents import (
    ObjectChange,
    deletion_event,
    hint_key,
    record_document,
)
from apex_memory.sources.hubspot.object_types import BY_NAME, FIELDS, OBJECT_TYPES
from apex_memory.sources.hubspot.settings import HubSpotSettings
from apex_memory.sources.pages import ChangeHint, Page, PullContext
from apex_memory.sources.payloads import (
    canonical,
    malformed_event,
    parse_json,
    sample,
)
from apex_memory.sources.signatures import check_time, digest, signature_matches

# The percent-encoded characters that HubSpot decodes in a URL before it signs it.
_DECODED = re.compile("%(3A|2F|3F|40|21|24|27|28|29|2A|2C|3B)", re.IGNORECASE)


class HubSpot(PulledSource[HubSpotSettings]):
    """Companies, contacts and deals of HubSpot: polled by search, with webhooks as change hints."""

    name: ClassVar[str] = "hubspot"
    title: ClassVar[str] = "HubSpot"
    priority: ClassVar[Priority] = Priority.P2
    pattern: ClassVar[Pattern] = Pattern.POLL
    Settings: ClassVar[type[SourceSettings]] = HubSpotSettings
    key_prefixes: ClassVar[Sequence[str]] = tuple(f"{name}:" for name in BY_NAME)
    records: ClassVar[Sequence[RecordFields]] = tuple(FIELDS.values())
    id_refs: ClassVar[Sequence[str]] = ("crm_company:",)
    called: ClassVar[Mapping[str, str]] = {
        "": "crm hubspot",
        "company": "customer account prospect",
        "contact": "person phone",
        "deal": "opportunity pipeline sale won lost",
    }
    poll_seconds: ClassVar[float] = 300
    rate_limit: ClassVar[tuple[float, float]] = (9, 1)  # of 100 in ten seconds

    def __init__(self, settings: HubSpotSettings) -> None:
        super().__init__(settings)
        # HubSpot allows four or five searches a second: its documents differ.
        self._searches = AsyncLimiter(2, 0.5)

    @property
    def expects_webhooks(self) -> bool:
        return bool(self.settings.client_secrets)

    @property
    def missing_settings(self) -> str:
        return "" if self.settings.access_token.get_secret_value() else "access_token"

    @property
    def signature_headers(self) -> Sequence[str]:
        return ("x-hubspot-signature-v3", "x-hubspot-signature")

    def receive(self, request: InboundRequest) -> Received:
        """Return a change hint for each object; an event only for a contact that is erased, which cannot be fetched."""
        self._verify(request)
        body = parse_json(request.body)
        if not isinstance(body, list):
            raise Rejected(
                "body: expected a JSON array", remedy="check that the request comes from HubSpot"
            )
        changes, malformed = _read_changes(body)
        if malformed and not changes:
            raise malformed[0][1]
        events = [
            malformed_event(self.name, item, reason, request.received_at, self.priority)
            for item, reason in malformed
        ]
        change_hints: dict[str, ChangeHint] = {}
        for change in changes:
            type = change.type
            if type is None or type.plural not in self.settings.objects:
                continue
            if self._is_of_another_account(change):
                continue
            for id in change.ids:
                if change.action == "privacyDeletion":
                    events.append(deletion_event(type, id, change.at or request.received_at))
                    continue
                key = hint_key(type, id, restored=change.action == "restore")
                earlier = change_hints.get(key)
                times = [at for at in (earlier and earlier.at, change.at) if at]
                change_hints[key] = ChangeHint(key, max(times, default=None))
        return Received(events, change_hints=list(change_hints.values()))

    async def pull(self, context: PullContext) -> AsyncIterator[Page]:
        """Yield the objects that webhooks named, then what changed since the cursor, then the recycling bin."""
        position = copied(context.cursor)
        wait_for_reset(position)
        pull = HubSpotPull(
            HubSpotApi(context.client, self.settings, self._searches),
            self.settings,
            position,
            context.window,
        )
        failed: list[ApexError] = []
        try:
            if context.window is None:
                async for page in pull.hinted(context.change_hints):
                    yield page
            for step in (pull.changes, pull.archived):
                for name in self.settings.objects:
                    # One type may be to blame, such as one that the token may not read: the others go on.
                    try:
                        async for page in step(OBJECT_TYPES[name]):
                            yield page
                    except RECORD_FAULTS as error:
                        failed.append(error)
        except DailyLimit as spent:
            position["limit"] = {"until": (now() + timedelta(seconds=spent.after)).isoformat()}
            yield Page(cursor=copied(position))
            raise
        if failed:
            raise failed[0]

    def document(self, event: Event) -> Document:
        """Return a `company`, a `contact` or a `deal`."""
        return record_document(event)

    def samples(self) -> Sequence[Sample]:
        own = parse_json(sample("hubspot", "own.json"))
        return [
            Sample(item["name"], canonical(item["body"]), events=item["events"]) for item in own
        ]

    def sign(self, body: bytes, at: datetime) -> Mapping[str, str]:
        """Return the headers of a v3 signature."""
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

    def _is_of_another_account(self, change: ObjectChange) -> bool:
        portal_id = self.settings.portal_id
        return bool(portal_id) and change.portal != str(portal_id)

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
        expected: list[bytes] = []
        for url in self._urls():
            signed = _signed(url, request.body, stamp)
            expected += [_v3(secret, signed) for secret in secrets]
        _check(request, "X-HubSpot-Signature-v3", expected)
        check_time(request, int(stamp) * 1000, self.name, self.settings.replay_seconds)

    def _verify_legacy(self, request: InboundRequest, secrets: Sequence[SecretStr]) -> None:
        heads = [b""]
        if request.headers.get("x-hubspot-signature-version") == "v2":
            heads = [b"POST" + url.encode() for url in self._urls()]
        expected: list[bytes] = []
        for head in heads:
            expected += [_hashed(secret, head + request.body) for secret in secrets]
        _check(request, "X-HubSpot-Signature", expected)

    def _urls(self) -> list[str]:
        """Return the forms of the URL that HubSpot may have signed: it is not verified whether it decodes characters."""
        url = self.settings.public_url
        return [url, _decoded(url)]


def _read_changes(body: Sequence[Any]) -> tuple[list[ObjectChange], list[tuple[Any, Rejected]]]:
    """Return the readable elements, creations first and then by time, and the others each with its error."""
    changes: list[ObjectChange] = []
    malformed: list[tuple[Any, Rejected]] = []
    for n, item in enumerate(body):
        try:
            changes.append(ObjectChange.read(item, f"body[{n}]"))
        except Rejected as error:
            malformed.append((item, error))
    return sorted(changes, key=lambda change: change.order), malformed


def _decoded(url: str) -> str:
    return _DECODED.sub(lambda match: chr(int(match[1], 16)), url)


def _signed(url: str, body: bytes, stamp: str) -> bytes:
    return b"POST" + url.encode() + body + stamp.encode()


def _v3(secret: SecretStr, signed: bytes) -> bytes:
    return base64.b64encode(digest(secret, signed))


def _hashed(secret: SecretStr, signed: bytes) -> bytes:
    return hashlib.sha256(secret.get_secret_value().encode() + signed).hexdigest().encode()


def _check(request: InboundRequest, header: str, expected: Sequence[bytes]) -> None:
    if not signature_matches(expected, request.headers[header.lower()]):
        raise Unauthorized(
            f"{header} does not fit the body",
            remedy="compare sources.hubspot.client_secrets and sources.hubspot.public_url with the app in HubSpot",
        )
