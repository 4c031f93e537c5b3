"""Chunks: the unit of search. A chunk has at most `chunk_chars` characters and never crosses a passage's border."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from semantic_text_splitter import MarkdownSplitter, TextSplitter

from apex_memory.errors import Rejected
from apex_memory.model import Chunk

Span = tuple[int, int]
"""Character offsets (start, end)."""

# The splitter's time grows faster than its input where it finds no place to split.
_SLAB = 50_000  # characters
_MARKDOWN = re.compile(r"^(?:#{1,6} \S|```|\|[^\n]{1,500}\|[ \t]*$)", re.MULTILINE)


def chunk(text: str, passages: Sequence[Span], *, chunk_chars: int) -> tuple[Chunk, ...]:
    """Return the chunks of every passage and of the text between passages, in the order of the text.

    A text without passages is one passage. Blank text makes no chunk; any other text makes at least one.
    Raises `Rejected` if passages overlap or lie outside the text.
    """
    spans: list[Span] = []
    for start, end in split_at_passages(len(text), passages):
        spans += (
            (start + first, start + last) for first, last in _split(text[start:end], chunk_chars)
        )
    return tuple(Chunk(n, start, end) for n, (start, end) in enumerate(spans))


def split_at_passages(length: int, passages: Sequence[Span]) -> list[Span]:
    """Return the spans of a text of `length` characters, cut at the borders of its passages."""
    spans: list[Span] = []
    last = 0
    for start, end in sorted(passages):
        if not last <= start <= end <= length:
            raise Rejected(
                f"passage {start}-{end} overlaps another or is outside the text of {length} characters",
                remedy="correct the source's `document`, then redrive",
            )
        spans += [(last, start), (start, end)]
        last = end
    spans.append((last, length))
    return [(start, end) for start, end in spans if start < end]


def _split(text: str, capacity: int) -> Iterator[Span]:
    if len(text) <= capacity:  # most turns of a conversation
        yield from _stripped(text)
        return
    splitter_type = MarkdownSplitter if _MARKDOWN.search(text) else TextSplitter
    splitter = splitter_type(capacity)
    for start, end in _slabs(text):
        for offset, piece in splitter.chunk_indices(text[start:end]):
            yield start + offset, start + offset + len(piece)


def _stripped(text: str) -> Iterator[Span]:
    stripped = text.strip()
    if stripped:
        start = len(text) - len(text.lstrip())
        yield start, start + len(stripped)


def _slabs(text: str) -> Iterator[Span]:
    """Cut a long text at paragraphs, lines or blanks, into slabs of `_SLAB` characters at most."""
    start = 0
    while len(text) - start > _SLAB:
        limit = start + _SLAB
        breaks = (text.rfind(mark, start + _SLAB // 2, limit) for mark in ("\n\n", "\n", " "))
        end = next((position for position in breaks if position > 0), limit)
        yield start, end
        start = end
    yield start, len(text)
