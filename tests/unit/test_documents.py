"""Documents: three ways in, one identity rule, and every byte kept."""

from __future__ import annotations

import base64
import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from apex_memory.errors import Rejected
from apex_memory.model import Assertion, Document, Event, micros
from apex_memory.sources.base import InboundRequest
from apex_memory.sources.registry import load
from tests.examples import examples

AT = datetime(2025, 11, 20, 12, tzinfo=UTC)
LATER = AT + timedelta(minutes=1)
SOURCE = load({})["documents"]
JSON = "application/json"


def receive(
    body: Any,
    content_type: str = JSON,
    *,
    at: datetime = AT,
    idempotency: str | None = None,
    **query: str,
) -> list[Event]:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    headers = {"content-type": content_type} | (
        {"idempotency-key": idempotency} if idempotency else {}
    )
    return list(SOURCE.receive(InboundRequest(raw, headers, query, at)).events)


def received_event(*given: Any, **more: Any) -> Event:
    (event,) = receive(*given, **more)
    return event


def document_from(*given: Any, **more: Any) -> Document:
    return SOURCE.document(received_event(*given, **more))


def form(*parts: tuple[str, str | None, bytes]) -> tuple[bytes, str]:
    body = b""
    for name, filename, data in parts:
        file = f'; filename="{filename}"\r\nContent-Type: text/csv' if filename else ""
        head = f'--XX\r\nContent-Disposition: form-data; name="{name}"{file}\r\n\r\n'
        body += head.encode() + data + b"\r\n"
    return body + b"--XX--\r\n", "multipart/form-data; boundary=XX"


@given(data=st.binary(min_size=1, max_size=300).filter(bytes.strip))
@settings(deadline=None, database=None, max_examples=examples(50))
def test_every_byte_comes_back(data: bytes) -> None:
    posted = {"content_base64": base64.b64encode(data).decode(), "content_type": "a/b"}
    for document in (
        document_from(data, "application/pdf", name="x.pdf"),
        document_from(data, "", key="k"),
        document_from(posted),
    ):
        assert [file.data for file in document.files] == [data]
    delimited = b"\r\n--XX" in b"\r\n" + data
    if not delimited:
        assert document_from(*form(("file", "a.csv", data))).files[0].data == data


def test_a_file_is_not_inflated() -> None:
    event = received_event(b"\xff" * 100_000, "image/png", name="scan.png")
    assert len(event.payload) < 100_200


def test_a_text_is_the_text() -> None:
    document = document_from(
        {
            "text": "Detention is 75 USD an hour.\nAfter two hours.",
            "kind": "note",
            "occurred_at": "2025-11-03T15:30:00",
            "metadata": {"author": "Morgan", "big": 2**62},
            "entities": ["shipment:SHP-100045", "shipment:SHP-100045"],
        }
    )
    assert document.text == "Detention is 75 USD an hour.\nAfter two hours."
    assert (document.kind, document.title) == ("note", "Detention is 75 USD an hour.")
    assert document.files == ()
    assert document.occurred_at == datetime(2025, 11, 3, 15, 30, tzinfo=UTC)
    assert document.assertions == (Assertion(predicate="mentions", object="shipment:SHP-100045"),)
    assert document.metadata["author"] == "Morgan" and document.metadata["big"] == 2**62


def test_a_raw_file_carries_its_name_and_type() -> None:
    document = document_from(b"a,b", "text/csv; charset=utf-8", name="lanes.csv", key="x/lanes.csv")
    (file,) = document.files
    assert (file.name, file.content_type, file.data) == ("lanes.csv", "text/csv", b"a,b")
    assert document.title == "lanes.csv"
    assert document.occurred_at == AT


def test_a_json_file_with_a_name_is_a_file() -> None:
    assert (
        document_from(b'{"rate": 1850}', JSON, name="rate.json").files[0].data == b'{"rate": 1850}'
    )


def test_a_type_curl_invents_is_unknown() -> None:
    document = document_from(b"%PDF", "application/x-www-form-urlencoded", name="a.pdf")
    assert document.files[0].content_type == "application/octet-stream"


