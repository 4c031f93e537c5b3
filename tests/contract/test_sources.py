"""What every source keeps to, built in or loaded from `source_path`. A new source is covered by being there."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from apex_memory.errors import ApexError, Misconfigured, Rejected, Unauthorized
from apex_memory.model import Document, Event, Priority
from apex_memory.sources.base import InboundRequest, Sample, Source
from apex_memory.sources.registry import classes, load
from tests.examples import examples

AT = datetime(2025, 11, 20, 12, tzinfo=UTC)
TOY = '''
import hashlib, hmac, json
from datetime import UTC, datetime
from pydantic import SecretStr
from apex_memory.errors import Rejected, Unauthorized
from apex_memory.model import Document, Event, Priority
from apex_memory.sources.base import Received, Sample, Source, SourceSettings



class ToySettings(SourceSettings):
    secret: SecretStr = SecretStr("")


class Toy(Source):
    """Toys that tell what happened to them."""

    name = "toy"
    title = "Toy"
    priority = Priority.P2
    Settings = ToySettings

    def receive(self, request):
        given = request.headers.get("x-toy-signature", "").encode("utf-8", "replace")
        if not hmac.compare_digest(given, self.sign(request.body, None)["x-toy-signature"].encode()):
            raise Unauthorized("X-Toy-Signature does not fit", remedy="set sources.toy.secret")
        try:
            toy = json.loads(request.body)
            id, text, time = str(int(toy["id"])), str(toy["text"]), int(toy["time"])
            at = datetime.fromtimestamp(time, UTC)
            text.encode()
        except (ValueError, TypeError, KeyError, OverflowError, OSError, RecursionError):
            raise Rejected("body: no toy", remedy="send id, text and time") from None
        return Received([Event(source=self.name, event_id=id, doc_key="toy:" + id, version=time,
                               occurred_at=at, payload=request.body, priority=self.priority)])

    def document(self, event):
        text = json.loads(event.payload)["text"]
        return Document(kind="toy", title="Toy", occurred_at=event.occurred_at, text=str(text).replace("\\0", ""))

    def samples(self):
        return [Sample("bear", b'{"id": 1, "text": "The bear met SHP-100045.", "time": 1762000000}')]

    def sign(self, body, at):
        key = self.settings.secret.get_secret_value().encode() or b"none"
        return {"x-toy-signature": hmac.new(key, body, "sha256").hexdigest()}
'''
NAMES = [kind.name for kind in classes()] + ["toy", "parcels"]
WEBHOOKS = [kind.name for kind in classes() if not kind.path] + ["toy", "parcels"]


def guide_files() -> dict[str, str]:
    """Return the files that a reader of docs/howto/add-a-source.md writes, by path."""
    page = (Path(__file__).parents[2] / "docs/howto/add-a-source.md").read_text(encoding="utf-8")
    files = re.findall(
        r"^`(parcels/\w+\.py)`[^`]*?(?:`[^`\n]+`[^`]*?)*```python\n(.*?)```", page, re.M | re.S
    )
    return dict(files)


@pytest.fixture(scope="module")
def extra(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sources")
    (folder / "toy.py").write_text(TOY)
    for name, text in guide_files().items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def sources(extra: Path) -> dict[str, Source]:
    return load({kind.name: secrets(kind, "right") for kind in classes(extra)}, extra)


def secrets(kind: type[Source], salt: str) -> dict[str, Any]:
    """A value for every secret among the settings, whatever its name."""
    values: dict[str, Any] = {}
    for name, field in kind.Settings.model_fields.items():
        if "SecretStr" in str(field.annotation):
            secret = f"{salt}-{kind.name}-{name}"
            values[name] = [secret] if "list" in str(field.annotation) else secret
    return values


def signed(source: Source, sample: Sample, at: datetime = AT) -> InboundRequest:
    headers = {"content-type": sample.content_type, **source.sign(sample.body, at)}
    return InboundRequest(sample.body, headers, sample.query, AT)


def assert_sound(event: Event, document: Document, source: Source) -> None:
    assert (event.source, event.priority) == (source.name, source.priority)
    for key in (event.event_id, event.doc_key):
        assert 0 < len(key.encode()) <= 2_600, "must fit a B-tree row"
        assert "\x00" not in key
    assert -(2**63) <= event.version < 2**63
    assert event.occurred_at.utcoffset() is not None
    assert document.occurred_at.utcoffset() is not None
    assert document.kind
    everything = json.dumps(
        [document.title, document.text, document.metadata, document.parent, document.kind],
        ensure_ascii=False,
        allow_nan=False,
    )
    everything.encode()  # no lone surrogates
    assert "\\u0000" not in everything.replace("\\\\", "")
    end = 0
    for start, stop in document.passages:
        assert end <= start < stop <= len(document.text)
        end = stop
    for assertion in document.assertions:
        assert assertion.predicate
        assert (assertion.object is None) != (assertion.value is None)
        assert all(":" in ref for ref in (assertion.subject, assertion.object) if ref)


def test_metadata_and_routes(sources: dict[str, Source]) -> None:
    for source in sources.values():
        assert source.__doc__ and source.title
        assert source.name == source.name.lower() and source.name.isidentifier()
        assert isinstance(source.priority, Priority)
        assert source.route == (source.path or f"/hooks/{source.name}")
        assert source.authenticated_by_key == bool(source.path)
        assert source.max_body_bytes > 0
        for name, field in source.Settings.model_fields.items():
            assert field.description or source.name == "toy", f"{source.name}.{name}"
    routes = [source.route for source in sources.values()]
    assert len(set(routes)) == len(routes)


@pytest.mark.parametrize("name", NAMES)
def test_samples_land_as_sound_events(sources: dict[str, Source], name: str) -> None:
    source, seen = sources[name], []
    names = [sample.name for sample in source.samples()]
    assert names and len(set(names)) == len(names)
    for sample in source.samples():
        received = source.receive(signed(source, sample))
        assert len(received.events) == sample.events, sample.name
        for event in received.events:
            document = source.document(event)
            assert_sound(event, document, source)
            assert document.deleted or document.title
            assert document.text or document.files or document.deleted or document.title
        seen += [event.event_id for event in received.events]
    assert len(set(seen)) == len(seen)


@pytest.mark.parametrize("name", NAMES)
def test_receiving_twice_gives_equal_events_and_documents(
    sources: dict[str, Source], name: str, extra: Path
) -> None:
    source = sources[name]
    other = load({name: secrets(type(source), "right")}, extra)[name]
    for sample in source.samples():
        first = source.receive(signed(source, sample)).events
        assert source.receive(signed(source, sample)).events == first
        assert [event.id for event in other.receive(signed(other, sample)).events] == [
            event.id for event in first
        ]
        for event in first:
            assert source.document(event) == source.document(event) == other.document(event)


def unauthorized(source: Source, request: InboundRequest) -> bool:
    try:
        source.receive(request)
    except Unauthorized:
        return True
    return False


def taken(source: Source, request: InboundRequest) -> bool:
    """Thin notifications hold no event: they name what is to be fetched."""
    received = source.receive(request)
    return bool(received.events or received.change_hints)


@pytest.mark.parametrize("name", WEBHOOKS)
def test_only_the_sender_is_let_in(sources: dict[str, Source], name: str, extra: Path) -> None:
    source, sample = sources[name], sources[name].samples()[0]
    good = signed(source, sample)
    assert taken(source, good)
    wrong = load({name: secrets(type(source), "wrong")}, extra)[name]
    bad = {
        "unsigned": replace(good, headers={"content-type": sample.content_type}),
        "tampered": replace(good, body=sample.body.replace(b"e", b"a", 1)),
        "one byte more": replace(good, body=sample.body + b" "),
        "wrong secret": signed(wrong, sample),
    }
    for other in sources.values():
        if other is not source:
            bad[f"signed as {other.name}"] = signed(other, sample)
    for header in source.sign(sample.body, AT):
        for value in ("", "x", "\u00e9\u4e2d", "=" * 500, good.headers[header][:-2], "0"):
            bad[f"{header} {value!r}"] = replace(good, headers={**good.headers, header: value})
    assert [what for what, request in bad.items() if not unauthorized(source, request)] == []


@pytest.mark.parametrize("name", WEBHOOKS)
@pytest.mark.parametrize("sent", [timedelta(days=-1), timedelta(days=1)])
def test_a_signature_with_a_time_ages(
    sources: dict[str, Source], name: str, sent: timedelta
) -> None:
    source, sample = sources[name], sources[name].samples()[0]
    if source.sign(sample.body, AT) == source.sign(sample.body, AT + sent):
        assert taken(source, signed(source, sample, AT + sent))  # this vendor signs no time
        return
    with pytest.raises(Unauthorized):
        source.receive(signed(source, sample, AT + sent))


@pytest.mark.parametrize("name", WEBHOOKS)
def test_without_a_secret_nobody_is_let_in(
    sources: dict[str, Source], name: str, extra: Path
) -> None:
    bare = load({}, extra)[name]
    with pytest.raises(Unauthorized) as refused:
        bare.receive(signed(sources[name], sources[name].samples()[0]))
    assert f"sources.{name}." in refused.value.remedy


@pytest.mark.parametrize("name", NAMES)
def test_unknown_and_wrong_settings_are_named(name: str, extra: Path) -> None:
    with pytest.raises(Misconfigured, match=f"sources.{name}.no_such"):
        load({name: {"no_such": 1}}, extra)
    with pytest.raises(Misconfigured, match=r"sources\.nobody"):
        load({"nobody": {}}, extra)


def receive_or_refuse(source: Source, request: InboundRequest) -> None:
    try:
        events = source.receive(request).events
    except (Unauthorized, Rejected) as error:
        assert str(error)
        return
    for event in events:
        try:
            document = source.document(event)
        except Rejected:
            continue
        assert_sound(event, document, source)


FUZZ = settings(
    max_examples=examples(60),
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
TYPES = ["application/json", "application/x-ndjson", "multipart/form-data; boundary=b", "", "a/b"]
LEAVES = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(["\x00", "\ud800", "deleted", 1e300, 10**400, "2025-01-01", "sha256:", [[]]])
)
VALUES = st.recursive(
    LEAVES,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3)
    ),
    max_leaves=6,
)


@pytest.mark.parametrize("name", NAMES)
@FUZZ
@given(
    body=st.binary(max_size=200)
    | VALUES.map(lambda value: json.dumps(value).encode())
    | st.sampled_from([b"[" * 100_000, b'{"a":' * 5_000, b"\xef\xbb\xbf{}", b"1" * 5_000]),
    content_type=st.sampled_from(TYPES),
    headers=st.dictionaries(
        st.sampled_from(
            [
                "x-front-signature",
                "x-front-request-timestamp",
                "x-front-challenge",
                "x-toy-signature",
                "idempotency-key",
            ]
        ),
        st.text(max_size=20),
        max_size=3,
    ),
    query=st.dictionaries(
        st.sampled_from(["name", "key", "occurred_at", "format", "version", "metadata", "x"]),
        st.text(max_size=12),
        max_size=3,
    ),
)
def test_garbage_is_refused(
    sources: dict[str, Source],
    name: str,
    body: bytes,
    content_type: str,
    headers: Mapping[str, str],
    query: Mapping[str, str],
) -> None:
    source = sources[name]
    given = {"content-type": content_type, **headers}
    receive_or_refuse(source, InboundRequest(body, given, query, AT))
    receive_or_refuse(source, InboundRequest(body, {**given, **source.sign(body, AT)}, query, AT))


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield path
    if isinstance(value, dict | list):
        steps = value.items() if isinstance(value, dict) else enumerate(value)
        for step, inner in steps:
            yield from places(inner, (*path, step))


def changed(value: Any, path: tuple[Any, ...], new: Any) -> Any:
    if not path:
        return new
    result = copy.deepcopy(value)
    inner = result
    for step in path[:-1]:
        inner = inner[step]
    inner[path[-1]] = new
    return result


@pytest.mark.parametrize("name", NAMES)
@FUZZ
@given(data=st.data())
def test_a_sample_with_one_wrong_part_is_taken_or_refused(
    sources: dict[str, Source], name: str, data: st.DataObject
) -> None:
    source = sources[name]
    sample = data.draw(st.sampled_from(source.samples()))
    try:
        value = json.loads(sample.body)
    except ValueError:
        cut = data.draw(st.integers(0, len(sample.body)))
        body = sample.body[:cut] + data.draw(st.binary(max_size=4)) + sample.body[cut + 1 :]
    else:
        path = data.draw(st.sampled_from(list(places(value))))
        body = json.dumps(changed(value, path, data.draw(VALUES))).encode()
    receive_or_refuse(source, signed(source, replace(sample, body=body)))


def test_errors_carry_a_way_out(sources: dict[str, Source]) -> None:
    for source in sources.values():
        with pytest.raises(ApexError) as refused:
            request = InboundRequest(b"{", {"content-type": "application/json"}, {}, AT)
            source.receive(replace(request, headers={**request.headers, **source.sign(b"{", AT)}))
        assert refused.value.remedy
