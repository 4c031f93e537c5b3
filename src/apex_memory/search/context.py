"""Context: the best passages in one text of a limited number of tokens, with citations, to paste into a prompt. No I/O."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from apex_memory.search.results import Citation, Context, Hit
from apex_memory.search.sentences import (
    QUARTERS,
    Span,
    estimated_tokens,
    sentences,
    token_quarters,
)

TOKENS_MIN = 100  # room for the longest heading and some words
TOKENS_MAX = 32_000
MARGIN = 1_000  # characters around a passage that are read, to begin and end with whole sentences

_ELLIPSIS = "…"
_BETWEEN = "\n\n"
# The longest parts of a heading, in quarters of a token.
_TITLE, _SPEAKER, _WORD = 100, 60, 40


@dataclass(frozen=True, slots=True, kw_only=True)
class PassageText:
    """A hit with the text around it. `window` begins at the character `window_start` of the document's text."""

    hit: Hit
    window: str
    window_start: int
    text_length: int
    """Characters of the whole document."""

    def sentences(self) -> list[Span]:
        """Return the offsets in the document of the sentences that the passage touches and the window holds whole."""
        spans: list[Span] = []
        for first, last in self.all_sentences():
            is_begun = first == self.window_start and self.window_start > 0
            is_open = last == self._window_end and self._window_end < self.text_length
            if not is_begun and not is_open:
                spans.append((first, last))
        return spans

    def all_sentences(self) -> list[Span]:
        """Return the same with those that go on beyond the window."""
        spans: list[Span] = []
        for first, last in sentences(self.window):
            start, end = self.window_start + first, self.window_start + last
            if start < self.hit.end and self.hit.start < end:
                spans.append((start, end))
        return spans

    def text(self, span: Span) -> str:
        return self.window[span[0] - self.window_start : span[1] - self.window_start]

    @property
    def _window_end(self) -> int:
        return self.window_start + len(self.window)


@dataclass(frozen=True, slots=True)
class _Block:
    """A piece of a document in the context. `span` is where its text stands in the document."""

    hit: Hit
    heading: str
    text: str
    span: Span
    is_cut: bool = False

    @property
    def rendered(self) -> str:
        return f"{self.heading}\n{self.text}{_ELLIPSIS if self.is_cut else ''}"


def pack(
    passages: Sequence[PassageText], *, max_tokens: int, relevance: Callable[[str], int]
) -> Context:
    """Return the best passages as one text of at most `max_tokens` tokens, by the estimate of `token_quarters`.

    The passages come best first; `relevance` returns how many of the question's words a text holds. A passage is taken in
    whole sentences: all of them or, where they do not fit, as many as fit around the most relevant one. A sentence is
    never shown twice. Only where not one sentence of any passage fits is one cut, and its citation says so.
    """
    packing = _Packing(max_tokens, relevance)
    left_out = 0
    for passage in passages:
        left_out += not packing.add(passage)
    if not packing.blocks and passages:
        packing.add_cut(passages[0])
    return packing.context(left_out)


