"""Recall of the evidence, for each leg alone and for all together, on real stores."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from apex_memory.app import App
from apex_memory.pipeline import (
    Embedder,
    QueryEntities,
    QueryReader,
    canonical,
    extract_query,
    open_embedder,
)
from apex_memory.search import Hit, Search, Weights
from bench.memory.world import TYPES, Question, QuestionSet, sample_set
from bench.rows import Row, at_least, stated

LEGS = ("dense", "words", "nearby", "graph", "identifiers")
FUSED = "fused"
HALVES = ("tuned", "held")
_NOTHING = Weights(**dict.fromkeys(Weights.__dataclass_fields__, 0.0))

EvidenceSpan = tuple[UUID, int, int]
"""A quote: its document, and its character offsets (start, end) there."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """The result of one leg, or of all, for one question: the rank of each piece of evidence, None beyond ten."""

    question: Question
    leg: str
    ranks: tuple[int | None, ...]

    score: float | None = None
    """The score of the first hit; None without hits."""

    def recall(self, at: int) -> float:
        """Return the share of the question's evidence among the first `at` hits, all of it where any piece suffices."""
        found = sum(rank is not None and rank <= at for rank in self.ranks)
        if self.question.any_suffices:
            return float(found > 0)
        return found / len(self.ranks)


async def measure(app: App) -> list[Row]:
    """Return the bench's rows. The app's stores must be empty before, because everything in them competes."""
    began = time.perf_counter()
    outcomes = await ask_all(app)
    note = f"{app.settings.embedder}, {time.perf_counter() - began:.0f} s"
    return rows(outcomes, note)


async def ask_all(
    app: App, asked: QuestionSet | None = None, legs: Sequence[str] = (*LEGS, FUSED)
) -> list[Outcome]:
    """Load the documents of a set of questions, by default the sample world, then search every question by each of the legs."""
    asked = asked or sample_set(app.sources)
    spans = await load(app, asked)
    embedder = _CachingEmbedder(
        open_embedder(
            app.settings.embedder,
            model=app.settings.embedder_model,
            dimension=app.settings.embedder_dimension,
            key=app.settings.embedder_key.get_secret_value(),
            threads=app.settings.embedder_threads,
        )
    )
    outcomes = []
    for leg in legs:
        read, has_ids = _extraction(leg), leg == FUSED
        if has_ids:
            read = QueryReader(source.numbered for source in app.sources.values())
        search = search_of(app, embedder, read, asked.now, own_ids=has_ids)
        for question in asked.questions:
            result = await search.search(question.text, limit=10, weights=_weights(leg))
            if result.degraded:
                raise RuntimeError(f"{leg}: degraded {result.degraded}")
            hits = [hit for hit in result.hits if _is_from(leg, hit)]
            wanted = [spans[evidence.document, evidence.quote] for evidence in question.evidence]
            ranks = tuple(rank_of(span, hits) for span in wanted)
            outcomes.append(Outcome(question, leg, ranks, hits[0].score if hits else None))
    await embedder.close()
    return outcomes


async def load(app: App, asked: QuestionSet) -> dict[tuple[str, str], EvidenceSpan]:
    """Load the documents through inbox, pipeline and saga into the stores. Return the span of each piece of evidence."""
    made = asked.events
    await app.inbox.land(list(made.values()))
    for name in sorted({event.source for event in made.values()}):
        await app.direct.drain(name)
    kept = await app.db.fetch(
        """SELECT d.doc_id, m.text FROM documents d JOIN manifests m ON m.id = d.manifest_id
           WHERE NOT d.deleted AND d.doc_id = ANY(%s)""",
        ([event.doc_id for event in made.values()],),
    )
    texts = {row["doc_id"]: row["text"] for row in kept}
    missing = [key for key, event in made.items() if event.doc_id not in texts]
    if missing:
        raise RuntimeError(f"not in memory: {missing}")
    spans = {}
    for question in asked.questions:
        for evidence in question.evidence:
            doc = made[evidence.document].doc_id
            start = texts[doc].index(evidence.quote)
            end = start + len(evidence.quote or texts[doc])
            spans[evidence.document, evidence.quote] = (doc, start, end)
    return spans


def search_of(
    app: App,
    embedder: Any,
    read: Callable[[str], QueryEntities],
    now: datetime,
    *,
    own_ids: bool = False,
) -> Search:
    """Return the app's search with its clock at `now`, the world's last day; with `own_ids` it finds vendors' ids."""
    sources = app.sources.items() if own_ids else ()
    return Search(
        app.db,
        app.graph,
        app.vectors,
        app.cache,
        embed_query=embedder.query,
        embedder_id=embedder.id,
        extract_query=read,
        canonical_ref=canonical,
        key_prefixes={name: source.own_key_prefixes() for name, source in sources},
        id_refs=[ref for _, source in sources for ref in source.id_refs],
        called={name: source.called for name, source in app.sources.items()},
        clock=lambda: now,
    )


