"""Front: both webhooks' signatures, and what each event becomes."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import time
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from apex_memory.errors import Misconfigured, Rejected, Unauthorized
from apex_memory.model import Assertion, Document, Event, micros
from apex_memory.sources.base import InboundRequest
from apex_memory.sources.frontapp.documents import (
    FrontEvent,
    conversation_document,
    message_document,
)
from apex_memory.sources.frontapp.source import FrontApp
from apex_memory.sources.payloads import plain_text
from apex_memory.sources.registry import load

AT = datetime.fromtimestamp(1761955201, UTC)


def front(**settings: Any) -> FrontApp:
    source = load({"frontapp": settings})["frontapp"]
    assert isinstance(source, FrontApp)
    return source


KEYED = front(signing_keys=["key-1", "key-2"])
APPLICATION = InboundRequest(
    body=b'{"type":"sync","authorization":{"id":"cmp_9x2k"}}',
    headers={
        "x-front-request-timestamp": "1761955200123",
        "x-front-signature": "1j+y0TR1mHAQzSmhzSmJ+zCXcwleJkXzlOe22vdGIko=",
    },
    query={},
    received_at=AT,
)
RULE = InboundRequest(
    body=b'{"id":"evt_7q1example","type":"inbound","emitted_at":1761955200.123}',
    headers={"x-front-signature": "bn9RvHX7f53QXVmXk1dJ5VC6c38="},
    query={},
    received_at=AT,
)


def event(inner: str = "inbound", **changes: Any) -> dict[str, Any]:
    payload = {
        "id": "evt_1",
        "type": inner,
        "emitted_at": 1761955200.123,
        "conversation": {"id": "cnv_1", "subject": "ETA?", "status": "assigned"},
        "source": {"_meta": {"type": "inboxes"}, "data": [{"id": "inb_3", "name": "Dispatch"}]},
        **changes,
    }
    return {"type": "inbound_received", "authorization": {"id": "cmp_1"}, "payload": payload}


def target(kind: str = "message", **data: Any) -> dict[str, Any]:
    return {"_meta": {"type": kind}, "data": {"id": "x_1", "text": "Hello", **data}}


def received(body: dict[str, Any], source: FrontApp = KEYED) -> Event:
    raw = json.dumps(body).encode()
    (event,) = source.receive(InboundRequest(raw, source.sign(raw, AT), {}, AT)).events
    return event


def document_of(body: dict[str, Any]) -> Document:
    return KEYED.document(received(body))


def test_the_application_vector() -> None:
    source = front(signing_keys=["fk_example_signing_key_01"])
    assert source.receive(APPLICATION).events == ()
    signed_at = datetime.fromtimestamp(1761955200, UTC).replace(microsecond=123_000)
    assert source.sign(APPLICATION.body, signed_at) == APPLICATION.headers


def test_the_rule_vector() -> None:
    source = front(api_secrets=["fk_example_api_secret"])
    assert source.sign(RULE.body, AT) == RULE.headers
    # Signed, but about nothing: the vector's body names no conversation.
    with pytest.raises(Rejected, match=r"conversation\.id"):
        source.receive(RULE)


def test_the_challenge_is_echoed_only_when_signed() -> None:
    source = front(signing_keys=["fk_example_signing_key_01"])
    headers = {**APPLICATION.headers, "x-front-challenge": "abc 123"}
    request = replace(APPLICATION, headers=headers)
    reply = source.receive(request).reply
    assert reply is not None
    assert (reply.body, reply.content_type, reply.status) == (b"abc 123", "text/plain", 200)
    with pytest.raises(Unauthorized):
        KEYED.receive(request)


@pytest.mark.parametrize("key", ["key-1", "key-2"])
def test_both_keys_are_active_during_rotation(key: str) -> None:
    assert received(event(), KEYED).event_id == "evt_1"
    raw = json.dumps(event()).encode()
    KEYED.receive(InboundRequest(raw, front(signing_keys=[key]).sign(raw, AT), {}, AT))


@pytest.mark.parametrize(("seconds", "allowed"), [(300, True), (-300, True), (301, False), (-301, False)])  # fmt: skip
def test_the_replay_window(seconds: int, allowed: bool) -> None:
    raw = json.dumps(event()).encode()
    request = InboundRequest(raw, KEYED.sign(raw, AT), {}, AT + timedelta(seconds=seconds))
    if allowed:
        KEYED.receive(request)
    else:
        with pytest.raises(Unauthorized, match="301 s away"):
            KEYED.receive(request)


def test_one_kind_of_secret_does_not_open_the_other_kind_of_webhook() -> None:
    raw = json.dumps(event()).encode()
    rule_with_application_key = hmac.digest(b"key-1", raw, hashlib.sha1)
    headers = {"x-front-signature": base64.b64encode(rule_with_application_key).decode()}
    with pytest.raises(Unauthorized) as refused:
        KEYED.receive(InboundRequest(raw, headers, {}, AT))
    assert "no key" in str(refused.value)
    assert "sources.frontapp.api_secrets" in refused.value.remedy


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        ({"signing_keys": [""]}, r"signing_keys\.0"),
        ({"signing_keys": ["a", "b", "c"]}, "signing_keys"),
        ({"replay_seconds": 0}, "replay_seconds"),
    ],
)
def test_wrong_settings_are_named(settings: dict[str, Any], name: str) -> None:
    with pytest.raises(Misconfigured, match=rf"sources\.frontapp\.{name}"):
        front(**settings)


def test_lists_may_come_from_the_environment() -> None:
    for given in ('["key-1", "key-2"]', "key-1"):
        raw = json.dumps(event()).encode()
        assert front(signing_keys=given).sign(raw, AT) == KEYED.sign(raw, AT)


def test_signing_without_a_key_is_refused() -> None:
    with pytest.raises(Misconfigured, match="signing_keys"):
        front().sign(b"", AT)


@pytest.mark.parametrize(
    ("emitted", "version"),
    [
        (1761955200.123, 1761955200123000),
        (1761955200, 1761955200000000),
        (1693940000.063, 1693940000063000),  # times a million as a double: …062999.9
        (1761955200.000001, 1761955200000001),
    ],
)
def test_times_are_exact(emitted: float, version: int) -> None:
    made = received(event(emitted_at=emitted))
    assert made.version == micros(made.occurred_at) == version


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"target": target()}, "message:x_1"),
        ({"inner": "out_reply", "target": target(text="")}, "message:x_1"),
        ({"inner": "sending_error", "target": target(body="<p>x</p>", text=None)}, "message:x_1"),
        ({"inner": "inbound", "target": target(text=None)}, "conversation:cnv_1"),
        ({"inner": "inbound"}, "conversation:cnv_1"),
        ({"inner": "comment", "target": target("comment", body="Look")}, "comment:x_1"),
        ({"inner": "mention", "target": target("comment", body="Look")}, "comment:x_1"),
        ({"inner": "mention", "target": target("teammate")}, "conversation:cnv_1"),
        ({"inner": "assign", "target": target("teammate")}, "conversation:cnv_1"),
        ({"inner": "tag", "target": target("tag")}, "conversation:cnv_1"),
        ({"inner": "conversations_merged", "target": {"data": ["cnv_2"]}}, "conversation:cnv_1"),
        ({"inner": "brand_new_type", "surprise": [1]}, "conversation:cnv_1"),
    ],
)
def test_what_an_event_is_about(changes: dict[str, Any], key: str) -> None:
    made = received(event(**changes))
    assert made.doc_key == key
    document = KEYED.document(made)
    assert document.parent == (None if key.startswith("conversation") else "conversation:cnv_1")
    assert not document.deleted


@pytest.mark.parametrize(
    "body",
    [
        event("trash"),
        {**event("archive"), "type": "conversation_deleted"},
        event("archive", conversation={"id": "cnv_1", "status": "deleted"}),
        event("trash", target=target()),
    ],
)
def test_deletes_are_of_the_conversation(body: dict[str, Any]) -> None:
    assert received(body).doc_key == "conversation:cnv_1"
    assert document_of(body).deleted


def test_a_rule_webhook_carries_the_bare_event() -> None:
    rules = front(api_secrets=["s"])
    wrapped, bare = event(target=target()), event(target=target())["payload"]
    a, b = received(wrapped), received(bare, rules)
    assert (a.event_id, a.doc_key, a.version) == (b.event_id, b.doc_key, b.version)
    assert KEYED.document(a) == rules.document(b)


@pytest.mark.parametrize(
    ("body", "place"),
    [
        ({"type": "inbound", "payload": []}, "payload"),
        (event(id=None), "id"),
        (event(id="a\nb"), "id"),
        (event(id="e" * 2000), "id"),
        (event(emitted_at="soon"), "emitted_at"),
        (event(emitted_at=True), "emitted_at"),
        (event(emitted_at=1e18), "emitted_at"),
        (event(conversation={}), r"conversation\.id"),
        (event(conversation={"id": {}}), r"conversation\.id"),
    ],
)
def test_malformed_events_are_refused_by_place(body: dict[str, Any], place: str) -> None:
    with pytest.raises(Rejected, match=f"^{place}: "):
        received(body)


def test_the_document_of_a_mail_reads_well_and_names_people() -> None:
    people = [
        {"handle": "Ops@Example.com", "role": "from", "name": "Dana"},
        {"handle": "dispatch@acme.example", "role": "to", "name": None},
        {"handle": "+1 (614) 555-0142", "role": "cc", "name": "Luis"},
        {"handle": None, "role": "bcc"},
    ]
    mail = target(type="email", subject="ETA?", recipients=people, created_at=1761955199.8)
    document = document_of(
        event(target={**mail, "data": {**mail["data"], "text": "When?\x00 \ud83d"}})
    )
    assert document.text == (
        "Subject: ETA?\nFrom: Dana <Ops@Example.com>\nTo: dispatch@acme.example\n"
        "Cc: Luis <+1 (614) 555-0142>\nDate: 2025-10-31 23:59 UTC\nConversation id: cnv_1\n"
        "Message id: x_1\nSource id: inb_3\n\nWhen?\ufffd \ufffd"
    )
    assert document.kind == "email"
    assert micros(document.occurred_at) == 1761955199800000
    assert set(document.assertions) == {
        Assertion(predicate="from", object="email:ops@example.com"),
        Assertion(predicate="to", object="email:dispatch@acme.example"),
        Assertion(predicate="cc", object="phone:+16145550142"),
        Assertion(predicate="in", object="conversation:cnv_1"),
        Assertion(subject="email:ops@example.com", predicate="name", value="Dana"),
        Assertion(subject="phone:+16145550142", predicate="name", value="Luis"),
    }
    assert document.metadata["inboxes"] == ["Dispatch"]


def test_attachments_of_comments_and_ticket_ids_are_in_the_text() -> None:
    comment = target(kind="comment", attachments=[{"filename": "pod.pdf", "size": 48123}])
    about = {"id": "cnv_1", "subject": "ETA?", "ticket_ids": ["TIC-7", "TIC-8"]}
    text = document_of(event(target=comment, conversation=about)).text
    assert "Attachments: pod.pdf" in text and "size: 48123" in text
    assert "TIC-7" in text and "TIC-8" in text


@pytest.mark.parametrize(
    "typed",
    [
        "Ask Ruth <ruth@harbor.example>",
        "code <SHP-100861> a<b and c>d",
        "one\n\n  two <b>bold</b>\nthree &amp; four",
        "<script>alert(1)</script> <!-- kept -->",
    ],
)
def test_f4_a_comment_is_kept_as_it_was_typed(typed: str) -> None:
    for field in ("body", "text"):
        comment = target(kind="comment", **{"body": "", "text": "", field: typed})
        assert document_of(event("comment", target=comment)).text.endswith(f"\n\n{typed}")


def test_a_recipient_of_another_role_is_named() -> None:
    people = [{"handle": "claims@example.com", "role": "reply-to", "name": "Claims"}]
    document = document_of(event(target=target(type="email", recipients=people)))
    assert "Reply-to: Claims <claims@example.com>" in document.text
    assert (
        Assertion(predicate="recipient", object="email:claims@example.com") in document.assertions
    )


def test_other_channels_are_messages() -> None:
    assert document_of(event(target=target(type="sms"))).kind == "message"
    assert document_of(event(target=target(type="email"))).kind == "email"


def test_the_document_of_a_conversation_shows_its_state() -> None:
    state = {
        "id": "cnv_1",
        "subject": "ETA?",
        "status": "archived",
        "assignee": {"email": "Morgan@acme.example", "first_name": "Morgan", "last_name": "Vale"},
        "tags": [{"name": "Hot"}, {"name": "Hot"}, {"name": None}, 5],
        "links": [{"name": "SHP-100045"}],
        "custom_fields": {"PO": "77", "empty": None},
    }
    document = document_of(event("archive", conversation=state, target=None))
    assert document.kind == "conversation"
    assert "Assigned to: Morgan Vale <Morgan@acme.example>" in document.text
    assert "Tags: Hot\nLinks: SHP-100045\n" in document.text
    assert "\nPO: 77\n" in document.text
    assert (
        Assertion(
            subject="conversation:cnv_1",
            predicate="assigned_to",
            object="email:morgan@acme.example",
        )
        in document.assertions
    )


def test_html_becomes_text() -> None:
    markup = (
        "<HTML><head><style>p{}</style></head><!-- <p>no --><script>if (a<b) {}</script >"
        "<p>Rate &amp; fuel:\n 5 &lt; 6</p><ul><li>one<li>two</ul>a<br/>b&nbsp;&nbsp;c</html>"
    )
    assert plain_text(markup) == "Rate & fuel: 5 < 6\n\none\ntwo\na\nb c"
    assert plain_text("<p>open <!-- never closed") == "open"
    assert plain_text("<scripture>") == ""


@pytest.mark.parametrize("unit", ["<", "<!--", "<p", "<script>", "<style></styl", "</", "&#x"])
def test_html_is_read_in_linear_time(unit: str) -> None:
    started = time.process_time()
    plain_text(unit * (400_000 // len(unit)))
    assert time.process_time() - started < 2  # quadratic would take minutes


def test_a_mail_that_was_not_delivered_says_so() -> None:
    target = {"_meta": {"type": "message"}, "data": {"id": "msg_1", "type": "email", "text": "Hi", "error_type": "hard_bounce"}}  # fmt: skip
    body = {"id": "evt_1", "type": "sending_error", "emitted_at": 1761955200, "target": target}
    document = message_document(FrontEvent.read(body))
    assert "Not delivered: hard bounce" in document.text
    assert document.metadata["error"] == "hard_bounce"


def test_entries_of_a_list_are_numbered_under_its_name() -> None:
    target = {"_meta": {"type": "deleted_conversation_ids"}, "data": ["cnv_a", "cnv_b"]}
    conversation = {"id": "cnv_1", "subject": "ETA"}
    body = {"id": "evt_1", "type": "conversations_merged", "emitted_at": 1, "target": target}
    notice = FrontEvent.read({**body, "conversation": conversation})
    assert "\nData 1: cnv_a\nData 2: cnv_b" in conversation_document(notice).text
