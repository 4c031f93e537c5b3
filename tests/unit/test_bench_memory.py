"""The memory bench's own data: enough of it, evidence that can be located, true paraphrases."""

from __future__ import annotations

import uuid
from collections import Counter
from types import SimpleNamespace
from typing import Any

import pytest

from apex_memory.sources import registry
from apex_memory.stores.bm25 import Words
from bench.memory.measure import Outcome, rank_of, recall
from bench.memory.world import TYPES, Evidence, Question, events, items, questions

LEAST = {"identifier": 25, "paraphrase": 50, "two-source": 25, "who-said": 25, "when": 25}


@pytest.fixture(scope="module")
def texts() -> dict[str, str]:
    loaded = registry.load({})
    made = events(loaded)
    return {key: loaded[event.source].document(event).text for key, event in made.items()}


def test_there_is_enough_of_each_kind(texts: dict[str, str]) -> None:
    counts = Counter(item.type for item in questions())
    assert set(counts) == set(TYPES) == set(LEAST)
    assert all(counts[kind] >= least for kind, least in LEAST.items()) and counts.total() >= 150
    assert len(texts) >= 120


def test_every_quote_stands_in_its_document_once(texts: dict[str, str]) -> None:
    wrong = [
        (item.document, item.quote, texts.get(item.document, "").count(item.quote))
        for question in questions()
        for item in question.evidence
        if texts.get(item.document, "").count(item.quote) != 1
    ]
    assert wrong == []


def test_nothing_is_there_twice(texts: dict[str, str]) -> None:
    keys = Counter(item.key for item in items())
    query_counts = Counter(question.text.lower() for question in questions())
    same = Counter(texts.values())
    assert [
        item for counts in (keys, query_counts, same) for item, n in counts.items() if n > 1
    ] == []


def test_two_sources_are_two_documents() -> None:
    for question in questions():
        documents = {item.document for item in question.evidence}
        assert len(documents) == (2 if question.type == "two-source" else 1), question.text


def test_paraphrases_share_no_word_with_their_evidence() -> None:
    words = Words(average_words=1)  # the product's own: stemmed, stop words left out

    def terms(text: str) -> set[int]:
        return set(words.question(text).ids.tolist())

    shared = {
        question.text: [w for w in question.text.split() if terms(w) & terms(evidence.quote)]
        for question in questions()
        if question.type == "paraphrase"
        for evidence in question.evidence
        if terms(question.text) & terms(evidence.quote)
    }
    assert shared == {}


def test_recall_counts_shares_of_evidence() -> None:
    question = Question("when", "?", (Evidence("a", "x"), Evidence("b", "y")))
    outcomes = [Outcome(question, "fused", (1, None)), Outcome(question, "fused", (3, 7))]
    assert recall(outcomes, "fused", at=1) == 0.25
    assert recall(outcomes, "fused", at=5) == 0.5
    assert recall(outcomes, "fused", at=10) == 0.75


def test_a_hit_counts_when_it_overlaps_the_evidence() -> None:
    doc, other = uuid.uuid4(), uuid.uuid4()
    hits: Any = [
        SimpleNamespace(rank=1, doc_id=other, start=0, end=90),
        SimpleNamespace(rank=2, doc_id=doc, start=0, end=10),
        SimpleNamespace(rank=3, doc_id=doc, start=10, end=30),
    ]
    assert rank_of((doc, 10, 12), hits) == 3
    assert rank_of((doc, 9, 12), hits) == 2
    assert rank_of((doc, 30, 40), hits) is None
