"""Fusion and ranking, without any store."""

import asyncio
import math
import uuid
from collections.abc import Collection, Iterable, Mapping
from datetime import UTC, datetime, timedelta
from types import MappingProxyType
from typing import Any, cast

import msgpack
import pytest

from apex_memory.search.fusion import Leg, PassageId, Scores, Weights, covering, fuse, smooth
from apex_memory.search.ranking import IdentifierMatches, RankedPassage, Ranking
from apex_memory.search.retrieval import GraphCandidates, VectorCandidates
from apex_memory.search.snapshot import DocumentContent, LiveDocument, SnapshotReader
from apex_memory.search.time_expressions import TimeRange
from apex_memory.search.topics import Topic
from apex_memory.search.visibility import SnapshotView
from apex_memory.stores.base import GraphHit

A, B, C, D = (uuid.UUID(int=n) for n in range(1, 5))
DAY = datetime(2025, 11, 3, tzinfo=UTC)


def row(doc: uuid.UUID, *, passages: int = 1, days: int = 0, kind: str = "email") -> LiveDocument:
    return LiveDocument(doc, doc, DAY + timedelta(days=days), "frontapp", kind, passages)


a, b, c = (row(doc) for doc in (A, B, C))


def test_scales_do_not_matter_but_distances_do() -> None:
    dense = {(a, 0): 0.80, (b, 0): 0.79, (c, 0): 0.30}
    nearby = {(a, 0): 2.0, (b, 0): 14.0, (c, 0): 1.0}
    weights = Weights(dense=1, dense_nearby=1)
    legs = {"dense": Leg(dense, 0.3), "dense_nearby": Leg(nearby)}
    fused = fuse(dense, legs, weights)
    assert sorted(fused, key=fused.__getitem__, reverse=True) == [(b, 0), (a, 0), (c, 0)]
    thousand = Leg({passage: score * 1000 for passage, score in nearby.items()})
    assert fuse(dense, legs | {"dense_nearby": thousand}, weights) == pytest.approx(fused)


def test_a_passage_that_a_leg_did_not_return_gets_its_floor() -> None:
    legs = {"dense": Leg({(a, 0): 4.0, (b, 0): 2.0}, floor=0.0)}
    fused = fuse([(a, 0), (b, 0), (c, 0)], legs, Weights(dense=1))
    spread = math.sqrt(8 / 3)
    assert fused == pytest.approx({(a, 0): 2 / spread, (b, 0): 0, (c, 0): -2 / spread})


def test_the_only_passage_with_the_word_comes_before_merely_similar_ones() -> None:
    """Found by the crash loop: among a hundred more similar ones it was not among the first hundred."""
    similar = {(row(uuid.UUID(int=n)), 0): 0.2 + n / 1000 for n in range(1, 301)}
    similar[a, 0] = 0.1
    legs = {
        "dense": Leg(similar, 0.1),
        "dense_nearby": Leg(similar, 0.1),
        "words": covering(Leg({(a, 0): 12.0}), terms=1, corpus=3_000),
        "nearby": covering(Leg({(a, 0): 9.0}), terms=1, corpus=3_000),
    }
    fused = fuse(similar, legs, Weights())
    assert max(fused, key=fused.__getitem__) == (a, 0)


def test_the_points_of_the_legs_add_up_to_the_score() -> None:
    legs = {
        "dense": Leg({(a, 0): 4.0, (b, 0): 2.0}, floor=0.0),
        "words": Leg({(b, 0): 0.5}),
        "graph": Leg({}),
        "time": Leg({(a, 0): 1.0}),
    }
    passages = [(a, 0), (b, 0), (c, 0)]
    points: dict[str, Scores] = {}
    fused = fuse(passages, legs, Weights(time=0), points=points)
    assert points.keys() == {"dense", "words"}
    for passage in passages:
        assert sum(summands[passage] for summands in points.values()) == pytest.approx(
            fused[passage]
        )
    assert fuse(passages, legs, Weights(time=0)) == fused


def test_a_leg_of_equal_scores_or_weight_zero_changes_nothing() -> None:
    legs = {"dense": Leg({(a, 0): 0.5, (b, 0): 0.5}, floor=0.5), "words": Leg({(a, 0): 3.0})}
    assert fuse([(a, 0), (b, 0)], legs, Weights(words=0)) == {(a, 0): 0, (b, 0): 0}
    assert fuse([(a, 0)], {}, Weights()) == {(a, 0): 0}


