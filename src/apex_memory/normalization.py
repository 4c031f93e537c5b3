"""Normal forms of text: of a name as a key, of text as words, and of text in which identifiers are recognised.

All three use Unicode's NFKC (full width, ligatures, no-break blanks; UAX 15), drop invisible characters (soft
hyphen, zero-width characters, marks of writing direction) and write every hyphen as `-`.
"""

from __future__ import annotations

import re
import unicodedata
from bisect import bisect_right
from collections.abc import Iterator
from itertools import pairwise

# Characters that are not shown: soft hyphen, fillers, zero-width characters, direction marks, variation selectors.
_INVISIBLE_RANGES = (
    "\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u202a-\u202e\u2060-\u206f"
    "\u3164\ufe00-\ufe0f\ufeff\uffa0\U000e0000-\U000e0fff"
)
_INVISIBLE = re.compile(f"[{_INVISIBLE_RANGES}]+")
_HYPHENS = re.compile("[\u2010\u2011\u2043\ufe63\uff0d]")
# Dashes and the minus sign are hyphens only inside a number or code, elsewhere they separate words.
_DASH_IN_CODE = re.compile(
    "(?<=[0-9])[\u2012\u2013\u2212](?=[^\\W_])|(?<=[^\\W_])[\u2012\u2013\u2212](?=[0-9])"
)

_HAN = "\u2e80-\u2fdf\u3005-\u3007\u3021-\u3029\u3038-\u303b\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
_KANA = "\u3041-\u309f\u30a1-\u30ff\u31f0-\u31ff"
_HANGUL = "\u1100-\u11ff\u3131-\u318e\ua960-\ua97f\uac00-\ud7ff"
_SOUTH_EAST_ASIAN = "\u0e01-\u0eff\u1000-\u109f\u1780-\u17ff\u19e0-\u19ff\uaa60-\uaa7f"
_HAN_CHARACTER = re.compile(f"[{_HAN}]")
UNSPACED = re.compile(f"[{_HAN}{_KANA}{_HANGUL}{_SOUTH_EAST_ASIAN}]+")
"""A run of characters of scripts that do not put blanks between words, or, in Korean, join particles to them."""

_LINE_HYPHEN = re.compile(r"([^\W\d_]+)-\n[ \t]{0,8}([^\W\d_]+)")


def name_key(name: str) -> str:
    """Return a name as a key: NFKC, case-folded, words joined by `-`; letters, digits and marks of every script are kept.

    A name without any letter or digit becomes the code points of its characters. Only a blank name has an empty key.
    """
    if name.isascii():
        key = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
    else:
        folded = _fold(name)
        characters = [c if unicodedata.category(c)[0] in "LNM" else " " for c in folded]
        key = "-".join("".join(characters).split())
    return key or "-".join(f"{ord(character):x}" for character in "".join(name.split()))


def without_marks(text: str) -> str:
    """Return the text without accents and other marks, which combine with the letter before them."""
    if text.isascii():
        return text
    parts = unicodedata.normalize("NFD", text)
    return "".join(part for part in parts if unicodedata.category(part)[0] != "M")


def words_of(text: str) -> str:
    """Return the text as the word legs tokenise it: blanks between words, the same for a passage and a query.

    Scripts without blanks become pairs of characters, and Han also single ones: a dictionary would cut the same word
    differently in a sentence and in a query, and differently after each update of the dictionary. A word that is
    hyphenated at the end of a line follows once more as a whole.
    """
    if "-\n" in text:
        text = _LINE_HYPHEN.sub(r"\1-\n\2 \1\2", text)
    if text.isascii():
        return text
    return UNSPACED.sub(lambda run: f" {' '.join(_grams(run[0]))} ", _fold(text))


def _fold(text: str) -> str:
    """NFKC and case folding, once more NFKC as folding may undo it, without invisible characters."""
    visible = _INVISIBLE.sub("", text)
    folded = unicodedata.normalize("NFKC", visible).casefold()
    return _INVISIBLE.sub("", unicodedata.normalize("NFKC", folded))


def _grams(run: str) -> Iterator[str]:
    """Yield the pairs of neighbouring characters of a run, and single Han characters, as terms of letters and digits.

    A term lists code points: a tokeniser neither splits nor stems it.
    """
    clusters = _clusters(run)
    for first, second in pairwise(clusters):
        yield _term(first + second)
    for cluster in clusters:
        if len(clusters) == 1 or _HAN_CHARACTER.match(cluster):
            yield _term(cluster)


