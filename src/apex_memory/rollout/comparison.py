"""Comparison of what two paths or builds made of one event, by field.

A field is named only where it differs by itself. What follows from another difference is left out: while texts differ,
chunks and offsets necessarily differ too. So a change of the chunker shows as `chunks`, and one of the mapper as `text`.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from apex_memory.model import Assertion, Chunk, Entity, Manifest, Tally, Vectors
from apex_memory.pipeline import embedded_text
from apex_memory.saga.stage import chunks_tally, edges_tally

COSINE = 0.999
"""Least cosine of two vectors of the same text. The same model gives 0.99999 and more, in whatever batch."""
SHOWN_CHARS = 200  # of a value in a difference
SHOWN_ITEMS = 5  # of a set in a difference
NAME_CHARS = 60  # of a key of metadata, a type or a predicate in the name of a field
MOST_DIFFERENCES = 50  # of one event


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessedEvent:
    """What one side made of an event. `error` is the class of the error of a dead event."""

    outcome: str
    error: str = ""
    manifest: Manifest | None = None
    graph: Tally | None = None
    """What the graph held of its stage. None where nothing was staged."""
    vectors: Tally | None = None


@dataclass(frozen=True, slots=True)
class Difference:
    """A field that differs. `reason` is `changed`, `missing` (only live has it), `added` (only the copy), or says how."""

    field: str
    reason: str
    live: str
    shadow: str

    def as_json(self) -> dict[str, str]:
        return {
            "field": self.field,
            "reason": self.reason,
            "live": self.live,
            "shadow": self.shadow,
        }


def compare(live: ProcessedEvent, shadow: ProcessedEvent) -> list[Difference]:
    """Return the differences between the live outcome and the copy's, at most `MOST_DIFFERENCES`; empty if they are equal."""
    differences = list(_outcomes(live, shadow))
    if live.manifest is not None and shadow.manifest is not None:
        differences += _manifests(live.manifest, shadow.manifest)
    for side, processed in (("live", live), ("shadow", shadow)):
        differences += _tallies(side, processed)
    return differences[:MOST_DIFFERENCES]


def _outcomes(live: ProcessedEvent, shadow: ProcessedEvent) -> Iterator[Difference]:
    if live.outcome != shadow.outcome:
        yield Difference(
            "outcome", f"{live.outcome} → {shadow.outcome}", _outcome(live), _outcome(shadow)
        )
    elif live.error != shadow.error:
        yield Difference("error", "changed", live.error, shadow.error)


def _outcome(processed: ProcessedEvent) -> str:
    return f"{processed.outcome} ({processed.error})" if processed.error else processed.outcome


def _manifests(live: Manifest, shadow: Manifest) -> Iterator[Difference]:
    for field in ("kind", "title", "text", "deleted", "about", "parent_id", "occurred_at"):
        ours, theirs = getattr(live, field), getattr(shadow, field)
        if ours != theirs:
            yield _changed("parent" if field == "parent_id" else field, ours, theirs)
    yield from _metadata(live.metadata, shadow.metadata)
    yield from _entities(live, shadow)
    yield from _assertions(live, shadow)
    if live.text == shadow.text:
        yield from _chunks(live, shadow)
    yield from _vectors(live, shadow)


def _changed(field: str, live: object, shadow: object) -> Difference:
    if live in (None, ""):
        reason = "added"
    elif shadow in (None, ""):
        reason = "missing"
    else:
        reason = "changed"
    ours, theirs = _excerpts(_text(live), _text(shadow))
    return Difference(field, reason, ours, theirs)


def _text(value: object) -> str:
    if value is None:
        return ""
    return value if isinstance(value, str) else str(value)


