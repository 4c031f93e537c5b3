"""A batch through the whole pipeline: each item makes it, or fails, for itself."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any, cast
from uuid import UUID

import numpy as np
import pytest
import pytest_asyncio
from hypothesis import given
from hypothesis import strategies as st

from apex_memory.errors import ApexError, Rejected, RetryLater, Unavailable
from apex_memory.model import (
    DEGRADED,
    TOMBSTONE,
    Assertion,
    Document,
    Event,
    File,
    Manifest,
    Priority,
    Vectors,
)
from apex_memory.pipeline import Pipeline, clean_document, prepare, reuse
from apex_memory.pipeline.embedders.base import unit_rows
from apex_memory.pipeline.embedders.hashing import HashingEmbedder
from apex_memory.pipeline.text import clean, clean_at, clean_value
from tests import documents

AT = datetime(2026, 3, 3, 9, tzinfo=UTC)
Make = Callable[[Event], Document]


class Refusing(HashingEmbedder):
    """The hashing embedder behind a server that has its days."""

    def __init__(self, error: ApexError, word: str = "") -> None:
        super().__init__()
        self.error = error
        self.word = word

    async def passages(self, texts: Sequence[str], *, urgent: bool = False) -> Vectors:
        if any(self.word in text for text in texts):
            raise self.error
        return await super().passages(texts)


def event(n: int = 1, **changes: Any) -> Event:
    plain = Event(
        source="documents",
        event_id=f"e{n}",
        doc_key=f"k{n}",
        version=n,
        occurred_at=AT,
        payload=b"{}",
    )
    return replace(plain, **changes)


def makes(**fields: Any) -> Make:
    return lambda event: Document(**{"kind": "note", "title": "", "occurred_at": AT, **fields})


def fails(error: Exception) -> Make:
    def make(event: Event) -> Document:
        raise error

    return make


@pytest_asyncio.fixture(loop_scope="session")
async def pipeline() -> AsyncIterator[Pipeline]:
    pipeline = Pipeline(HashingEmbedder(), chunk_chars=200)
    yield pipeline
    await pipeline.close()


async def manifest_of(pipeline: Pipeline, make: Make, of: Event | None = None) -> Manifest:
    [made] = await pipeline.prepare([(of or event(), make)])
    assert isinstance(made, Manifest), made
    return made


async def test_a_document_becomes_a_manifest(pipeline: Pipeline) -> None:
    assertion = Assertion(predicate="about", object="shipment:shp-100045")
    made = await manifest_of(
        pipeline, makes(text="Load SHP-100045 is late.", assertions=(assertion,), parent="thread-1")
    )
    assert pipeline.pipeline == f"{prepare.VERSION}/hashing-256.{reuse.RECIPE}"
    assert made.pipeline == pipeline.pipeline
    assert (made.inbox_id, made.doc_id) == (event().id, event().doc_id)
    assert made.parent_id == event(doc_key="thread-1").doc_id
    assert [made.chunk_text(c) for c in made.chunks] == ["Load SHP-100045 is late."]
    assert made.vectors.shape == (1, 256)
    assert made.entities == ("shipment:SHP-100045",)
    own = f"document:{made.doc_id}"
    assert [(a.predicate, a.subject, a.object) for a in made.assertions] == [
        ("about", own, "shipment:SHP-100045"),
        ("mentions", own, "shipment:SHP-100045"),
    ]


async def test_the_same_event_makes_the_same_manifest_beside_any_others(pipeline: Pipeline) -> None:
    work = [(event(n), makes(text=f"Load {10_000 + n} " * n)) for n in range(1, 30)]
    together = await pipeline.prepare(work)
    for item, made in zip(work, together, strict=True):
        alone = await manifest_of(pipeline, item[1], item[0])
        assert isinstance(made, Manifest)
        assert alone.id == made.id
        assert alone.content_hash() == made.content_hash()
    assert len({made.id for made in together if isinstance(made, Manifest)}) == len(work)
    assert await pipeline.prepare([]) == []


async def test_one_bad_item_disturbs_no_neighbour(pipeline: Pipeline) -> None:
    secret = "hunter2"
    work: list[tuple[Event, Make]] = [
        (event(1), makes(text="good one")),
        (event(2), fails(KeyError(secret))),
        (event(3), fails(Rejected("no such shape"))),
        (event(4), makes(files=(File("a.pdf", documents.PDF, b"%PDF-1.4 broken"),))),
        (event(5), makes(text="x", passages=((0, 9),))),
        (event(6), makes(text="x", occurred_at=datetime(2026, 1, 1))),
        (event(7), makes(text="x", assertions=(Assertion(predicate="p", start=7),))),
        (event(8), cast(Make, lambda event: None)),  # a source with a bug
        (event(9), makes(text="good two")),
    ]
    made = await pipeline.prepare(work)
    kinds = [type(item).__name__ for item in made]
    assert kinds == ["Manifest", *["Rejected"] * 7, "Manifest"]
    assert str(made[1]).startswith("KeyError in documents (test_pipeline.py:")
    assert str(made[2]) == "no such shape"
    assert secret not in "".join(f"{item!r}" for item in made)
    assert all(item.remedy for item in made if isinstance(item, Rejected) and item is not made[2])


async def test_deletes_leave_nothing(pipeline: Pipeline) -> None:
    made = await pipeline.prepare(
        [
            (event(1, content_type=TOMBSTONE, payload=b""), fails(AssertionError("not called"))),
            (
                event(2),
                makes(text="SHP-100045", deleted=True, parent="p", files=(File("a", "b", b"c"),)),
            ),
        ]
    )
    for item in made:
        assert isinstance(item, Manifest)
        assert item.deleted
        assert (item.title, item.text, item.chunks, item.assertions, item.entities) == (
            "",
            "",
            (),
            (),
            (),
        )
        assert item.vectors.shape == (0, 256)
        assert not item.metadata
    assert isinstance(made[1], Manifest)
    assert made[1].parent_id == event(doc_key="p").doc_id


async def test_text_that_no_store_accepts_is_cleaned_and_offsets_move_along(
    pipeline: Pipeline,
) -> None:
    text = "cafe\u0301\r\nSHP-100045\x00\ud800\r\nthird"
    passages = ((0, 5), (7, 19), (21, 26))
    assertion = Assertion(predicate="says", value="a\x00", start=21)
    made = await manifest_of(
        pipeline,
        makes(
            text=text,
            passages=passages,
            title="t\x00\n",
            assertions=(assertion,),
            metadata={"a\x00": [float("nan"), {"b": "\ud800"}, AT]},
        ),
    )
    assert made.text == "café\nSHP-100045\ufffd\ufffd\nthird"
    assert [made.chunk_text(c) for c in made.chunks] == ["café", "SHP-100045\ufffd\ufffd", "third"]
    assert made.title == "t\ufffd"
    assert made.metadata == {"a\ufffd": [None, {"b": "\ufffd"}, str(AT)]}
    starts = {a.predicate: a.start for a in made.assertions}
    assert made.text[starts["says"] or 0 :] == "third"
    assert made.text[starts["mentions"] or 0 :].startswith("SHP-")


async def test_a_title_alone_is_text_enough(pipeline: Pipeline) -> None:
    made = await manifest_of(pipeline, makes(title="Load SHP-100045", text=" \n"))
    assert made.text == "Load SHP-100045"
    assert len(made.chunks) == 1


async def test_a_single_file_is_the_document(pipeline: Pipeline) -> None:
    bill = documents.pdf("BOL 8812345", title="Bill 8812345")
    note = File("note.txt", "text/plain", b"plain")
    for title, file, shown in (
        ("", File("b.pdf", documents.PDF, bill), "Bill 8812345"),
        ("b.pdf", File("b.pdf", documents.PDF, bill), "Bill 8812345"),
        ("Mine", File("b.pdf", documents.PDF, bill), "Mine"),
        ("", note, "note.txt"),
    ):
        made = await manifest_of(pipeline, makes(title=title, files=(file,)))
        assert made.title == shown
        assert made.text in ("BOL 8812345", "plain")
        assert made.metadata["files"][0]["name"] == file.name


async def test_files_follow_the_text_and_none_is_lost_silently(pipeline: Pipeline) -> None:
    files = (File("a.txt", "text/plain", b"first"), File("b.png", "image/png", b"\x89PNG"))
    made = await manifest_of(pipeline, makes(text="Hello.", passages=((0, 6),), files=files))
    assert made.text == "Hello.\n\n## a.txt\n\nfirst"
    assert [made.chunk_text(c) for c in made.chunks] == ["Hello.", "## a.txt\n\nfirst"]
    assert "cannot read .png" in made.metadata["files"][1]["unread"]
    [refused] = await pipeline.prepare([(event(), makes(files=(files[1], files[1])))])
    assert isinstance(refused, Rejected)


async def test_limits_are_kept_and_noted(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(clean_document, "MAX_CHARACTERS", 1_000)
    long = "a b\n" * 251
    made = await manifest_of(pipeline, makes(text=long, passages=((0, 4), (4, 1_004))))
    assert made.text == long[:1_000]
    assert made.chunks[-1].end == 999
    assert made.metadata[DEGRADED] == {"characters": {"found": 1_004, "kept": 1_000}}
    monkeypatch.setattr(prepare, "MAX_ASSERTIONS", 20)
    many = await manifest_of(
        pipeline, makes(text=" ".join(f"SHP-{n}" for n in range(10_000, 10_030)))
    )
    assert len(many.assertions) == 20
    assert many.metadata[DEGRADED] == {"entities": {"found": 30, "kept": 20}}


async def test_w1_metadata_of_a_vendor_is_cut_with_a_mark(pipeline: Pipeline) -> None:
    """A caller is refused at the entrance; a vendor, or whoever sends a mail, does not get its record refused for it."""
    vendor = {"to": "é" * 600_000, "status": "open", "apex_link": "x"}
    made = await manifest_of(pipeline, makes(text="x", metadata=vendor, link="https://x.example/1"))
    total_bytes = len('{"to": ""}') + 1_200_000 + len('{"status": "open"}')
    assert made.metadata == {
        "status": "open",
        "apex_link": "https://x.example/1",
        DEGRADED: {"metadata_bytes": {"found": total_bytes, "kept": len('{"status": "open"}')}},
    }
    many = await manifest_of(
        pipeline, makes(text="x", metadata={str(n): "y" * 90 for n in range(20_000)})
    )
    sizes = many.metadata[DEGRADED]["metadata_bytes"]
    assert len(json.dumps(many.metadata)) < 1_100_000 and 999_000 < sizes["kept"] <= 1_000_000


@pytest.mark.parametrize("error", [Unavailable("embedder", "down"), RetryLater("busy", after=9)])
async def test_an_embedder_that_is_down_holds_up_only_what_needs_it(error: ApexError) -> None:
    pipeline = Pipeline(Refusing(error), chunk_chars=200)
    made = await pipeline.prepare(
        [
            (event(1), makes(text="x")),
            (event(2), makes(deleted=True)),
            (event(3), fails(KeyError())),
        ]
    )
    assert made[0] is error
    assert isinstance(made[1], Manifest)
    assert isinstance(made[2], Rejected)


async def test_a_text_the_embedder_refuses_costs_its_own_document_alone() -> None:
    pipeline = Pipeline(Refusing(Rejected("answered 400"), word="poison"), chunk_chars=200)
    made = await pipeline.prepare(
        [(event(n), makes(text=word)) for n, word in enumerate(["a", "poison", "b"])]
    )
    assert [type(item) for item in made] == [Manifest, Rejected, Manifest]


@pytest.mark.parametrize("feed", ["\x0c", "\x0b", "\r"])
def test_form_feeds_end_lines(feed: str) -> None:
    assert clean(f"page one{feed}Shipper: Harbor") == "page one\nShipper: Harbor"


@given(st.text(st.characters()), st.lists(st.integers(0, 30), max_size=6))
def test_clean_text_is_what_stores_take(text: str, marks: list[int]) -> None:
    held = clean(text)
    assert held == clean(held)
    assert "\x00" not in held
    assert "\r" not in held
    assert unicodedata.is_normalized("NFC", held)
    held.encode()
    pieces, moved = clean_at(text, marks)
    pieces.encode()
    for mark in marks:
        if mark <= len(text):
            assert pieces[: moved[mark]] == clean_at(text[:mark], marks)[0]
    json.dumps(clean_value({"a": text, "b": {text}, "c": float("inf")}), allow_nan=False).encode()


async def test_vectors_belong_to_their_own_chunks(pipeline: Pipeline) -> None:
    work = [(event(n), makes(text=f"word{n} " * 80)) for n in range(5)]
    for made in await pipeline.prepare(work):
        assert isinstance(made, Manifest)
        assert len(made.chunks) > 1
        for chunk, row in zip(made.chunks, made.vectors, strict=True):
            own = await HashingEmbedder().query(made.chunk_text(chunk))
            assert np.array_equal(own, row)


async def test_identifiers_of_a_source_and_its_text_are_one_entity(pipeline: Pipeline) -> None:
    """A bank writes `INV55048` or `INV 55048` where the source names the invoice INV-55048."""
    for spelling in ("INV55048", "INV 55048", "inv-55048", "INV\u201155048"):
        pays = Assertion(subject="payment:t1", predicate="pays", object="invoice:INV-55048")
        make = makes(text=f"ACH CREDIT {spelling}", assertions=(pays,))
        made = await manifest_of(pipeline, make)
        assert made.entities == ("invoice:INV-55048", "payment:t1"), spelling


class Counting(HashingEmbedder):
    """The hashing embedder; it keeps the texts that reach it, and whether they were urgent."""

    def __init__(self) -> None:
        super().__init__()
        self.texts: list[str] = []
        self.urgent: list[bool] = []

    async def passages(self, texts: Sequence[str], *, urgent: bool = False) -> Vectors:
        self.texts += texts
        self.urgent.append(urgent)
        return await super().passages(texts)


async def test_equal_passages_are_embedded_once() -> None:
    embedder = Counting()
    pipeline = Pipeline(embedder, chunk_chars=200)
    turns = ((0, 4), (4, 8), (8, 12))
    first = await manifest_of(pipeline, makes(text="yes no  yes ", passages=turns))
    assert embedder.texts == ["yes", "no"]
    assert np.array_equal(first.vectors, await HashingEmbedder().passages(["yes", "no", "yes"]))
    await pipeline.prepare([(event(2), makes(text="no")), (event(3), makes(text="maybe"))])
    assert embedder.texts == ["yes", "no", "maybe"]


async def test_passages_of_the_live_version_keep_their_vectors() -> None:
    calls = []

    async def live(documents: Sequence[UUID], vectors: str) -> list[Manifest]:
        calls.append((list(documents), vectors))
        return [former]

    turns = ((0, 4), (4, 8))
    former = replace(
        await manifest_of(
            Pipeline(Counting(), chunk_chars=200), makes(text="one two ", passages=turns)
        ),
        vectors=unit_rows(np.eye(2, 256, dtype=np.float32)),
    )
    embedder = Counting()
    pipeline = Pipeline(embedder, chunk_chars=200, live_manifests=live, build="b7")
    again = await manifest_of(pipeline, makes(text="two six ", passages=turns))
    assert embedder.texts == ["six"]
    assert np.array_equal(again.vectors[0], former.vectors[1])
    assert calls == [([event().doc_id], f"hashing-256.{reuse.RECIPE}")]
    [copy] = await pipeline.prepare(
        [(event(), makes(text="two six ", passages=turns))], reuse=False
    )
    assert isinstance(copy, Manifest) and len(calls) == 1
    assert not np.array_equal(copy.vectors[0], former.vectors[1])


@pytest.mark.parametrize(
    ("kind", "title", "passage", "wanted"),
    [
        ("mail", "Detention at Gary", "Two hours.", "mail: Detention at Gary\nTwo hours."),
        ("mail", "Detention at Gary", "Subject: Detention at Gary", None),
        ("mail", "", "Two hours.", None),
        ("mail", "Detention", "x" * reuse.SHORT, None),
        ("conversation", "Detention", "Two hours.", None),
        ("mail", "D" * 5_000, "Two hours.", f"mail: {'D' * reuse.MAX_TITLE}\nTwo hours."),
    ],
)
def test_a_short_passage_has_its_title_in_its_vector(
    kind: str, title: str, passage: str, wanted: str | None
) -> None:
    assert reuse.embedded_text(kind, title, passage) == (wanted or passage)


async def test_memory_of_vectors_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reuse, "REMEMBERED_BYTES", 2 * 4 * 256)
    embedder = Counting()
    pipeline = Pipeline(embedder, chunk_chars=200)
    for text in ("a", "b", "c", "c", "a"):
        await manifest_of(pipeline, makes(text=text))
    assert embedder.texts == ["a", "b", "c", "a"]


@pytest.mark.parametrize(("priorities", "urgent"), [((2, 1), False), ((2, 0), True)])
async def test_real_time_events_are_urgent(priorities: tuple[int, int], urgent: bool) -> None:
    embedder = Counting()
    await Pipeline(embedder, chunk_chars=200).prepare(
        [
            (event(n, priority=Priority(priority)), makes(text=f"text {n}"))
            for n, priority in enumerate(priorities)
        ]
    )
    assert embedder.urgent == [urgent]
