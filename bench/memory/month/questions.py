"""The questions of the month, with their evidence: quotes, whole documents, or a set of documents of which any is right."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from apex_memory.model import Event
from apex_memory.sources.base import Source
from bench.memory.month.company import NOW
from bench.memory.month.sets import named_sets
from bench.memory.month.texts import written_events
from bench.memory.month.vendors import simulated_events, vendors
from bench.memory.world import Evidence, Question, QuestionSet

FILE = Path(__file__).parent.parent / "month.jsonl"

TYPES = ("identifier", "paraphrase", "intent", "who-said", "when", "two-source", "no-answer")
ANY_SUFFICES = ("identifier", "intent")
"""Types whose evidence are alternatives: one of them among the first hits is enough."""


@dataclass(frozen=True, slots=True)
class Row:
    """A line of the file. `named` is the set whose members are the evidence; empty where the evidence is listed."""

    type: str
    text: str
    evidence: tuple[Evidence, ...]
    named: str = ""


def rows() -> list[Row]:
    found = []
    for line in FILE.read_text().splitlines():
        row = json.loads(line)
        evidence = tuple(
            Evidence(item["document"], item.get("quote", "")) for item in row.get("evidence", [])
        )
        found.append(Row(row["type"], row["question"], evidence, row.get("set", "")))
    return found


async def month_events(sources: Mapping[str, Source]) -> dict[str, Event]:
    """Return the events of the month by key: `SOURCE/KEY` for those of vendors, the item's key for written ones."""
    events = {f"{event.source}/{event.doc_key}": event for event in await simulated_events(sources)}
    return {**events, **written_events(sources)}


async def month_set(sources: Mapping[str, Source]) -> QuestionSet:
    """Return the month's documents and questions."""
    events = await month_events(sources)
    return QuestionSet(events, questions_about(events), NOW, TYPES)


def questions_about(events: Mapping[str, Event]) -> Sequence[Question]:
    sets = named_sets(vendors(), events.keys())
    questions = []
    for row in rows():
        evidence = row.evidence
        if row.named:
            evidence = tuple(Evidence(key, "") for key in sorted(sets[row.named]))
        questions.append(Question(row.type, row.text, evidence, row.type in ANY_SUFFICES))
    return questions
