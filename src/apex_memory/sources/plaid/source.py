"""Plaid: bank transactions, by complete sync loops; webhooks only trigger one."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, ClassVar

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
from apex_memory.sources.fields import RecordFields
from apex_memory.sources.http import VendorClient
from apex_memory.sources.pages import BackfillRange, ChangeHint, Page, PullContext
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
    ItemError,
    Plaid,
    Position,
    SyncResult,
    raise_item_errors,
)
from apex_memory.sources.plaid.documents import (
    HEALTH,
    ITEM,
    TRANSACTION,
    item_document,
    transaction_document,
)
from apex_memory.sources.plaid.keys import Keys
from apex_memory.sources.plaid.settings import PlaidSettings
from apex_memory.telemetry import logger

ITEM_HINT = "item:"  # prefix of a hint about the connection itself rather than its transactions
_ACCEPTED = Reply(b"{}", "application/json")  # Plaid expects 200


class PlaidSource(PulledSource[PlaidSettings]):
    """Bank transactions from Plaid: a poll of `/transactions/sync` for each Item, triggered early by its webhooks.

    A transaction that Plaid removes (a pending one when it is posted under a new id, say) is deleted here.
    The state of a connection that needs its user to log in is a `bank_item`.

    - Version: Plaid has none. Each Item's changes are a log, read in loops. The version of all changes in a loop is
      this machine's time at the end of the loop, and at least one more than that of the loop committed before (stored in
      the cursor). A loop is committed with its cursor or not at all, and the next one starts after that commit. So a
      later state always has a greater version, whatever the clock does.
    """

    name: ClassVar[str] = SOURCE
    title: ClassVar[str] = "Plaid"
    priority: ClassVar[Priority] = Priority.P1
    pattern: ClassVar[Pattern] = Pattern.POLL
    poll_seconds: ClassVar[float] = 900  # Plaid itself asks a bank one to four times a day
    rate_limit: ClassVar[tuple[float, float]] = (20, 1)  # of 2,500 a minute
    max_body_bytes: ClassVar[int] = 100_000
    Settings: ClassVar[type[SourceSettings]] = PlaidSettings
    key_prefixes: ClassVar[Sequence[str]] = ("transaction:", "item:")
    records: ClassVar[Sequence[RecordFields]] = (TRANSACTION, ITEM)
    id_refs: ClassVar[Sequence[str]] = ("account:", "payment:")
    called: ClassVar[Mapping[str, str]] = {
        "": "bank plaid",
        "bank_transaction": "transaction payment paid booked transfer deposit wire wired",
        "bank_item": "connection login",
    }

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

    async def fetch_verification_data(self, request: InboundRequest, client: VendorClient) -> None:
        """Fetch the key that the webhook names, unless it is known. Raises `RetryLater` when Plaid does not respond."""
        known = self.settings
        if known.client_id and known.secret.get_secret_value():
            await self._keys.learn(request, self._plaid(client))

    @property
    def signature_headers(self) -> Sequence[str]:
        return ("plaid-verification",)

    def receive(self, request: InboundRequest) -> Received:
        """Return a change hint to sync the Item, or an event about the connection. Other webhooks are accepted and ignored."""
        issued = self._keys.signed_at(request, self.settings.replay_seconds)
        body = parse_object(request.body)
        kind, code = as_string(body.get("webhook_type")), as_string(body.get("webhook_code"))
        if kind == "TRANSACTIONS" and code == "SYNC_UPDATES_AVAILABLE":
            if body.get("item_id") is None:
                return Received(reply=_ACCEPTED)  # of a processor's token: it names no Item of ours
            item = parse_identifier(body["item_id"], "item_id")
            return Received(change_hints=[ChangeHint(item, issued)], reply=_ACCEPTED)
        if kind != "ITEM":
            return Received(reply=_ACCEPTED)
        item = parse_identifier(body.get("item_id"), "item_id")
        code = parse_identifier(code, "webhook_code")[:100]
        # The same error may occur twice in a year with the same body: the time distinguishes them.
        digest = hashlib.sha256(request.body).hexdigest()[:16]
        event = Event(
            source=self.name,
            event_id=f"item:{item[:300]}:{code}@{micros(issued)}:{digest}",
            doc_key=_notice_key(item, code, body),
            version=micros(issued),
            occurred_at=issued,
            payload=request.body,
            priority=self.priority,
        )
        mentions_health = code in HEALTH or body.get("error")
        change_hints = [ChangeHint(ITEM_HINT + item, issued)] if mentions_health else []
        return Received([event], reply=_ACCEPTED, change_hints=change_hints)

    async def pull(self, context: PullContext) -> AsyncIterator[Page]:
        """Yield a complete sync loop per Item, each as one page with its cursor; Items with change hints come first.

        An Item that fails does not stop the others; the pull fails at the end.
        """
        if context.window:
            async for page in self._history(context, context.window):
                yield page
            return
        change_hints: dict[str, list[ChangeHint]] = {}
        for hint in context.change_hints:
            change_hints.setdefault(hint.key.removeprefix(ITEM_HINT), []).append(hint)
        items = {item.id: item for item in self.settings.items}
        for id in change_hints.keys() - items.keys():
            logger(component="plaid").warning("webhook for an Item not in settings", item=id)
            yield Page(acknowledged=change_hints[id])
        plaid, position = self._plaid(context.client), Position.read(context.cursor)
        errors: dict[str, ItemError] = {}
        for item in sorted(items.values(), key=lambda item: (item.id not in change_hints, item.id)):
            before = position.cursor(item.id)
            days = self.settings.history_days
            result = await plaid.sync(item.id, item.access_token, before, days)
            if isinstance(result, ItemError):
                errors[item.id] = result
                if not result.lasting:
                    continue  # its change hints stay for the next pull
            acknowledged = change_hints.get(item.id, [])
            mentioned = any(hint.key.startswith(ITEM_HINT) for hint in acknowledged)
            following, events = position.after(item.id, result, observe=mentioned)
            if events or acknowledged or following != position:
                yield Page(events=events, acknowledged=acknowledged, cursor=following.stored())
            position = following
        raise_item_errors(errors)

    def document(self, event: Event) -> Document:
        """Return a `bank_transaction`, its removal, or a `bank_item`."""
        payload = parse_object(event.payload)
        if "removed" in payload:
            return Document(
                kind="bank_transaction", title="", occurred_at=event.occurred_at, deleted=True
            )
        if "transaction" in payload:
            return transaction_document(payload)
        return item_document(event, payload)

    def samples(self) -> Sequence[Sample]:
        # Plaid prints its bodies over several lines, and signs that form.
        return [
            Sample(item["name"], item["body"].encode(), events=item["events"])
            for item in parse_json(sample("plaid", "own.json"))
        ]

    def sign(self, body: bytes, at: datetime) -> Mapping[str, str]:
        """Return the header that Plaid would send, signed with a key that only this object accepts."""
        return self._keys.sign(body, at)

    def _plaid(self, client: VendorClient) -> Plaid:
        known = self.settings
        return Plaid(client, known.base_url, known.client_id, known.secret)

    async def _history(self, context: PullContext, window: BackfillRange) -> AsyncIterator[Page]:
        """Yield the transactions of the window's days, Item by Item.

        A transaction's version is the time before its page was requested, so that a sync that ends later wins.
        """
        plaid, errors = self._plaid(context.client), dict[str, ItemError]()
        reached, offset = as_string(context.cursor.get("item")), context.cursor.get("offset", 0)
        last = window.until - timedelta(microseconds=1)
        for item in sorted(self.settings.items, key=lambda item: str(item.id)):
            if item.id < reached:
                continue
            offset = offset if item.id == reached else 0
            while True:
                version = micros(now())
                page = await plaid.history(item.access_token, window.since, last, offset)
                if isinstance(page, ItemError):
                    errors[item.id] = page
                    break
                records = sequence(page.get("transactions"))
                changes = SyncResult("")
                changes.add(item.id, {**page, "added": records}, now())
                ended = offset + len(records) >= (page.get("total_transactions") or 0)
                if ended or not records:
                    yield Page(events=changes.events(version))
                    break
                offset += max(1, len(records) - OVERLAP)
                cursor = {"item": item.id, "offset": offset}
                yield Page(events=changes.events(version), cursor=cursor)
        raise_item_errors(errors)


def _notice_key(item: str, code: str, body: Mapping[str, Any]) -> str:
    """Return the document key of an `ITEM` webhook: the connection's for its state, else one for each code and account."""
    if code in HEALTH:
        return f"item:{item}"
    account = as_string(body.get("account_id"))[:300]
    return f"item:{item}:{code}:{account}" if account else f"item:{item}:{code}"
