"""Ranking: the candidates of all legs in one order of passages. No I/O."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal
from uuid import UUID

from apex_memory.model import CONVERSATION
from apex_memory.search.fusion import (
    LONG,
    PRIORS,
    Leg,
    PassageId,
    Scores,
    Weights,
    comparable,
    fuse,
    in_shares,
    smooth,
)
from apex_memory.search.retrieval import GraphCandidates, VectorCandidates
from apex_memory.search.snapshot import DocumentContent, LiveDocument
from apex_memory.search.time_expressions import TimeRange
from apex_memory.search.topics import Topic

_TITLE_WORD = re.compile(r"[\w-]+")

OTHER_DAY_SHARE = 0.5  # of a conversation's closeness to a time, for its turns of other days
BESIDE_SHARE = 0.5  # of a document's graph score, for its passages without the evidence

PassageSpans = dict[PassageId, tuple[int, int]]
"""Character offsets (start, end) of each passage."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RankedPassage:
    """A passage of the result, with its character offsets, its fused score and the scores of its legs."""

    doc: UUID
    start: int
    end: int
    score: float
    """In the order of the passages: what comes first by an identifier has at least the score of what follows."""
    by: Literal["identifier", "ranking"]
    """What put it at its place."""
    legs: Mapping[str, float]
    why: tuple[str, ...]
    points: Mapping[str, float] | None = None
    """The summands of the fused score by leg, if they are wanted."""


@dataclass(slots=True)
class IdentifierMatches:
    """The identifiers of a query and the documents that hold them. These come before all others."""

    refs: dict[UUID, list[str]] = field(default_factory=dict)
    """Refs by document."""
    counts: Counter[str] = field(default_factory=Counter)
    """Number of documents by ref."""

    def add(self, ref: str, doc: UUID) -> None:
        self.refs.setdefault(doc, []).append(ref)
        self.counts[ref] += 1

    def score(self, doc: UUID) -> float:
        """Return more for more identifiers, and for rare ones: one shipment outweighs its carrier's code."""
        return sum(1 / self.counts[ref] for ref in self.refs.get(doc, ()))


