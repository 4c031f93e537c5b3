"""Plaid: two bank connections, read by `/transactions/sync`, and webhooks signed with ES256."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, ClassVar

import jwt
from cryptography.hazmat.primitives.asymmetric import ec
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from apex_memory.simulate.plaid.log import (
    ACCOUNTS,
    OPERATING,
    PAYABLES,
    order,
    payments,
    receipts,
    record,
    state,
)
from apex_memory.simulate.vendor import Chaos, Push, Simulator, Truth
from apex_memory.simulate.world import Clock, World

CLIENT_ID, SECRET = "client-of-the-simulator", "secret-of-the-simulator"
TOKENS = {"access-simulated-operating": OPERATING, "access-simulated-payables": PAYABLES}
MORNING_KEY, NOON_KEY, EXPIRED_KEY = (
    "6c5516e1-92dc-479e-a8ff-5a51992e0001",
    "6c5516e1-92dc-479e-a8ff-5a51992e0002",
    "6c5516e1-92dc-479e-a8ff-5a51992e0003",
)
PAGE = 4  # changes at most: few, so that sync loops have several pages
READY_AFTER = timedelta(minutes=40)  # until then the second connection has no data yet
OUTAGE = (timedelta(hours=6), timedelta(hours=8))  # in between the second one requires a login


class PlaidSimulator(Simulator):
    """Customers pay invoices into one account; carriers and fuel are paid from the other one."""

    name: ClassVar[str] = "plaid"

    def __init__(self, world: World, clock: Clock, chaos: Chaos) -> None:
        super().__init__(world, clock, chaos)
        self._outage = chaos.expiries > 0
        self._logs = {
            OPERATING: sorted(receipts(world), key=order),
            PAYABLES: sorted(payments(world), key=order),
        }
        self._loops = 0
        self._void: set[int] = set()
        self._doomed: set[int] = set()

    def settings(self, base: str) -> dict[str, Any]:
        items = [{"id": id, "access_token": token} for token, id in TOKENS.items()]
        return {"base_url": base, "client_id": CLIENT_ID, "secret": SECRET, "items": items}

    def routes(self) -> Sequence[Route]:
        return [
            Route("/transactions/sync", self._sync, methods=["POST"]),
            Route("/transactions/get", self._get, methods=["POST"]),
            Route("/webhook_verification_key/get", self._key, methods=["POST"]),
        ]

    def pushes(self, since: datetime, until: datetime) -> list[Push]:
        """For every change the current webhook and its legacy form; the connection's own errors."""
        due: list[tuple[datetime, dict[str, Any]]] = []
        for item, log in self._logs.items():
            for at in sorted({max(change.at, self._ready_at(item)) for change in log}):
                due += [(at, body) for body in _updates(item)]
        if self._outage:
            lost, back = (self.world.start + after for after in OUTAGE)
            error = _error("ITEM_ERROR", "ITEM_LOGIN_REQUIRED", "a user login is required")
            due.append((lost, _webhook("ITEM", "ERROR", PAYABLES, error=error)))
            due.append((back, _webhook("ITEM", "LOGIN_REPAIRED", PAYABLES)))
        due.sort(key=lambda item: item[0])
        return [self._push(at, body) for at, body in due if since < at <= until]

    def truth(self, until: datetime) -> Sequence[Truth]:
        truth: list[Truth] = []
        lost, back = (self.world.start + after for after in OUTAGE)
        is_out = self._outage and lost <= until < back
        for item, log in self._logs.items():
            seen = self._count(item, lost if is_out and item == PAYABLES else until)
            records = state(log[:seen])
            for id, transaction in records.items():
                truth.append(Truth(f"transaction:{id}", str(transaction["name"])))
            removed = {change.id for change in log[:seen]} - records.keys()
            truth += [Truth(f"transaction:{id}", deleted=True) for id in sorted(removed)]
        if self._outage and until >= lost:
            connection = "item login required" if is_out else "works"
            truth.append(Truth(f"item:{PAYABLES}", f"State: {connection}"))
        return truth

    def _push(self, at: datetime, content: Mapping[str, Any]) -> Push:
        kid = MORNING_KEY if at < self.world.start + timedelta(hours=4) else NOON_KEY
        raw = json.dumps(content, indent=2, sort_keys=True).encode()
        return Push(at, "/hooks/plaid", raw, lambda body, now: signature(kid, body, now))

    def _ready_at(self, item: str) -> datetime:
        return self.world.start + (READY_AFTER if item == PAYABLES else timedelta(0))

    def _count(self, item: str, now: datetime) -> int:
        """Return how many changes of the log Plaid has by now."""
        if now < self._ready_at(item):
            return 0
        return sum(change.at <= now for change in self._logs[item])

    async def _sync(self, request: Request) -> Response:
        body, refused = await self._check(request)
        cursor = str(body.get("cursor") or "")
        place = _read_cursor(cursor)
        if refused is None and place is None:
            refused = _failure(400, "INVALID_INPUT", "INVALID_FIELD", "cursor not associated")
        loop = place.loop if place else 0
        if refused is not None:
            self._void.add(loop)  # a failed page voids its loop
            return refused
        assert place is not None
        item, now = TOKENS[body["access_token"]], self.clock.now
        if place.item not in ("", item):
            return _failure(400, "INVALID_INPUT", "INVALID_FIELD", "cursor not associated")
        if loop and (loop in self._void or loop in self._doomed):
            return _mutation()
        if now < self._ready_at(item):
            return JSONResponse(self._page(item, "NOT_READY", [], "", more=False))
        seen = self._count(item, now)
        if loop and seen != place.until:
            self._void.add(loop)
            return _mutation()
        if not loop:
            self._loops += 1
            place = _Cursor(item, place.since, seen, 0, self._loops)
        changes = self._changes(item, place.since, place.until)
        start, size = place.offset, min(PAGE, int(body.get("count") or 100))
        page, more = changes[start : start + size], start + size < len(changes)
        if not loop and self.chaos.strikes(self.chaos.mutations):
            # A transaction that exists for a moment: of a loop that is broken off, nothing may be kept.
            self._doomed.add(place.loop)
            page = [("added", self._phantom(item, place.loop)), *page]
            more = True
        next_page = _Cursor(item, place.since, place.until, start + size, place.loop)
        next_cursor = (next_page if more else _Cursor(item, place.until)).text
        status = "HISTORICAL_UPDATE_COMPLETE"
        return JSONResponse(self._page(item, status, page, next_cursor, more=more))

    async def _get(self, request: Request) -> Response:
        body, refused = await self._check(request)
        if refused is not None:
            return refused
        item, options = TOKENS[body["access_token"]], body.get("options") or {}
        records = state(self._logs[item][: self._count(item, self.clock.now)]).values()
        within = [
            record
            for record in records
            if body["start_date"] <= str(record["date"]) <= body["end_date"]
        ]
        within.sort(key=lambda item: (item["date"], item["transaction_id"]), reverse=True)
        offset, count = int(options.get("offset") or 0), int(options.get("count") or 100)
        return JSONResponse(
            {
                "accounts": [_account(item)],
                "transactions": within[offset : offset + count],
                "total_transactions": len(within),
                "item": _item(item),
                "request_id": self._request_id(),
            }
        )

    async def _key(self, request: Request) -> Response:
        body, refused = await self._check(request, item=False)
        if refused is not None:
            return refused
        kid = body.get("key_id")
        if kid not in (MORNING_KEY, NOON_KEY, EXPIRED_KEY):
            code = "INVALID_WEBHOOK_VERIFICATION_KEY_ID"
            return _failure(400, "INVALID_INPUT", code, "invalid key_id")
        return JSONResponse({"key": jwk(str(kid)), "request_id": self._request_id()})

    async def _check(
        self, request: Request, *, item: bool = True
    ) -> tuple[dict[str, Any], Response | None]:
        """Return the body, and an error response if the call fails.

        Reasons are wrong keys, an unknown or broken connection, and chaos.
        """
        body = json.loads(await request.body())
        credentials = (
            request.headers.get("plaid-client-id", body.get("client_id")),
            request.headers.get("plaid-secret", body.get("secret")),
        )
        if credentials != (CLIENT_ID, SECRET):
            code = "INVALID_API_KEYS"
            return body, _failure(400, "INVALID_INPUT", code, "invalid client_id or secret")
        if item and body.get("access_token") not in TOKENS:
            code = "INVALID_ACCESS_TOKEN"
            return body, _failure(
                400, "INVALID_INPUT", code, "could not find matching access token"
            )
        if self.chaos.strikes(self.chaos.limits):
            code = "TRANSACTIONS_SYNC_LIMIT"
            return body, _failure(429, "RATE_LIMIT_EXCEEDED", code, "rate limit exceeded")
        if self.chaos.strikes(self.chaos.errors):
            code = "INTERNAL_SERVER_ERROR"
            return body, _failure(500, "API_ERROR", code, "an unexpected error occurred")
        if item and self._outage and TOKENS[body["access_token"]] == PAYABLES:
            lost, back = (self.world.start + after for after in OUTAGE)
            if lost <= self.clock.now < back:
                code = "ITEM_LOGIN_REQUIRED"
                return body, _failure(400, "ITEM_ERROR", code, "a user login is required")
        return body, None

    def _changes(self, item: str, since: int, until: int) -> list[tuple[str, Mapping[str, Any]]]:
        """Return the differences between two positions of the log, in its order: kind and record."""
        log = self._logs[item]
        before, after = state(log[:since]), state(log[:until])
        changes: dict[str, tuple[str, Mapping[str, Any]]] = {}
        for change in log[since:until]:
            changes.pop(change.id, None)
            if change.id in after:
                kind = "modified" if change.id in before else "added"
                changes[change.id] = (kind, after[change.id])
            elif change.id in before:
                removed = {"transaction_id": change.id, "account_id": ACCOUNTS[item][0]}
                changes[change.id] = ("removed", removed)
        return list(changes.values())

    def _page(
        self,
        item: str,
        status: str,
        changes: Sequence[tuple[str, Mapping[str, Any]]],
        next_cursor: str,
        *,
        more: bool,
    ) -> dict[str, Any]:
        by_kind: dict[str, list[Mapping[str, Any]]] = {"added": [], "modified": [], "removed": []}
        for kind, item_record in changes:
            by_kind[kind].append(item_record)
        return {
            "transactions_update_status": status,
            "accounts": [_account(item)],
            **by_kind,
            "next_cursor": next_cursor,
            "has_more": more,
            "request_id": self._request_id(),
        }

    def _phantom(self, item: str, loop: int) -> Mapping[str, Any]:
        name = "AUTHORIZATION REVERSED"
        return record(f"txPhantom{loop}", item, self.clock.now, 1, name, pending=True)

    def _request_id(self) -> str:
        return f"rq{self._loops:08d}"


