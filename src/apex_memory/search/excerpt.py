"""The part of a passage that speaks of the question: what a person reads of a hit first. Pure."""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Callable

EXCERPT_CHARS = 240
WORDS_MAX = 50  # of a question looked for

_LEAD = 60  # characters kept before the first word of the question, at most
_WORD = re.compile(r"\w[\w'’-]*")
_SENTENCE = re.compile(r"(?:[.!?:]\s+|\n\s*)(?=\S)")


def excerpter(question: str, matters: Callable[[str], bool]) -> Callable[[str], str]:
    """What cuts passages down to at most `EXCERPT_CHARS` with most of the question's words that matter.

    Words are alike when they begin alike (`delivered`, `delivery`). White space is folded; `…` stands
    where something was left out. A passage with none of the words is shown from its start.
    """
    asked = dict.fromkeys(word.lower() for word in _WORD.findall(question) if matters(word))
    # The ending is what grammar changes; a number or code has none.
    stems = dict.fromkeys(w[: max(3, len(w) - 3)] if w.isalpha() else w for w in asked)
    longest = sorted(stems, key=len, reverse=True)[:WORDS_MAX]
    found = "|".join(map(re.escape, longest))
    pattern = re.compile(rf"\b(?:{found})", re.IGNORECASE) if found else None

    def excerpt(passage: str) -> str:
        if len(passage) > EXCERPT_CHARS:
            start = _best_start(passage, pattern) if pattern else 0
            passage = _cut(passage, start)
        return " ".join(passage.split())

    return excerpt


def _best_start(passage: str, pattern: re.Pattern[str]) -> int:
    """Where the window with the most different words begins: at its sentence, where that is near."""
    matches = [(match.start(), match[0].lower()) for match in pattern.finditer(passage)]
    starts = [start for start, _ in matches]
    width = EXCERPT_CHARS - _LEAD
    best, most = 0, 0
    for n, start in enumerate(starts):
        words = {word for _, word in matches[n : bisect_left(starts, start + width)]}
        if len(words) > most:
            best, most = start, len(words)
    near = [m.end() for m in _SENTENCE.finditer(passage, max(best - _LEAD, 0), best)]
    return near[0] if near else max(best - _LEAD, 0)


def _cut(passage: str, start: int) -> str:
    """`EXCERPT_CHARS` from about `start`, between words."""
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
