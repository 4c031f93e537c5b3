"""Functional acknowledgements (997) of interchanges: each set accepted, accepted with errors noted, or rejected.

The same interchange always gets the same bytes under the same name: the dates of the reply are those of the interchange,
its control number and its name are derived from the interchange's content and the reply's. So a reply that is written
again replaces itself, and no other one.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Sequence
from datetime import date, datetime

from apex_memory.sources.edi.x12.checks import Verdict
from apex_memory.sources.edi.x12.envelope import Group, Interchange, TransactionSet
from apex_memory.sources.edi.x12.segments import Segment, element
from apex_memory.sources.edi.x12.values import local_time, parse_date, parse_time
from apex_memory.sources.pages import InboundFile

MOST_SET_CODES = 5  # AK5-02 to AK5-06, AK9-05 to AK9-09
LONGEST_BAD_VALUE = 99  # AK4-04
ACKNOWLEDGEMENTS = ("997", "999")

Row = Sequence[object]
"""A segment to write: its id and its elements."""


def build_reply(
    interchange: Interchange, verdicts: Sequence[Sequence[Verdict]], prefix: str = ""
) -> InboundFile | None:
    """Return the 997 of an interchange, given the `verdicts` on each group's sets; None where none is due.

    A 997 is never acknowledged, nor are sets without a group, because AK1 names the group. `prefix` stands before the
    file's name.
    """
    groups = [
        (group, group_verdicts)
        for group, group_verdicts in zip(interchange.groups, verdicts, strict=True)
        if group.header and group.function != "FA" and not _only_acknowledgements(group)
    ]
    if not interchange.header or not groups:
        return None
    sets: list[Row] = []
    for n, (group, group_verdicts) in enumerate(groups, 1):
        body = list(_group_rows(group, group_verdicts))
        sets += [("ST", "997", f"{n:04d}"), *body, ("SE", len(body) + 2, f"{n:04d}")]
    digest = _digest(interchange, _write(sets))
    control = int(digest[:12], 16) % 999_999_999 + 1
    rows = [
        _isa(interchange, control),
        _gs(interchange, groups[0][0], control),
        *sets,
        ("GE", len(groups), control),
        ("IEA", 1, f"{control:09d}"),
    ]
    return InboundFile(f"{prefix}{_file_name(interchange, digest)}", _write(rows))


def _file_name(interchange: Interchange, digest: str) -> str:
    sender = re.sub(r"[^A-Za-z0-9-]", "_", interchange.sender)[:15] or "unknown"
    number = re.sub(r"[^A-Za-z0-9-]", "_", interchange.control)[:15] or "0"
    return f"997_{sender}_{number}_{digest[:12]}.edi"


def _write(rows: Sequence[Row]) -> bytes:
    segments = ["*".join(map(str, row)).rstrip("*") + "~" for row in rows]
    return "".join(segments).encode("utf-8", "replace")


def _only_acknowledgements(group: Group) -> bool:
    return bool(group.sets) and all(item.id in ACKNOWLEDGEMENTS for item in group.sets)


def _digest(interchange: Interchange, sets: bytes) -> str:
    """Return the SHA-256 (hex) of all that the reply depends on: what came, and the `sets` that acknowledge it."""
    parts = [repr(interchange.header), *(repr(group.header) for group in interchange.groups)]
    for group in interchange.groups:
        parts += [item.digest() for item in group.sets]
    content = "\n".join(parts).encode("utf-8", "surrogatepass")
    return hashlib.sha256(content + b"\n" + sets).hexdigest()


def _isa(interchange: Interchange, control: int) -> Row:
    header = interchange.header
    sent = _sent(header, 9, 10)
    return (
        *("ISA", "00", " " * 10, "00", " " * 10),
        *(_fixed(element(header, 7), 2, "ZZ"), _fixed(interchange.receiver, 15)),
        *(_fixed(element(header, 5), 2, "ZZ"), _fixed(interchange.sender, 15)),
        f"{sent:%y%m%d}",
        f"{sent:%H%M}",
        *("U", "00401", f"{control:09d}", "0"),
        "T" if element(header, 15) == "T" else "P",
        ":",
    )


def _sent(header: Segment, day_place: int, time_place: int) -> datetime:
    """Return when an envelope was sent, in the sender's local time: 2000-01-01 where its date is not readable."""
    day, time = parse_date(element(header, day_place)), parse_time(element(header, time_place))
    return local_time(day or date(2000, 1, 1), time)


def _gs(interchange: Interchange, group: Group, control: int) -> Row:
    # GS04 is not readable in some files; then the interchange was sent at the time of its ISA.
    header = interchange.header
    is_dated = parse_date(element(group.header, 4)) is not None
    sent = _sent(group.header, 4, 5) if is_dated else _sent(header, 9, 10)
    return (
        "GS",
        "FA",
        _clean(element(group.header, 3) or interchange.receiver, 15),
        _clean(element(group.header, 2) or interchange.sender, 15),
        f"{sent:%Y%m%d}",
        f"{sent:%H%M}",
        control,
        "X",
        "004010",
    )


def _group_rows(group: Group, verdicts: Sequence[Verdict]) -> Iterator[Row]:
    """Yield AK1 to AK9 of a group."""
    yield ("AK1", _clean(group.function, 2), _clean(group.control, 9))
    outcomes = []
    for item, verdict in zip(group.sets, verdicts, strict=True):
        if item.id in ACKNOWLEDGEMENTS:
            continue  # misplaced in a group of other sets, and not acknowledged there either
        outcomes.append(verdict.outcome)
        yield from _set_rows(item, verdict)
    accepted = sum(outcome != "R" for outcome in outcomes)
    received = len(outcomes)
    declared = received if group.declared_sets is None else group.declared_sets
    outcome = _group_outcome(outcomes, accepted, group)
    yield ("AK9", outcome, declared, received, accepted, *group.error_codes[:MOST_SET_CODES])


def _set_rows(item: TransactionSet, verdict: Verdict) -> Iterator[Row]:
    """Yield AK2 to AK5 of a set."""
    yield ("AK2", _clean(item.id, 3), _clean(item.control, 9))
    for error in verdict.errors:
        yield ("AK3", _clean(error.id, 3), error.position, "", error.code)
        for wrong in error.elements:
            bad = _clean(wrong.bad, LONGEST_BAD_VALUE)
            yield ("AK4", wrong.place, wrong.number, wrong.code, bad)
    yield ("AK5", verdict.outcome, *verdict.error_codes[:MOST_SET_CODES])


def _group_outcome(outcomes: Sequence[str], accepted: int, group: Group) -> str:
    """AK9-01: A accepted, E accepted with errors noted, P accepted in part, R rejected."""
    if outcomes and not accepted:
        return "R"
    if accepted < len(outcomes):
        return "P"
    return "E" if group.error_codes or "E" in outcomes else "A"


def _clean(text: str, longest: int) -> str:
    """Return a value that cannot break the reply: printable ASCII without the reply's own delimiters."""
    return re.sub(r"[^ -)+-9;-}]", " ", text)[:longest].strip()


def _fixed(text: str, width: int, default: str = "") -> str:
    return (_clean(text, width) or default).ljust(width)
