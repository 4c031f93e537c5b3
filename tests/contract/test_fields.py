"""No field of a record is lost silently: each is in the document, where the package states, or left out with a reason.

Every leaf of a full record is changed, one at a time. The document must change with it, in the places that the package's
`RecordFields` name, and a text must appear there word for word. So a field that a builder drops fails here.
"""

from __future__ import annotations

import copy
import json
from functools import cache
from typing import Any

import pytest

from apex_memory.model import Document
from apex_memory.sources.fields import RecordFields
from apex_memory.sources.registry import classes
from tests.records import RECORDS, Record

WORD = "Qwxz7391"
FIELDS = {(kind.name, fields.record): fields for kind in classes() for fields in kind.records}
# A set of X12 has segments, not named fields: test_edi_faults.py tries every element of every segment.
BY_SAMPLE = [name for name in FIELDS if name[0] != "edi"]
LEAVES = [(name, path) for name, record in RECORDS.items() for path in record.leaves()]


def kind_of(name: tuple[str, ...]) -> tuple[str, str]:
    """Return source and kind of a sample, whose name may have a third part."""
    return name[0], name[1]


def places_of(document: Document) -> dict[str, str]:
    """Return the content of each place of a document, by the names that `RecordFields` uses, as text."""
    facts = [
        (fact.subject, fact.predicate, fact.object, fact.value) for fact in document.assertions
    ]
    return {
        "title": document.title,
        "text": document.text,
        "metadata": json.dumps(document.metadata, ensure_ascii=False, sort_keys=True),
        "assertion": json.dumps([document.about, document.parent, facts], ensure_ascii=False),
        "time": document.occurred_at.isoformat(),
    }


@cache
def full_places(name: tuple[str, ...]) -> dict[str, str]:
    """Return the places of the document of a full record."""
    record = RECORDS[name]
    return places_of(record.document(record.body))


def changed(record: Record, steps: tuple[str | int, ...]) -> tuple[Any, Any]:
    """Return the record with another value of the same kind at a leaf, and that value."""
    body = copy.deepcopy(record.body)
    holder: Any = body
    for step in steps[:-1]:
        holder = holder[step]
    old = holder[steps[-1]]
    if steps in record.others:
        new = record.others[steps]
    elif isinstance(old, bool):
        new = not old
    elif isinstance(old, int | float):
        new = old + 1739
    else:
        new = f"{old} {WORD}"
    holder[steps[-1]] = new
    return body, new


def rule_of(fields: RecordFields, path: str) -> tuple[str, bool]:
    """Return the places of a path, its own or those of a path above it, and whether it is left out."""
    parts = path.split(".")
    for length in range(len(parts), 0, -1):
        outer = ".".join(parts[:length])
        for rules, is_left_out in ((fields.shown, False), (fields.left_out, True)):
            suffixes = (f"*.{'.'.join(parts[start:length])}" for start in range(length))
            for known in (outer, *suffixes):
                if known in rules:
                    return rules[known], is_left_out
    assert fields.others_in_text, f"{path} is neither shown nor left out"
    return "text", False


@pytest.mark.parametrize("name", BY_SAMPLE, ids="/".join)
def test_every_kind_of_record_has_a_full_sample(name: tuple[str, str]) -> None:
    samples = [record for other, record in RECORDS.items() if other[:2] == name]
    paths = {plain(path) for sample in samples for path in sample.leaves()}
    for path in FIELDS[name].shown:
        suffix = path.removeprefix("*")
        own = [other for other in paths if f".{other}.".find(f".{suffix.strip('.')}.") >= 0]
        assert own, f"{path} is declared, but its sample has none"


@pytest.mark.parametrize("name, steps", LEAVES, ids=str)
def test_every_field_is_where_the_package_states(
    name: tuple[str, ...], steps: tuple[str | int, ...]
) -> None:
    record = RECORDS[name]
    places, is_left_out = rule_of(FIELDS[kind_of(name)], plain(steps))
    if is_left_out:
        return
    body, new = changed(record, steps)
    before, after = full_places(name), places_of(record.document(body))
    for place in places.split():
        if place == "version":
            assert record.version(body) != record.version(record.body), steps
            continue
        assert before[place] != after[place], f"{steps}: not in the {place}"
        if place != "time" and isinstance(new, str) and WORD in new:
            assert WORD.lower() in after[place].lower(), f"{steps}: not whole in the {place}"


@pytest.mark.parametrize("name", RECORDS, ids="/".join)
def test_a_field_that_nobody_knows_has_a_line(name: tuple[str, ...]) -> None:
    record = RECORDS[name]
    if not FIELDS[kind_of(name)].others_in_text:
        return
    for steps in record.open_places():
        body = copy.deepcopy(record.body)
        holder: Any = body
        for step in steps:
            holder = holder[step]
        holder["brandNewField"] = {"inner": [{"code": WORD}, {"count": 73910}]}
        text = record.document(body).text
        assert WORD in text and "73910" in text, steps
        assert "new field" in text.lower(), steps


def plain(steps: tuple[str | int, ...]) -> str:
    return ".".join(step for step in steps if isinstance(step, str))


def test_reasons_and_places_are_words() -> None:
    known = {"title", "text", "metadata", "assertion", "version", "time"}
    for fields in FIELDS.values():
        assert all(set(places.split()) <= known for places in fields.shown.values())
        assert all(reason.strip() for reason in fields.left_out.values())
        assert not set(fields.shown) & set(fields.left_out)