def _excerpts(live: str, shadow: str) -> tuple[str, str]:
    """Return both texts from shortly before the first character that differs, each cut at `SHOWN_CHARS`."""
    equal = 0
    for ours, theirs in zip(live, shadow, strict=False):
        if ours != theirs:
            break
        equal += 1
    start = max(0, equal - SHOWN_CHARS // 4)
    return _cut(live[start:], cut_before=start > 0), _cut(shadow[start:], cut_before=start > 0)


def _cut(text: str, *, cut_before: bool) -> str:
    prefix = "…" if cut_before else ""
    suffix = "…" if len(text) > SHOWN_CHARS else ""
    return prefix + text[:SHOWN_CHARS] + suffix


def _metadata(live: Mapping[str, Any], shadow: Mapping[str, Any]) -> Iterator[Difference]:
    ours, theirs = stored_metadata(live), stored_metadata(shadow)
    for key in sorted(ours.keys() | theirs.keys()):
        field = f"metadata.{_name(key)}"
        if key not in theirs:
            yield Difference(field, "missing", _json(ours[key]), "")
        elif key not in ours:
            yield Difference(field, "added", "", _json(theirs[key]))
        elif ours[key] != theirs[key]:
            live_text, shadow_text = _excerpts(_json(ours[key]), _json(theirs[key]))
            yield Difference(field, "changed", live_text, shadow_text)


def stored_metadata(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Return metadata as PostgreSQL gives it back: tuples are lists, times are text."""
    stored: dict[str, Any] = json.loads(json.dumps(dict(metadata), default=str))
    return stored


def _json(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, sort_keys=True)
    return _cut(text, cut_before=False)


def _name(text: str) -> str:
    """Return a foreign name as a part of a field's name: short, and on one line."""
    return "".join(c if c.isprintable() else "?" for c in text[:NAME_CHARS])


def _entities(live: Manifest, shadow: Manifest) -> Iterator[Difference]:
    ours, theirs = set(live.entities), set(shadow.entities)
    by_type: dict[str, tuple[list[str], list[str]]] = {}
    for ref in sorted(ours ^ theirs):
        missing, added = by_type.setdefault(_name(Entity.parse(ref).type), ([], []))
        (missing if ref in ours else added).append(ref)
    for kind, (missing, added) in by_type.items():
        yield _set_difference(f"entities.{kind}", missing, added)


def _assertions(live: Manifest, shadow: Manifest) -> Iterator[Difference]:
    with_offsets = live.text == shadow.text
    ours = Counter(_assertion_text(item, with_offsets) for item in live.assertions)
    theirs = Counter(_assertion_text(item, with_offsets) for item in shadow.assertions)
    by_predicate: dict[str, tuple[list[str], list[str]]] = {}
    for (predicate, text), count in (ours - theirs).items():
        missing, _ = by_predicate.setdefault(_name(predicate), ([], []))
        missing += [text] * count
    for (predicate, text), count in (theirs - ours).items():
        _, added = by_predicate.setdefault(_name(predicate), ([], []))
        added += [text] * count
    for predicate, (missing, added) in sorted(by_predicate.items()):
        yield _set_difference(f"assertions.{predicate}", missing, added)


def _assertion_text(item: Assertion, with_offset: bool) -> tuple[str, str]:
    """Return the predicate, and the assertion as text that is the same for equal assertions."""
    subject = "document" if item.subject.startswith("document:") else item.subject
    target = item.object if item.object is not None else json.dumps(item.value, ensure_ascii=False)
    place = f" @{item.start}" if with_offset and item.start is not None else ""
    return item.predicate, f"{subject} → {target}{place}"


def _set_difference(field: str, missing: list[str], added: list[str]) -> Difference:
    if not added:
        reason = "missing"
    elif not missing:
        reason = "added"
    else:
        reason = "changed"
    return Difference(field, reason, _items(missing), _items(added))


def _items(items: list[str]) -> str:
    shown = ", ".join(items[:SHOWN_ITEMS])
    if len(items) > SHOWN_ITEMS:
        shown += f" and {len(items) - SHOWN_ITEMS} more"
    return _cut(shown, cut_before=False)


def _chunks(live: Manifest, shadow: Manifest) -> Iterator[Difference]:
    ours = [(chunk.start, chunk.end) for chunk in live.chunks]
    theirs = [(chunk.start, chunk.end) for chunk in shadow.chunks]
    if ours != theirs:
        yield Difference("chunks", "changed", _spans(ours), _spans(theirs))


def _spans(spans: list[tuple[int, int]]) -> str:
    return f"{len(spans)}: " + _items([f"{start}-{end}" for start, end in spans])


def _vectors(live: Manifest, shadow: Manifest) -> Iterator[Difference]:
    """Compare the vectors that are of the same text; others follow from the title, the text or the chunks."""
    if not live.chunks or not shadow.chunks:
        return
    if live.vectors.shape[1] != shadow.vectors.shape[1]:
        yield Difference(
            "vectors",
            "another dimension",
            str(live.vectors.shape[1]),
            str(shadow.vectors.shape[1]),
        )
        return
    rows_of = {_embedded(live, chunk): chunk.n for chunk in live.chunks}
    pairs = []
    for chunk in shadow.chunks:
        row = rows_of.get(_embedded(shadow, chunk))
        if row is not None:
            pairs.append((row, chunk.n))
    if not pairs:
        return
    ours = live.vectors[[row for row, _ in pairs]]
    theirs = shadow.vectors[[row for _, row in pairs]]
    cosines = _cosines(ours, theirs)
    far = int(np.sum(cosines < COSINE))
    if far:
        least = f"cosine {float(np.min(cosines)):.4f}"
        yield Difference(
            "vectors", "changed", f"{len(pairs)} passages", f"{far} differ, least {least}"
        )


def _embedded(manifest: Manifest, chunk: Chunk) -> str:
    return embedded_text(manifest.kind, manifest.title, manifest.chunk_text(chunk))


def _cosines(ours: Vectors, theirs: Vectors) -> NDArray[np.floating[Any]]:
    """Return cosines row by row, shape (rows,). Two zero vectors are equal."""
    norms = np.linalg.norm(ours, axis=1) * np.linalg.norm(theirs, axis=1)
    dots = np.einsum("ij,ij->i", ours, theirs)
    equal = np.all(ours == theirs, axis=1)
    return np.where(equal, 1.0, dots / np.where(norms == 0, 1.0, norms))


def _tallies(side: str, processed: ProcessedEvent) -> Iterator[Difference]:
    """Compare what the stores held of a stage with what its manifest says. A difference is a fault of that side."""
    if processed.manifest is None:
        return
    for store, held, tally_of in (
        ("graph", processed.graph, edges_tally),
        ("vectors", processed.vectors, chunks_tally),
    ):
        if held is None:
            continue
        expected = tally_of(processed.manifest)
        if held != expected:
            values = {"live": "", "shadow": ""}
            values[side] = f"holds {held.count} of {expected.count} items, or other content"
            yield Difference(f"tallies.{store}", f"the {side} stage is not its manifest", **values)
