"""Ranking: live hits of all legs into one order of passages. Pure."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from uuid import UUID

from apex_memory.search.fusion import Leg, Place, Weights, coverage, fuse, smooth
from apex_memory.search.retrieval import GraphFinds, VectorFinds
from apex_memory.search.snapshot import spans_of, starts_of
from apex_memory.search.time_words import Span
from apex_memory.stores.postgres import Row

_TITLE_WORD = re.compile(r"[\w-]+")

BESIDE_SHARE = 0.5  # of a document's graph score, for its passages without the evidence


@dataclass(frozen=True, slots=True, kw_only=True)
class Ranked:
    """A passage in its place in the order."""

    doc: UUID
    start: int
    end: int
    score: float
    legs: Mapping[str, float]
    why: tuple[str, ...]


@dataclass(slots=True)
class Exact:
    """Identifiers of the question, and the documents that hold them. These come before all others."""

    refs: dict[UUID, list[str]] = field(default_factory=dict)
    """By document."""
    counts: Counter[str] = field(default_factory=Counter)
    """Documents an identifier."""

    def add(self, ref: str, doc: UUID) -> None:
        self.refs.setdefault(doc, []).append(ref)
        self.counts[ref] += 1

    def worth(self, doc: UUID) -> float:
        """More for more identifiers, and for rare ones: one shipment outweighs its carrier's code."""
        return sum(1 / self.counts[ref] for ref in self.refs[doc]) if doc in self.refs else 0.0


@dataclass(slots=True, kw_only=True)
class Ranking:
    """What is known for one question once all legs are in."""

    rows: Mapping[UUID, Row]
    vectors: VectorFinds
    graph: GraphFinds
    exact: Exact
    contents: Mapping[UUID, Row]
    """What the documents say that the graph or an identifier led to."""
    time: Span | None
    weights: Weights
    terms: int
    """Words of the question that the word legs look for."""
    corpus: int
    """Documents there are, about."""

    def order(self, *, limit: int, passages_per_document: int) -> list[Ranked]:
        """The best passages: those with an identifier of the question first, then by fused score."""
        spans = dict(self.vectors.spans)
        named = {doc: self._named(doc, spans) for doc in self.exact.refs}
        evidence = self._evidence(spans)
        legs = self._legs(spans, evidence)
        words, nearby = (
            coverage(legs.get(name), terms=self.terms, corpus=self.corpus)
            for name in ("words", "nearby")
        )
        scores = fuse(spans, legs, self.weights.trusting(words, nearby))
        leads = {
            max(places, key=lambda place: (scores[place], -place[1])) for places in named.values()
        }
        ordered = sorted(
            spans,
            key=lambda place: (
                place not in leads,
                -self.exact.worth(place[0]),
                not self._is_record(place[0]),
                -scores[place],
                -self.rows[place[0]]["occurred_at"].timestamp(),
                place,
            ),
        )
        taken: Counter[UUID] = Counter()
        ranked = []
        for place in ordered:
            taken[place[0]] += 1
            if taken[place[0]] <= passages_per_document:
                ranked.append(self._ranked(place, spans[place], scores[place], legs))
            if len(ranked) == limit:
                break
        return ranked

    def _is_record(self, doc: UUID) -> bool:
        """Whether it is the record of the very thing that is asked for: a `shipment` titled by its number.

        It comes before what mails and talks say of that thing.
        """
        if doc not in self.exact.refs:
            return False
        row = self.contents[doc]
        words = _TITLE_WORD.findall(row["title"])
        about = (ref.partition(":") for ref in self.exact.refs[doc])
        return any(kind == row["kind"] and key in words for kind, _, key in about)

    def _named(self, doc: UUID, spans: dict[Place, tuple[int, int]]) -> list[Place]:
        """The passages that hold an identifier, by position; those found otherwise, or the first, where none is known."""
        row = self.contents[doc]
        there = spans_of(row)
        places = _holding(doc, there, starts_of(row, self.exact.refs[doc]))
        places = places or [place for place in spans if place[0] == doc] or [(doc, 0)]
        for place in places:
            spans.setdefault(place, there[place[1]] if there else (0, 0))
        return places

    def _evidence(self, spans: dict[Place, tuple[int, int]]) -> dict[UUID, set[int]]:
        """Where documents name the graph's entities; one that no leg gave a passage for gets one here."""
        evidence: dict[UUID, set[int]] = {}
        for hit in self.graph.hits:
            evidence.setdefault(hit.doc, set()).update([] if hit.start is None else [hit.start])
        passages = {doc for doc, _ in spans}
        for doc in evidence.keys() & self.contents.keys() - passages:
            there = spans_of(self.contents[doc])
            places = _holding(doc, there, sorted(evidence[doc])) or [(doc, 0)]
            spans[places[0]] = there[places[0][1]] if there else (0, 0)
        return evidence

    def _legs(
        self, spans: Mapping[Place, tuple[int, int]], evidence: Mapping[UUID, Collection[int]]
    ) -> dict[str, Leg]:
        legs = {
            name: Leg(scores, self.vectors.floors[name])
            for name, scores in self.vectors.scores.items()
        }
        if "dense" in legs:
            passages = {doc: row["passages"] for doc, row in self.rows.items()}
            legs["dense_nearby"] = smooth(legs["dense"], passages)
        linked = self.graph.scores()
        legs["graph"] = Leg(
            {
                place: linked[place[0]] * (1 if _holds(span, evidence[place[0]]) else BESIDE_SHARE)
                for place, span in spans.items()
                if place[0] in linked
            }
        )
        if self.time:
            close = {doc: self.time.closeness(row["occurred_at"]) for doc, row in self.rows.items()}
            legs["time"] = Leg({place: close[place[0]] for place in spans})
        return legs

    def _ranked(
        self, place: Place, span: tuple[int, int], score: float, legs: Mapping[str, Leg]
    ) -> Ranked:
        doc = place[0]
        own = {name: leg.scores[place] for name, leg in legs.items() if place in leg.scores}
        if doc in self.exact.refs:
            own["identifier"] = self.exact.worth(doc)
        led = [hit.entity for hit in self.graph.hits if hit.doc == doc]
        return Ranked(
            doc=doc,
            start=span[0],
            end=span[1],
            score=score,
            legs=own,
            why=tuple(dict.fromkeys([*self.exact.refs.get(doc, ()), *led])),
        )


def _holding(doc: UUID, spans: Sequence[tuple[int, int]], starts: Sequence[int]) -> list[Place]:
    return [(doc, n) for n, span in enumerate(spans) if any(span[0] <= s < span[1] for s in starts)]


def _holds(span: tuple[int, int], starts: Collection[int]) -> bool:
    """True also where no start is known: then the whole document is the evidence."""
    return not starts or any(span[0] <= start < span[1] for start in starts)
