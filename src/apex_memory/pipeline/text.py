"""Text as every store can hold it: NFC, `\\n` line ends, no control characters, no lone surrogates."""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

# PostgreSQL refuses NUL and surrogates; the other control characters are separators in packed rows.
_UNSTORABLE = re.compile("[\x00-\x08\x0e-\x1f\ud800-\udfff\ufffe\uffff]")
_LINE_END = re.compile("\r\n?|[\x0b\x0c]")  # form feeds separate the pages of printouts


def _shape_of(code: int) -> int:
    character = chr(code)
    if code >= 128:
        return code
    if character.isdigit():
        return ord("0")
    if character.isupper():
        return ord("A")
    if character.isspace():
        return ord(" ")
    return code


_SHAPES = bytes(map(_shape_of, range(256)))


def char_shape(text: str) -> bytes:
    """Return the text with `0` for every digit, `A` for a capital, a blank for white space, `?` for what is not ASCII.

    Searching it for the shape that every match of a pattern must have takes a thirtieth of the pattern's
    own time, and most texts hold, say, no telephone number.
    """
    return text.encode("ascii", "replace").translate(_SHAPES)


def matches(first: re.Pattern[str], pattern: re.Pattern[str], text: str) -> Iterator[re.Match[str]]:
    """Yield the matches of `pattern.finditer`, where `first` finds every position at which a match can begin.

    For patterns that begin with a look-behind: their own search tries each character at full cost, a
    search for a set of characters takes a tenth of that.
    """
    done = 0
    for candidate in first.finditer(text):
        start = candidate.start()
        if start >= done and (match := pattern.match(text, start)):
            done = match.end()
            yield match


def clean(text: str) -> str:
    """Return the text as every store can hold it. Other characters become U+FFFD."""
    if text.isascii() and text.isprintable():
        return text
    return unicodedata.normalize("NFC", _UNSTORABLE.sub("\ufffd", _LINE_END.sub("\n", text)))


def clean_at(text: str, offsets: Iterable[int]) -> tuple[str, dict[int, int]]:
    """Return the clean text, and the new offset of each given offset.

    The text is cleaned piece by piece between the offsets, so they stay exact even where cleaning
    changes lengths. A combining character at the very start of a piece stays as it is.
    """
    pieces: list[str] = []
    moved: dict[int, int] = {0: 0}
    last = length = 0
    inside = {offset for offset in offsets if 0 < offset <= len(text)}
    for offset in sorted(inside | {len(text)}):
        pieces.append(clean(text[last:offset]))
        length += len(pieces[-1])
        moved[offset] = length
        last = offset
    return "".join(pieces), moved


def clean_value(value: Any) -> Any:
    """Return metadata as PostgreSQL's jsonb and all readers accept it: clean strings, finite numbers, other values as text.

    So is an integer beyond 64 bits, which neither the cache nor many JSON readers can hold.
    """
    if value is None or isinstance(value, bool | int):
        return value if value is None or -(2**63) <= value < 2**63 else str(value)
    if isinstance(value, str):
        return clean(value)
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {clean(str(key)): clean_value(item) for key, item in value.items()}
    if isinstance(value, Sequence | set | frozenset) and not isinstance(value, bytes | bytearray):
        return [clean_value(item) for item in value]
    return clean(str(value))
