"""Excerpts: the part of a passage that holds the query's words. No I/O."""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise

from apex_memory.normalization import UNSPACED

EXCERPT_CHARS = 240
WORDS_MAX = 50  # words of a query that are looked for

_LEAD = 60  # characters kept before the first word of the query, at most
_WORD_REST = re.compile(r"\w*")
_WORD = re.compile(r"\w[\w'’-]*")
_SENTENCE_START = re.compile(r"(?:[.!?:]\s+|\n\s*)(?=\S)")


Span = tuple[int, int]
"""Character offsets (start, end)."""


def excerpter(query: str, is_relevant: Callable[[str], bool]) -> Callable[[str], str]:
    """Return a function that cuts a passage down to `EXCERPT_CHARS` characters with most of the query's relevant words.

    Words match if they begin alike (`delivered`, `delivery`). White space is folded; `…` marks text that
    was left out. A passage with none of the words is cut from its start.
    """
    pattern = _pattern(_stems(query, is_relevant))

    def excerpt(passage: str) -> str:
        if len(passage) > EXCERPT_CHARS:
            start = _best_start(passage, pattern) if pattern else 0
            passage = _cut(passage, start)
        return " ".join(passage.split())

    return excerpt


def marker(query: str, is_relevant: Callable[[str], bool]) -> Callable[[str], list[Span]]:
    """Return a function that finds the words of a text that are words of the query, by the rule of `excerpter`.

    A word counts as a whole; of a script without blanks the characters that match. Neighbours become one.
    """
    pattern = _pattern(_stems(query, is_relevant))

    def mark(text: str) -> list[Span]:
        spans: list[Span] = []
        for match in pattern.finditer(text) if pattern else ():
            start, end = match.span()
            if not UNSPACED.match(match[0]):
                end = _WORD_REST.match(text, end).end()  # type: ignore[union-attr]
            if spans and start <= spans[-1][1]:
                start, end = spans[-1][0], max(end, spans.pop()[1])
            spans.append((start, end))
        return spans

    return mark


def relevance(query: str, is_relevant: Callable[[str], bool]) -> Callable[[str], int]:
    """Return a function that counts the query's relevant words in a text, each once."""
    stems = _stems(query, is_relevant)

    def count(text: str) -> int:
        folded = text.lower()
        return sum(stem in folded for stem in stems)

    return count


def _stems(query: str, is_relevant: Callable[[str], bool]) -> list[str]:
    """Return the beginnings of the query's relevant words, the longest first, at most `WORDS_MAX`."""
    words = dict.fromkeys(word.lower() for word in _words(query) if is_relevant(word))
    return sorted(dict.fromkeys(map(_stem, words)), key=len, reverse=True)[:WORDS_MAX]


def _pattern(stems: Sequence[str]) -> re.Pattern[str] | None:
    """Return what finds a word that begins with one of the stems; None without stems."""
    if not stems:
        return None
    alternatives = "|".join(map(re.escape, stems))
    # A word of a script without blanks may begin anywhere.
    return re.compile(rf"(?:\b|(?=[^\x00-\x7f]))(?:{alternatives})", re.IGNORECASE)


def _words(query: str) -> Iterator[str]:
    """Yield the words of a query; a run of a script without blanks as pairs of characters, as the word legs do."""
    for word in _WORD.findall(query):
        if not UNSPACED.search(word):
            yield word
            continue
        for run in UNSPACED.findall(word):
            if len(run) == 1:
                yield run
            yield from map("".join, pairwise(run))


def _stem(word: str) -> str:
    """Drop the ending, which grammar changes; a number or code has none."""
    return word[: max(3, len(word) - 3)] if word.isalpha() else word


def _best_start(passage: str, pattern: re.Pattern[str]) -> int:
    """Return the start of the window with the most different words: the start of its sentence, where that is near."""
    matches = [(match.start(), match[0].lower()) for match in pattern.finditer(passage)]
    starts = [start for start, _ in matches]
    width = EXCERPT_CHARS - _LEAD
    best, most = 0, 0
    for n, start in enumerate(starts):
        words = {word for _, word in matches[n : bisect_left(starts, start + width)]}
        if len(words) > most:
            best, most = start, len(words)
    lead_start = max(best - _LEAD, 0)
    sentence_starts = [m.end() for m in _SENTENCE_START.finditer(passage, lead_start, best)]
    return sentence_starts[0] if sentence_starts else lead_start


def _cut(passage: str, start: int) -> str:
    """Return `EXCERPT_CHARS` characters from about `start`, cut between words."""
    start = min(start, len(passage) - EXCERPT_CHARS)
    if start > 0:
        space = passage.find(" ", start - 1, start + 40)
        start = space + 1 if space >= 0 else start
    room = EXCERPT_CHARS - (start > 0)
    if start + room >= len(passage):
        return f"…{passage[start:]}"
    end = start + room - 1
    space = passage.rfind(" ", end - 40, end + 1)
    end = space if space >= 0 else end
    return f"{'…' if start else ''}{passage[start:end]}…"
