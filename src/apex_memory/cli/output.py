"""Output for people: lines, tables, times, JSON.

Text from outside is never parsed: styles are given beside a text, not inside it, and control characters are replaced,
so that a title or a file name cannot colour, move or retitle the terminal. On a terminal, lines break between words
and a table row is one line. In a pipe or a file nothing is cut or wrapped, so that `grep` and `cut` see whole values.
"""

from __future__ import annotations

import json
import re
import sys
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated, Any

import typer
from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]

Part = str | tuple[str, str]
"""A piece of a line: a text, or a text with its style."""

UNLIMITED = 1_000_000  # width of output that no terminal wraps
GAP = 2  # cells between two columns
LEAST_FREE = 12  # a free column is not cut below this many cells
ID_CHARS = 8  # of an id on a terminal; commands accept it
WORD = re.compile(r"\n|[^\s]*[^\S\n]+|[^\s]+")  # a line break, or a word with the blanks after it
HASH = re.compile(r"\b(?=[0-9]*[a-f])[0-9a-f]{16,}\b")  # not a number
BIDI_CONTROLS = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")

STATE_COLOURS = {
    "done": "green",
    "ready": "green",
    "running": "green",
    "committed": "green",
    "idle": "green",
    "dead": "red",
    "open": "red",
    "unavailable": "red",
    "failing": "red",
    "stalled": "red",
    "parked": "yellow",
    "paused": "yellow",
    "recovering": "yellow",
    "superseded": "dim",
    "disabled": "dim",
    "not set up": "dim",
    "working": "cyan",
    "received": "cyan",
    "prepared": "cyan",
    "staged": "cyan",
}


class Id(str):
    """An id in a cell or a line: its first characters on a terminal, which commands accept, and all of it in a pipe."""


class Whole(str):
    """A value to copy, such as a URL or a trace id: no hash in it is cut, on a terminal either."""


def is_terminal(*, stderr: bool = False) -> bool:
    """Return whether the output goes to a terminal."""
    return (sys.stderr if stderr else sys.stdout).isatty()


def console(*, stderr: bool = False) -> Console:
    """Return a console that takes every text literally; as wide as the terminal, or unlimited where there is none."""
    width = None if is_terminal(stderr=stderr) else UNLIMITED
    return Console(stderr=stderr, width=width, markup=False, emoji=False, highlight=False)


def clean(text: str) -> str:
    """Return the text with control characters replaced, except line breaks and tabs.

    Escape sequences and overrides of the writing direction would reach the terminal otherwise.
    """
    return "".join("\ufffd" if _is_control(char) else char for char in text)


def _is_control(char: str) -> bool:
    if char in "\n\t":
        return False
    # Cs: bytes of a file name that are no UTF-8.
    return unicodedata.category(char) in ("Cc", "Cs") or char in BIDI_CONTROLS


def styled(*parts: Part) -> Text:
    """Return a line of parts, each taken literally."""
    line = Text()
    for part in parts:
        text, style = part if isinstance(part, tuple) else (part, "")
        line.append(clean(text), style)
    return line


def say(*parts: Part, stderr: bool = False, indent: int = 0, hanging: int = 0) -> None:
    """Print one paragraph. On a terminal it breaks between words, and never inside one.

    Its lines are indented by `indent` columns, and those after the first by `hanging` more.
    """
    out = console(stderr=stderr)
    margin = " " * indent
    for line in wrapped(styled(*parts), out.width - indent - hanging):
        _print(out, styled(margin) + line)
        margin = " " * (indent + hanging)


def wrapped(text: Text, width: int) -> list[Text]:
    """Return the lines of a text, at most `width` cells long. A longer word, such as a URL, stays whole."""
    breaks: list[int] = []
    used = 0
    for word in WORD.finditer(text.plain):
        if word[0] == "\n":
            used = 0
            continue
        length = cell_len(word[0].rstrip())
        if used and used + length > width:
            breaks.append(word.start())
            used = 0
        used += cell_len(word[0])
    lines: list[Text] = []
    for part in text.divide(breaks):
        lines += part.split("\n", allow_blank=True)
    for line in lines:
        line.rstrip()
    return lines


