"""Output for people: tables, times, JSON. Colours only on a terminal."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

STATE_COLOURS = {
    "done": "green",
    "ready": "green",
    "running": "green",
    "committed": "green",
    "dead": "red",
    "open": "red",
    "unavailable": "red",
    "parked": "yellow",
    "recovering": "yellow",
    "superseded": "dim",
    "received": "cyan",
    "prepared": "cyan",
    "staged": "cyan",
}


def console(*, stderr: bool = False) -> Console:
    """Return a console as wide as the terminal, or wide enough for tables where there is none."""
    return Console(
        stderr=stderr, width=None if (sys.stderr if stderr else sys.stdout).isatty() else 120
    )


def show_json(value: Any) -> None:
    """Print one JSON document to stdout."""
    sys.stdout.write(json.dumps(value, indent=2, default=str) + "\n")


def show_table(
    title: str, columns: Sequence[str], rows: Iterable[Sequence[Any]], *, empty: str
) -> None:
    """Print a table with a title, or `empty` without rows. A cell may be a `Text` with its own style."""
    rows = list(rows)
    if not rows:
        if empty:
            console().print(f"[dim]{empty}[/]")
        return
    table = Table(
        title=title,
        title_justify="left",
        title_style="bold",
        header_style="dim",
        box=None,
        pad_edge=False,
    )
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*(_cell(value) for value in row))
    console().print(table)


def _cell(value: Any) -> str | Text:
    if isinstance(value, Text):
        return value
    if value is None or value == "":
        return "[dim]–[/]"
    text = str(value)
    colour = STATE_COLOURS.get(text)
    return f"[{colour}]{text}[/]" if colour else escape(text)


def moment(text: str | None) -> str:
    """Return an ISO time in UTC, readable, to the millisecond; empty for None."""
    if not text:
        return ""
    return datetime.fromisoformat(text).astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S.%f")[:-3]


def ago(text: str | None) -> str:
    """Return how long ago an ISO time was: `3 s`, `12 min`, `5 h`, `2 d`; empty for None."""
    if not text:
        return ""
    seconds = (datetime.now(UTC) - datetime.fromisoformat(text)).total_seconds()
    for unit, size in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if abs(seconds) >= size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"


def between(earlier: str | None, later: str | None) -> str:
    """Return the milliseconds from one ISO time to another."""
    if not earlier or not later:
        return ""
    delta = datetime.fromisoformat(later) - datetime.fromisoformat(earlier)
    return f"{delta.total_seconds() * 1000:.0f} ms"


def pairs(title: str, values: Mapping[str, Any]) -> None:
    """Print a two-column list of names and values."""
    show_table(title, ("", ""), values.items(), empty="nothing")