@dataclass(frozen=True, slots=True)
class _Cursor:
    """A position in an Item's log; within a loop also the loop's end, the page's offset and the loop's number."""

    item: str
    since: int = 0
    until: int = 0
    offset: int = 0
    loop: int = 0

    @property
    def text(self) -> str:
        parts = [self.item, self.since, self.until, self.offset, self.loop]
        return base64.b64encode(json.dumps(parts).encode()).decode()


def _read_cursor(text: str) -> _Cursor | None:
    if not text:
        return _Cursor("")
    try:
        return _Cursor(*json.loads(base64.b64decode(text, validate=True)))
    except (ValueError, TypeError):
        return None


def signature(kid: str, body: bytes, at: datetime) -> dict[str, str]:
    """Return the header with which Plaid sends this body."""
    claims = {
        "iat": int(at.timestamp()),
        "request_body_sha256": hashlib.sha256(body).hexdigest(),
    }
    token = jwt.encode(claims, _private(kid), algorithm="ES256", headers={"kid": kid})
    return {"Plaid-Verification": token}


def jwk(kid: str) -> dict[str, Any]:
    """Return the public half of a key."""
    numbers = _private(kid).public_key().public_numbers()
    x, y = (
        base64.urlsafe_b64encode(number.to_bytes(32)).rstrip(b"=").decode()
        for number in (numbers.x, numbers.y)
    )
    return {
        "alg": "ES256",
        "crv": "P-256",
        "kid": kid,
        "kty": "EC",
        "use": "sig",
        "x": x,
        "y": y,
        "created_at": 1_560_466_150,
        "expired_at": 1_560_466_151 if kid == EXPIRED_KEY else None,
    }


