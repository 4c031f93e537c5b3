"""Sentences of a text, and an estimate of its tokens. No I/O."""

from __future__ import annotations

import re
import string

Span = tuple[int, int]
"""Character offsets (start, end)."""

QUARTERS = 4  # of a token
_LETTERS_AND_BLANKS = (string.ascii_letters + string.whitespace).encode()
WRAPPED_LINE = (
    50  # a line of so many characters without an end of a sentence goes on in the next one
)

# Ends of sentences: Latin ones before a blank, East Asian and Indic ones anywhere. Quotes and brackets may follow.
_END = re.compile(r"(?:[.!?…]+[\"'”’»)\]]*(?=\s|\Z)|[。！？｡．।؟۔]+[」』”’）】]*)")
_BREAK = re.compile(r"\n\s*")
_LAST_WORD = re.compile(r"[\w.'’-]+\Z")
_ABBREVIATIONS = frozenset(
    [
        "mr",
        "mrs",
        "ms",
        "dr",
        "prof",
        "sr",
        "jr",
        "st",
        "ave",
        "blvd",
        "rd",
        "hwy",
        "no",
        "nos",
        "vs",
        "etc",
        "inc",
        "ltd",
        "co",
        "corp",
        "llc",
        "dept",
        "approx",
        "est",
        "fig",
        "al",
        "attn",
        "ref",
        "tel",
        "ext",
        "e.g",
        "i.e",
        "a.m",
        "p.m",
        "u.s",
        "u.k",
        "jan",
        "feb",
        "mar",
        "apr",
        "jun",
        "jul",
        "aug",
        "sep",
        "sept",
        "oct",
        "nov",
        "dec",
        "mon",
        "tue",
        "wed",
        "thu",
        "fri",
        "sat",
        "sun",
    ]
)
_INITIAL = re.compile(r"(?:[^\W\d_]\.)*[^\W\d_]\Z")
_LIST_NUMBER = re.compile(r"(?:^|\n)[ \t]*\d{1,3}\Z")
# A line that begins a statement of its own: a label, a heading, an item of a list, a row of a table.
_OWN_LINE = re.compile(r"(?:[^\n:|]{1,60}:(?:\s|\Z)|[-*•#|>]|\d{1,3}[.)]\s)")


def sentences(text: str) -> list[Span]:
    """Return the sentences of a text in order, without the blanks between them.

    A sentence ends at its punctuation, at a blank line, and at a line break unless the line is as long as wrapped lines
    are and the next one continues it. A point after an abbreviation, an initial or the number of an item ends none:
    in doubt two sentences are one.
    """
    ends: set[int] = set()
    for match in _END.finditer(text):
        if _ends_sentence(text, match):
            ends.add(match.end())
    for match in _BREAK.finditer(text):
        if _ends_line(text, match):
            ends.add(match.start())
    spans: list[Span] = []
    start = 0
    for end in sorted(ends | {len(text)}):
        first = start + len(text[start:end]) - len(text[start:end].lstrip())
        last = start + len(text[start:end].rstrip())
        if first < last:
            spans.append((first, last))
        start = end
    return spans


def _ends_sentence(text: str, match: re.Match[str]) -> bool:
    following = text[match.end() : match.end() + 20].lstrip()[:1]
    if following.islower():
        return False
    if match[0] != ".":
        return True
    before = text[max(0, match.start() - 40) : match.start()]
    word = _LAST_WORD.search(before)
    if word is None:
        return True
    if word[0].lower() in _ABBREVIATIONS or _INITIAL.match(word[0]):
        return False
    return not _LIST_NUMBER.search(before)


def _ends_line(text: str, match: re.Match[str]) -> bool:
    if "\n" in match[0][1:]:
        return True
    line = text[text.rfind("\n", 0, match.start()) + 1 : match.start()].rstrip()
    if len(line) < WRAPPED_LINE or line.lstrip().startswith("|"):
        return True
    return bool(_OWN_LINE.match(text, match.end()))


def token_quarters(text: str) -> int:
    """Return an estimate of a text's tokens in quarters of a token. It adds up over the parts of a text.

    Four letters or blanks count as one token, two digits or signs as one, and a character that is not ASCII as one. This is
    about what tokenizers of language models make of prose; it is more than that for most scripts other than Latin.
    """
    ascii_part = text.encode("ascii", "ignore")
    signs = len(ascii_part.translate(None, _LETTERS_AND_BLANKS))
    return len(ascii_part) + signs + QUARTERS * (len(text) - len(ascii_part))


def estimated_tokens(text: str) -> int:
    """Return an estimate of a text's tokens: see `token_quarters`."""
    return -(-token_quarters(text) // QUARTERS)
