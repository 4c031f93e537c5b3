"""Tables in Markdown, the format that spreadsheets, web pages and Word files are read into."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

_ROW = re.compile(r"^[ \t]{0,8}\|[^\n]{1,20000}\|[ \t]*$", re.MULTILINE)
_RULE = re.compile(r"[ \t|:-]+\Z")
_BAR = re.compile(r"(?<!\\)\|")


@dataclass(frozen=True, slots=True)
class Cell:
    """A cell of a column: the column's header, the cell's text, and its character offset."""

    header: str
    text: str
    start: int


def with_colons(text: str) -> str:
    """Return the text, of equal length, with `:` for each bar in a table's row: a cell may be the label of the next."""
    if "|" not in text:
        return text
    return _ROW.sub(lambda row: row[0].replace("|", ":"), text)


def cells_under_headers(text: str) -> Iterator[Cell]:
    """Yield the cells of all tables with a header: a row, then a rule (`| --- |`), then the rows of cells."""
    if "|" not in text:
        return
    previous: re.Match[str] | None = None
    headers: list[str] = []
    for row in _ROW.finditer(text):
        follows = previous is not None and previous.end() + 1 == row.start()
        if not follows:
            headers = []
        if _RULE.match(row[0]):
            headers = [] if previous is None or not follows else _texts(previous)
        elif headers:
            # Rows may have more or fewer cells than the header.
            for header, (start, end) in zip(headers, _cell_spans(row), strict=False):
                cell = text[start:end].strip()
                if cell:
                    yield Cell(header, cell, text.index(cell, start, end))
        previous = row


def _texts(row: re.Match[str]) -> list[str]:
    return [row.string[start:end].strip() for start, end in _cell_spans(row)]


def _cell_spans(row: re.Match[str]) -> list[tuple[int, int]]:
    bars = [row.start() + bar.start() for bar in _BAR.finditer(row[0])]
    return [(left + 1, right) for left, right in pairwise(bars)]