def test_boosts_are_shares_of_their_weight() -> None:
    fused = fuse([(a, 0), (b, 0)], {"graph": Leg({(a, 0): 0.5})}, Weights(graph=2))
    assert fused == {(a, 0): 1.0, (b, 0): 0.0}


def test_smoothing_takes_in_the_neighbours_that_exist() -> None:
    two, only, three = row(A, passages=2), row(B), row(C, passages=3)
    leg = Leg({(two, 0): 0.9, (two, 1): 0.6, (only, 0): 0.9, (three, 1): 0.9}, floor=0.3)
    assert smooth(leg).scores == pytest.approx(
        {(two, 0): 0.75, (two, 1): 0.75, (only, 0): 0.9, (three, 1): 0.5}
    )


def test_word_legs_count_by_the_square_of_the_share_of_the_query_that_they_cover() -> None:
    leg = Leg({(a, 0): 14.0, (b, 0): 7.0}, floor=0.0)
    covered = covering(leg, terms=2, corpus=1_500)
    most = 2 * math.log(1_001)
    assert covered.scores == pytest.approx({(a, 0): (14 / most) ** 2, (b, 0): (7 / most) ** 2})
    assert covered.scores[a, 0] == pytest.approx(4 * covered.scores[b, 0]) and covered.floor == 0
    assert covering(leg, terms=0, corpus=0).scores[a, 0] > 1, "an empty memory divides by no zero"


def content(
    *spans: tuple[int, int],
    ref: str = "",
    starts: tuple[int | None, ...] = (),
    kind: str = "email",
    title: str = "",
) -> DocumentContent:
    assertions = [("mentions", "document:x", ref, None, start) for start in starts]
    return DocumentContent(A, kind, title, msgpack.packb(spans), msgpack.packb(assertions))


def candidates_of(
    scores: Mapping[str, Mapping[tuple[uuid.UUID, int], float]] = MappingProxyType({}),
    floors: Mapping[str, float] = MappingProxyType({}),
    spans: Mapping[tuple[uuid.UUID, int], tuple[int, int]] = MappingProxyType({}),
    continuing: Collection[tuple[uuid.UUID, int]] = (),
) -> dict[str, Any]:
    """Return candidates by the ids of their documents; `ranking` puts the documents in."""
    return {"scores": scores, "floors": floors, "spans": spans, "continuing": continuing}


def ranking(**changes: object) -> Ranking:
    """Documents A, B, C of one passage, found by the word leg in this order."""
    words = {(A, 0): 9.0, (B, 0): 6.0, (C, 0): 3.0}
    given: dict[str, Any] = {
        "documents": {doc: row(doc) for doc in (A, B, C)},
        "vectors": candidates_of({"words": words}, {"words": 0.0}, dict.fromkeys(words, (0, 10))),
        "graph": GraphCandidates(),
        "identifiers": IdentifierMatches(),
        "contents": {},
        "time": None,
        "topic": Topic({}, 0),
        "weights": Weights(),
        "terms": 3,
        "corpus": 1_000,
    }
    given |= changes
    documents, vectors = given["documents"], given["vectors"]

    def at(passages: Iterable[tuple[uuid.UUID, int]]) -> list[PassageId]:
        return [(documents[doc], n) for doc, n in passages]

    given["vectors"] = VectorCandidates(
        {
            leg: dict(zip(at(scores), scores.values(), strict=True))
            for leg, scores in vectors["scores"].items()
        },
        vectors["floors"],
        dict(zip(at(vectors["spans"]), vectors["spans"].values(), strict=True)),
        set(at(vectors["continuing"])),
    )
    return Ranking(**given)


def docs(ranked: list[RankedPassage]) -> list[uuid.UUID]:
    return [passage.doc for passage in ranked]


def matches(*named: tuple[str, uuid.UUID]) -> IdentifierMatches:
    matches = IdentifierMatches()
    for ref, doc in named:
        matches.add(ref, doc)
    return matches


def test_fused_order_without_anything_else() -> None:
    ranked = ranking().order(limit=2, passages_per_document=1)
    assert docs(ranked) == [A, B]
    assert ranked[0].legs == {"words": 9.0} and ranked[0].score > ranked[1].score


