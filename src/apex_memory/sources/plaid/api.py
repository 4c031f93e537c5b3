"""Calls to Plaid: its errors by what to do about them, a whole sync loop of one Item, pages of its history."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, TypeVar

from pydantic import SecretStr

from apex_memory.errors import Rejected, RetryLater, Unauthorized
from apex_memory.model import Event, Priority, micros, now
from apex_memory.sources.auth import Fixed
from apex_memory.sources.http import VendorClient, retry_after
from apex_memory.sources.payloads import (
    as_mapping,
    as_string,
    canonical,
    malformed_event,
    parse_identifier,
    parse_json,
    sequence,
    storable,
)
from apex_memory.sources.plaid.documents import Transaction

SOURCE = "plaid"
PAGE = 500  # transactions a call, Plaid's most
MAX_PAGES = 2_000  # of one loop: more than any bank account's two years
RESTARTS = 6  # of one loop within one pull
FIRST_WAIT, LONGEST_WAIT = 0.25, 8.0  # seconds between two starts
MUTATION = "TRANSACTIONS_SYNC_MUTATION_DURING_PAGINATION"
OVERLAP = (
    10  # transactions asked for again on the next page of a history, whose offsets shift under us
)

# What passes by itself. All other errors last until somebody acts.
_PASSING_TYPES = ("API_ERROR", "RATE_LIMIT_EXCEEDED", "RATE_LIMIT_ERROR", "INSTITUTION_ERROR")
_PASSING_CODES = (MUTATION, "PRODUCT_NOT_READY")
_LASTING_CODES = ("INSTITUTION_NO_LONGER_SUPPORTED",)
_OUR_FAULT = ("INVALID_API_KEYS", "UNAUTHORIZED_ENVIRONMENT", "UNAUTHORIZED_ROUTE_ACCESS")

Found = TypeVar("Found")


@dataclass(frozen=True, slots=True)
class ItemError:
    """Why an Item could not be read. `lasting`: until a person does something about it."""

    code: str
    lasting: bool = False
    body: Mapping[str, Any] = field(default_factory=dict)
    after: float | None = None
    """Seconds that Plaid, or a proxy before it, asks us to wait."""

    def wait(self, tried: int) -> float:
        """Seconds until the next start. A mutation is over at once."""
        if self.after is not None:
            return self.after
        if self.code == MUTATION and not tried:
            return 0.0
        jitter = 0.5 + random.random()  # noqa: S311 -- no secret
        return min(LONGEST_WAIT, FIRST_WAIT * 2.0**tried) * jitter


@dataclass(slots=True)
class Changes:
    """All that one loop brought. Of a transaction that is told of twice the last word stands."""

    cursor: str
    records: dict[str, tuple[datetime, bytes]] = field(default_factory=dict)
    """By transaction id: when it happened, and the payload of its event."""
    unreadable: list[Event] = field(default_factory=list)

    def add(self, item: str, page: Mapping[str, Any], at: datetime) -> None:
        accounts = accounts_of(page)
        told = [*sequence(page.get("added")), *sequence(page.get("modified"))]
        for record in told:
            self._keep(record, transaction_payload(item, record, accounts), at)
        for record in sequence(page.get("removed")):
            self._keep(record, {"item_id": item, "removed": record}, at)

    def events(self, version: int) -> list[Event]:
        """One event a transaction, all of the same version."""
        kept = [
            Event(
                source=SOURCE,
                event_id=f"{id}@{version}",
                doc_key=f"transaction:{id}",
                version=version,
                occurred_at=at,
                payload=payload,
                priority=Priority.P1,
            )
            for id, (at, payload) in self.records.items()
        ]
        return kept + self.unreadable

    def _keep(self, record: object, payload: Mapping[str, Any], at: datetime) -> None:
        try:
            id = parse_identifier(as_mapping(record).get("transaction_id"), "transaction_id")
            happened = at if "removed" in payload else Transaction.read(payload).at
        except Rejected as reason:
            self.unreadable.append(malformed_event(SOURCE, record, reason, at, Priority.P1))
            return
        self.records[id] = (happened, canonical(storable(payload)))


def accounts_of(page: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """What names an account, by its id: balances change all day and are no part of a transaction."""
    names = ("name", "official_name", "mask", "type", "subtype")
    found = (as_mapping(account) for account in sequence(page.get("accounts")))
    return {
        as_string(account.get("account_id")): {name: account.get(name) for name in names}
        for account in found
    }


def transaction_payload(
    item: str, record: object, accounts: Mapping[str, Mapping[str, Any]]
) -> dict[str, Any]:
    account = accounts.get(as_string(as_mapping(record).get("account_id")))
    return {"item_id": item, "transaction": record, **({"account": account} if account else {})}


class Plaid:
    """Plaid's API for one pull."""

    def __init__(
        self, link: VendorClient, base_url: str, client_id: str, secret: SecretStr
    ) -> None:
        self._link = link
        self._base = base_url.rstrip("/")
        self._auth = Fixed(
            {"PLAID-CLIENT-ID": client_id, "PLAID-SECRET": secret.get_secret_value()}
        )

    async def sync(
        self, item: str, token: SecretStr, cursor: str, history_days: int
    ) -> Changes | ItemError:
        """Everything that changed since the cursor, of a loop that went through from its first page to its last.

        Plaid's rule: when any page of a loop fails, whatever the reason, what the loop brought so far is void,
        and it starts again from the cursor of its first page. So nothing leaves here before the last page.
        """
        return await self._insist(lambda: self._loop(item, token, cursor, history_days))

    async def history(
        self, token: SecretStr, since: datetime, until: datetime, offset: int
    ) -> Mapping[str, Any] | ItemError:
        """One page of `/transactions/get`: days from `since` to `until`, both inclusive."""
        context = {
            "access_token": token.get_secret_value(),
            "start_date": f"{since:%Y-%m-%d}",
            "end_date": f"{until:%Y-%m-%d}",
            "options": {
                "count": PAGE,
                "offset": offset,
                "include_original_description": True,
            },
        }
        return await self._insist(lambda: self._call("/transactions/get", context))

    async def key(self, kid: str) -> Mapping[str, Any] | None:
        """A key that Plaid signs webhooks with; None when it knows no such key. Raises what `VendorClient.call` raises."""
        answer = await self._link.call(
            "POST",
            f"{self._base}/webhook_verification_key/get",
            auth=self._auth,
            json={"key_id": kid},
            accept=(400, 404),
        )
        if not answer.is_success:
            self._raise_our_fault(_body(answer.content))
            return None
        return as_mapping(_body(answer.content).get("key"))

    async def _loop(
        self, item: str, token: SecretStr, cursor: str, history_days: int
    ) -> Changes | ItemError:
        changes, position = Changes(cursor), cursor
        options: dict[str, Any] = {"include_original_description": True}
        if not cursor:
            options["days_requested"] = history_days  # counts on an Item's very first call alone
        for _ in range(MAX_PAGES):
            context = {
                "access_token": token.get_secret_value(),
                "count": PAGE,
                "options": options,
                **({"cursor": position} if position else {}),
            }
            page = await self._call("/transactions/sync", context)
            if isinstance(page, ItemError):
                return page
            following = page.get("next_cursor")
            if not isinstance(following, str):
                return ItemError("NEXT_CURSOR_MISSING")
            changes.add(item, page, now())
            if page.get("has_more") is not True:
                # Empty: Plaid is not ready. The next pull asks from the same place.
                changes.cursor = following or cursor
                return changes
            if not following or following == position:
                break
            position = following
        return ItemError("CURSOR_DOES_NOT_MOVE")

    async def _insist(self, start: Callable[[], Awaitable[Found | ItemError]]) -> Found | ItemError:
        """Start again after what passes, a bounded number of times."""
        tried = 0
        while True:
            found = await start()
            if not isinstance(found, ItemError) or found.lasting or tried == RESTARTS:
                return found
            await asyncio.sleep(found.wait(tried))
            tried += 1

    async def _call(self, path: str, body: Mapping[str, Any]) -> Mapping[str, Any] | ItemError:
        # Everything comes back here, a broken connection too: repeating a single page of a loop is
        # just what Plaid forbids.
        try:
            answer = await self._link.call(
                "POST",
                self._base + path,
                auth=self._auth,
                json=body,
                accept=range(400, 600),
                patience=0,
            )
        except RetryLater:
            return ItemError("UNREACHABLE")
        said = _body(answer.content)
        if answer.is_success:
            return said
        self._raise_our_fault(said)
        code, kind = as_string(said.get("error_code")), as_string(said.get("error_type"))
        passing = code not in _LASTING_CODES and (
            answer.status_code == 429
            or answer.status_code >= 500
            or kind in _PASSING_TYPES
            or code in _PASSING_CODES
        )
        return ItemError(
            code or kind or f"HTTP_{answer.status_code}",
            lasting=not passing,
            body={name: said.get(name) for name in _TOLD if said.get(name)},
            after=retry_after(answer.headers.get("retry-after")),
        )

    def _raise_our_fault(self, said: Mapping[str, Any]) -> None:
        if said.get("error_code") in _OUR_FAULT:
            raise Unauthorized(
                f"plaid: {said['error_code']}",
                remedy="check sources.plaid.client_id, secret and base_url: keys belong to one environment",
            )


