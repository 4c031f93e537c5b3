"""Tables in Markdown, the format that spreadsheets, web pages and Word files are read into, and rows of CSV files."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise

_ROW = re.compile(r"^[ \t]{0,8}\|[^\n]{1,20000}\|[ \t]*$", re.MULTILINE)
_JSON_KEY = re.compile(r'"(\w[\w .-]{0,40})"([ ]?:[ ]?(?:\[\s?)?"?)')
_XML_NAME = re.compile(r"<((?:\w{1,20}:)?\w[\w.-]{0,40})>")
_BETWEEN_WORDS = re.compile(r"[_.:-]|(?<=[a-z])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")
_NUMBER_WORD = re.compile(r" (?:number|num|no|nbr|id)\Z", re.IGNORECASE)
_EQUAL_SIGN = re.compile(r'(?<=\w)[ ]?=[ ]?"?(?=\w)')
_RULE = re.compile(r"[ \t|:-]+\Z")
_AFTER_COLON = re.compile(r"(?<=[:#])(?:\|[ ]|[ ]\|)")
_BAR = re.compile(r"(?<!\\)\|")
_HEADER_LINES = 3  # a title or `sep=;` may stand before the header
_MAX_HEADER = 2_000  # characters
_DELIMITERS = {
    delimiter: re.compile(
        rf'[ ]*+("(?:[^"\n]|"")*+"|[^"{delimiter}\n][^{delimiter}\n]*+|)[ ]*+([{delimiter}]|\Z)'
    )
    for delimiter in "\t;|,"
}
"""A cell of a row of delimited text, in quotes or not, and what ends it, by the delimiter."""


@dataclass(frozen=True, slots=True)
class Cell:
    """A cell of a column: the column's header, the cell's text, and its character offset."""

    header: str
    text: str
    start: int


def with_colons(text: str) -> str:
    """Return the text, of equal length, with `:` behind what may be a label: a cell of a table, a key of JSON, XML or settings."""
    if "|" in text:
        text = _ROW.sub(lambda row: _AFTER_COLON.sub("  ", row[0]).replace("|", ":"), text)
    if '":' in text:
        text = _JSON_KEY.sub(_json_label, text)
    if "</" in text:
        text = _XML_NAME.sub(_xml_label, text)
    if "=" in text:
        text = _EQUAL_SIGN.sub(lambda sign: sign[0].replace("=", ":").replace('"', " "), text)
    return text


def _json_label(key: re.Match[str]) -> str:
    return _label(key[1], len(key[1]) + 2) + key[2].replace('"', " ").replace("[", " ")


def _xml_label(name: re.Match[str]) -> str:
    return _label(name[1], len(name[1]) + 1) + ":"


def _label(name: str, width: int) -> str:
    """Return the words of a key or an element's name in `width` characters: `proNumber` and `PRO_NUMBER` are `pro #`."""
    words = _BETWEEN_WORDS.sub(" ", name)
    label = _NUMBER_WORD.sub(" #", words)
    if len(label) > width:
        label = name
    return label.rjust(width)


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


def cells_of_rows(text: str, is_header: Callable[[str], bool]) -> Iterator[Cell]:
    """Yield the cells of delimited rows (CSV) in columns whose header is one for `is_header`.

    The header is among the first lines of a block without empty lines, and its rows are the lines of that block with as
    many cells: the lines of a cell of several lines have other numbers.
    """
    block_start = next_start = 0
    # Split, not searched for: most texts have no such block, and this is run over each.
    for block in text.split("\n\n"):
        block_start, next_start = next_start, next_start + len(block) + 2
        lines = block.split("\n")
        header = _delimited_header(lines[:_HEADER_LINES], is_header) if len(lines) > 1 else None
        if header is None:
            continue
        number, delimiter, headers = header
        start = block_start + sum(len(line) + 1 for line in lines[: number + 1])
        columns = [column for column, header in enumerate(headers) if is_header(header)]
        for line in lines[number + 1 :]:
            fields = _fields(line, delimiter)
            if len(fields) == len(headers):
                for column in columns:
                    cell, offset = _bare(fields[column])
                    if cell:
                        before = sum(map(len, fields[:column])) + column
                        yield Cell(headers[column], cell, start + before + offset)
            start += len(line) + 1


def _delimited_header(
    lines: list[str], is_header: Callable[[str], bool]
) -> tuple[int, str, list[str]] | None:
    """Return the number of the line that is a header, its delimiter, and the texts of its cells."""
    for number, line in enumerate(lines):
        if len(line) > _MAX_HEADER or line.startswith("|"):
            continue
        for delimiter in _DELIMITERS:
            if delimiter in line:
                headers = [_bare(field)[0] for field in _fields(line, delimiter)]
                if any(map(is_header, headers)):
                    return number, delimiter, headers
    return None


def _fields(line: str, delimiter: str) -> list[str]:
    """Return what is between the delimiters of a row, with blanks and quotes; nothing if quotes are open."""
    if '"' not in line:  # a tenth of the pattern's time
        return line.split(delimiter)
    pattern = _DELIMITERS[delimiter]
    fields: list[str] = []
    position = 0
    while field := pattern.match(line, position):
        fields.append(line[position : field.start(2)])
        position = field.end()
        if not field[2]:
            return fields
    return []


def _bare(field: str) -> tuple[str, int]:
    """Return the text of a field without its quotes, and its offset in the field."""
    quoted = field.strip(" ")
    bare = quoted.strip('"')
    return bare.strip(), field.index(quoted) + quoted.index(bare)


def _texts(row: re.Match[str]) -> list[str]:
    return [row.string[start:end].strip() for start, end in _cell_spans(row)]


def _cell_spans(row: re.Match[str]) -> list[tuple[int, int]]:
    bars = [row.start() + bar.start() for bar in _BAR.finditer(row[0])]
    return [(left + 1, right) for left, right in pairwise(bars)]
