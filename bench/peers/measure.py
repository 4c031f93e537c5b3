"""Measures one system: loading, questions, single writes, and a load that is killed half-way."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any
from urllib.request import urlopen

from bench.cpu import usage
from bench.peers.adapters.base import Document
from bench.peers.documents import Question, Work
from bench.peers.systems import System
from bench.rows import percentile

KILLED = 60  # documents of the load that is killed
HITS = 5
PROBE_CHARS = 200  # of a document's text, as a question that must find it
SEARCHABLE_SECONDS = 10
BESIDE = 100  # documents that Apex loads before each peer
Make = Callable[[Path], System]


@dataclass(frozen=True, slots=True)
class Models:
    """The model server: its base URL, ending with `/v1`, and its process."""

    url: str
    pid: int

    def counts(self) -> dict[str, int]:
        """Return what it has answered since the last call."""
        with urlopen(f"{self.url.removesuffix('/v1')}/counts") as answer:
            counts: dict[str, int] = json.loads(answer.read())
        return counts

    def cpu(self) -> float:
        return usage({"models": self.pid})["models"].total


def recall(found: Sequence[str], evidence: frozenset[str], at: int = HITS) -> float:
    """Return the share of the evidence's documents among the first `at` different documents."""
    return len(evidence & set(list(dict.fromkeys(found))[:at])) / len(evidence)


async def load_rate(make: Make, folder: Path, work: Work) -> float:
    """Return documents/s of a load of the first documents into an empty system."""
    system = make(folder)
    try:
        await system.start()
        return BESIDE / await _timed_load(system, work.documents[:BESIDE])
    finally:
        await system.stop()


async def measure(make: Make, folder: Path, work: Work, models: Models) -> dict[str, Any]:
    """Return the figures of one system, by name; times are seconds unless the name says otherwise."""
    system = make(folder / "whole")
    try:
        versions = await system.start()
        models.counts()
        before = system.cpu() + models.cpu()
        first = await _timed_load(system, work.documents[:BESIDE])
        seconds = first + await _timed_load(system, work.documents[BESIDE:])
        worked = system.cpu() + models.cpu() - before
        spent = models.counts()
        figures: dict[str, Any] = {
            "name": system.name,
            "versions": dict(versions),
            "documents": len(work.documents),
            "documents/s": len(work.documents) / seconds,
            "documents/s, first hundred": BESIDE / first,
            "cpu seconds a document": worked / len(work.documents),
            **{f"{name} a document": n / len(work.documents) for name, n in spent.items()},
            **await _ask(system, work.questions, models),
            **await _write_singly(system, work.singles),
        }
    finally:
        await system.stop()
    return figures


async def _timed_load(system: System, documents: Sequence[Document]) -> float:
    began = time.perf_counter()
    await system.load(documents, lambda key: None)
    return time.perf_counter() - began


async def _ask(system: System, questions: Sequence[Question], models: Models) -> dict[str, Any]:
    for question in questions[:5]:
        await system.search(question.text)
    taken, recalls = [], []
    before = system.cpu() + models.cpu()
    for question in questions:
        keys, seconds = await system.search(question.text)
        taken.append(seconds)
        recalls.append((question, recall(keys, question.evidence)))
    worked = system.cpu() + models.cpu() - before
    kinds = dict.fromkeys(question.type for question in questions)
    return {
        "questions": len(questions),
        "recall@5": mean(value for _, value in recalls),
        "recall@5 by type": {
            kind: mean(value for question, value in recalls if question.type == kind)
            for kind in kinds
        },
        "recall@5 held": mean(value for question, value in recalls if question.half == "held"),
        "cpu seconds a search": worked / len(questions),
        "search p50": percentile(taken, 0.5),
        "search p99": percentile(taken, 0.99),
    }


async def _write_singly(system: System, documents: Sequence[Document]) -> dict[str, float]:
    """Write documents one at a time, and search for each until it is among the hits, at most for some seconds."""
    taken = []
    for document in documents:
        began = time.perf_counter()
        await system.load([document], lambda key: None)
        written = time.perf_counter()
        while not (found := await _is_found(system, document)):
            if time.perf_counter() - written > SEARCHABLE_SECONDS:
                break
        if found:
            taken.append(time.perf_counter() - began)
    figures: dict[str, float] = {
        "written singly": len(documents),
        "written singly, not found": len(documents) - len(taken),
    }
    if taken:
        figures |= {
            "write to found p50": percentile(taken, 0.5),
            "write to found p99": percentile(taken, 0.99),
        }
    return figures


async def kill_midway(make: Make, folder: Path, work: Work) -> dict[str, Any]:
    """Return what a kill in the middle of a load does, beside the same load that nothing disturbs."""
    documents = work.documents[:KILLED]
    system = make(folder / "undisturbed")
    try:
        await system.start()
        seconds = await _timed_load(system, documents)
        records = await system.records()
    finally:
        await system.stop()
    system = make(folder / "killed")
    try:
        return await _kill(system, documents, seconds, records)
    finally:
        await system.stop()


async def _kill(
    system: System, documents: Sequence[Document], seconds: float, whole: Mapping[str, int]
) -> dict[str, Any]:
    """Kill all processes of the system in the middle of a load, start it again, and say what became of the documents.

    The kill comes when a third of the documents is searchable, or after a third of the `seconds` that the load takes, and a
    tenth of these seconds later.
    """
    await system.start()
    acknowledged: set[str] = set()
    began = time.perf_counter()
    loading = asyncio.create_task(system.load(documents, acknowledged.add))
    while len(acknowledged) < len(documents) / 3 and time.perf_counter() - began < seconds / 3:
        await asyncio.sleep(0.01)  # a poll for a bounded time
    await asyncio.wait([loading], timeout=seconds / 10)
    was_over, after = loading.done(), time.perf_counter() - began
    await system.kill()
    loading.cancel()
    await asyncio.gather(loading, return_exceptions=True)
    began = time.perf_counter()
    await system.start()
    restart = time.perf_counter() - began
    progress = await system.progress()
    found = {document.key for document in documents if await _is_found(system, document)}
    finished = acknowledged | _finished(progress)
    unfinished = {document.key for document in documents} - finished
    found_unfinished = found & unfinished
    later = await system.progress()
    found_unfinished -= _finished(later)  # it went on while it was asked
    if progress is not None:
        await system.resume()
        finished |= _finished(await system.progress())
    alone = len(finished)
    await system.load(
        [document for document in documents if document.key not in finished], lambda key: None
    )
    records = await system.records()
    keys = [document.key for document in documents]
    return {
        "documents": len(documents),
        "undisturbed": seconds,
        "after": after,
        "over before the kill": was_over,
        "finished at the kill": len(documents) - len(unfinished),
        "taken over": len(acknowledged if progress is None else progress),
        "restart": restart,
        "acknowledged, not found": sorted(acknowledged - found),
        "unfinished, answered": sorted(found_unfinished),
        "finished without the caller": alone,
        "missing at the end": [key for key in keys if not records.get(key)],
        "fewer records": [key for key in keys if 0 < records.get(key, 0) < whole.get(key, 0)],
        "more records": [key for key in keys if records.get(key, 0) > whole.get(key, 0)],
    }


def _finished(progress: Mapping[str, bool] | None) -> set[str]:
    return {key for key, is_finished in (progress or {}).items() if is_finished}


async def _is_found(system: System, document: Document) -> bool:
    keys, _ = await system.search(document.text[:PROBE_CHARS])
    return document.key in keys
