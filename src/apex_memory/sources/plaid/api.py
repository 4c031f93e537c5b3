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
PAGE = 500  # transactions per call, Plaid's limit
MAX_PAGES = 2_000  # of one loop: more than any bank account's two years
RESTARTS = 6  # of one loop within one pull
FIRST_WAIT, LONGEST_WAIT = 0.25, 8.0  # seconds between two starts
LONGEST_PAUSE = 15.0  # seconds that one Item's `Retry-After` may hold a pull
MUTATION = "TRANSACTIONS_SYNC_MUTATION_DURING_PAGINATION"
OVERLAP = (
    10  # transactions read again on the next page of a history, whose offsets may shift meanwhile
)

# Transient errors. All others last until a person acts.
_PASSING_TYPES = ("API_ERROR", "RATE_LIMIT_EXCEEDED", "RATE_LIMIT_ERROR", "INSTITUTION_ERROR")
_PASSING_CODES = (MUTATION, "PRODUCT_NOT_READY")
_LASTING_CODES = ("INSTITUTION_NO_LONGER_SUPPORTED",)
_OUR_FAULT = ("INVALID_API_KEYS", "UNAUTHORIZED_ENVIRONMENT", "UNAUTHORIZED_ROUTE_ACCESS")

Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class ItemError:
    """The reason why an Item could not be read. A `lasting` one needs a person to act."""

    code: str
    lasting: bool = False
    body: Mapping[str, Any] = field(default_factory=dict)
    after: float | None = None
    """Seconds to wait, from Plaid's or a proxy's `Retry-After`."""

    def wait(self, attempts: int) -> float:
        """Return the seconds until the next attempt. The first one after a mutation is immediate."""
        if self.after is not None:
            return self.after
        if self.code == MUTATION and not attempts:
            return 0.0
        jitter = 0.5 + random.random()  # noqa: S311 -- no secret
        return min(LONGEST_WAIT, FIRST_WAIT * 2.0**attempts) * jitter


@dataclass(slots=True)
class SyncResult:
    """The result of one sync loop. Of a transaction that occurs twice the last record counts."""

    cursor: str
    records: dict[str, tuple[datetime, bytes]] = field(default_factory=dict)
    """By transaction id: its time, and the payload of its event."""
    unreadable: list[Event] = field(default_factory=list)

    def add(self, item: str, page: Mapping[str, Any], at: datetime) -> None:
        accounts = accounts_of(page)
        records = [*sequence(page.get("added")), *sequence(page.get("modified"))]
        for record in records:
            self._keep(record, transaction_payload(item, record, accounts), at)
        for record in sequence(page.get("removed")):
            self._keep(record, {"item_id": item, "removed": record}, at)

    def events(self, version: int) -> list[Event]:
        """Return one event per transaction, all with the same version."""
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
    """Return the naming fields of each account by its id. Balances are left out: they change all day."""
    names = ("name", "official_name", "mask", "type", "subtype")
    accounts = (as_mapping(account) for account in sequence(page.get("accounts")))
    return {
        as_string(account.get("account_id")): {name: account.get(name) for name in names}
        for account in accounts
    }


def transaction_payload(
    item: str, record: object, accounts: Mapping[str, Mapping[str, Any]]
) -> dict[str, Any]:
    account = accounts.get(as_string(as_mapping(record).get("account_id")))
    return {"item_id": item, "transaction": record, **({"account": account} if account else {})}


