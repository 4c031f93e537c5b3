"""Lines of text for the fields of a record that the builder of its document does not show itself.

A builder writes the main lines of a document by hand. Every other field ends in a line of its own, so that no value that
a vendor sends is in no document. A package's `RecordFields` name the fields that its builder puts into text, metadata or
assertions, and those that carry no fact, with the reason. The tables in docs/reference/sources.md are made of them.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

MAX_LINES = 300  # of one record; the values nested deepest are cut first
MAX_VALUE = 2_000  # characters of a value
MAX_LABEL = 150  # characters
MAX_CHARACTERS = 100_000  # of all lines together
MAX_NUMBERS = (
    3  # entries of a list of bare numbers, such as the corners of an area, before it is summarised
)
MAX_VALUES = 20_000  # looked at in one record
_UNNAMED = ("name", "value", "data", "properties", "transaction", "target")
"""Names of members that add nothing to the label of what they stand in."""


@dataclass(frozen=True, slots=True)
class RecordFields:
    """The fields of one kind of record by path, such as `transaction.amount`; a path stands for everything below it.

    `shown`: the places that the builder puts a field into by name, some of the words `title`, `text`, `metadata`,
    `assertion`, `version` and `time`. `left_out`: why a field is in none. A path `*.PATH` is that path at any depth. With
    `others_in_text` every other field has a line of its own in the text (`remaining_lines`). `note`: a sentence for the docs.
    """

    record: str
    shown: Mapping[str, str]
    left_out: Mapping[str, str] = field(default_factory=dict)
    others_in_text: bool = True
    note: str = ""


@dataclass(frozen=True, slots=True)
class _Field:
    """A value of a record. `path` joins names by dots, without places in lists; `label` has both, as words."""

    path: str
    label: str
    depth: int
    value: Any


def remaining_lines(
    record: Mapping[str, Any],
    *,
    shown: Collection[str] = (),
    left_out: Collection[str] = (),
    false_flags: bool = True,
) -> list[str]:
    """Return a line `Label: value` for each value of a record, in its order, but for the given fields.

    `shown` and `left_out` hold paths such as `Line.Amount`; a path stands for everything below it, and `*.PATH` for the
    path at any depth. Without `false_flags` a value of false has no line. Time and size are bounded: of a record with more than `MAX_LINES` values the least nested ones are shown, and the last line has the
    number of the others.
    """
    values = record_fields(record, without={*shown, *left_out}, false_flags=false_flags)
    fields = list(islice(values, MAX_VALUES))
    kept = set(sorted(range(len(fields)), key=lambda n: fields[n].depth)[:MAX_LINES])
    lines: list[str] = []
    characters = 0
    for n, item in enumerate(fields):
        line = f"{item.label}: {item.value}"
        if n in kept and characters + len(line) <= MAX_CHARACTERS:
            lines.append(line)
            characters += len(line)
    omitted = len(fields) - len(lines)
    if omitted:
        lines.append(f"Further values, not shown: {omitted}")
    return lines


def record_fields(
    record: Mapping[str, Any],
    *,
    without: Collection[str] = frozenset(),
    false_flags: bool = True,
) -> Iterator[_Field]:
    """Yield the values of a record with their paths, in its order; empty ones and those below `without` are left out."""
    anywhere = tuple(f".{path[2:]}" for path in without if path.startswith("*."))
    open_ = [_Field("", "", 0, record)]
    while open_:
        outer = open_.pop()
        if isinstance(outer.value, dict):
            inner = [_member(outer, name, value) for name, value in outer.value.items()]
            open_ += [
                member
                for member in reversed(inner)
                if member.path not in without and not f".{member.path}".endswith(anywhere)
            ]
        elif isinstance(outer.value, list):
            open_ += reversed(list(_entries(outer)))
        elif outer.value is False and not false_flags:
            continue
        elif (text := _text(outer.value)) != "":
            label = outer.label or as_words(outer.path.rpartition(".")[2])
            yield _Field(outer.path, label, outer.depth, text)


def _member(outer: _Field, name: str, value: Any) -> _Field:
    path = f"{outer.path}.{name}" if outer.path else name
    return _Field(path[:MAX_VALUE], _label(outer.label, name), outer.depth + 1, value)


def _label(outer: str, name: str) -> str:
    """Return the label of a member: `Driver` for the name of `driver`, `Invoice id` for the `invoiceId` of `invoice`."""
    if name.lower() in _UNNAMED:
        return outer
    words = as_words(name).lower()
    last = outer.rpartition(" ")[2].lower()
    if last and words.startswith(f"{last} "):
        words = words.removeprefix(f"{last} ")
    return f"{outer} {words}".strip().capitalize()[:MAX_LABEL]


def _entries(outer: _Field) -> Iterator[_Field]:
    """Yield the entries of a list, numbered if there are several; a long list of bare numbers as one entry."""
    entries = outer.value
    if len(entries) > MAX_NUMBERS and all(map(_is_numeric, entries)):
        first = entries[0]
        names = list(first) if isinstance(first, dict) else []
        note = f" ({', '.join(names)})" if names else ""
        yield _Field(outer.path, outer.label, outer.depth, f"{len(entries)} entries{note}")
        return
    name = outer.label or as_words(outer.path.rpartition(".")[2])
    for n, entry in enumerate(entries, 1):
        label = f"{name} {n}"[:MAX_LABEL] if len(entries) > 1 else outer.label
        yield _Field(outer.path, label, outer.depth, entry)


def _is_numeric(entry: object) -> bool:
    if isinstance(entry, dict):
        return bool(entry) and all(map(_is_number, entry.values()))
    return _is_number(entry)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _text(value: object) -> str:
    """Return a value as one line; empty for null, and for what is not a plain value."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, str):
        value = " ".join(value[: 2 * MAX_VALUE].split())
    elif not isinstance(value, int | float):
        return ""
    text = str(value)
    return text if len(text) <= MAX_VALUE else f"{text[: MAX_VALUE - 1]}…"


def as_words(name: str) -> str:
    """Return a field's or an event's name as words: `Severe speeding started` for `SevereSpeedingStarted`."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])|[._]", " ", name).strip().capitalize()


def labelled(lines: Mapping[str, str]) -> str:
    """Return the lines `Label: value` of a document's text, without those that have no value."""
    return "\n".join(f"{label}: {value}" for label, value in lines.items() if value)
