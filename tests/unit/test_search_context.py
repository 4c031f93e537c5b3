"""A context holds its budget, cuts no sentence, and its citations are the text."""

from __future__ import annotations

import re
import uuid
from datetime import UTC, datetime

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from apex_memory.search.context import MARGIN, TOKENS_MIN, PassageText, pack
from apex_memory.search.results import Context, Hit, Provenance, SpokenTurn
from apex_memory.search.sentences import estimated_tokens, sentences

AT = datetime(2026, 3, 3, 15, 15, tzinfo=UTC)
HEADING = re.compile(r"\[(\d+)\] ")

WORDS = st.one_of(
    st.sampled_from(
        [
            "the",
            "dock",
            "SHP-100045",
            "$1,200.50",
            "Laredo",
            "運送会社",
            "ขนส่ง",
            "доставка",
            "🚚",
            "a",
        ]
    ),
    st.text(st.characters(categories=["Ll", "Nd", "Lo"]), min_size=1, max_size=30),
)
SENTENCES = st.builds(
    lambda first, words, end: f"X{first} {' '.join(words)}{end}",
    st.integers(0, 99),
    st.lists(WORDS, max_size=40),
    st.sampled_from([".", "!", "?", "。", "…"]),
)
DOCUMENTS = st.lists(SENTENCES, min_size=1, max_size=12).map(" ".join)
NAMES = st.text(max_size=300)


def hit(
    rank: int, doc: uuid.UUID, start: int, end: int, title: str = "Note", speaker: str = ""
) -> Hit:
    return Hit(
        rank=rank,
        doc_id=doc,
        title=title,
        source="documents",
        kind="note",
        occurred_at=AT,
        snippet="",
        excerpt="",
        highlights=(),
        start=start,
        end=end,
        score=1.0,
        legs={},
        why=(),
        turn=SpokenTurn(number=1, speaker=speaker, at=AT, start=0, end=end) if speaker else None,
        link="/",
        provenance=Provenance(
            inbox_id=doc, event_id="e", version=1, received_at=AT, manifest_id=doc, stage_id=doc
        ),
    )


def passage(text: str, found: Hit) -> PassageText:
    first = max(0, found.start - MARGIN)
    return PassageText(
        hit=found,
        window=text[first : found.end + MARGIN],
        window_start=first,
        text_length=len(text),
    )


@st.composite
def searches(draw: st.DrawFn) -> tuple[dict[uuid.UUID, str], list[PassageText]]:
    """Documents by id, and passages anywhere in them."""
    texts = {uuid.UUID(int=n): text for n, text in enumerate(draw(st.lists(DOCUMENTS, max_size=4)))}
    found: list[PassageText] = []
    for doc, text in texts.items():
        for _ in range(draw(st.integers(0, 3))):
            start = draw(st.integers(0, len(text) - 1))
            end = draw(st.integers(start + 1, len(text)))
            title, speaker = draw(NAMES), draw(NAMES)
            found.append(passage(text, hit(0, doc, start, end, title, speaker)))
    return texts, draw(st.permutations(found))


def bodies(context: Context) -> list[str]:
    """The texts below the headings, by the citations' lengths."""
    rest = context.text
    texts: list[str] = []
    for n, citation in enumerate(context.citations, start=1):
        heading, _, rest = rest.partition("\n")
        match = HEADING.match(heading)
        assert match and int(match[1]) == n == citation.number
        length = citation.end - citation.start
        texts.append(rest[:length])
        rest = rest[length:]
        if citation.cut:
            assert rest.startswith("…")
            rest = rest[1:]
        if n < len(context.citations):
            assert rest.startswith("\n\n")
            rest = rest[2:]
    assert rest == ""
    return texts


@settings(max_examples=400, deadline=None)
@given(searches(), st.integers(TOKENS_MIN, 600))
def test_a_context_is_never_over_its_budget_cuts_no_sentence_and_cites_what_it_shows(
    search: tuple[dict[uuid.UUID, str], list[PassageText]], budget: int
) -> None:
    texts, found = search
    context = pack(found, max_tokens=budget, relevance=lambda text: text.count("dock"))
    assert estimated_tokens(context.text) == context.tokens <= budget
    assert len(context.text) <= 4 * budget
    shown: dict[uuid.UUID, list[tuple[int, int]]] = {}
    for body, citation in zip(bodies(context), context.citations, strict=True):
        text = texts[citation.doc_id]
        assert body == text[citation.start : citation.end]
        whole = sentences(text)
        if citation.cut:
            assert len(context.citations) == 1
            continue
        assert citation.start in {start for start, _ in whole}
        assert citation.end in {end for _, end in whole}
        for start, end in shown.get(citation.doc_id, []):
            assert citation.end <= start or end <= citation.start
        shown.setdefault(citation.doc_id, []).append((citation.start, citation.end))
    assert bool(context.citations) == bool(found)