def test_an_identifier_wins_outright_and_its_passage_leads() -> None:
    ref = "shipment:SHP-100045"
    held = content((0, 10), (10, 20), (20, 30), ref=ref, starts=(12, 25))
    ranked = ranking(
        documents={doc: row(doc) for doc in (A, B, C, D)},
        identifiers=matches((ref, D)),
        contents={D: held},
    ).order(limit=9, passages_per_document=3)
    assert docs(ranked) == [D, D, A, B, C]
    assert (ranked[0].start, ranked[0].end) == (10, 20), "the first passage that holds it"
    assert ranked[0].why == (ref,) and ranked[0].legs["identifier"] == 1
    assert ranked[0].by == "identifier" and ranked[2].by == "ranking"
    scores = [passage.score for passage in ranked]
    assert scores == sorted(scores, reverse=True), "in the order of the hits"


@pytest.mark.parametrize(
    ("kind", "title", "first"),
    [
        ("invoice", "Invoice INV-7", C),
        ("invoice", "INV-7-R", A),
        ("email", "INV-7", A),
        ("shipment", "INV-7", A),
    ],
)
def test_the_record_of_a_thing_comes_before_documents_about_it(
    kind: str, title: str, first: uuid.UUID
) -> None:
    hits = matches(*(("invoice:INV-7", doc) for doc in (A, C)))
    contents = {
        A: content((0, 10), title="Re: INV-7"),
        C: content((0, 10), kind=kind, title=title),
    }
    ranked = ranking(identifiers=hits, contents=contents)
    assert docs(ranked.order(limit=3, passages_per_document=1))[0] == first


def test_rare_identifiers_outweigh_common_ones() -> None:
    common = [("scac:JBHT", doc) for doc in (A, B, C)]
    hits = matches(*common, ("shipment:SHP-1", D))
    contents = {doc: content((0, 10)) for doc in (A, B, C, D)}
    rows = {doc: row(doc) for doc in (A, B, C, D)}
    ranked = ranking(documents=rows, identifiers=hits, contents=contents)
    assert docs(ranked.order(limit=2, passages_per_document=1)) == [D, A]


def test_an_identifier_without_an_offset_takes_the_best_passage_of_its_document() -> None:
    held = content((0, 10), ref="po:1", starts=(None,))
    ranked = ranking(identifiers=matches(("po:1", C)), contents={C: held})
    assert docs(ranked.order(limit=3, passages_per_document=1)) == [C, A, B]


def test_a_document_without_text_can_be_found_by_identifier() -> None:
    ranked = ranking(
        documents={D: row(D, passages=0)},
        vectors=candidates_of(),
        identifiers=matches(("po:1", D)),
        contents={D: content(ref="po:1", starts=(None,))},
    ).order(limit=3, passages_per_document=1)
    assert docs(ranked) == [D] and (ranked[0].start, ranked[0].end) == (0, 0)


def test_the_graph_lifts_what_it_links_and_rare_entities_more() -> None:
    hits = [
        GraphHit(A, A, "company:common", 0, 3),
        GraphHit(B, B, "company:rare", 0, 3),
        GraphHit(C, C, "company:rare", 1, 3),
    ]
    candidates = GraphCandidates(hits, {"company:rare": 2, "company:common": 5_000})
    shares = candidates.scores()
    assert shares[B] > shares[A] > 0 and shares[B] > shares[C] > 0
    lifted = ranking(graph=candidates, weights=Weights(graph=9))
    assert docs(lifted.order(limit=3, passages_per_document=1))[0] == B


def test_a_document_that_only_the_graph_knows_is_shown_at_its_evidence() -> None:
    ranked = ranking(
        documents={doc: row(doc) for doc in (A, B, C, D)},
        graph=GraphCandidates(
            [GraphHit(D, D, "person:dana-ortiz", 0, 14)], {"person:dana-ortiz": 1}
        ),
        contents={D: content((0, 10), (10, 20))},
    ).order(limit=9, passages_per_document=1)
    [hit] = [passage for passage in ranked if passage.doc == D]
    assert hit.start == 10 and hit.why == ("person:dana-ortiz",)


