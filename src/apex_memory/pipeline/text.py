"""Text as every store can hold it: NFC, `\\n` line ends, no control characters, no lone surrogates."""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

# PostgreSQL refuses NUL and surrogates; the other control characters are separators in our own rows.
_UNHOLDABLE = re.compile("[\x00-\x08\x0b-\x0c\x0e-\x1f\ud800-\udfff\ufffe\uffff]")
_LINE_END = re.compile("\r\n?")
_FORMS = bytes(
    ord(
        "0"
        if chr(n).isdigit()
        else "A"
        if chr(n).isupper()
        else " "
        if chr(n).isspace()
        else chr(n)
    )
    if n < 128
    else n
    for n in range(256)
)


def char_shape(text: str) -> bytes:
    """The text with every digit as `0`, capital as `A` and blank as ` `, `?` for what is not ASCII.

    What a pattern demands of its matches' form is looked for here at a thirtieth of the pattern's
    own time: most texts have no telephone number.
    """
    return text.encode("ascii", "replace").translate(_FORMS)


def matches(first: re.Pattern[str], pattern: re.Pattern[str], text: str) -> Iterator[re.Match[str]]:
    """What `pattern.finditer` gives, where `first` finds every place that a match can begin at.

    For patterns that begin with a look behind: their own search tries each character at full cost,
    while a set of characters is looked for at a tenth of it.
    """
    done = 0
    for place in first.finditer(text):
        start = place.start()
        if start >= done and (match := pattern.match(text, start)):
            done = match.end()
            yield match


def clean(text: str) -> str:
    """The text as stores can hold it. What cannot be held becomes U+FFFD."""
    if text.isascii() and text.isprintable():
        return text
    held = _UNHOLDABLE.sub("\ufffd", _LINE_END.sub("\n", text))
    return held if unicodedata.is_normalized("NFC", held) else unicodedata.normalize("NFC", held)


def clean_at(text: str, marks: Iterable[int]) -> tuple[str, dict[int, int]]:
    """The clean text, and where each marked offset of the old text lies in it.

    The text is cleaned piece by piece between the marks, so a mark is exact even where cleaning
    changes lengths; a combining sign at the very start of a piece stays as it is.
    """
    pieces: list[str] = []
    moved: dict[int, int] = {0: 0}
    last = length = 0
    for mark in sorted({mark for mark in marks if 0 < mark <= len(text)} | {len(text)}):
        pieces.append(clean(text[last:mark]))
        length += len(pieces[-1])
        last, moved[mark] = mark, length
    return "".join(pieces), moved


def clean_value(value: Any) -> Any:
    """Metadata as PostgreSQL's jsonb takes it: clean strings, finite numbers, all else as its text."""
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, str):
        return clean(value)
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {clean(str(key)): clean_value(item) for key, item in value.items()}
    if isinstance(value, Sequence | set | frozenset) and not isinstance(value, bytes | bytearray):
        return [clean_value(item) for item in value]
    return clean(str(value))