@dataclass(slots=True, kw_only=True)
class Ranking:
    """Everything that the order of one query's passages depends on."""

    documents: Mapping[UUID, LiveDocument]
    """The documents of all candidates, by id."""
    vectors: VectorCandidates
    graph: GraphCandidates
    identifiers: IdentifierMatches
    contents: Mapping[UUID, DocumentContent]
    """Contents of the documents that the graph or an identifier led to."""
    time: TimeRange | None
    topic: Topic
    weights: Weights
    terms: int
    """Number of words in the query that the word legs look for."""
    corpus: int
    """Approximate number of documents in memory."""

    def order(
        self, *, limit: int, passages_per_document: int, explain: bool = False
    ) -> list[RankedPassage]:
        """Return the best passages: first those with an identifier of the query, then by fused score."""
        spans = dict(self.vectors.spans)
        identified = {
            self.documents[doc]: self._identified_passages(self.documents[doc], spans)
            for doc in self.identifiers.refs
        }
        evidence = self._graph_evidence(spans)
        legs = self._legs(spans, evidence)
        points: dict[str, Scores] | None = {} if explain else None
        scores = fuse(
            spans,
            comparable(legs, terms=self.terms, corpus=self.corpus),
            self.weights,
            points=points,
        )
        leads = {
            max(passages, key=lambda passage: (scores[passage], -passage[1]))
            for passages in identified.values()
        }
        worth = {doc: self.identifiers.score(doc.doc_id) for doc in identified}
        records = {doc for doc in identified if self._is_record(doc.doc_id)}

        def sort_key(passage: PassageId) -> tuple[Any, ...]:
            """Order by: best passage of a document with an identifier, worth of its identifiers, the thing's own record, score, time."""
            doc, n = passage
            return (
                passage not in leads,
                -worth.get(doc, 0.0),
                doc not in records,
                -scores[passage],
                -doc.occurred_at.timestamp(),
                doc.doc_id.int,
                n,
            )

        ordered = sorted(spans, key=sort_key)
        chosen = self._chosen(ordered, limit, passages_per_document)
        shown = _descending([scores[passage] for passage in chosen], len(leads))
        entities = self.graph.entities()
        return [
            self._ranked(
                passage,
                spans[passage],
                score,
                legs,
                entities=entities.get(passage[0].doc_id, ()),
                is_lead=passage in leads,
                points=points,
            )
            for passage, score in zip(chosen, shown, strict=True)
        ]

    def _chosen(
        self, ordered: Sequence[PassageId], limit: int, passages_per_document: int
    ) -> list[PassageId]:
        """Return the first `limit` passages: at most so many of a document, and one of each turn of a conversation first.

        The other passages of the same turns follow where there is room: a long turn would otherwise fill the page.
        """
        per_document: Counter[LiveDocument] = Counter()
        turns: set[PassageId] = set()
        chosen: list[PassageId] = []
        others: list[PassageId] = []
        for passage in ordered:
            if len(chosen) == limit:
                break
            doc = passage[0]
            if doc.kind == CONVERSATION:
                turn = self._turn(passage)
                if turn in turns:
                    others.append(passage)
                    continue
                turns.add(turn)
            elif per_document[doc] == passages_per_document:
                continue
            per_document[doc] += 1
            chosen.append(passage)
        return chosen + others[: limit - len(chosen)]

    def _turn(self, passage: PassageId) -> PassageId:
        """Return the first passage of the turn, as far as the candidates show it."""
        while passage in self.vectors.continuing:
            passage = passage[0], passage[1] - 1
        return passage

    def _is_record(self, doc: UUID) -> bool:
        """Return whether the document is the record of a thing that the query identifies: a `shipment` titled by its number.

        It comes before mails and conversations about that thing.
        """
        content = self.contents.get(doc)
        if content is None:
            return False
        title_words = _TITLE_WORD.findall(content.title)
        for ref in self.identifiers.refs[doc]:
            kind, _, key = ref.partition(":")
            if kind == content.kind and key in title_words:
                return True
        return False

    def _identified_passages(self, doc: LiveDocument, spans: PassageSpans) -> list[PassageId]:
        """Return the passages of a document that hold an identifier, and add them to `spans`.

        If no position is known: the passages that other legs returned, or the first one.
        """
        content = self.contents[doc.doc_id]
        own_spans = content.passage_spans()
        starts = content.evidence_starts(self.identifiers.refs[doc.doc_id])
        passages = _passages_holding(doc, own_spans, starts)
        if not passages:
            passages = [passage for passage in spans if passage[0] == doc] or [(doc, 0)]
        for passage in passages:
            spans.setdefault(passage, own_spans[passage[1]] if own_spans else (0, 0))
        return passages

    def _graph_evidence(self, spans: PassageSpans) -> dict[LiveDocument, set[int]]:
        """Return the offsets at which documents name the graph's entities.

        A document of which no leg returned a passage gets one added to `spans`.
        """
        evidence: dict[LiveDocument, set[int]] = {}
        for hit in self.graph.hits:
            starts = evidence.setdefault(self.documents[hit.doc], set())
            if hit.start is not None:
                starts.add(hit.start)
        documents_with_passages = {doc for doc, _ in spans}
        for doc, starts in evidence.items():
            if doc in documents_with_passages or doc.doc_id not in self.contents:
                continue
            own_spans = self.contents[doc.doc_id].passage_spans()
            passages = _passages_holding(doc, own_spans, sorted(starts)) or [(doc, 0)]
            spans[passages[0]] = own_spans[passages[0][1]] if own_spans else (0, 0)
        return evidence

    def _legs(
        self, spans: PassageSpans, evidence: Mapping[LiveDocument, Collection[int]]
    ) -> dict[str, Leg]:
        legs = {
            name: Leg(scores, self.vectors.floors[name])
            for name, scores in self.vectors.scores.items()
        }
        if "dense" in legs:
            legs["dense_nearby"] = smooth(legs["dense"])
        if "codes" in legs:
            legs["codes"] = in_shares(legs["codes"])
        legs["graph"] = Leg(self._graph_scores(spans, evidence))
        if self.topic.words:
            topic_shares = {
                doc: self.topic.share(doc.source, doc.kind) for doc in self.documents.values()
            }
            legs["topic"] = Leg({passage: topic_shares[passage[0]] for passage in spans})
        legs["length"] = Leg(
            {passage: min(1.0, (end - start) / LONG) for passage, (start, end) in spans.items()}
        )
        legs["asks"] = Leg(dict.fromkeys(self.vectors.asking, 1.0))
        if self.time:
            legs["time"] = Leg(self._time_scores(self.time, spans, legs.pop("day", Leg({}))))
        return legs

    def _time_scores(self, time: TimeRange, spans: PassageSpans, day: Leg) -> Scores:
        """Return 1 for the passages of the days of a time (`day`), to others the closeness of their document.

        The turns of a conversation have times of their own: those of other days get less.
        """
        closeness: dict[LiveDocument, float] = {}
        for doc in self.documents.values():
            share = OTHER_DAY_SHARE if day.scores and doc.kind == CONVERSATION else 1.0
            closeness[doc] = share * time.closeness(doc.occurred_at)
        return {passage: day.scores.get(passage, closeness[passage[0]]) for passage in spans}

    def _graph_scores(
        self, spans: PassageSpans, evidence: Mapping[LiveDocument, Collection[int]]
    ) -> Scores:
        document_scores = {self.documents[doc]: score for doc, score in self.graph.scores().items()}
        scores = {}
        for passage, span in spans.items():
            doc = passage[0]
            if doc in document_scores:
                share = 1 if _holds_evidence(span, evidence[doc]) else BESIDE_SHARE
                scores[passage] = document_scores[doc] * share
        return scores

    def _ranked(
        self,
        passage: PassageId,
        span: tuple[int, int],
        score: float,
        legs: Mapping[str, Leg],
        *,
        entities: Sequence[str],
        is_lead: bool,
        points: Mapping[str, Scores] | None,
    ) -> RankedPassage:
        doc = passage[0].doc_id
        leg_scores = {
            name: leg.scores[passage]
            for name, leg in legs.items()
            if passage in leg.scores and name not in PRIORS
        }
        if doc in self.identifiers.refs:
            leg_scores["identifier"] = self.identifiers.score(doc)
        return RankedPassage(
            doc=doc,
            start=span[0],
            end=span[1],
            score=score,
            by="identifier" if is_lead else "ranking",
            legs=leg_scores,
            why=tuple(dict.fromkeys([*self.identifiers.refs.get(doc, ()), *entities])),
            points=None
            if points is None
            else {name: summands[passage] for name, summands in points.items()},
        )


def _descending(scores: Sequence[float], leads: int) -> list[float]:
    """Return scores that never rise: those of the first `leads` raised to what follows, later ones lowered to what precedes."""
    shown = list(scores)
    for n in range(min(leads, len(shown) - 1) - 1, -1, -1):
        shown[n] = max(shown[n], shown[n + 1])
    for n in range(1, len(shown)):
        shown[n] = min(shown[n], shown[n - 1])
    return shown


def _passages_holding(
    doc: LiveDocument, spans: Sequence[tuple[int, int]], starts: Sequence[int]
) -> list[PassageId]:
    return [
        (doc, n)
        for n, (start, end) in enumerate(spans)
        if any(start <= evidence < end for evidence in starts)
    ]


def _holds_evidence(span: tuple[int, int], starts: Collection[int]) -> bool:
    """Return whether an offset lies in the span; True if no offset is known, for then the whole document is the evidence."""
    return not starts or any(span[0] <= start < span[1] for start in starts)
