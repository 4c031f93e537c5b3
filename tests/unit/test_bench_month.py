"""The busy month of the memory bench: enough questions of each type, evidence that exists, true paraphrases."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

import pytest

from apex_memory.model import Event
from apex_memory.sources import registry
from apex_memory.sources.base import Source
from apex_memory.stores.bm25 import Words
from bench.memory.measure import Outcome, recall
from bench.memory.month.company import BEGIN, NOW, make_world
from bench.memory.month.questions import TYPES, month_events, questions_about, rows
from bench.memory.month.report import misses, report
from bench.memory.month.texts import items, turns_of, written_events
from bench.memory.month.vendors import vendors
from bench.memory.world import Evidence, Question

LEAST = {
    "identifier": 40,
    "paraphrase": 80,
    "intent": 50,
    "who-said": 40,
    "when": 30,
    "two-source": 20,
    "no-answer": 25,
}
LEAST_IN_ALL = 320
LONG_CONVERSATIONS = 12  # at least, of 30 to 120 turns or mails


@pytest.fixture(scope="module")
def sources() -> Mapping[str, Source]:
    return registry.load(vendors().settings())


@pytest.fixture(scope="module")
def texts(sources: Mapping[str, Source]) -> dict[str, str]:
    """The texts of what people wrote. Quotes are from these only."""
    written = written_events(sources)
    return {key: sources[event.source].document(event).text for key, event in written.items()}


@pytest.fixture(scope="module")
async def events(sources: Mapping[str, Source]) -> dict[str, Event]:
    return await month_events(sources)


def test_there_is_enough_of_each_type() -> None:
    counts = Counter(row.type for row in rows())
    assert set(counts) == set(TYPES) == set(LEAST)
    assert all(counts[type] >= least for type, least in LEAST.items())
    assert counts.total() >= LEAST_IN_ALL
    assert (counts["paraphrase"] + counts["intent"]) * 3 >= counts.total()


def test_both_halves_hold_each_type() -> None:
    halves = Counter((row.type, Question(row.type, row.text, row.evidence).half) for row in rows())
    assert all(halves[type, half] >= 5 for type in TYPES for half in ("tuned", "held"))


def test_no_question_is_there_twice() -> None:
    counts = Counter(row.text.lower() for row in rows())
    assert [text for text, count in counts.items() if count > 1] == []


def test_every_quote_stands_in_its_document_once(texts: dict[str, str]) -> None:
    for row in rows():
        for item in row.evidence:
            if item.quote:
                count = texts.get(item.document, "").count(item.quote)
                assert count == 1, (row.text, item.document, item.quote)


def test_paraphrases_share_no_word_with_their_evidence() -> None:
    words = Words(average_words=1)  # the product's own: stemmed, stop words left out

    def terms(text: str) -> set[int]:
        return set(words.question(text).ids.tolist())

    shared = {}
    for row in rows():
        if row.type != "paraphrase":
            continue
        assert row.evidence and all(item.quote for item in row.evidence), row.text
        for item in row.evidence:
            if common := terms(row.text) & terms(item.quote):
                shared[row.text] = [word for word in row.text.split() if terms(word) & common]
    assert shared == {}


def test_evidence_is_of_one_document_or_of_two_sources() -> None:
    for row in rows():
        documents = {item.document for item in row.evidence}
        if row.type == "two-source":
            assert len(documents) == 2, row.text
        elif row.type in ("paraphrase", "who-said", "when"):
            assert len(documents) == 1, row.text


async def test_all_evidence_is_among_the_documents(events: dict[str, Event]) -> None:
    for question in questions_about(events):
        assert bool(question.evidence) == (question.type != "no-answer"), question.text
        missing = [item.document for item in question.evidence if item.document not in events]
        assert missing == [], question.text
    sources = {event.source for event in events.values()}
    assert len(sources) == 10  # nine vendors' sources and documents
    assert len(events) >= 2_900
    assert all(event.occurred_at <= NOW for event in events.values())


def test_the_same_seed_gives_the_same_world() -> None:
    assert make_world(3) == make_world(3)
    assert make_world(3) != make_world(4)
    assert all(load.milestones[0].at >= BEGIN for load in make_world().shipments)


def test_there_are_long_conversations_of_several_people() -> None:
    lengths = {}
    for file in ("chats", "dialogues"):
        for item in items(file):
            turns = turns_of(item)
            lengths[item.key] = len(turns)
            assert len({turn.speaker for turn in turns}) > 1, item.key
    for item in items("threads"):
        lengths[item.key] = ("\n" + item.text).count("\n> ")
    long = [key for key, length in lengths.items() if 30 <= length <= 120]
    assert len(long) >= LONG_CONVERSATIONS


def test_one_of_several_right_documents_is_enough_where_any_suffices() -> None:
    evidence = (Evidence("a", ""), Evidence("b", ""))
    one_found = Outcome(Question("intent", "?", evidence, True), "fused", (None, 4))
    assert (one_found.recall(3), one_found.recall(5)) == (0, 1)
    assert Outcome(Question("when", "?", evidence), "fused", (None, 4)).recall(5) == 0.5


def test_the_report_counts_only_questions_with_an_answer() -> None:
    answerable = Question("intent", "open?", (Evidence("a", ""),), True)
    unanswered = [Question("no-answer", f"who {n}?", ()) for n in range(20)]
    outcomes = [Outcome(answerable, "fused", (2,), 3.0)]
    outcomes += [Outcome(question, "fused", (), 1.0) for question in unanswered]
    assert recall(outcomes, "fused") == 1.0
    text = "\n".join(report(outcomes))
    assert "| all | 1 |" in text and f"{unanswered[0].half}: no answer" in text
    assert list(misses(outcomes, answerable.half)) == []
    missed = [Outcome(answerable, "fused", (None,), 3.0)]
    assert list(misses(missed, answerable.half)) == ["intent: open? (-)"]