def test_what_fits_is_whole_and_in_the_order_of_ranks() -> None:
    texts = ["The dock opens at six. It closes at ten.", "Trucks wait outside."]
    found = [passage(t, hit(n, uuid.UUID(int=n), 0, len(t))) for n, t in enumerate(texts, 1)]
    context = pack(found, max_tokens=200, relevance=lambda text: 0)
    assert context.text == (
        "[1] Note (note, documents, 2026-03-03 15:15 UTC)\nThe dock opens at six. It closes at ten.\n\n"
        "[2] Note (note, documents, 2026-03-03 15:15 UTC)\nTrucks wait outside."
    )
    assert context.left_out == 0 and [c.rank for c in context.citations] == [1, 2]


def test_of_a_passage_that_does_not_fit_the_relevant_sentences_stay() -> None:
    filler = "Nothing of note happened on that long and quiet day in the yard. " * 6
    text = f"{filler}The reefer failed at noon. {filler}".strip()
    context = pack(
        [passage(text, hit(1, uuid.UUID(int=1), 0, len(text)))],
        max_tokens=TOKENS_MIN,
        relevance=lambda sentence: "reefer" in sentence,
    )
    assert "The reefer failed at noon." in context.text
    assert context.left_out == 1 and not context.citations[0].cut


def test_a_passage_that_begins_within_a_sentence_is_completed() -> None:
    text = "The first one. The carrier sent two trucks to Laredo on Friday. The last one."
    start = text.index("sent")
    context = pack(
        [passage(text, hit(1, uuid.UUID(int=1), start, start + 8))],
        max_tokens=TOKENS_MIN,
        relevance=lambda sentence: 0,
    )
    assert context.text.endswith("\nThe carrier sent two trucks to Laredo on Friday.")


@pytest.mark.parametrize("text", ["word " * 2_000, "w" * 5_000, "運" * 3_000])
def test_a_sentence_over_the_budget_is_cut_and_said_to_be(text: str) -> None:
    found = [passage(text, hit(1, uuid.UUID(int=1), 0, 900))]
    context = pack(found, max_tokens=TOKENS_MIN, relevance=lambda sentence: 0)
    [citation] = context.citations
    assert citation.cut and context.text.endswith("…") and context.tokens <= TOKENS_MIN
    assert context.left_out == 1
    if " " in text:
        assert context.text.endswith("word…")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("One. Two! Three?", ["One.", "Two!", "Three?"]),
        ("Mr. Lee of Acme Inc. paid $3.50 at 5 p.m. on Friday. Good.",
         ["Mr. Lee of Acme Inc. paid $3.50 at 5 p.m. on Friday.", "Good."]),
        ("He asked \"Where?\" and left. \"Here.\" She stayed.",
         ["He asked \"Where?\" and left.", "\"Here.\"", "She stayed."]),
        ("Carrier: Northwind\nDriver: Ann Lee\n\nThe load is late",
         ["Carrier: Northwind", "Driver: Ann Lee", "The load is late"]),
        ("The consignee in Laredo confirmed that the delivery\nwill be taken on Thursday.\nThanks",
         ["The consignee in Laredo confirmed that the delivery\nwill be taken on Thursday.", "Thanks"]),
        ("荷物は遅れています。明日着きます。", ["荷物は遅れています。", "明日着きます。"]),
        ("माल पहुँच गया। धन्यवाद।", ["माल पहुँच गया।", "धन्यवाद।"]),
        ("1. Load the truck\n2. Drive", ["1. Load the truck", "2. Drive"]),
        ("See No. 5 and J. B. Hunt. Done.", ["See No. 5 and J. B. Hunt.", "Done."]),
        ("", []),
        (" \n ", []),
    ],
)  # fmt: skip
def test_sentences(text: str, expected: list[str]) -> None:
    assert [text[start:end] for start, end in sentences(text)] == expected


@given(st.text(max_size=400))
def test_sentences_are_in_order_and_leave_out_only_blanks(text: str) -> None:
    last = 0
    for start, end in sentences(text):
        assert last <= start < end <= len(text)
        assert not text[last:start].strip() and not text[start].isspace()
        last = end
    assert not text[last:].strip()


@given(st.text(max_size=200), st.text(max_size=200))
def test_the_estimate_adds_up_and_is_never_below_a_quarter_of_the_characters(
    left: str, right: str
) -> None:
    whole = estimated_tokens(left + right)
    assert whole <= estimated_tokens(left) + estimated_tokens(right) <= whole + 1
    assert whole * 4 >= len(left + right)