def _print(out: Console, line: Text) -> None:
    """Print a line as it is, however long."""
    out.print(line, no_wrap=True, overflow="ignore", crop=False)


def rule(title: str = "") -> None:
    """Print a heading: a rule across the terminal, or a plain line in a pipe."""
    if is_terminal():
        console().rule(styled(title), style="dim")
    else:
        say(f"── {title} ──")


def show_json(value: Any) -> None:
    """Print one JSON document to stdout."""
    sys.stdout.write(json.dumps(value, indent=2, default=str) + "\n")


@dataclass(frozen=True, slots=True)
class _Grid:
    """A table as text: its columns with headings, the names of those that may be cut, and its rows."""

    columns: Sequence[str]
    free: Sequence[bool]
    rows: Sequence[Sequence[Text]]

    def widths(self) -> list[int]:
        """Return the width of each column in cells, uncut."""
        return [
            max(cell_len(name), *(row[n].cell_len for row in self.rows))
            for n, name in enumerate(self.columns)
        ]

    def without_empty_columns(self) -> _Grid:
        kept = [n for n in range(len(self.columns)) if any(row[n].plain for row in self.rows)]
        return _Grid(
            [self.columns[n] for n in kept],
            [self.free[n] for n in kept],
            [[row[n] for n in kept] for row in self.rows],
        )


def show_table(
    title: str,
    columns: Sequence[str],
    rows: Iterable[Sequence[Any]],
    *,
    empty: str,
    free: Sequence[str] = (),
) -> None:
    """Print a table with a title, or `empty` without rows.

    `free` names the columns whose texts may be cut to make a row fit on a line of the terminal. Where the rows do not
    fit even so, each row becomes a paragraph. A cell may be a `Text` with its own style.
    """
    terminal = is_terminal()
    cells = [[_cell(value, terminal) for value in row] for row in rows]
    if not cells:
        if empty:
            say((empty, "dim"))
        return
    if title:
        say((title, "bold"))
    grid = _Grid(columns, [name in free for name in columns], cells)
    out = console()
    if terminal:
        grid = grid.without_empty_columns()
    widths = grid.widths()
    if terminal:
        fitted = fit(widths, grid.free, out.width)
        if fitted is None:
            _show_paragraphs(out, grid)
            return
        widths = fitted
    heading = [Text(name, "dim") for name in grid.columns]
    for row in [heading, *grid.rows]:
        _print(out, _row(row, widths))


def fit(widths: Sequence[int], free: Sequence[bool], room: int) -> list[int] | None:
    """Return widths with which a row fits into `room` cells: the widest free columns are cut first. None if none do."""
    fitted = list(widths)
    excess = sum(fitted) + GAP * (len(fitted) - 1) - room
    while excess > 0:
        candidates = [n for n, width in enumerate(fitted) if free[n] and width > LEAST_FREE]
        if not candidates:
            return None
        widest = max(candidates, key=lambda n: fitted[n])
        fitted[widest] -= 1
        excess -= 1
    return fitted


def _row(cells: Sequence[Text], widths: Sequence[int]) -> Text:
    line = Text()
    for cell, width in zip(cells, widths, strict=True):
        shown = cell.copy()
        shown.truncate(width, overflow="ellipsis")
        line.append_text(shown)
        line.append(" " * (width - shown.cell_len + GAP))
    line.rstrip()
    return line


def _show_paragraphs(out: Console, grid: _Grid) -> None:
    """Print each row as its first cell and, indented, the other cells with their names."""
    for row in grid.rows:
        heading = row[0].copy()
        heading.stylize("bold")
        _print(out, heading)
        rest = Text()
        for name, cell in zip(grid.columns[1:], row[1:], strict=True):
            if cell.plain:
                rest.append(" · " if rest else "", "dim")
                rest.append(f"{name} " if name else "", "dim")
                rest.append_text(cell)
        for line in wrapped(rest, out.width - 2) if rest else ():
            _print(out, styled("  ") + line)