def test_without_key_the_content_is_the_identity() -> None:
    first = received_event(b"hello", "text/plain", name="a.txt")
    assert received_event(b"hello", "text/plain", name="a.txt", at=LATER).event_id == first.event_id
    renamed = received_event(b"hello", "text/plain", name="b.txt", at=LATER)
    assert renamed.doc_key == first.doc_key
    assert renamed.event_id != first.event_id and renamed.version > first.version
    assert received_event(b"other", "text/plain", name="a.txt").doc_key != first.doc_key


def test_key_and_time_make_repetition_a_duplicate() -> None:
    stated = {"name": "a.txt", "key": "in/a.txt", "occurred_at": "1761955200.25"}
    first = received_event(b"hello", "text/plain", **stated)
    assert first.doc_key == "in/a.txt"
    assert first.version == micros(first.occurred_at) == 1761955200250000
    assert received_event(b"hello", "text/plain", at=LATER, **stated) == first
    changed = received_event(b"hello!", "text/plain", **{**stated, "occurred_at": "1761955300"})
    assert changed.doc_key == first.doc_key and changed.version > first.version
    assert received_event(b"hello!", "text/plain", **stated).event_id != first.event_id


def test_a_stated_version_orders() -> None:
    body = {"text": "x", "key": "k", "version": 7}
    assert received_event(body).version == 7
    assert received_event(body, at=LATER).event_id == received_event(body).event_id
    assert received_event({**body, "version": 8}).event_id != received_event(body).event_id


def test_with_key_alone_every_post_is_a_version() -> None:
    body = {"text": "x", "key": "k"}
    first, again = received_event(body), received_event(body, at=LATER)
    assert first.doc_key == again.doc_key
    assert again.version > first.version and again.event_id != first.event_id


def named(caller: str, key: str) -> Event:
    headers = {"content-type": JSON, "idempotency-key": key}
    request = InboundRequest(b'{"text": "x"}', headers, {}, AT, caller)
    return next(iter(SOURCE.receive(request).events))


def test_the_ids_of_two_callers_are_never_one() -> None:
    pairs = [("agents", "x/1"), ("agents/x", "1"), ("6:agents", "1"), ("1", "agents"), ("é", "1")]
    assert len({named(*pair).event_id for pair in pairs}) == len(pairs)
    assert named("agents", "x/1").event_id == named("agents", "x/1").event_id


@pytest.mark.parametrize("key", ["handbook/rates", "key/8:handbook/rates", ":key/8:handbook/rates"])
def test_an_id_that_a_caller_names_is_not_one_made_of_a_key_and_content(key: str) -> None:
    """A key named `handbook` could take the id that another caller's document is going to have."""
    own = received_event({"text": "rates", "key": key, "version": 7}).event_id
    for head in ("", ":", "key/8:", ":key/8:"):
        caller, _, rest = own.removeprefix(head).partition("/")
        assert named(caller, rest).event_id != own


def test_the_idempotency_key_is_the_event_id() -> None:
    assert received_event({"text": "x", "key": "k"}, idempotency="i-1").event_id == "i-1"
    files = form(("file", "a.csv", b"1"), ("file", "b.csv", b"2"))
    assert [event.event_id for event in receive(*files, idempotency="i-1")] == ["i-1", "i-1#1"]


def test_a_form_may_hold_many_files_with_fields_for_all_or_each() -> None:
    events = receive(
        *form(
            ("file", "käse.csv", b"1"),
            ("key", None, b"in/a"),
            ("key", None, b"in/b"),
            ("metadata", None, b'{"batch": 5}'),
            ("entities", None, b'["shipment:SHP-100045"]'),
            ("file", "b.csv", b"2"),
        )
    )
    documents = [SOURCE.document(event) for event in events]
    assert [event.doc_key for event in events] == ["in/a", "in/b"]
    assert [document.files[0].name for document in documents] == ["käse.csv", "b.csv"]
    assert all(document.metadata["batch"] == 5 for document in documents)
    assert all(document.assertions for document in documents)