def test_a_turn_has_one_passage_before_the_others_of_it_follow() -> None:
    """A long turn of an assistant filled the page with itself."""
    spans = {(A, n): (n * 10, n * 10 + 10) for n in range(3)} | {(B, 0): (0, 10)}
    vectors = candidates_of(
        scores={"words": {(A, 0): 8.0, (A, 1): 9.0, (A, 2): 7.0, (B, 0): 1.0}},
        floors={"words": 0.0},
        spans=spans,
        continuing={(A, 1), (A, 2)},
    )
    rows = {A: row(A, passages=3, kind="conversation"), B: row(B)}
    ranked = ranking(documents=rows, vectors=vectors)
    passages = ranked.order(limit=4, passages_per_document=1)
    assert [(passage.doc, passage.start) for passage in passages] == [
        (A, 10),
        (B, 0),
        (A, 0),
        (A, 20),
    ]
    scores = [passage.score for passage in passages]
    assert scores == sorted(scores, reverse=True)
    assert docs(ranked.order(limit=2, passages_per_document=1)) == [A, B]


def test_whose_words_they_are_and_what_kind_a_document_is_lift_it() -> None:
    vectors = candidates_of(
        scores={
            "words": {(A, 0): 3.0, (B, 0): 3.0, (C, 0): 3.0},
            "speaker": {(B, 0): 1.0},
        },
        floors={"words": 0.0, "speaker": 0.0},
        spans={(doc, 0): (0, 10) for doc in (A, B, C)},
    )
    assert docs(ranking(vectors=vectors).order(limit=1, passages_per_document=1)) == [B]
    rows = {A: row(A), B: row(B), C: row(C, kind="comment")}
    about = Topic({("frontapp", "comment"): 1}, 1)
    lifted = ranking(documents=rows, vectors=vectors, topic=about, weights=Weights(speaker=0))
    assert docs(lifted.order(limit=1, passages_per_document=1)) == [C]


def test_time_words_lift_softly() -> None:
    rows = {A: row(A, days=60), B: row(B, days=0), C: row(C, days=60)}
    span = TimeRange(DAY, DAY + timedelta(days=1))
    near = ranking(documents=rows, time=span, weights=Weights(time=2))
    assert docs(near.order(limit=3, passages_per_document=1)) == [B, A, C]
    assert docs(
        ranking(documents=rows, time=span, weights=Weights(time=0)).order(
            limit=3, passages_per_document=1
        )
    ) == [A, B, C]


def test_no_document_takes_more_than_its_share_of_the_result() -> None:
    words = {(A, n): 9.0 - n for n in range(5)} | {(B, 0): 1.0}
    candidates = candidates_of({"words": words}, {"words": 0.0}, dict.fromkeys(words, (0, 10)))
    ranked = ranking(vectors=candidates).order(limit=3, passages_per_document=2)
    assert docs(ranked) == [A, A, B]


def test_equal_scores_are_ordered_by_time_then_id() -> None:
    words = {(doc, 0): 1.0 for doc in (A, B, C)}
    candidates = candidates_of({"words": words}, {"words": 0.0}, dict.fromkeys(words, (0, 10)))
    rows = {A: row(A), B: row(B, days=1), C: row(C)}
    assert docs(
        ranking(vectors=candidates, documents=rows).order(limit=3, passages_per_document=1)
    ) == [
        B,
        A,
        C,
    ]


class SlowReader:
    """Returns rows only after `go` is set."""

    def __init__(self) -> None:
        self.loaded: list[set[uuid.UUID]] = []
        self.go = asyncio.Event()

    async def live(self, docs: set[uuid.UUID]) -> dict[uuid.UUID, LiveDocument]:
        self.loaded.append(set(docs))
        await self.go.wait()
        return {doc: row(doc) for doc in docs}


async def test_no_leg_continues_before_the_rows_that_another_requested_are_in() -> None:
    reader = SlowReader()
    live = SnapshotView(cast(SnapshotReader, reader))  # it reads rows of documents only
    hit = GraphHit(A, A, "company:x", 0, None)

    async def leg(*docs: uuid.UUID) -> bool:
        await live.load(docs)
        return live.shows(hit)

    first, second = asyncio.create_task(leg(A, B)), asyncio.create_task(leg(A))
    for _ in range(5):
        await asyncio.sleep(0)  # turns of the loop, in which both load
    reader.go.set()
    assert await first and await second
    assert reader.loaded == [{A, B}], "each once"