def _cell(value: Any, terminal: bool) -> Text:
    """Return a cell: one line, literal, with the colour of a state; hashes and ids are shortened on a terminal."""
    if isinstance(value, Text):
        return value
    if value is None:
        return Text("")
    text = " ".join(clean(str(value)).split())
    if terminal:
        text = text[:ID_CHARS] if isinstance(value, Id) else short_hashes(text)
    return Text(text, STATE_COLOURS.get(text, ""))


def short_hashes(text: str) -> str:
    """Return the text with each hash of 16 or more hexadecimal digits cut to its first digits."""
    return HASH.sub(lambda match: match[0][:ID_CHARS] + "…", text)


def say_more(cursor: str | None) -> None:
    """Say that a list goes on, if the cursor of its last page says so; on stderr, so that a pipe gets rows alone."""
    if cursor is not None:
        say(("There are more: --limit shows them.", "dim"), stderr=True)


def shown_id(id: str) -> str:
    """Return an id as a line shows it: short on a terminal, whole in a pipe. Commands accept both."""
    return id[:ID_CHARS] if is_terminal() else id


Time = datetime | str | None
"""A time with its zone, its text in ISO 8601, or None for no time."""


def moment(at: Time) -> str:
    """Return a time in UTC, readable, to the millisecond; empty for None."""
    if not at:
        return ""
    return _parsed(at).astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S.%f")[:-3]


def minute(at: Time) -> str:
    """Return a time in UTC to the minute; empty for None."""
    return moment(at)[:16]


def duration(seconds: float) -> str:
    """Return a duration with two significant digits or whole units: `340 ms`, `7.4 s`, `74 s`, `12 min`, `5 h`, `2 d`."""
    size = abs(seconds)
    if size < 0.9995:
        return f"{seconds * 1000:.0f} ms"
    if size < 9.95:
        return f"{seconds:.1f} s"
    if size < 120:
        return f"{seconds:.0f} s"
    if size < 7_200:
        return f"{seconds / 60:.0f} min"
    if size < 172_800:
        return f"{seconds / 3_600:.0f} h"
    return f"{seconds / 86_400:.0f} d"


def ago(at: Time) -> str:
    """Return how long ago a time was: `3 s`, `12 min`, `5 h`, `2 d`; empty for None."""
    if not at:
        return ""
    seconds = (datetime.now(UTC) - _parsed(at)).total_seconds()
    return duration(round(seconds)) if abs(seconds) >= 1 else "0 s"


def between(earlier: Time, later: Time) -> str:
    """Return the duration from one time to another; empty if either is None."""
    if not earlier or not later:
        return ""
    return duration((_parsed(later) - _parsed(earlier)).total_seconds())


def _parsed(at: datetime | str) -> datetime:
    return datetime.fromisoformat(at) if isinstance(at, str) else at


def size(count: int) -> str:
    """Return a number of bytes: `812 bytes`, `4.1 kB`, `2.0 MB`."""
    if count < 1_000:
        return f"{count} bytes"
    if count < 1_000_000:
        return f"{count / 1_000:.1f} kB"
    return f"{count / 1_000_000:.1f} MB"


def pairs(title: str, values: Mapping[str, Any]) -> None:
    """Print names with their values, leaving out empty ones. A long value breaks between words below itself."""
    shown = {
        name: value if isinstance(value, Whole) else str(value)
        for name, value in values.items()
        if value not in (None, "", [], {})
    }
    if title and shown:
        say((title, "bold"))
    margin = max(map(cell_len, shown), default=0) + GAP
    for name, value in shown.items():
        label = clean(name) + " " * (margin - cell_len(clean(name)))
        out = console()
        is_cut = is_terminal() and not isinstance(value, Whole)
        text = short_hashes(value) if is_cut else value
        for n, line in enumerate(wrapped(styled(text), max(10, out.width - margin))):
            start = (label, "dim") if n == 0 else " " * margin
            _print(out, styled(start) + line)