GOOD, TYPE = form(("file", "a.csv", b"1"))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (({"text": "a", "content_base64": "YQ=="},), "either `text` or"),
        (({"title": "a"},), "either `text` or"),
        (({"text": " "},), "empty"),
        (({"text": "a", "name": 5},), "^name: "),
        (({"text": "a", "colour": "red"},), "^colour: Extra"),
        (({"text": "a", "kind": "No Spaces"},), "^kind: "),
        (({"text": "a", "version": -1},), "^version: "),
        (({"text": "a", "version": 2**63},), "^version: "),
        (({"text": "a", "occurred_at": "soon"},), "^occurred_at: "),
        (({"text": "a", "entities": ["SHP-100045"]},), r"^entities\[0\]: "),
        (({"text": "a", "key": "a\nb"},), "^key: "),
        (({"text": "a", "key": "k" * 1001},), "^key: "),
        (({"content_base64": "@@"},), "^content_base64: "),
        (([1],), "^body: "),
        ((b"", "text/plain"), "empty"),
        ((GOOD, "multipart/form-data"), "without boundary"),
        ((GOOD[:-6], TYPE), "truncated"),
        ((GOOD[:40], TYPE), "truncated"),
        ((b"junk", TYPE), "not well-formed multipart"),
        (form(("key", None, b"k")), "no file"),
        (form(("file", "a", b"1"), ("file", "b", b"2"), ("key", None, b"k")), "^key: 1 values"),
        (form(("file", "a", b"1"), ("size", None, b"k")), "^size: Extra"),
        (form(("file", "a", b"1"), ("metadata", None, b"{")), "^metadata: not JSON"),
        (form(("file", "a", b"1"), ("title", None, b"\xff")), "^title: not UTF-8"),
        (form(("file", "a", b"1"), ("title", None, b"x" * 200_000)), "^title: longer"),
        (form(("file", "empty.csv", b"")), "^empty.csv: empty"),
        (form(*[("file", "a", b"1")] * 1001), "more than 1000 parts"),
    ],
)
def test_malformed_bodies_are_refused_by_place(given: tuple[Any, ...], message: str) -> None:
    with pytest.raises(Rejected, match=message) as refused:
        receive(*given)
    assert refused.value.remedy


@pytest.mark.parametrize("payload", [b"", b"\x93\x01\x02\x03", b"\xc1", b"\x91\x01", b"hello"])
def test_a_foreign_payload_is_a_dead_letter(payload: bytes) -> None:
    event = received_event({"text": "x"})
    broken = Event(
        source=event.source,
        event_id="e",
        doc_key="k",
        version=1,
        occurred_at=AT,
        payload=payload,
    )
    with pytest.raises(Rejected):
        SOURCE.document(broken)


@pytest.mark.parametrize("way", ["json", "query", "form"])
def test_w1_metadata_is_bounded_whatever_way_it_comes(way: str) -> None:
    def send(metadata: dict[str, str]) -> list[Event]:
        text = json.dumps(metadata, ensure_ascii=False)
        if way == "json":
            return receive({"text": "x", "metadata": metadata})
        if way == "query":
            return receive(b"x", "text/plain", name="a.txt", metadata=text)
        return receive(
            *form(
                ("file", "a.csv", b"1"), ("file", "b.csv", b"2"), ("metadata", None, text.encode())
            )
        )

    most = {"note": "x" * (65_536 - len('{"note":""}'))}
    assert send(most)
    with pytest.raises(
        Rejected, match=r"metadata: 65,537 bytes of JSON.*metadata_max_bytes"
    ) as refusal:
        send({"note": most["note"] + "x"})
    assert "as text or as a file" in refusal.value.remedy
    with pytest.raises(Rejected, match="metadata_max_bytes"):
        send({"note": "ü" * 40_000})


def test_w1_metadata_that_was_kept_before_the_bound_is_still_read() -> None:
    request = InboundRequest(
        json.dumps({"text": "x", "metadata": {"note": "x" * 377_000}}).encode(),
        {"content-type": JSON},
        {},
        AT,
        metadata_max_bytes=1_000_000,
    )
    (event,) = SOURCE.receive(request).events
    assert len(SOURCE.document(event).metadata["note"]) == 377_000