def rank_of(span: EvidenceSpan, hits: Sequence[Hit]) -> int | None:
    """Return the rank of the first hit that overlaps the evidence."""
    doc, start, end = span
    return next(
        (hit.rank for hit in hits if hit.doc_id == doc and hit.start < end and start < hit.end),
        None,
    )


def rows(outcomes: Sequence[Outcome], note: str) -> list[Row]:
    """Return the bench's rows: legs and fused over all questions, fused by type and half, and the targets."""
    every = {leg: recall(outcomes, leg) for leg in (*LEGS, FUSED)}
    best = max(LEGS, key=lambda leg: every[leg])
    values = {
        **{f"recall@5, {leg}": value for leg, value in every.items()},
        "recall@10, fused": recall(outcomes, FUSED, at=10),
        **{f"recall@5, fused, {type}": recall(outcomes, FUSED, type=type) for type in TYPES},
        **{f"recall@5, fused, {half} half": recall(outcomes, FUSED, half=half) for half in HALVES},
    }
    first = recall(outcomes, FUSED, at=1, type="identifier")
    gain = every[FUSED] / every[best]
    return [
        *(stated(f"memory: {name}", value, "", note) for name, value in values.items()),
        at_least(f"memory: fused against the best leg, {best}", gain, "×", 1.1, note),
        at_least("memory: identifiers at rank 1", first, "", 1.0, note),
    ]


def recall(
    outcomes: Sequence[Outcome], leg: str, *, at: int = 5, type: str = "", half: str = ""
) -> float:
    """Return the mean recall over the questions of a type and half, by default over all that have evidence."""
    recalls = [
        outcome.recall(at)
        for outcome in outcomes
        if outcome.leg == leg
        and outcome.question.evidence
        and type in ("", outcome.question.type)
        and half in ("", outcome.question.half)
    ]
    return sum(recalls) / len(recalls) if recalls else math.nan


def _weights(leg: str) -> Weights | None:
    """Return the weights of a leg alone. Identifiers come first whatever the weights are."""
    if leg == FUSED:
        return None
    if leg == "identifiers":
        return _NOTHING
    return Weights(**{**{name: 0.0 for name in Weights.__dataclass_fields__}, leg: 1.0})


def _extraction(leg: str) -> Callable[[str], QueryEntities]:
    """Return the extraction for a leg: for one leg alone, without the entities that only other legs use."""
    if leg == "graph":
        return lambda text: QueryEntities((), _all(extract_query(text)))
    if leg == "identifiers":
        return lambda text: QueryEntities(tuple(extract_query(text).certain), ())
    return extract_query if leg == FUSED else lambda text: QueryEntities((), ())


def _all(entities: QueryEntities) -> tuple[str, ...]:
    return (*entities.certain, *entities.candidates)


def _is_from(leg: str, hit: Hit) -> bool:
    """Return whether the leg itself returned the hit; hits that only fill the page do not count."""
    name = {"identifiers": "identifier"}.get(leg, leg)
    return leg == FUSED or name in hit.legs


class _CachingEmbedder:
    """An embedder that embeds each question once, although the bench searches it six times."""

    def __init__(self, embedder: Embedder) -> None:
        self._embedder = embedder
        self._known: dict[str, Any] = {}
        self.id = embedder.id

    async def query(self, text: str) -> Any:
        if text not in self._known:
            self._known[text] = await self._embedder.query(text)
        return self._known[text]

    async def close(self) -> None:
        await self._embedder.close()


def table(outcomes: Mapping[str, Sequence[Outcome]]) -> list[list[str]]:
    """Return recall@5 by leg and embedder, over both halves, each half, and each type."""
    head = ["embedder", "leg", "all @5", "all @10", "tuned @5", "held @5", *TYPES]
    lines = [head]
    for name, embedder_outcomes in outcomes.items():
        for leg in (*LEGS, FUSED):
            values = [
                recall(embedder_outcomes, leg),
                recall(embedder_outcomes, leg, at=10),
                *(recall(embedder_outcomes, leg, half=half) for half in HALVES),
                *(recall(embedder_outcomes, leg, type=type) for type in TYPES),
            ]
            lines.append([name, leg, *(f"{value:.3f}".lstrip("0") for value in values)])
    return lines
