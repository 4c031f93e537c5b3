"""Plaid: bank transactions, by whole sync loops; webhooks only say that it is time for one."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator, Mapping, Sequence
from datetime import datetime, timedelta
from typing import ClassVar

from apex_memory.model import Document, Event, Priority, micros, now
from apex_memory.sources.base import (
    InboundRequest,
    Pattern,
    PulledSource,
    Received,
    Reply,
    Sample,
    SourceSettings,
)
from apex_memory.sources.http import VendorClient
from apex_memory.sources.pages import ChangeHint, Page, PullContext, TimeRange
from apex_memory.sources.payloads import (
    as_string,
    parse_identifier,
    parse_json,
    parse_object,
    sample,
    sequence,
)
from apex_memory.sources.plaid.api import (
    OVERLAP,
    SOURCE,
    Changes,
    ItemError,
    Plaid,
    Position,
    raise_troubles,
)
from apex_memory.sources.plaid.documents import item_document, transaction_document
from apex_memory.sources.plaid.keys import Keys
from apex_memory.sources.plaid.settings import PlaidSettings
from apex_memory.telemetry import logger

ITEM_NUDGE = "item:"  # before the id: Plaid spoke of the connection itself, not of transactions
HEALTH = ("ERROR", "LOGIN_REPAIRED", "USER_PERMISSION_REVOKED")
_TAKEN = Reply(b"{}", "application/json")  # Plaid wants 200


class PlaidSource(PulledSource[PlaidSettings]):
    """Bank transactions from Plaid: a poll of `/transactions/sync` for each Item, hastened by its webhooks.

    A transaction that Plaid removes (a pending one when it is posted under a new id, say) is deleted here.
    The state of a connection that needs its user to log in is a `bank_item`.

    - Version: Plaid gives none. Each Item's changes come as a log, read in loops; the version of all that
      a loop brings is our time when the loop had ended, and at least one more than that of the loop
      committed before (kept in the cursor). A loop is committed with its cursor or not at all, and the next one is
      asked for after that commit. So a later state always has a greater version, whatever the clock does.
    """

    name: ClassVar[str] = SOURCE
    title: ClassVar[str] = "Plaid"
    priority: ClassVar[Priority] = Priority.P1
    pattern: ClassVar[Pattern] = Pattern.POLL
    poll_seconds: ClassVar[float] = 900  # Plaid itself asks a bank one to four times a day
    rate_limit: ClassVar[tuple[float, float]] = (20, 1)  # of 2,500 a minute
    max_body_bytes: ClassVar[int] = 100_000
    Settings: ClassVar[type[SourceSettings]] = PlaidSettings

    def __init__(self, settings: PlaidSettings) -> None:
        super().__init__(settings)
        self._keys = Keys()

    @property
    def missing_settings(self) -> str:
        known = self.settings
        needed = {
            "client_id": known.client_id,
            "secret": known.secret.get_secret_value(),
            "items": known.items,
        }
        return next((name for name, value in needed.items() if not value), "")

    async def fetch_verification_data(self, request: InboundRequest, link: VendorClient) -> None:
        """Fetch the key that the webhook names, unless it is known. Raises `RetryLater` when Plaid cannot be asked."""
        known = self.settings
        if known.client_id and known.secret.get_secret_value():
            await self._keys.learn(request, self._plaid(link))

    def receive(self, request: InboundRequest) -> Received:
        """A change hint to sync the Item, or what happened to the connection. Other webhooks are taken and ignored."""
        issued = self._keys.signed_at(request, self.settings.replay_seconds)
        body = parse_object(request.body)
        kind, code = as_string(body.get("webhook_type")), as_string(body.get("webhook_code"))
        if kind == "TRANSACTIONS" and code == "SYNC_UPDATES_AVAILABLE":
            item = parse_identifier(body.get("item_id"), "item_id")
            return Received(change_hints=[ChangeHint(item, issued)], reply=_TAKEN)
        if kind != "ITEM":
            return Received(reply=_TAKEN)
        item, code = (
            parse_identifier(body.get("item_id"), "item_id"),
            parse_identifier(code, "webhook_code")[:100],
        )
        # The same error may come twice in a year with the same body: the time tells the two apart.
        digest = hashlib.sha256(request.body).hexdigest()[:16]
        health = code in HEALTH
        event = Event(
            source=self.name,
            event_id=f"item:{item[:300]}:{code}@{micros(issued)}:{digest}",
            doc_key=f"item:{item}" if health else f"item:{item}:{code}",
            version=micros(issued),
            occurred_at=issued,
            payload=request.body,
            priority=self.priority,
        )
        change_hints = [ChangeHint(ITEM_NUDGE + item, issued)] if health else []
        return Received([event], reply=_TAKEN, change_hints=change_hints)

    async def pull(self, context: PullContext) -> AsyncIterator[Page]:
        """A whole sync loop an Item, each committed as one page with its cursor; those hinted at for come first.

        An Item that fails is recorded and does not stop the others; in the end the pull fails for it.
        """
        if context.window:
            async for page in self._history(context, context.window):
                yield page
            return
        change_hints: dict[str, list[ChangeHint]] = {}
        for hint in context.change_hints:
            change_hints.setdefault(hint.key.removeprefix(ITEM_NUDGE), []).append(hint)
        items = {item.id: item for item in self.settings.items}
        if strangers := [
            one for id, some in change_hints.items() if id not in items for one in some
        ]:
            for hint in strangers:
                logger(component="plaid").warning(
                    "webhook for an Item not in settings", item=hint.key
                )
            yield Page(acknowledged=strangers)
        plaid, position = self._plaid(context.link), Position.read(context.cursor)
        troubles: dict[str, ItemError] = {}
        for item in sorted(items.values(), key=lambda one: (one.id not in change_hints, one.id)):
            before = position.cursor(item.id)
            days = self.settings.history_days
            found = await plaid.sync(item.id, item.access_token, before, days)
            if isinstance(found, ItemError):
                troubles[item.id] = found
                if not found.lasting:
                    continue  # its change hints stay: the next pull tries again
            acknowledged = change_hints.get(item.id, [])
            spoken = any(hint.key.startswith(ITEM_NUDGE) for hint in acknowledged)
            following, events = position.after(item.id, found, observe=spoken)
            if events or acknowledged or following != position:
                yield Page(events=events, acknowledged=acknowledged, cursor=following.stored())
            position = following
        raise_troubles(troubles)

    def document(self, event: Event) -> Document:
        """A `bank_transaction`, its removal, or a `bank_item`."""
        payload = parse_object(event.payload)
        if "removed" in payload:
            return Document(
                kind="bank_transaction", title="", occurred_at=event.occurred_at, deleted=True
            )
        if "transaction" in payload:
            return transaction_document(payload)
        return item_document(event, payload)

    def samples(self) -> Sequence[Sample]:
        # Plaid prints its bodies over several lines; what is signed is that form and no other.
        return [
            Sample(one["name"], one["body"].encode(), events=one["events"])
            for one in parse_json(sample("plaid", "own.json"))
        ]

    def sign(self, body: bytes, at: datetime) -> Mapping[str, str]:
        """As Plaid would, but with a key of our own, made for this very object, which alone trusts it."""
        return self._keys.sign(body, at)

    def _plaid(self, link: VendorClient) -> Plaid:
        known = self.settings
        return Plaid(link, known.base_url, known.client_id, known.secret)

    async def _history(self, context: PullContext, window: TimeRange) -> AsyncIterator[Page]:
        """What the Items hold of the window's days.

        A transaction's version is the time before it was asked for: a sync that ends later may know better, and wins.
        """
        plaid, troubles = self._plaid(context.link), dict[str, ItemError]()
        reached, offset = as_string(context.cursor.get("item")), context.cursor.get("offset", 0)
        last = window.until - timedelta(microseconds=1)
        for item in sorted(self.settings.items, key=lambda one: str(one.id)):
            if item.id < reached:
                continue
            offset = offset if item.id == reached else 0
            while True:
                version = micros(now())
                page = await plaid.history(item.access_token, window.since, last, offset)
                if isinstance(page, ItemError):
                    troubles[item.id] = page
                    break
                records = sequence(page.get("transactions"))
                changes = Changes("")
                changes.add(item.id, {**page, "added": records}, now())
                ended = offset + len(records) >= (page.get("total_transactions") or 0)
                if ended or not records:
                    yield Page(events=changes.events(version))
                    break
                offset += max(1, len(records) - OVERLAP)
                cursor = {"item": item.id, "offset": offset}
                yield Page(events=changes.events(version), cursor=cursor)
        raise_troubles(troubles)
