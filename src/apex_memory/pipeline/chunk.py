"""Chunks: the unit of search. At most `chunk_chars` characters, and never across the border of a passage."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from semantic_text_splitter import MarkdownSplitter, TextSplitter

from apex_memory.errors import Rejected
from apex_memory.model import Chunk

Span = tuple[int, int]

# The splitter's time grows faster than its input when there is no place to split.
_SLAB = 50_000  # characters
_MARKDOWN = re.compile(r"^(?:#{1,6} \S|```|\|[^\n]{1,500}\|[ \t]*$)", re.MULTILINE)


def chunk(text: str, passages: Sequence[Span], *, chunk_chars: int) -> tuple[Chunk, ...]:
    """Chunks of every passage, and of what lies between passages, in the order of the text.

    Without passages the text is one. Blank stretches make no chunk; a text that is not blank makes
    at least one. Raises `Rejected` when passages overlap or lie outside the text.
    """
    spans = [
        (start + begin, start + end)
        for start, stop in units(len(text), passages)
        for begin, end in _split(text[start:stop], chunk_chars)
    ]
    return tuple(Chunk(n, start, end) for n, (start, end) in enumerate(spans))


def units(length: int, passages: Sequence[Span]) -> list[Span]:
    """The text cut at the borders of its passages: the passages and the stretches between them."""
    cut: list[Span] = []
    last = 0
    for start, end in sorted(passages):
        if not last <= start <= end <= length:
            raise Rejected(
                f"passage {start}-{end} overlaps another or is outside the text of {length} characters",
                remedy="correct the source's `document`, then redrive",
            )
        cut += [(last, start), (start, end)]
        last = end
    return [(start, end) for start, end in [*cut, (last, length)] if start < end]


def _split(text: str, capacity: int) -> Iterator[Span]:
    if len(text) <= capacity:  # most turns of a conversation
        yield from _trimmed(text)
        return
    kind = MarkdownSplitter if _MARKDOWN.search(text) else TextSplitter
    splitter = kind(capacity)
    for start, end in _slabs(text):
        for offset, piece in splitter.chunk_indices(text[start:end]):
            yield start + offset, start + offset + len(piece)


def _trimmed(text: str) -> Iterator[Span]:
    kept = text.strip()
    if kept:
        start = len(text) - len(text.lstrip())
        yield start, start + len(kept)


def _slabs(text: str) -> Iterator[Span]:
    start = 0
    while len(text) - start > _SLAB:
        limit = start + _SLAB
        ends = (text.rfind(mark, start + _SLAB // 2, limit) for mark in ("\n\n", "\n", " "))
        end = next((place for place in ends if place > 0), limit)
        yield start, end
        start = end
    yield start, len(text)
