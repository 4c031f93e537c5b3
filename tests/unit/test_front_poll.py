"""The poll of Front's `/events`: what it adds to the webhooks, where it goes on, and whom it trusts."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

import pytest
from starlette.requests import Request as HttpRequest
from starlette.responses import Response
from starlette.routing import Route

from apex_memory.errors import Rejected, Unauthorized
from apex_memory.model import MALFORMED, TOMBSTONE, Event, micros, now
from apex_memory.simulate.frontapp.simulator import FrontSimulator
from apex_memory.simulate.server import serve_simulators
from apex_memory.simulate.vendor import Chaos
from apex_memory.simulate.world import Clock, World
from apex_memory.sources.base import InboundRequest
from apex_memory.sources.frontapp.source import FrontApp
from apex_memory.sources.pages import BackfillRange, ChangeHint, Page, PullContext
from apex_memory.sources.registry import load
from tests.unit import vendors
from tests.unit.vendors import Played, vendor_client

START = 1_761_955_200.0
Answer = dict[str, Any] | tuple[int, dict[str, Any]]


class Script(Played):
    """A Front with a response for each path (a list: one after the other). It keeps the requests."""

    name = "frontapp"

    def __init__(self, **answers: Any) -> None:
        super().__init__()
        self.answers = {f"/{path.replace('__', '/')}": answer for path, answer in answers.items()}
        self.requests: list[str] = []
        self.tokens: set[str | None] = set()

    def routes(self) -> Sequence[Route]:
        return [Route("/{path:path}", self._answer)]

    async def _answer(self, request: HttpRequest) -> Response:
        path = "/" + request.path_params["path"]
        self.requests.append(path + (f"?{request.url.query}" if request.url.query else ""))
        self.tokens.add(request.headers.get("authorization"))
        answer = self.answers.get(path, (404, {}))
        if isinstance(answer, list):
            answer = answer.pop(0) if len(answer) > 1 else answer[0]
        status, body = answer if isinstance(answer, tuple) else (200, answer)
        own = f"{request.url.scheme}://{request.url.netloc}/frontapp"
        text = json.dumps(body).replace("OWN", own)
        headers = {"location": json.loads(text)["location"]} if status == 301 else {}
        return Response(text, status, headers, "application/json")


def front(base: str = "http://127.0.0.1:1", **more: Any) -> FrontApp:
    known = {"api_token": "token-1", "base_url": base, "requests_per_minute": 60_000}
    source = load({"frontapp": {"signing_keys": ["key-1"], **known, **more}})["frontapp"]
    assert isinstance(source, FrontApp)
    return source


pulled = partial(vendors.pulled, front)


def record_of(id: str, at: float = 0, kind: str = "archive", **more: Any) -> dict[str, Any]:
    state = {"id": "cnv_1", "subject": "ETA?", "status": "archived"}
    return {"id": id, "type": kind, "emitted_at": START + at, "conversation": state, **more}


def mail(id: str = "msg_1", **more: Any) -> dict[str, Any]:
    return {"_meta": {"type": "message"}, "data": {"id": id, **more}}


def listed(*events: Any, next: str | None = None) -> dict[str, Any]:
    return {"_pagination": {"next": next}, "_results": list(events)}


def ids(pages: Sequence[Page]) -> list[str]:
    return [event.event_id for page in pages for event in page.events]


def cursor(at: float, **seen: float) -> dict[str, Any]:
    known = {id: round((START + time) * 1e6) for id, time in seen.items()}
    return {"after": round((START + at) * 1e6), "seen": known}


def position(page: Page) -> dict[str, Any] | None:
    """Return the cursor of a page without the digests of what was listed."""
    if page.cursor is None:
        return None
    assert set(page.cursor["contents"]) <= set(page.cursor["seen"])
    return {name: value for name, value in page.cursor.items() if name != "contents"}


HERE = cursor(0, evt_0=0)


# Where it goes on


async def test_pages_follow_next_as_it_is_given() -> None:
    following = "OWN/events?page_token=a%2Bb%3D%3D&limit=15&x=%5B%5D"
    script = Script(
        events=[listed(record_of("evt_1", 1), next=following), listed(record_of("evt_2", 2))]
    )
    pages, error = await pulled(script, cursor=HERE)
    assert error is None
    assert ids(pages) == ["evt_1", "evt_2"]
    assert script.requests == [
        f"/events?q%5Bafter%5D={int(START) - 300}&sort_by=created_at&sort_order=asc&limit=15",
        "/events?page_token=a%2Bb%3D%3D&limit=15&x=%5B%5D",
    ]
    assert script.tokens == {"Bearer token-1"}
    assert position(pages[-1]) == cursor(2, evt_0=0, evt_1=1, evt_2=2)


async def test_equal_times_at_a_page_edge_are_all_taken() -> None:
    """The worker is killed after the first page: the next pull starts before the tie and skips what it has."""
    first = listed(record_of("evt_1", 1), record_of("evt_2", 1), next="OWN/events?page_token=2")
    pages, _ = await pulled(Script(events=[first, listed(record_of("evt_3", 1))]), cursor=HERE)
    assert position(pages[0]) == cursor(1, evt_0=0, evt_1=1, evt_2=1)
    script = Script(
        events=listed(record_of("evt_1", 1), record_of("evt_2", 1), record_of("evt_3", 1))
    )
    again, _ = await pulled(script, cursor=dict(pages[0].cursor or {}))
    assert ids(again) == ["evt_3"]


async def test_late_events_are_found_in_the_overlap() -> None:
    before = cursor(1_000, evt_1=990)
    script = Script(events=listed(record_of("evt_late", 800), record_of("evt_1", 990)))
    (only,), _ = await pulled(script, cursor=before)
    assert ids([only]) == ["evt_late"]
    assert position(only) == cursor(1_000, evt_late=800, evt_1=990)
    old = dict(cursor(2_000, **{f"evt_{n}": n for n in (100, 1_699, 1_701)}))
    (later,), _ = await pulled(Script(events=listed(record_of("evt_x", 2_000))), cursor=old)
    assert set((later.cursor or {})["seen"]) == {"evt_1701", "evt_x"}, (
        "what is past the overlap goes"
    )


async def test_nothing_new_is_no_page() -> None:
    assert await pulled(Script(events=listed(record_of("evt_0", 0))), cursor=HERE) == ([], None)


async def test_a_time_in_our_future_does_not_carry_the_cursor_there() -> None:
    ahead = now() + timedelta(days=400)
    event = {**record_of("evt_1"), "emitted_at": ahead.timestamp()}
    (only,), _ = await pulled(Script(events=listed(event)), cursor=HERE)
    assert ids([only]) == ["evt_1"]
    position = dict(only.cursor or {})
    assert position["after"] <= micros(now())
    assert "evt_1" in position["seen"]
    assert (await pulled(Script(events=listed(event)), cursor=position))[0] == []


async def test_while_front_does_not_sort_only_the_end_moves_the_cursor() -> None:
    newest_first = [
        listed(record_of("evt_3", 3), record_of("evt_2", 2), next="OWN/events?page_token=2"),
        listed(record_of("evt_1", 1)),
    ]
    pages, _ = await pulled(Script(events=newest_first), cursor=HERE)
    assert [position(page) for page in pages] == [
        None,
        cursor(3, evt_0=0, evt_1=1, evt_2=2, evt_3=3),
    ]


async def test_the_first_poll_starts_some_hours_before_the_newest_event() -> None:
    script = Script(events=[listed(record_of("evt_9", 9)), listed(record_of("evt_9", 9))])
    pages, _ = await pulled(script, first_poll_hours=2)
    assert ids(pages) == ["evt_9"]
    assert script.requests[0] == "/events?sort_by=created_at&sort_order=desc&limit=1"
    assert f"D={int(START) + 9 - 7_200 - 300}&" in script.requests[1]
    assert await pulled(Script(events=listed())) == ([], None), (
        "an empty Front is no reason to start"
    )


async def test_a_newest_event_without_a_readable_time_does_not_hold_the_first_poll() -> None:
    broken = {**record_of("evt_9"), "emitted_at": "soon"}
    (page,), error = await pulled(
        Script(events=[listed(broken), listed(broken, record_of("evt_8"))])
    )
    assert error is None
    assert [event.content_type for event in page.events] == [MALFORMED, "application/json"]


async def test_a_backfill_keeps_to_its_window_and_leaves_change_hints() -> None:
    since = datetime.fromtimestamp(START, UTC)
    window = BackfillRange(since, since + timedelta(hours=1))
    script = Script(
        events=[listed(record_of("evt_1", 1), next="OWN/events?page_token=2"), listed()]
    )
    pages, _ = await pulled(script, window=window, change_hints=[ChangeHint("evt_7")])
    assert ids(pages) == ["evt_1"]
    assert not any(page.acknowledged for page in pages)
    assert f"q%5Bbefore%5D={int(START) + 3_600}" in script.requests[0]


# Whom it trusts


@pytest.mark.parametrize(
    "url",
    [
        "https://evil.example/events?page_token=2",
        "http://acme.api.frontapp.com/events",
        "https://frontapp.com.evil.example/events",
        "https://evilfrontapp.com/events",
        "https://user@acme.api.frontapp.com/events",
        "https://evil.example\\.frontapp.com/events",
        "https://acme.api.frontapp.com:8443/events",
        "//evil.example/events",
        "file:///etc/passwd",
        "https://[bad/events",
        "",
        5,
    ],
)
async def test_the_token_goes_to_front_alone(url: Any) -> None:
    script = Script(events=listed(record_of("evt_1", 1), next=url))
    pages, error = await pulled(script, cursor=HERE)
    assert len(script.requests) == 1
    if url == "":
        assert error is None
    else:
        assert isinstance(error, Rejected)
        assert "base_url" in error.remedy
    assert ids(pages) in ([], ["evt_1"])


async def test_a_redirect_to_another_host_is_not_followed() -> None:
    preview = record_of("evt_1", 1, "inbound", target=mail())
    away = (301, {"location": "https://evil.example/messages/msg_1"})
    script = Script(events=listed(preview), messages__msg_1=away)
    (only,), error = await pulled(script, cursor=HERE)
    assert error is None
    assert [event.content_type for event in only.events] == ["application/json"]
    assert [item.hint.key for item in only.unfetched] == ["evt_1"]


async def test_a_token_that_is_refused_is_named_in_the_error() -> None:
    for status in (401, 403):
        pages, error = await pulled(Script(events=(status, {})), cursor=HERE)
        assert pages == []
        assert isinstance(error, Unauthorized)


# What it brings


def webhook(source: FrontApp, event: dict[str, Any]) -> tuple[Event, Sequence[ChangeHint]]:
    at = datetime.fromtimestamp(START, UTC)
    raw = json.dumps({"type": "x", "authorization": {"id": "cmp_1"}, "payload": event}).encode()
    received = source.receive(InboundRequest(raw, source.sign(raw, at), {}, at))
    return received.events[0], received.change_hints


@pytest.mark.parametrize(
    "event",
    [
        record_of("evt_1"),
        record_of("evt_1", 1.123, "inbound", target=mail(text="Where is SHP-100045?")),
        record_of("evt_1", 2, "trash"),
        record_of("evt_1", 3, "inbound", target=mail()),
    ],
)
async def test_poll_and_webhook_make_the_same_event(event: dict[str, Any]) -> None:
    source = front()
    by_webhook, _ = webhook(source, event)
    pages, _ = await pulled(Script(events=listed(event)), cursor=HERE)
    by_poll = pages[0].events[0]
    for field in (
        "id",
        "event_id",
        "doc_key",
        "version",
        "occurred_at",
        "priority",
        "content_type",
    ):
        assert getattr(by_webhook, field) == getattr(by_poll, field)
    assert source.document(by_webhook) == source.document(by_poll)


async def test_a_preview_is_kept_and_its_body_fetched() -> None:
    preview = record_of("evt_1", 1, "inbound", target=mail())
    whole = {"id": "msg_1", "type": "email", "text": "Where is SHP-100045?", "subject": "ETA?"}
    script = Script(events=listed(preview), messages__msg_1=whole)
    (only,), _ = await pulled(script, cursor=HERE)
    shown, fetched = only.events
    assert (shown.event_id, shown.doc_key) == ("evt_1", "conversation:cnv_1")
    assert (fetched.event_id, fetched.doc_key) == ("evt_1/msg_1", "message:msg_1")
    assert fetched.version == shown.version
    assert "Where is SHP-100045?" in front().document(fetched).text


async def test_a_webhooks_preview_is_fetched_by_its_change_hint() -> None:
    preview = record_of(
        "evt_1", 1, "comment", target={"_meta": {"type": "comment"}, "data": {"id": "com_1"}}
    )
    _, change_hints = webhook(front(), preview)
    assert change_hints == [ChangeHint("evt_1", datetime.fromtimestamp(START + 1, UTC))]
    script = Script(
        events__evt_1=preview,
        comments__com_1={"id": "com_1", "body": "Call T-204"},
        events=listed(),
    )
    (only,), _ = await pulled(script, cursor=HERE, change_hints=change_hints)
    assert only.acknowledged == change_hints
    assert ids([only]) == ["evt_1/com_1"]
    assert "Call T-204" in front().document(only.events[0]).text


async def test_without_a_token_there_are_no_change_hints() -> None:
    source = front(api_token="")
    assert source.missing_settings == "api_token"
    assert webhook(source, record_of("evt_1", 1, "inbound", target=mail()))[1] == []


@pytest.mark.parametrize(
    "event",
    [
        record_of("evt_1", 1, "inbound", target=mail(text="")),
        record_of("evt_1", 1, "archive"),
        record_of("evt_1", 1, "trash", target=mail()),
        record_of("evt_1", 1, "tag", target={"_meta": {"type": "tag"}, "data": {"id": "tag_1"}}),
    ],
)
def test_what_is_whole_gives_no_change_hint(event: dict[str, Any]) -> None:
    assert webhook(front(), event)[1] == []


async def test_what_is_gone_is_deleted_and_what_is_forbidden_left_alone() -> None:
    preview = record_of("evt_1", 1, "inbound", target=mail())
    (gone,), _ = await pulled(Script(events=listed(preview)), cursor=HERE)
    assert (gone.events[1].doc_key, gone.events[1].content_type) == ("message:msg_1", TOMBSTONE)
    script = Script(events=listed(preview, record_of("evt_2", 2)), messages__msg_1=(403, {}))
    (left,), error = await pulled(script, cursor=HERE)
    assert error is None
    assert ids([left]) == ["evt_1", "evt_2"]
    hint = ChangeHint("evt_7")
    assert await pulled(Script(events=listed()), cursor=HERE, change_hints=[hint]) == (
        [Page(events=[], acknowledged=[hint])],
        None,
    )


async def test_a_merged_conversation_leads_to_the_surviving_one() -> None:
    thin = {**record_of("evt_1", 1, "inbound", target=mail()), "conversation": {"id": "cnv_old"}}
    script = Script(
        events=listed(thin),
        messages__msg_1={"id": "msg_1", "text": "Any news?"},
        conversations__cnv_old=(301, {"location": "OWN/conversations/cnv_1"}),
        conversations__cnv_1={"id": "cnv_1", "subject": "ETA?", "status": "assigned"},
    )
    (only,), _ = await pulled(script, cursor=HERE)
    document = front().document(only.events[1])
    assert (document.parent, document.title) == ("conversation:cnv_1", "ETA?")


async def test_a_merge_records_what_became_of_the_other_conversation() -> None:
    target = {
        "_meta": {"type": "deleted_conversation_ids"},
        "data": ["cnv_2", {"id": "cnv_3"}, 5, "x"],
    }
    event = record_of("evt_1", 1, "conversations_merged", target=target)
    (only,), _ = await pulled(Script(events=listed(event)), cursor=HERE)
    assert ids([only]) == ["evt_1", "evt_1/cnv_2", "evt_1/cnv_3"]
    document = front().document(only.events[1])
    assert only.events[1].doc_key == "conversation:cnv_2"
    assert "Merged into: cnv_1" in document.text
    (assertion,) = document.assertions
    assert (assertion.subject, assertion.predicate, assertion.object) == (
        "conversation:cnv_2",
        "same_as",
        "conversation:cnv_1",
    )


async def test_a_record_that_cannot_be_read_stops_nobody() -> None:
    records = [5, {"id": "evt_x"}, record_of("evt_1", 1, conversation={}), record_of("evt_2", 2)]
    bad = record_of("evt_3", 3, "inbound", target=mail("msg_3"))
    script = Script(events=listed(*records, bad), messages__msg_3=(400, {}))
    (only,), error = await pulled(script, cursor=HERE)
    assert error is None
    kinds = [event.content_type == MALFORMED for event in only.events]
    assert kinds == [True, True, True, False, False]
    assert [item.hint.key for item in only.unfetched] == ["evt_3"]
    assert (only.cursor or {})["after"] == round((START + 3) * 1e6)


# The simulator


async def test_the_simulator_is_read_whole_in_pages_of_fifteen() -> None:
    world = World.make(3, shipments=8)
    simulator = FrontSimulator(world, Clock(world.start + timedelta(hours=20)), Chaos())
    async with serve_simulators([simulator]) as served, vendor_client("frontapp") as client:
        source = load({"frontapp": simulator.settings(f"{served.url}/frontapp")})["frontapp"]
        assert isinstance(source, FrontApp)
        pages = [page async for page in source.pull(PullContext(client=client))]
    assert len(pages) > 2
    known = [event.id for event in simulator._events]
    assert [id for id in ids(pages) if "/" not in id] == known
    fetched = {
        event.doc_key for page in pages for event in page.events if "/msg_" in event.event_id
    }
    assert fetched == {f"message:msg_{shipment.number}a5" for shipment in world.shipments}


@pytest.mark.parametrize("refusal", [(400, {}), (422, {})])
async def test_s2_an_event_that_front_refuses_is_a_dead_letter_and_stops_nothing(
    refusal: tuple[int, dict[str, Any]],
) -> None:
    script = Script(events__evt_1=refusal, events=listed(record_of("evt_2", 5)))
    hints = [ChangeHint("evt_1", datetime.fromtimestamp(START, UTC))]
    pages, _ = await pulled(script, cursor=HERE, change_hints=hints)
    assert [item.hint for item in pages[0].unfetched] == hints
    assert isinstance(pages[0].unfetched[0].reason, Rejected)
    assert [event.event_id for page in pages[1:] for event in page.events] == ["evt_2"]


async def test_a_message_that_is_gone_for_good_is_deleted() -> None:
    preview = record_of("evt_1", 1, "inbound", target=mail())
    script = Script(events=listed(preview), messages__msg_1=(410, {}))
    (gone,), error = await pulled(script, cursor=HERE)
    assert error is None
    assert (gone.events[1].doc_key, gone.events[1].content_type) == ("message:msg_1", TOMBSTONE)


async def test_pages_that_lead_back_to_an_earlier_one_end_the_pull() -> None:
    there, back = "OWN/events?page_token=2", "OWN/events?page_token=3"
    around = [listed(record_of(f"evt_{n}", n), next=url) for n, url in enumerate((there, back, there, back, there, back), 1)]  # fmt: skip
    script = Script(events=around)
    pages, error = await pulled(script, cursor=HERE)
    assert isinstance(error, Rejected) and len(script.requests) == 3
    assert ids(pages) == ["evt_1", "evt_2"]