class _Packing:
    """The blocks so far, and the room for more, in quarters of a token."""

    def __init__(self, max_tokens: int, relevance: Callable[[str], int]) -> None:
        self.blocks: list[_Block] = []
        self._max_tokens = max_tokens
        self._room = QUARTERS * max_tokens
        self._relevance = relevance

    def add(self, passage: PassageText) -> bool:
        """Add what fits of a passage. Return whether all of it is in the context."""
        missing = self._missing(passage)
        if not missing:
            return bool(passage.sentences())
        wanted = _neighbours(missing, passage, self._best(missing, passage))
        heading = _heading(len(self.blocks) + 1, passage.hit)
        taken = self._fitting(passage, wanted, heading)
        if taken:
            self._put(_block(passage, taken, heading))
        return len(taken) == len(missing)

    def add_cut(self, passage: PassageText) -> None:
        """Add the beginning of the most relevant sentence, up to the last word that fits."""
        spans = passage.all_sentences()
        if not spans:
            return
        start, end = spans[self._best(spans, passage)]
        heading = _heading(1, passage.hit)
        sentence = passage.text((start, end))
        fitting, too_long = 0, len(sentence) + 1
        while too_long - fitting > 1:
            length = (fitting + too_long) // 2
            block = _Block(passage.hit, heading, sentence[:length], (start, start + length), True)
            if token_quarters(block.rendered) <= self._room:
                fitting = length
            else:
                too_long = length
        text = sentence[:fitting]
        last_word = text.rfind(" ")
        if fitting < len(sentence) and last_word > 0:
            text = text[:last_word].rstrip()
        self._put(_Block(passage.hit, heading, text, (start, start + len(text)), True))

    def context(self, left_out: int) -> Context:
        text = _BETWEEN.join(block.rendered for block in self.blocks)
        return Context(
            text=text,
            tokens=estimated_tokens(text),
            max_tokens=self._max_tokens,
            citations=[_citation(n, block) for n, block in enumerate(self.blocks, start=1)],
            left_out=left_out,
        )

    def _missing(self, passage: PassageText) -> list[Span]:
        """Return the passage's sentences that no block holds."""
        held = [block.span for block in self.blocks if block.hit.doc_id == passage.hit.doc_id]
        missing: list[Span] = []
        for start, end in passage.sentences():
            if not any(first < end and start < last for first, last in held):
                missing.append((start, end))
        return missing

    def _best(self, spans: Sequence[Span], passage: PassageText) -> int:
        """Return the number of the most relevant sentence; of equal ones the first."""
        relevances = [self._relevance(passage.text(span)) for span in spans]
        return relevances.index(max(relevances))

    def _fitting(self, passage: PassageText, spans: Sequence[Span], heading: str) -> Sequence[Span]:
        """Return all sentences if they fit, else as many as fit around the most relevant one, none if not even that does."""

        def fits(first: int, last: int) -> bool:
            block = _block(passage, spans[first:last], heading)
            return self._cost(block) <= self._room

        if fits(0, len(spans)):
            return spans
        first = self._best(spans, passage)
        last = first + 1
        if not fits(first, last):
            return ()
        while last < len(spans) and fits(first, last + 1):
            last += 1
        while first > 0 and fits(first - 1, last):
            first -= 1
        return spans[first:last]

    def _put(self, block: _Block) -> None:
        self._room -= self._cost(block)
        self.blocks.append(block)

    def _cost(self, block: _Block) -> int:
        separator = token_quarters(_BETWEEN) if self.blocks else 0
        return separator + token_quarters(block.rendered)


def _neighbours(spans: Sequence[Span], passage: PassageText, best: int) -> list[Span]:
    """Return the sentences around the best one up to the first that another block holds."""
    order = passage.sentences()
    first = last = order.index(spans[best])
    while first > 0 and order[first - 1] in spans:
        first -= 1
    while last + 1 < len(order) and order[last + 1] in spans:
        last += 1
    return order[first : last + 1]


def _block(passage: PassageText, spans: Sequence[Span], heading: str) -> _Block:
    span = spans[0][0], spans[-1][1]
    return _Block(passage.hit, heading, passage.text(span), span)


def _heading(number: int, hit: Hit) -> str:
    """Return the line above a passage: its number, title, kind, source, time, and who says it."""
    at = hit.turn.at if hit.turn and hit.turn.at else hit.occurred_at
    parts = [_limited(hit.kind, _WORD), _limited(hit.source, _WORD), minute(at)]
    if hit.turn:
        parts.append(_limited(hit.turn.speaker, _SPEAKER))
    return f"[{number}] {_limited(hit.title, _TITLE)} ({', '.join(parts)})"


def minute(at: datetime) -> str:
    """Return a time in UTC to the minute."""
    return f"{at.astimezone(UTC):%Y-%m-%d %H:%M} UTC"


def _limited(text: str, quarters: int) -> str:
    """Return a text on one line, cut to so many quarters of a token."""
    line = " ".join(text.split())
    if token_quarters(line) <= quarters:
        return line
    while line and token_quarters(line + _ELLIPSIS) > quarters:
        line = line[: len(line) - max(1, (token_quarters(line) - quarters) // QUARTERS)]
    return line.rstrip() + _ELLIPSIS


def _citation(number: int, block: _Block) -> Citation:
    hit = block.hit
    start, end = block.span
    return Citation(
        number=number,
        rank=hit.rank,
        doc_id=hit.doc_id,
        title=hit.title,
        source=hit.source,
        kind=hit.kind,
        occurred_at=hit.occurred_at,
        turn=hit.turn,
        link=hit.link,
        start=start,
        end=end,
        cut=block.is_cut,
    )