@dataclass(frozen=True, slots=True)
class Position:
    """The cursor: of each Item Plaid's cursor and the error it was left with, and the last version given."""

    version: int
    items: Mapping[str, Mapping[str, str]]

    @classmethod
    def read(cls, stored: Mapping[str, Any]) -> Position:
        version = stored.get("version", 0)
        return cls(version if isinstance(version, int) else 0, as_mapping(stored.get("items")))

    def stored(self) -> dict[str, Any]:
        return {"version": self.version, "items": {id: dict(one) for id, one in self.items.items()}}

    def cursor(self, item: str) -> str:
        return as_string(as_mapping(self.items.get(item)).get("cursor"))

    def after(
        self, item: str, found: Changes | ItemError, *, observe: bool
    ) -> tuple[Position, list[Event]]:
        """The position once this is committed, and the events that go with it.

        A change of the Item's health is an event, and so is, with `observe`, the health as it is: Plaid spoke of
        it in a webhook, and webhooks may come late and in any order. What our own call met is the truth.
        """
        version = max(self.version + 1, micros(now()))
        failed = isinstance(found, ItemError)
        code = found.code if isinstance(found, ItemError) else ""
        cursor = self.cursor(item) if isinstance(found, ItemError) else found.cursor
        events = [] if isinstance(found, ItemError) else found.events(version)
        if observe or code != as_string(as_mapping(self.items.get(item)).get("error")):
            error = (
                dict(found.body) | {"error_code": code} if isinstance(found, ItemError) else None
            )
            events.append(
                Event(
                    source=SOURCE,
                    event_id=f"item:{item}@{version}",
                    doc_key=f"item:{item}",
                    version=version,
                    occurred_at=now(),
                    payload=canonical({"item_id": item, "error": error}),
                    priority=Priority.P1,
                )
            )
        kept = {"cursor": cursor, **({"error": code} if failed else {})}
        changed = events or kept != self.items.get(item)
        return Position(version if changed else self.version, {**self.items, item: kept}), events


_TOLD = ("error_type", "error_code", "error_message", "display_message", "suggested_action")


def _body(content: bytes) -> Mapping[str, Any]:
    try:
        return as_mapping(parse_json(content))
    except Rejected:
        return {}  # a proxy's page instead of Plaid's answer: the status tells enough


def raise_troubles(troubles: Mapping[str, ItemError]) -> None:
    """After all Items had their turn: say which could not be read. What passes is tried again, what lasts needs a person."""
    passing = sorted(id for id, trouble in troubles.items() if not trouble.lasting)
    if passing:
        raise RetryLater(
            f"plaid: {_named(passing, troubles)}",
            after=30,
            remedy="it is tried again by itself; see Plaid's status page if it lasts",
        )
    if troubles:
        raise Unauthorized(
            f"plaid: {_named(sorted(troubles), troubles)}",
            remedy="have the bank's user log in again (Plaid Link in update mode), or take the Item out of "
            "sources.plaid.items; all other Items were read",
        )


def _named(ids: Sequence[str], troubles: Mapping[str, ItemError]) -> str:
    shown = ", ".join(f"Item {id} answers {troubles[id].code}" for id in ids[:3])
    return shown if len(ids) <= 3 else f"{shown} and {len(ids) - 3} more"