def _private(kid: str) -> ec.EllipticCurvePrivateKey:
    # Derived from the id, so that a run can be repeated. The key protects nothing.
    secret = int.from_bytes(hashlib.sha256(kid.encode()).digest()[:31])
    return ec.derive_private_key(secret, ec.SECP256R1())


def _account(item: str) -> dict[str, Any]:
    id, name, mask = ACCOUNTS[item]
    balances = {
        "available": 250_000.0,
        "current": 251_200.5,
        "iso_currency_code": "USD",
        "limit": None,
        "unofficial_currency_code": None,
    }
    return {
        "account_id": id,
        "balances": balances,
        "mask": mask,
        "name": name,
        "official_name": f"Example Bank {name}",
        "subtype": "checking",
        "type": "depository",
    }


def _item(item: str) -> dict[str, Any]:
    return {
        "item_id": item,
        "webhook": None,
        "error": None,
        "available_products": [],
        "billed_products": ["transactions"],
        "consent_expiration_time": None,
        "update_type": "background",
        "institution_id": "ins_109508",
    }


def _updates(item: str) -> list[dict[str, Any]]:
    done = {"initial_update_complete": True, "historical_update_complete": True}
    return [
        _webhook("TRANSACTIONS", "SYNC_UPDATES_AVAILABLE", item, **done),
        _webhook("TRANSACTIONS", "DEFAULT_UPDATE", item, error=None, new_transactions=1),
    ]


def _webhook(kind: str, code: str, item: str, **more: Any) -> dict[str, Any]:
    named = {"webhook_type": kind, "webhook_code": code, "item_id": item}
    return {**named, "environment": "sandbox", **more}


def _error(kind: str, code: str, message: str) -> dict[str, Any]:
    return {
        "error_type": kind,
        "error_code": code,
        "error_message": message,
        "display_message": None,
        "request_id": "rqError",
        "documentation_url": "https://plaid.com/docs/errors/",
        "suggested_action": None,
    }


def _failure(status: int, kind: str, code: str, message: str) -> Response:
    # Plaid sends no Retry-After. A simulated day is short, so the wait here is too.
    headers = {"Retry-After": "0.02"} if status >= 429 else None
    return JSONResponse(_error(kind, code, message), status, headers)


def _mutation() -> Response:
    code = "TRANSACTIONS_SYNC_MUTATION_DURING_PAGINATION"
    message = "Underlying transaction data changed since last page was fetched."
    return _failure(400, "TRANSACTIONS_ERROR", code, message)
