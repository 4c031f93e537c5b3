"""Plaid: whole loops or nothing, webhooks that only Plaid can have signed, and what transactions become."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

import httpx2
import jwt
import plaid as sdk
import pytest
from plaid.api.plaid_api import PlaidApi
from plaid.model.transactions_get_request import TransactionsGetRequest
from plaid.model.transactions_sync_request import TransactionsSyncRequest
from plaid.model.webhook_verification_key_get_request import WebhookVerificationKeyGetRequest
from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from apex_memory.errors import Rejected, RetryLater, Unauthorized
from apex_memory.model import MALFORMED, Assertion, Document, Event, micros, now
from apex_memory.simulate.plaid.log import PAYABLES
from apex_memory.simulate.plaid.simulator import (
    CLIENT_ID,
    EXPIRED_KEY,
    MORNING_KEY,
    NOON_KEY,
    SECRET,
    TOKENS,
    PlaidSimulator,
    jwk,
    signature,
)
from apex_memory.simulate.server import serve_simulators
from apex_memory.simulate.vendor import Chaos
from apex_memory.simulate.world import Clock, World
from apex_memory.sources.base import InboundRequest
from apex_memory.sources.pages import BackfillRange, ChangeHint, Page, PullContext
from apex_memory.sources.plaid.documents import transaction_document
from apex_memory.sources.plaid.source import PlaidSource
from apex_memory.sources.registry import load
from tests.unit import vendors
from tests.unit.vendors import Played, vendor_client

AT = datetime(2025, 11, 20, 12, tzinfo=UTC)
VECTOR = (
    b'{\n  "environment": "sandbox",\n  "historical_update_complete": true,\n'
    b'  "initial_update_complete": true,\n  "item_id": "itm_example_0001",\n'
    b'  "webhook_code": "SYNC_UPDATES_AVAILABLE",\n  "webhook_type": "TRANSACTIONS"\n}'
)
MUTATION = {
    "error_type": "TRANSACTIONS_ERROR",
    "error_code": "TRANSACTIONS_SYNC_MUTATION_DURING_PAGINATION",
}
LOGIN = {"error_type": "ITEM_ERROR", "error_code": "ITEM_LOGIN_REQUIRED", "error_message": "log in"}
TWO = [{"id": "itm_a", "access_token": "token-a"}, {"id": "itm_b", "access_token": "token-b"}]


def source(base: str = "http://127.0.0.1:1", **more: Any) -> PlaidSource:
    known = {"client_id": CLIENT_ID, "secret": SECRET, "base_url": base, "items": TWO[:1]}
    loaded = load({"plaid": {**known, **more}})["plaid"]
    assert isinstance(loaded, PlaidSource)
    return loaded


class Script(Played):
    """A Plaid that sends these responses in order, and keeps the bodies of its requests."""

    name = "plaid"

    def __init__(
        self, *answers: dict[str, Any] | Callable[[dict[str, Any]], dict[str, Any]]
    ) -> None:
        super().__init__()
        self.answers = list(answers)
        self.requests: list[dict[str, Any]] = []

    def routes(self) -> Sequence[Route]:
        return [Route("/{path:path}", self._answer, methods=["POST"])]

    @property
    def cursors(self) -> list[str]:
        return [body.get("cursor", "") for body in self.requests]

    async def _answer(self, request: HttpRequest) -> Response:
        body = json.loads(await request.body())
        self.requests.append(body)
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        response = answer(body) if callable(answer) else answer
        status = response.get("status", 400 if "error_code" in response else 200)
        return JSONResponse(response, status, {"Retry-After": "0"} if status >= 400 else {})


def record(id: str, **more: Any) -> dict[str, Any]:
    known = {"transaction_id": id, "account_id": "acc", "amount": 12.5, "date": "2025-11-03"}
    return {**known, "name": f"name of {id}", "iso_currency_code": "USD", **more}


def page(next_cursor: str, *, more: bool = False, **changes: Any) -> dict[str, Any]:
    empty: dict[str, list[object]] = {"accounts": [], "added": [], "modified": [], "removed": []}
    return {**empty, "next_cursor": next_cursor, "has_more": more, **changes}


pulled = partial(vendors.pulled, source)


def keys(pages: Sequence[Page]) -> list[str]:
    return [event.doc_key for page in pages for event in page.events]


# Loops


async def test_a_loop_is_one_page_with_its_cursor() -> None:
    script = Script(
        page("c1", more=True, added=[record("t1"), record("t2")]),
        page("c2", modified=[record("t1", amount=13)], removed=[{"transaction_id": "t0"}]),
    )
    (only,), error = await pulled(script)
    assert error is None
    assert script.cursors == ["", "c1"]
    assert [body["count"] for body in script.requests] == [500, 500]
    assert keys([only]) == ["transaction:t1", "transaction:t2", "transaction:t0"]
    assert len({event.version for event in only.events}) == 1
    assert only.cursor == {"version": only.events[0].version, "items": {"itm_a": {"cursor": "c2"}}}
    documents = [source().document(event) for event in only.events]
    assert [document.deleted for document in documents] == [False, False, True]
    assert "13.00 USD paid out" in documents[0].text, "the last word of the loop stands"


@pytest.mark.parametrize("failure", [MUTATION, {"status": 500}, {"status": 429}, {"status": 200}])
async def test_any_failing_page_voids_its_loop(failure: dict[str, Any]) -> None:
    script = Script(
        page("c1", more=True, added=[record("phantom")]),
        failure,
        page("c1", more=True, added=[record("t1")]),
        page("c2", added=[record("t2")]),
    )
    pages, error = await pulled(script, cursor={"version": 1, "items": {"itm_a": {"cursor": "c0"}}})
    assert error is None
    assert script.cursors == ["c0", "c1", "c0", "c1"], "from the loop's first cursor"
    assert keys(pages) == ["transaction:t1", "transaction:t2"]


async def test_restarts_are_bounded_and_commit_nothing() -> None:
    script = Script(page("c1", more=True, added=[record("t1")]), MUTATION)
    script.answers = [lambda body: MUTATION if body.get("cursor") else page("c1", more=True)]
    pages, error = await pulled(script)
    assert pages == []
    assert isinstance(error, RetryLater)
    assert "itm_a" in str(error)
    assert script.cursors == ["", "c1"] * 7


async def test_a_cursor_that_does_not_move_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("apex_memory.sources.plaid.api.FIRST_WAIT", 0.001)
    pages, error = await pulled(Script(page("c1", more=True)))
    assert pages == []
    assert isinstance(error, RetryLater)


async def test_not_ready_leaves_the_cursor() -> None:
    for before in ({}, {"version": 7, "items": {"itm_a": {"cursor": "c1"}}}):
        pages, error = await pulled(Script(page("")), cursor=before)
        assert error is None
        assert keys(pages) == []
        after = dict(pages[-1].cursor or {}) if pages else before
        held = {"itm_a": {"cursor": "c1" if before else ""}}
        assert after["items"] == held


async def test_nothing_new_is_no_page() -> None:
    cursor = {"version": 5, "items": {"itm_a": {"cursor": "c1"}}}
    assert await pulled(Script(page("c1")), cursor=cursor) == ([], None)


async def test_versions_grow_though_the_clock_goes_back() -> None:
    ahead = micros(now() + timedelta(days=1))
    cursor = {"version": ahead, "items": {"itm_a": {"cursor": "c1"}}}
    (only,), _ = await pulled(Script(page("c2", added=[record("t1")])), cursor=cursor)
    assert only.events[0].version == ahead + 1


async def test_a_loop_whose_commit_was_lost_may_come_again_with_other_content() -> None:
    """A worker dies before the page and its cursor are committed. The next pull uses the old cursor and gets other content."""
    first, _ = await pulled(Script(page("c1", added=[record("t1", name="before")])))
    again, _ = await pulled(Script(page("c1b", added=[record("t1", name="after")])))
    earlier, later = first[0].events[0], again[0].events[0]
    assert earlier.doc_key == later.doc_key
    assert earlier.version < later.version
    assert earlier.event_id != later.event_id


async def test_a_record_that_cannot_be_read_stops_nobody() -> None:
    wrong = [record("t1", amount="much"), {"amount": 1}, 5, record("t2", date="soon"), record("t3")]
    (only,), error = await pulled(Script(page("c1", added=wrong)))
    assert error is None
    kinds = [event.content_type for event in only.events]
    assert kinds == ["application/json", MALFORMED, MALFORMED, MALFORMED, MALFORMED]
    assert only.events[0].doc_key == "transaction:t3"


# Items


def by_token(**answers: dict[str, Any]) -> Script:
    return Script(lambda body: answers[body["access_token"].removeprefix("token-")])


async def test_one_item_that_fails_does_not_stop_the_others() -> None:
    script = by_token(a=LOGIN, b=page("b1", added=[record("t1")]))
    pages, error = await pulled(script, items=TWO)
    assert keys(pages) == ["item:itm_a", "transaction:t1"]
    assert isinstance(error, Unauthorized)
    assert "itm_a: ITEM_LOGIN_REQUIRED" in str(error)
    document = source().document(pages[0].events[0])
    assert document.kind == "bank_item"
    assert "State: item login required" in document.text
    assert "log in again" in document.text
    cursor = dict(pages[-1].cursor or {})
    again, error = await pulled(by_token(a=LOGIN, b=page("b1")), items=TWO, cursor=cursor)
    assert again == [], "the state is reported once"
    assert isinstance(error, Unauthorized)
    works = by_token(a=page("a1"), b=page("b1"))
    (repaired,), error = await pulled(works, items=TWO, cursor=cursor)
    assert error is None
    assert "State: works" in source().document(repaired.events[0]).text
    assert repaired.events[0].version > pages[0].events[0].version


async def test_a_transient_error_leaves_the_change_hint_and_is_tried_again() -> None:
    down = {"error_type": "INSTITUTION_ERROR", "error_code": "INSTITUTION_DOWN"}
    change_hints = [ChangeHint("itm_a"), ChangeHint("itm_b")]
    pages, error = await pulled(
        by_token(a=down, b=page("b1", added=[record("t1")])), items=TWO, change_hints=change_hints
    )
    assert isinstance(error, RetryLater)
    assert [page.acknowledged for page in pages] == [[change_hints[1]]]


async def test_wrong_keys_of_our_own_stop_all() -> None:
    pages, error = await pulled(
        Script({"error_type": "INVALID_INPUT", "error_code": "INVALID_API_KEYS"}), items=TWO
    )
    assert pages == []
    assert isinstance(error, Unauthorized)
    assert "sources.plaid.client_id" in error.remedy


async def test_hinted_items_come_first_and_hints_of_strangers_are_acknowledged() -> None:
    change_hints = [ChangeHint("itm_b"), ChangeHint("itm_gone"), ChangeHint("item:itm_b")]
    script = by_token(a=page("a1"), b=page("b1"))
    pages, error = await pulled(script, items=TWO, change_hints=change_hints)
    assert error is None
    assert [page.acknowledged for page in pages] == [
        [change_hints[1]],
        [change_hints[0], change_hints[2]],
        [],
    ]
    assert [body["access_token"] for body in script.requests] == ["token-b", "token-a"]
    assert keys(pages) == ["item:itm_b"], (
        "Plaid reported the connection: its present state is an event"
    )


async def test_a_backfill_lists_the_days_and_leaves_the_cursor() -> None:
    many = [record(f"t{n}") for n in range(505)]

    def answer(body: dict[str, Any]) -> dict[str, Any]:
        start = body["options"]["offset"]
        return {"transactions": many[start : start + 500], "total_transactions": 505}

    script = Script(answer)
    window = BackfillRange(datetime(2025, 11, 1, tzinfo=UTC), datetime(2025, 11, 8, tzinfo=UTC))
    pages, error = await pulled(script, window=window, change_hints=[ChangeHint("itm_a")])
    assert error is None
    assert set(keys(pages)) == {f"transaction:t{n}" for n in range(505)}
    assert [body["start_date"] for body in script.requests] == ["2025-11-01"] * 2
    assert [body["end_date"] for body in script.requests] == ["2025-11-07"] * 2
    assert [page.cursor for page in pages] == [{"item": "itm_a", "offset": 490}, None]
    rest, _ = await pulled(script, window=window, cursor=dict(pages[0].cursor or {}))
    assert len(keys(rest)) == 15


def test_what_is_missing_is_named() -> None:
    unset = load({})["plaid"]
    assert isinstance(unset, PlaidSource)
    assert unset.missing_settings == "client_id"
    assert source(items=[]).missing_settings == "items"
    assert source().missing_settings == ""


# Webhooks


def posted(headers: dict[str, str], body: bytes = VECTOR, at: datetime = AT) -> InboundRequest:
    return InboundRequest(body, {name.lower(): value for name, value in headers.items()}, {}, at)


async def keyed(kid: str = MORNING_KEY, **changes: Any) -> PlaidSource:
    """Return a source that has fetched this key from Plaid. `changes` replace fields of the key."""
    async with (
        serve_simulators([Script({"key": {**jwk(kid), **changes}})]) as served,
        vendor_client("plaid") as client,
    ):
        plaid = source(f"{served.url}/plaid")
        await plaid.fetch_verification_data(posted(signature(kid, VECTOR, AT)), client)
        return plaid


async def test_the_vector() -> None:
    wanted = "3f27d94654bd80a5502980efb64200ab92b4241251106ffd6f909c2284edbf45"
    assert hashlib.sha256(VECTOR).hexdigest() == wanted
    plaid = await keyed()
    received = plaid.receive(posted(signature(MORNING_KEY, VECTOR, AT)))
    assert received.change_hints == [ChangeHint("itm_example_0001", AT)]
    assert received.events == ()
    assert received.reply is not None and received.reply.status == 200
    compact = json.dumps(json.loads(VECTOR), separators=(",", ":")).encode()
    assert hashlib.sha256(compact).hexdigest().startswith("bf3ab19a")
    with pytest.raises(Unauthorized, match="not the one that was signed"):
        plaid.receive(posted(signature(MORNING_KEY, VECTOR, AT), compact))


@pytest.mark.parametrize(("seconds", "allowed"), [(300, True), (-300, True), (301, False), (-301, False)])  # fmt: skip
async def test_the_replay_window(seconds: int, allowed: bool) -> None:
    request = posted(signature(MORNING_KEY, VECTOR, AT), at=AT + timedelta(seconds=seconds))
    plaid = await keyed()
    if allowed:
        assert plaid.receive(request).change_hints
    else:
        with pytest.raises(Unauthorized, match="301 s away"):
            plaid.receive(request)


def forged(algorithm: str) -> str:
    claims = {"iat": int(AT.timestamp()), "request_body_sha256": hashlib.sha256(VECTOR).hexdigest()}
    return jwt.encode(claims, "k" * 32, algorithm=algorithm, headers={"kid": MORNING_KEY})


def part(value: Any) -> str:
    return base64.urlsafe_b64encode(json.dumps(value).encode()).rstrip(b"=").decode()


BAD = {
    "unsigned": "",
    "no token": "x.y",
    "algorithm none": jwt.encode({"iat": 1}, "", algorithm="none", headers={"kid": MORNING_KEY}),
    "algorithm HS256": forged("HS256"),
    "HS256 called ES256": part({"alg": "ES256", "kid": MORNING_KEY}) + "." + forged("HS256").split(".", 1)[1],
    "another's key": signature(NOON_KEY, VECTOR, AT)["Plaid-Verification"],
    "key id no text": part({"alg": "ES256", "kid": ["x"]}) + ".e30.c2ln",
    "header too deep": base64.urlsafe_b64encode(b"[" * 2_500).decode() + ".e30.c2ln",
    "no claims": part({"alg": "ES256", "kid": MORNING_KEY}) + ".W10.c2ln",
    "not ASCII": "é.é.é",
}  # fmt: skip


@pytest.mark.parametrize("what", BAD)
async def test_only_plaid_is_let_in(what: str) -> None:
    plaid = await keyed()
    request = posted({"plaid-verification": BAD[what]})
    async with vendor_client("plaid") as client:
        if what != "another's key":
            await plaid.fetch_verification_data(request, client)  # must bear anything
    with pytest.raises(Unauthorized) as refused:
        plaid.receive(request)
    assert refused.value.remedy


async def test_a_token_without_time_is_refused() -> None:
    plaid = source()
    made = plaid.sign(VECTOR, AT)["plaid-verification"]
    kid = jwt.get_unverified_header(made)["kid"]
    assert plaid._keys._own is not None
    _, private = plaid._keys._own
    digest = hashlib.sha256(VECTOR).hexdigest()
    for claims in ({"request_body_sha256": digest}, {"iat": True, "request_body_sha256": digest}):
        token = jwt.encode(claims, private, algorithm="ES256", headers={"kid": kid})
        with pytest.raises(Unauthorized):
            plaid.receive(posted({"plaid-verification": token}))


@pytest.mark.parametrize(
    "changes", [{"alg": "RS256"}, {"kid": "other"}, {"crv": "P-384"}, {"x": "!"}]
)
async def test_a_key_of_another_kind_is_no_key(changes: dict[str, Any]) -> None:
    plaid = await keyed(**changes)
    with pytest.raises(Unauthorized, match="is unknown, or was not fetched"):
        plaid.receive(posted(signature(MORNING_KEY, VECTOR, AT)))


async def test_an_expired_key_is_refused() -> None:
    plaid = await keyed(EXPIRED_KEY)
    with pytest.raises(Unauthorized, match="expired"):
        plaid.receive(posted(signature(EXPIRED_KEY, VECTOR, AT)))
    later = await keyed(expired_at=int(AT.timestamp()) + 60)
    assert later.receive(posted(signature(MORNING_KEY, VECTOR, AT))).change_hints
    with pytest.raises(Unauthorized, match="expired"):
        at = AT + timedelta(seconds=60)
        later.receive(posted(signature(MORNING_KEY, VECTOR, at), at=at))


async def test_keys_are_fetched_once_and_unknown_ones_seldom() -> None:
    script = Script(lambda body: {"key": jwk(body["key_id"])} if body["key_id"] == MORNING_KEY else
                    {"error_type": "INVALID_INPUT", "error_code": "INVALID_WEBHOOK_VERIFICATION_KEY_ID"})  # fmt: skip
    async with serve_simulators([script]) as served, vendor_client("plaid") as client:
        plaid = source(f"{served.url}/plaid")
        good = posted(signature(MORNING_KEY, VECTOR, AT))
        await asyncio.gather(*(plaid.fetch_verification_data(good, client) for _ in range(10)))
        assert len(script.requests) == 1
        for n in range(40):
            token = part({"alg": "ES256", "kid": f"made-up-{n}"}) + ".e30.c2ln"
            forged = plaid.fetch_verification_data(posted({"plaid-verification": token}), client)
            if n < 4:
                await forged
            else:
                with pytest.raises(RetryLater, match="unknown keys"):  # a genuine one comes again
                    await forged
        assert len(script.requests) == 5, "an attacker cannot make us hammer Plaid"
        assert plaid.receive(good).change_hints, "what is known goes on"


async def test_a_key_is_looked_at_again_after_a_day() -> None:
    script = Script({"key": jwk(MORNING_KEY)}, {"key": {**jwk(MORNING_KEY), "expired_at": 5}})
    async with serve_simulators([script]) as served, vendor_client("plaid") as client:
        plaid, request = source(f"{served.url}/plaid"), posted(signature(MORNING_KEY, VECTOR, AT))
        await plaid.fetch_verification_data(request, client)
        assert plaid.receive(request).change_hints
        (kid, key), *_ = plaid._keys._known.items()
        plaid._keys._known[kid] = replace(key, fetched=key.fetched - 90_000)
        await plaid.fetch_verification_data(request, client)
        with pytest.raises(Unauthorized, match="expired"):
            plaid.receive(request)


async def test_plaid_away_is_no_refusal() -> None:
    async with vendor_client("plaid") as client:
        with pytest.raises(RetryLater):
            await source().fetch_verification_data(
                posted(signature(MORNING_KEY, VECTOR, AT)), client
            )


def received(body: Any, at: datetime = AT) -> Any:
    plaid, raw = source(), json.dumps(body, indent=2).encode()
    return plaid.receive(posted(dict(plaid.sign(raw, at)), raw, at))


@pytest.mark.parametrize(
    "code", ["INITIAL_UPDATE", "HISTORICAL_UPDATE", "DEFAULT_UPDATE", "TRANSACTIONS_REMOVED"]
)
def test_older_codes_are_taken_and_ignored(code: str) -> None:
    result = received({"webhook_type": "TRANSACTIONS", "webhook_code": code, "item_id": "itm_a"})
    assert (result.events, result.change_hints, result.reply.status) == ((), (), 200)


def test_item_errors_are_kept_and_checked_again() -> None:
    body = {"webhook_type": "ITEM", "webhook_code": "ERROR", "item_id": "itm_a", "error": LOGIN}
    result, later = received(body), received(body, AT + timedelta(days=9))
    assert result.change_hints == [ChangeHint("item:itm_a", AT)]
    (event,), (again,) = result.events, later.events
    assert event.doc_key == again.doc_key == "item:itm_a"
    assert event.version < again.version
    assert event.event_id != again.event_id, "the same error, another time"
    assert received(body).events == result.events, "a redelivery is a duplicate"
    assert "Code: ITEM_LOGIN_REQUIRED" in source().document(event).text
    notice = received({**body, "webhook_code": "PENDING_EXPIRATION", "error": None})
    assert notice.events[0].doc_key == "item:itm_a:PENDING_EXPIRATION"
    assert notice.change_hints == []


def test_s10_a_sync_notice_of_a_processor_is_accepted_and_ignored() -> None:
    body = {"webhook_type": "TRANSACTIONS", "webhook_code": "SYNC_UPDATES_AVAILABLE"}
    result = received({**body, "account_id": "acc_1", "initial_update_complete": True})
    assert result.reply is not None and result.reply.status == 200
    assert (result.events, result.change_hints) == ((), ())


def test_s10_an_acknowledgement_is_a_notice_and_no_state() -> None:
    body = {
        "webhook_type": "ITEM",
        "webhook_code": "WEBHOOK_UPDATE_ACKNOWLEDGED",
        "item_id": "itm_a",
        "new_webhook_url": "https://hooks.example.com/plaid",
        "error": None,
    }
    result = received(body)
    (event,) = result.events
    document = source().document(event)
    assert event.doc_key == "item:itm_a:WEBHOOK_UPDATE_ACKNOWLEDGED"
    assert "works" not in document.metadata
    assert {(assertion.predicate, assertion.value) for assertion in document.assertions} == {
        ("notice", "webhook update acknowledged")
    }
    assert "https://hooks.example.com/plaid" in document.text
    assert "What to do" not in document.text
    assert result.change_hints == []
    broken = received({**body, "error": LOGIN})
    assert broken.change_hints == [ChangeHint("item:itm_a", AT)], "its error is checked"


def test_the_state_of_a_connection_comes_from_errors_and_repairs_alone() -> None:
    for code in ("PENDING_EXPIRATION", "NEW_ACCOUNTS_AVAILABLE", "SOMETHING_NEW"):
        (event,) = received({"webhook_type": "ITEM", "webhook_code": code, "item_id": "i"}).events
        document = source().document(event)
        assert "works" not in document.metadata
        assert [assertion.predicate for assertion in document.assertions] == ["notice"]
    for code, works in (("LOGIN_REPAIRED", True), ("USER_PERMISSION_REVOKED", False)):
        (event,) = received({"webhook_type": "ITEM", "webhook_code": code, "item_id": "i"}).events
        document = source().document(event)
        assert document.metadata["works"] is works
        assert [assertion.predicate for assertion in document.assertions] == ["status"]


def test_a_revoked_account_is_named_and_has_a_key_of_its_own() -> None:
    body = {"webhook_type": "ITEM", "webhook_code": "USER_ACCOUNT_REVOKED", "item_id": "itm_a"}
    events = [received({**body, "account_id": id}).events[0] for id in ("acc_1", "acc_2")]
    assert events[0].doc_key != events[1].doc_key
    assert "Account: acc_2" in source().document(events[1]).text


def test_a_pending_disconnect_has_its_time() -> None:
    body = {"webhook_type": "ITEM", "webhook_code": "PENDING_DISCONNECT", "item_id": "itm_a"}
    more = {"reason": "INSTITUTION_MIGRATION", "disconnect_time": "2025-12-01T10:00:00Z"}
    document = source().document(received({**body, **more}).events[0])
    assert "At: 2025-11-20 12:00 UTC" in document.text
    assert "Disconnect time: 2025-12-01T10:00:00Z" in document.text


@pytest.mark.parametrize(
    "body",
    [
        [],
        "x",
        {"webhook_type": "TRANSACTIONS", "webhook_code": "SYNC_UPDATES_AVAILABLE", "item_id": {}},
        {"webhook_type": "ITEM", "webhook_code": "ERROR"},
        {"webhook_type": "ITEM", "webhook_code": "ERROR", "item_id": {}},
        {"webhook_type": "ITEM", "webhook_code": 5, "item_id": "itm_a"},
    ],
)
def test_malformed_bodies_are_rejected(body: Any) -> None:
    with pytest.raises(Rejected):
        received(body)


# Documents


def document_of(**more: Any) -> Document:
    account = {"account_id": "acc", "name": "Operating Checking", "mask": "4501", "type": "x"}
    payload = {"item_id": "itm_a", "transaction": record("tX9", **more), "account": account}
    event = Event(source="plaid", event_id="e", doc_key="transaction:tX9", version=1, occurred_at=AT, payload=json.dumps(payload).encode())  # fmt: skip
    return source().document(event)


def test_the_document_of_a_payment_reads_well_and_names_what_it_pays() -> None:
    document = document_of(
        amount=-2060.0,
        name="ACH CREDIT EXAMPLE PAPER CO INV55045",
        merchant_name="Example Paper Co",
        payment_meta={"reason": "INV-55046 and INV-55045"},
    )
    assert document.title == "Example Paper Co: 2,060.00 USD received"
    assert document.about == "payment:tX9"
    assert document.text == (
        "Bank transaction: 2,060.00 USD received, posted\nReceived from: Example Paper Co\n"
        "Date: 2025-11-03\nAccount: Operating Checking …4501\nAccount id: acc\nTransaction: tX9\n"
        "Account type: x\n\n"
        "ACH CREDIT EXAMPLE PAPER CO INV55045\nINV-55046 and INV-55045"
    )
    assert set(document.assertions) == {
        Assertion(subject="payment:tX9", predicate="amount", value="2,060.00 USD"),
        Assertion(subject="payment:tX9", predicate="status", value="posted"),
        Assertion(subject="payment:tX9", predicate="account", object="account:acc"),
        Assertion(subject="account:acc", predicate="name", value="Operating Checking …4501"),
        Assertion(subject="payment:tX9", predicate="paid_by", object="company:Example Paper Co"),
        Assertion(subject="payment:tX9", predicate="pays", object="invoice:INV-55045"),
        Assertion(subject="payment:tX9", predicate="pays", object="invoice:INV-55046"),
    }


def test_unknown_fields_pass_and_odd_ones_do_no_harm() -> None:
    document = document_of(
        surprise=[1], payment_meta="x", location=5, counterparties={}, pending=True
    )
    assert "pending" in document.text


# The official SDK against the simulator


async def test_the_sdk_reads_the_simulator() -> None:
    world = World.make(3, shipments=4)
    clock = Clock(world.start + timedelta(hours=18))
    async with serve_simulators([PlaidSimulator(world, clock, Chaos())]) as served:
        read = await asyncio.to_thread(_read_by_sdk, f"{served.url}/plaid")
    assert len(read["loop"]) > 1
    final = {item.transaction_id for item in read["all"]}
    assert final == {item.transaction_id for item in read["history"]}
    assert read["key"].kid == NOON_KEY
    assert read["refused"] == "INVALID_ACCESS_TOKEN"


def _read_by_sdk(url: str) -> dict[str, Any]:
    configuration = sdk.Configuration(host=url, api_key={"clientId": CLIENT_ID, "secret": SECRET})
    with sdk.ApiClient(configuration) as client:
        api = PlaidApi(client)
        token = next(token for token, item in TOKENS.items() if item == PAYABLES)
        cursor, loop, held = "", [], []
        while True:
            answer = api.transactions_sync(
                TransactionsSyncRequest(access_token=token, cursor=cursor, count=100)
            )
            loop.append(answer)
            held += answer.added
            cursor = answer.next_cursor
            if not answer.has_more:
                break
        day = datetime(2026, 11, 2, tzinfo=UTC).date()
        history = api.transactions_get(
            TransactionsGetRequest(access_token=token, start_date=day, end_date=day + timedelta(2))
        )
        key = api.webhook_verification_key_get(WebhookVerificationKeyGetRequest(key_id=NOON_KEY))
        try:
            api.transactions_sync(TransactionsSyncRequest(access_token="unknown", cursor=""))
            refused = ""
        except sdk.ApiException as error:
            refused = json.loads(error.body)["error_code"]
    return {
        "loop": loop,
        "all": held,
        "history": history.transactions,
        "key": key.key,
        "refused": refused,
    }


async def _naive(url: str, chaos: Chaos) -> set[str]:
    """Return the ids that a naive client holds: it applies each page at once, also those of a loop that breaks."""
    chaos.mutations = 1.0
    token, held, cursor = next(iter(TOKENS)), set[str](), ""
    headers = {"PLAID-CLIENT-ID": CLIENT_ID, "PLAID-SECRET": SECRET}
    async with httpx2.AsyncClient(headers=headers) as http:
        for _ in range(200):
            request = {"access_token": token, "cursor": cursor}
            answer = (await http.post(f"{url}/transactions/sync", json=request)).json()
            if "error_code" in answer:
                chaos.off()
                cursor = ""
                continue
            held |= {transaction["transaction_id"] for transaction in answer["added"]}
            held -= {transaction["transaction_id"] for transaction in answer["removed"]}
            cursor = answer["next_cursor"]
            if not answer["has_more"]:
                break
    return held


async def test_what_changes_between_pages_is_read_right(monkeypatch: pytest.MonkeyPatch) -> None:
    """The control: a client that keeps the pages of a broken loop holds transactions that do not exist."""
    monkeypatch.setattr("apex_memory.sources.plaid.api.FIRST_WAIT", 0.001)
    world = World.make(3, shipments=6)
    simulator = PlaidSimulator(world, Clock(world.start + timedelta(hours=18)), Chaos(seed=4))
    truth = {item.doc_key for item in simulator.truth(simulator.clock.now) if not item.deleted}
    simulator.chaos.mutations = 0.5
    async with serve_simulators([simulator]) as served, vendor_client("plaid") as client:
        base = f"{served.url}/plaid"
        configured = source(**simulator.settings(base))
        events: list[Event] = []
        async for page in configured.pull(PullContext(client=client)):
            events += page.events
        naive = await _naive(base, simulator.chaos)
    assert {event.doc_key for event in events} == truth
    assert any(id.startswith("txPhantom") for id in naive)


@pytest.mark.parametrize(
    ("amount", "currency", "shown"),
    [
        (12.345, {"iso_currency_code": "KWD"}, "12.345 KWD"),
        (-125000, {"iso_currency_code": "JPY"}, "125,000 JPY"),
        (0.00042, {"iso_currency_code": None, "unofficial_currency_code": "BTC"}, "0.00042 BTC"),
    ],
)
def test_an_amount_keeps_the_decimals_of_its_currency(
    amount: float, currency: dict[str, Any], shown: str
) -> None:
    payload = {"item_id": "itm_a", "transaction": record("t1", amount=amount, **currency)}
    document = transaction_document(payload)
    assert shown in document.title and f"Bank transaction: {shown}" in document.text
    assert Assertion(subject="payment:t1", predicate="amount", value=shown) in document.assertions


async def test_a_long_wait_for_one_item_does_not_hold_the_others() -> None:
    class Busy(Script):
        async def _answer(self, request: HttpRequest) -> Response:
            response = await super()._answer(request)
            if self.requests[-1]["access_token"] == "token-a":
                body = {
                    "error_type": "RATE_LIMIT_EXCEEDED",
                    "error_code": "TRANSACTIONS_SYNC_LIMIT",
                }
                return JSONResponse(body, 429, {"Retry-After": "3600"})
            return response

    script = Busy(page("c1", added=[record("t1")]))
    async with asyncio.timeout(20):
        pages, error = await pulled(script, items=TWO)
    assert "transaction:t1" in keys(pages), "the other Item is read"
    assert isinstance(error, RetryLater) and error.after == 3600


def test_a_time_that_cannot_be_read_and_an_amount_as_text_cost_no_payment() -> None:
    odd = record("t1", amount="-1,245.50", datetime="soon", authorized_datetime="")
    document = transaction_document({"item_id": "itm_a", "transaction": odd})
    assert document.occurred_at == datetime(2025, 11, 3, tzinfo=UTC)
    assert document.metadata["amount"] == -1245.5 and "1,245.50 USD received" in document.title
    for wrong in ({"amount": "much"}, {"date": "soon"}, {"date": None}):
        with pytest.raises(Rejected):
            transaction_document({"item_id": "itm_a", "transaction": record("t1", **wrong)})