class Plaid:
    """Plaid's API for one pull."""

    def __init__(
        self, client: VendorClient, base_url: str, client_id: str, secret: SecretStr
    ) -> None:
        self._client = client
        self._base = base_url.rstrip("/")
        self._auth = Fixed(
            {"PLAID-CLIENT-ID": client_id, "PLAID-SECRET": secret.get_secret_value()}
        )

    async def sync(
        self, item: str, token: SecretStr, cursor: str, history_days: int
    ) -> SyncResult | ItemError:
        """Return everything that changed since the cursor, from one complete loop over all pages.

        Plaid's rule: when any page of a loop fails, the pages before it are void, and the loop starts again from the
        cursor of its first page. So no result is returned before the last page.
        """
        return await self._with_restarts(lambda: self._loop(item, token, cursor, history_days))

    async def history(
        self, token: SecretStr, since: datetime, until: datetime, offset: int
    ) -> Mapping[str, Any] | ItemError:
        """Return one page of `/transactions/get` for the days from `since` to `until`, both inclusive."""
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
        return await self._with_restarts(lambda: self._call("/transactions/get", context))

    async def key(self, kid: str) -> Mapping[str, Any] | None:
        """Return a key that signs webhooks, None when Plaid has no such key. Raises what `VendorClient.call` raises."""
        response = await self._client.call(
            "POST",
            f"{self._base}/webhook_verification_key/get",
            auth=self._auth,
            json={"key_id": kid},
            accept=(400, 404),
        )
        if not response.is_success:
            self._raise_our_fault(_body(response.content))
            return None
        return as_mapping(_body(response.content).get("key"))

    async def _loop(
        self, item: str, token: SecretStr, cursor: str, history_days: int
    ) -> SyncResult | ItemError:
        changes, position = SyncResult(cursor), cursor
        options: dict[str, Any] = {"include_original_description": True}
        if not cursor:
            options["days_requested"] = (
                history_days  # has an effect on an Item's very first call alone
            )
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
                # Empty: Plaid is not ready. The next pull starts at the same cursor.
                changes.cursor = following or cursor
                return changes
            if not following or following == position:
                break
            position = following
        return ItemError("CURSOR_DOES_NOT_MOVE")

    async def _with_restarts(
        self, start: Callable[[], Awaitable[Result | ItemError]]
    ) -> Result | ItemError:
        """Return the result of `start`, repeated after transient errors, at most `RESTARTS` times.

        An Item for which Plaid asks for a longer wait is left for the next pull, so that it does not hold the others.
        """
        attempts = 0
        while True:
            result = await start()
            if not isinstance(result, ItemError) or result.lasting or attempts == RESTARTS:
                return result
            wait = result.wait(attempts)
            if wait > LONGEST_PAUSE:
                return result
            await asyncio.sleep(wait)
            attempts += 1

    async def _call(self, path: str, body: Mapping[str, Any]) -> Mapping[str, Any] | ItemError:
        # Every failure is returned, a broken connection too: Plaid forbids to repeat a single page of a loop.
        try:
            response = await self._client.call(
                "POST",
                self._base + path,
                auth=self._auth,
                json=body,
                accept=range(300, 600),
                patience=0,
            )
        except RetryLater:
            return ItemError("UNREACHABLE")
        except Rejected:  # every status is accepted above: only the size of a response is refused
            return ItemError("RESPONSE_TOO_LARGE")
        fields = _body(response.content)
        if response.is_success:
            return fields
        self._raise_our_fault(fields)
        code, kind = as_string(fields.get("error_code")), as_string(fields.get("error_type"))
        transient = code not in _LASTING_CODES and (
            response.status_code == 429
            or response.status_code >= 500
            or kind in _PASSING_TYPES
            or code in _PASSING_CODES
        )
        return ItemError(
            code or kind or f"HTTP_{response.status_code}",
            lasting=not transient,
            body={name: fields.get(name) for name in _ERROR_FIELDS if fields.get(name)},
            after=retry_after(response.headers.get("retry-after")),
        )

    def _raise_our_fault(self, fields: Mapping[str, Any]) -> None:
        """Raise `Unauthorized` for an error of the whole account, which concerns every Item."""
        if fields.get("error_code") in _OUR_FAULT:
            raise Unauthorized(
                f"plaid: {fields['error_code']}",
                remedy="check sources.plaid.client_id, secret and base_url: keys belong to one environment",
            )


@dataclass(frozen=True, slots=True)
class Position:
    """The stored cursor: Plaid's cursor and the last error of each Item, and the last version used."""

    version: int
    items: Mapping[str, Mapping[str, str]]

    @classmethod
    def read(cls, stored: Mapping[str, Any]) -> Position:
        version = stored.get("version", 0)
        return cls(version if isinstance(version, int) else 0, as_mapping(stored.get("items")))

    def stored(self) -> dict[str, Any]:
        return {
            "version": self.version,
            "items": {id: dict(state) for id, state in self.items.items()},
        }

    def cursor(self, item: str) -> str:
        return as_string(as_mapping(self.items.get(item)).get("cursor"))

    def after(
        self, item: str, result: SyncResult | ItemError, *, observe: bool
    ) -> tuple[Position, list[Event]]:
        """Return the position after this result is committed, and the events that belong to it.

        A change of the Item's health is an event. With `observe` the current health is one too: a webhook mentioned it,
        and webhooks may arrive late and in any order, so the result of this call decides.
        """
        version = max(self.version + 1, micros(now()))
        error: dict[str, Any] | None = None
        if isinstance(result, ItemError):
            code, cursor, events = result.code, self.cursor(item), []
            error = {**result.body, "error_code": code}
        else:
            code, cursor, events = "", result.cursor, result.events(version)
        if observe or code != as_string(as_mapping(self.items.get(item)).get("error")):
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
        kept = {"cursor": cursor, **({"error": code} if error else {})}
        changed = events or kept != self.items.get(item)
        return Position(version if changed else self.version, {**self.items, item: kept}), events


_ERROR_FIELDS = ("error_type", "error_code", "error_message", "display_message", "suggested_action")


def _body(content: bytes) -> Mapping[str, Any]:
    try:
        return as_mapping(parse_json(content))
    except Rejected:
        return {}  # a proxy's page instead of Plaid's response: the status is enough


def raise_item_errors(errors: Mapping[str, ItemError]) -> None:
    """Raise for the Items that could not be read, after all had their turn: `RetryLater` if any error is transient."""
    transient = sorted(id for id, error in errors.items() if not error.lasting)
    if transient:
        raise RetryLater(
            f"plaid: {_describe(transient, errors)}",
            after=max(30, *(errors[id].after or 0 for id in transient)),
            remedy="Apex retries it; see Plaid's status page if it lasts",
        )
    if errors:
        raise Unauthorized(
            f"plaid: {_describe(sorted(errors), errors)}",
            remedy="have the bank's user log in again (Plaid Link in update mode), or remove the Item from "
            "sources.plaid.items; all other Items were read",
        )


def _describe(ids: Sequence[str], errors: Mapping[str, ItemError]) -> str:
    shown = ", ".join(f"Item {id}: {errors[id].code}" for id in ids[:3])
    return shown if len(ids) <= 3 else f"{shown} and {len(ids) - 3} more"
