"""Answers of earlier searches: which are kept, which are served, and how many there are."""

from __future__ import annotations

import tracemalloc
import uuid
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from apex_memory.model import Filters
from apex_memory.search import Scope, Weights
from apex_memory.search.answers import OBJECT_SHARE, AnswerBasis, AnswerCache, Question
from apex_memory.search.requests import SearchRequest
from apex_memory.search.results import Hit, Provenance, RecognisedEntity, SearchResult
from apex_memory.search.snapshot import SnapshotSummary
from apex_memory.search.time_expressions import read_time

NOW = datetime(2026, 3, 4, 10, 20, 30, 5, UTC)
SUMMARY = SnapshotSummary(documents=10, verified={"graph": "g1", "vectors": "v1"}, version="one")
BASIS = AnswerBasis(SUMMARY, None, centre=1)


def question(text: str = "who is late?", *, at: datetime = NOW, **changes: Any) -> Question:
    given: dict[str, Any] = {
        "limit": 10,
        "passages_per_document": None,
        "filters": None,
        "scope": None,
        "weights": None,
        "max_tokens": None,
        "explain": False,
    }
    request = SearchRequest.from_query(text, **given | changes)
    return Question(request, read_time(text, at).time_range)


def result(text: str = "the truck of Tuesday") -> SearchResult:
    provenance = Provenance(
        inbox_id=uuid.uuid4(),
        event_id="e",
        version=1,
        received_at=NOW,
        manifest_id=uuid.uuid4(),
        stage_id=uuid.uuid4(),
    )
    hit = Hit(
        rank=1,
        doc_id=uuid.uuid4(),
        title="t",
        source="documents",
        kind="document",
        occurred_at=NOW,
        snippet=text,
        excerpt=text[:240],
        highlights=[(4, 9)],
        start=0,
        end=len(text),
        score=12.5,
        legs={"dense": 0.8},
        why=(),
        turn=None,
        link="/v1/documents/x",
        provenance=provenance,
    )
    return SearchResult(hits=[hit], entities=[RecognisedEntity("po:1", exact=True, count=1)])


def test_the_same_question_gets_the_same_answer_as_a_copy() -> None:
    cache, kept = AnswerCache(), result()
    kept.took_ms = {"total": 50.0}
    cache.put(question(), BASIS, kept)
    kept.hits.clear()
    first = cache.get(question(), BASIS)
    assert first and len(first.hits) == 1 and first.took_ms == {}
    first.hits.clear()
    again = cache.get(question(), BASIS)
    assert again and len(again.hits) == 1


@pytest.mark.parametrize(
    "changed",
    [
        question("who was late?"),
        question(limit=5),
        question(passages_per_document=1),
        question(filters=Filters(sources=("turvo",))),
        question(filters=Filters(until=NOW)),
        question(scope=Scope(people=("Dana Ortiz",))),
        question(weights=Weights(dense=1.0)),
        question(max_tokens=800),
        question(explain=True),
    ],
)
def test_another_question_has_no_answer(changed: Question) -> None:
    cache = AnswerCache()
    cache.put(question(), BASIS, result())
    assert cache.get(changed, BASIS) is None


@pytest.mark.parametrize(
    "changed",
    [
        replace(BASIS, summary=replace(SUMMARY, version="two")),
        replace(BASIS, summary=replace(SUMMARY, documents=1_000)),
        replace(BASIS, summary=replace(SUMMARY, verified={"graph": "g1"})),
        replace(BASIS, summary=replace(SUMMARY, verified={"graph": "g2", "vectors": "v1"})),
        replace(BASIS, filters=Filters(stages=(uuid.uuid4(),))),
        replace(BASIS, centre=2),
        replace(BASIS, centre=None),
    ],
)
def test_on_another_basis_there_is_no_answer(changed: AnswerBasis) -> None:
    cache = AnswerCache()
    cache.put(question(), BASIS, result())
    assert cache.get(question(), changed) is None
    assert cache.get(question(), BASIS)


def test_a_degraded_answer_is_not_kept() -> None:
    cache = AnswerCache()
    cache.put(question(), BASIS, replace(result(), degraded=["graph"]))
    cache.put(question(), replace(BASIS, centre=None), result())
    assert len(cache) == 0 and cache.bytes == 0


def test_today_is_another_question_tomorrow_and_latest_is_never_kept() -> None:
    cache = AnswerCache()
    cache.put(question("who is late today?"), BASIS, result())
    assert cache.get(question("who is late today?", at=NOW + timedelta(hours=3)), BASIS)
    assert cache.get(question("who is late today?", at=NOW + timedelta(days=1)), BASIS) is None
    for text in ("latest fuel price", "what happened lately", "where is T-210 right now"):
        cache.put(question(text), BASIS, result())
        assert not cache.may_hold(question(text)), text


def test_a_new_version_of_memory_removes_all_answers_of_the_former() -> None:
    cache = AnswerCache()
    for n in range(3):
        cache.put(question(f"{n}"), BASIS, result())
    newer = replace(BASIS, summary=replace(SUMMARY, version="two"))
    cache.put(question("new"), newer, result())
    assert len(cache) == 1 and cache.get(question("new"), newer)


def test_the_least_used_answers_make_room() -> None:
    cache = AnswerCache(entries=3)
    for n in range(3):
        cache.put(question(f"{n}"), BASIS, result())
    cache.get(question("0"), BASIS)
    cache.put(question("3"), BASIS, result())
    assert [cache.may_hold(question(f"{n}")) for n in range(4)] == [True, False, True, True]


def test_all_answers_together_have_a_bounded_size() -> None:
    most = 100_000
    cache = AnswerCache(bytes=most)
    for n in range(50):
        cache.put(question(f"{n}"), BASIS, result("x" * 2_000))
        cache.put(question("asked again and again"), BASIS, result("x" * 2_000))
        assert cache.bytes <= most
    assert 1 < len(cache) < 50
    cache.put(question("huge"), BASIS, result("x" * most))
    assert cache.bytes == 0 == len(cache)


def test_the_size_is_that_in_memory() -> None:
    """What many answers take, as the interpreter counts it, is at most what the cache assumes, and not far below."""
    cache = AnswerCache()
    tracemalloc.start()
    try:
        for n in range(200):
            answer = result(f"{n} " + "x" * 900)
            hits = [
                replace(
                    answer.hits[0],
                    rank=rank,
                    doc_id=uuid.uuid4(),
                    snippet=f"{n} {rank} " + "x" * 900,
                    excerpt=f"{n} {rank} " + "x" * 230,
                    legs={f"leg{leg}": leg + n / 1000 for leg in range(10)},
                    provenance=replace(answer.hits[0].provenance, inbox_id=uuid.uuid4()),
                )
                for rank in range(10)
            ]
            cache.put(question(f"{n}"), BASIS, replace(answer, hits=hits))
        taken, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert 0.5 * cache.bytes < taken <= cache.bytes, (taken, cache.bytes, OBJECT_SHARE)
