"""Cleans what a source or parser made: text that every store can hold, offsets moved with it, canonical refs."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from apex_memory.errors import Rejected
from apex_memory.model import DEGRADED, LINK, TURNS, Assertion, Document, Event
from apex_memory.pipeline.entities import canonical
from apex_memory.pipeline.file_limits import MAX_CHARACTERS
from apex_memory.pipeline.text import clean, clean_at, clean_value

MAX_TITLE = 500  # characters
MAX_SPEAKER = 200
MAX_LINK = 2_000
MAX_METADATA = 1_000_000
"""Bytes of JSON that a source and its files may say of one document. A thousand files have notes of about half of it."""


def without_content(document: Document) -> Document:
    """Return a deleted document, which keeps only its kind, time and parent."""
    return Document(
        kind=clean(document.kind),
        title="",
        occurred_at=document.occurred_at,
        parent=document.parent,
        deleted=True,
    )


def clean_document(document: Document, event: Event) -> Document:
    """Return the document with text that every store can hold, and with its offsets moved accordingly."""
    if document.occurred_at.tzinfo is None:
        raise Rejected(
            f"{event.source} gave a time without a zone", remedy="correct the source's `document`"
        )
    text = document.text if document.text.strip() else ""
    offsets = _offsets(document)
    if text and any(not 0 <= offset <= len(text) for offset in offsets):
        raise Rejected(
            f"{event.source} points outside its text of {len(text)} characters",
            remedy="correct the source's `document`",
        )
    metadata = _bounded(clean_value(document.metadata))
    if len(text) > MAX_CHARACTERS:
        metadata[DEGRADED] = _with_cut(metadata, len(text))
        text = text[:MAX_CHARACTERS]
    text, moved = clean_at(text, offsets)
    title = " ".join(clean(document.title).split())[:MAX_TITLE]
    if text and (turns := _turns(document, moved, len(text))):
        metadata[TURNS] = turns
    if document.link.startswith(("https://", "http://")) and len(document.link) <= MAX_LINK:
        metadata[LINK] = clean(document.link)
    return replace(
        document,
        kind=clean(document.kind),
        title=title,
        text=text or title,
        passages=tuple(
            (moved[start], moved.get(end, len(text)))
            for start, end in document.passages
            if start in moved and text
        ),
        metadata=metadata,
        about=canonical(clean(document.about)) if document.about else None,
        assertions=tuple(_clean_assertions(document.assertions, moved)),
    )


def _turns(document: Document, moved: Mapping[int, int], length: int) -> list[list[Any]]:
    """Return the turns as the manifest's metadata holds them; those beyond a cut text are left out."""
    turns: list[list[Any]] = []
    for turn in document.turns:
        if turn.start in moved:
            speaker = " ".join(clean(turn.speaker).split())[:MAX_SPEAKER]
            at = turn.at.isoformat() if turn.at else None
            turns.append([moved[turn.start], moved.get(turn.end, length), speaker, at])
    return turns


def _bounded(metadata: dict[str, Any]) -> dict[str, Any]:
    """Return metadata of at most `MAX_METADATA` bytes: the largest values are left out, and `DEGRADED` says so.

    A vendor's field or the header of a mail may be as long as the body that brings it.
    """
    sizes = {
        name: len(json.dumps({name: value}, ensure_ascii=False).encode())
        for name, value in metadata.items()
        if name != DEGRADED
    }
    total = kept = sum(sizes.values())
    if total <= MAX_METADATA:
        return metadata
    bounded = dict(metadata)
    for name in sorted(sizes, key=lambda name: sizes[name], reverse=True):
        if kept <= MAX_METADATA:
            break
        del bounded[name]
        kept -= sizes[name]
    degraded = metadata.get(DEGRADED, {})
    bounded[DEGRADED] = {**degraded, "metadata_bytes": {"found": total, "kept": kept}}
    return bounded


def _with_cut(metadata: Mapping[str, Any], length: int) -> dict[str, Any]:
    """Return what is left out of a document, with the cut of a text of `length` characters that may be cut already."""
    degraded = dict(metadata.get(DEGRADED, {}))
    all_characters = degraded.get("characters", {}).get("found", length)
    return {**degraded, "characters": {"found": all_characters, "kept": MAX_CHARACTERS}}


def _offsets(document: Document) -> set[int]:
    """Return all offsets that point into the document's text."""
    offsets = {assertion.start for assertion in document.assertions if assertion.start is not None}
    for passage in document.passages:
        offsets.update(passage)
    for turn in document.turns:
        offsets.update((turn.start, turn.end))
    return offsets


def _clean_assertions(
    assertions: Sequence[Assertion], moved: Mapping[int, int]
) -> Iterator[Assertion]:
    """Yield the assertions with clean values and canonical refs, without those about an entity whose name is blank."""
    for assertion in assertions:
        cleaned = _clean_assertion(assertion, moved)
        if not _is_nameless(cleaned.subject) and not _is_nameless(cleaned.object or ""):
            yield cleaned


def _is_nameless(ref: str) -> bool:
    return ref.endswith(":") and ref.count(":") == 1


def _clean_assertion(assertion: Assertion, moved: Mapping[int, int]) -> Assertion:
    return Assertion(
        predicate=clean(assertion.predicate),
        subject=canonical(clean(assertion.subject)),
        object=None if assertion.object is None else canonical(clean(assertion.object)),
        value=None if assertion.value is None else clean(assertion.value),
        start=None if assertion.start is None else moved.get(assertion.start),
    )