def _clusters(run: str) -> list[str]:
    """Return the characters of a run, each with the marks that follow it."""
    clusters: list[str] = []
    for character in run:
        if clusters and unicodedata.category(character)[0] == "M":
            clusters[-1] += character
        else:
            clusters.append(character)
    return clusters


def _term(characters: str) -> str:
    return "".join(f"u{ord(character)}" for character in characters)


class NormalizedText:
    """A text to recognise identifiers in, and the offset of each of its characters in the original."""

    def __init__(self, original: str) -> None:
        pieces: list[str] = []
        self._starts: list[int] = []
        self._original_starts: list[int] = []
        length = position = 0
        for start, end, replacement in _replacements(original):
            if start > position:
                self._add(length, position)
                pieces.append(original[position:start])
                length += start - position
            self._add(length, start)
            pieces.append(replacement)
            length += len(replacement)
            position = end
        self._add(length, position)
        pieces.append(original[position:])
        self.text = "".join(pieces)
        self._add(len(self.text), len(original))

    def _add(self, start: int, original_start: int) -> None:
        self._starts.append(start)
        self._original_starts.append(original_start)

    def original_offset(self, offset: int) -> int:
        """Return the offset in the original of the character at an offset of the normal form."""
        return _translate(offset, self._starts, self._original_starts)

    def offset_of(self, original_offset: int) -> int:
        """Return the offset in the normal form of an offset in the original."""
        return _translate(original_offset, self._original_starts, self._starts)


def _translate(offset: int, starts: list[int], other_starts: list[int]) -> int:
    """Translate an offset between two texts that correspond from each of the starts on, one to one up to the next."""
    n = bisect_right(starts, offset) - 1
    translated = other_starts[n] + offset - starts[n]
    if n + 1 < len(starts):
        return min(translated, other_starts[n + 1])
    return translated


# Bold, italics, code, strike-through and escapes of Markdown, the format that files are read into. Underscores only
# at a word's edge, because they are a part of names and addresses; a single asterisk not between digits. Blanks that
# align the columns of a table are left out, so that a label stands beside its value, and so is the end of a line after a
# hyphen and before a digit, where a code is broken: `SHP-` and `100045`, also in a quoted mail.
_MARKUP = (
    r"\*{2,3}|(?<!\d)\*|\*(?!\d)"
    r"|(?<![^\W_])_{1,3}(?=[^\W_])|(?<=[^\W_])_{1,3}(?![^\W_])"
    r"|`{1,3}|~~|\\(?=[!-/:-@\[-`{-~])|\[(?=[^\[\]\n]{1,300}\]\()|\](?=\()"
    r"|(?<! )[ ]{2,}+(?=\|)|(?<=[^\W_]-)\n(?:>[ ]?){0,8}[ \t]{0,8}(?=\d)"
)
_NON_ASCII = re.compile("[^\x00-\x7f]+")
_TO_REPLACE = re.compile(f"{_MARKUP}|[^\x00-\x7f]+", re.ASCII)
_MAY_HAVE_MARKUP = re.compile(r"[*_`~\\\[]|  \||-\n")


def _replacements(text: str) -> Iterator[tuple[int, int, str]]:
    """Yield (start, end, replacement) for each part of the text that differs in its normal form, in order."""
    if text.isascii() and not _MAY_HAVE_MARKUP.search(text):
        return
    for match in _TO_REPLACE.finditer(text):
        if match[0].isascii():
            # A link's text and its target are separate words.
            yield match.start(), match.end(), " " if match[0] == "]" else ""
        else:
            yield from _unicode_replacements(text, match.start(), match.end())


def _unicode_replacements(text: str, start: int, end: int) -> Iterator[tuple[int, int, str]]:
    for position in range(start, end):
        character = text[position]
        replacement = _replacement(text, position)
        if replacement != character:
            yield position, position + 1, replacement


def _replacement(text: str, position: int) -> str:
    character = text[position]
    if _INVISIBLE.match(character):
        return ""
    if _HYPHENS.match(character) or _DASH_IN_CODE.match(text, position):
        return "-"
    # A vulgar fraction after a number would join it: `2½` is not 21/2.
    normal = unicodedata.normalize("NFKC", character)
    return normal if "\u2044" not in normal else character
