"""The documents that every system gets, as plain text, and the questions about them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from apex_memory.model import Event
from apex_memory.sources import registry
from apex_memory.sources.base import Source
from bench.memory.month import month_set, vendors
from bench.memory.world import sample_set
from bench.peers.adapters.base import Document

OTHERS = 65
"""Documents of the month that are loaded beside those of the sample world. No question is about them."""
SINGLES = 20
"""Further documents of the month, written one at a time while the system is idle."""


@dataclass(frozen=True, slots=True)
class Question:
    """A question, and the keys of the documents that hold its evidence.

    `half` is "tuned" if Apex's ranking was tuned on the question, and "held" if it was not.
    """

    type: str
    half: str
    text: str
    evidence: frozenset[str]


@dataclass(frozen=True, slots=True)
class Work:
    """What is measured with: documents to load, documents to write one by one, questions."""

    documents: Sequence[Document]
    singles: Sequence[Document]
    questions: Sequence[Question]


async def work() -> Work:
    """Return the sample world with its questions, and documents of the month, the same each time."""
    world_sources = registry.load({"frontapp": {"signing_keys": ["unused"]}}, None)
    world = sample_set(world_sources)
    questions = [
        Question(question.type, question.half, question.text, evidence_keys(question.evidence))
        for question in world.questions
    ]
    month_sources = registry.load(vendors().settings(), None)
    month = await month_set(month_sources)
    picked = evenly(list(month.events), OTHERS + SINGLES)
    single_keys = set(evenly(picked, SINGLES))
    rest = {key: _document(key, month.events[key], month_sources) for key in picked}
    own = [_document(key, event, world_sources) for key, event in world.events.items()]
    others = [rest[key] for key in picked if key not in single_keys]
    singles = [rest[key] for key in picked if key in single_keys]
    return Work(own + others, singles, questions)


def evidence_keys(evidence: Iterable[Any]) -> frozenset[str]:
    return frozenset(piece.document for piece in evidence)


def evenly(keys: Sequence[str], count: int) -> list[str]:
    """Return `count` keys at equal distances."""
    return [keys[n * len(keys) // count] for n in range(count)]


def _document(key: str, event: Event, sources: Mapping[str, Source]) -> Document:
    made = sources[event.source].document(event)
    at = f"{made.occurred_at:%Y-%m-%d %H:%M} UTC"
    return Document(
        key, made.occurred_at.isoformat(), made.title, f"{at}, {made.title}\n\n{made.text}"
    )
