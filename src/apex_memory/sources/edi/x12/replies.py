"""The 997 that answers an interchange: what was taken, what was noted, what was refused, group by group.

The same interchange always gets the same bytes under the same name: its times are those of the interchange answered, its
control number is derived from it. So a reply that is written again replaces itself.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Sequence

from apex_memory.sources.edi.x12.checks import Verdict, clock, date_of
from apex_memory.sources.edi.x12.envelope import Group, Interchange, TransactionSet
from apex_memory.sources.edi.x12.segments import value
from apex_memory.sources.pages import InboundFile

MOST_SET_CODES = 5  # AK5-02 to AK5-06, AK9-05 to AK9-09
LONGEST_BAD_VALUE = 99  # AK4-04


def reply(
    interchange: Interchange, verdicts: Sequence[Sequence[Verdict]], place: str = ""
) -> InboundFile | None:
    """The answer to an interchange, with the `verdicts` on each group's sets; None where there is nothing to answer.

    A 997 is never answered, nor are sets without a group: nothing would say to what the answer belongs.
    """
    groups = [
        (group, own)
        for group, own in zip(interchange.groups, verdicts, strict=True)
        if group.header and group.function != "FA" and not _only_acknowledgements(group)
    ]
    if not interchange.header or not groups:
        return None
    digest = _digest(interchange)
    control = int(digest[:12], 16) % 999_999_999 + 1
    segments: list[Sequence[object]] = [
        _isa(interchange, control),
        _gs(interchange, groups[0][0], control),
    ]
    for n, (group, own) in enumerate(groups, 1):
        body = list(_set(group, own))
        segments += [
            ("ST", "997", f"{n:04d}"),
            *body,
            ("SE", len(body) + 2, f"{n:04d}"),
        ]
    segments += [("GE", len(groups), control), ("IEA", 1, f"{control:09d}")]
    data = "".join("*".join(map(str, one)).rstrip("*") + "~" for one in segments)
    sender = re.sub(r"[^A-Za-z0-9-]", "_", interchange.sender)[:15] or "unknown"
    number = re.sub(r"[^A-Za-z0-9-]", "_", interchange.control)[:15] or "0"
    name = f"997_{sender}_{number}_{digest[:8]}.edi"
    return InboundFile(f"{place}{name}", data.encode("utf-8", "replace"))


def _only_acknowledgements(group: Group) -> bool:
    return bool(group.sets) and all(one.id in ("997", "999") for one in group.sets)


def _digest(interchange: Interchange) -> str:
    sets = (one.digest() for group in interchange.groups for one in group.sets)
    headers = (repr(group.header) for group in interchange.groups)
    told = "\n".join([repr(interchange.header), *headers, *sets])
    return hashlib.sha256(told.encode("utf-8", "surrogatepass")).hexdigest()


def _isa(interchange: Interchange, control: int) -> Sequence[object]:
    given = interchange.header
    day, time = date_of(value(given, 9)), clock(value(given, 10))
    return (
        *("ISA", "00", " " * 10, "00", " " * 10),
        *(_fixed(value(given, 7), 2, "ZZ"), _fixed(interchange.receiver, 15)),
        *(_fixed(value(given, 5), 2, "ZZ"), _fixed(interchange.sender, 15)),
        f"{day:%y%m%d}" if day else "000101",
        f"{time[0]:02d}{time[1]:02d}" if time else "0000",
        *("U", "00401", f"{control:09d}", "0"),
        "T" if value(given, 15) == "T" else "P",
        ":",
    )


def _gs(interchange: Interchange, group: Group, control: int) -> Sequence[object]:
    day, time = date_of(value(group.header, 4)), clock(value(group.header, 5))
    return (
        "GS",
        "FA",
        _clean(value(group.header, 3) or interchange.receiver, 15),
        _clean(value(group.header, 2) or interchange.sender, 15),
        f"{day:%Y%m%d}" if day else "20000101",
        f"{time[0]:02d}{time[1]:02d}" if time else "0000",
        control,
        "X",
        "004010",
    )


def _set(group: Group, verdicts: Sequence[Verdict]) -> Iterator[Sequence[object]]:
    yield ("AK1", _clean(group.function, 2), _clean(group.control, 9))
    answers = []
    for one, verdict in zip(group.sets, verdicts, strict=True):
        if one.id in ("997", "999"):
            continue  # in a group of something else by mistake; it is not answered there either
        answers.append(verdict.answer)
        yield from _answered(one, verdict)
    accepted = sum(answer != "R" for answer in answers)
    received = len(answers)
    included = received if group.declared is None else group.declared
    yield (
        *("AK9", _group_answer(answers, accepted, group), included, received, accepted),
        *group.codes[:MOST_SET_CODES],
    )


def _answered(one: TransactionSet, verdict: Verdict) -> Iterator[Sequence[object]]:
    yield ("AK2", _clean(one.id, 3), _clean(one.control, 9))
    for error in verdict.errors:
        yield ("AK3", _clean(error.id, 3), error.position, "", error.code)
        for element in error.elements:
            bad = _clean(element.bad, LONGEST_BAD_VALUE)
            yield ("AK4", element.place, element.number, element.code, bad)
    yield ("AK5", verdict.answer, *verdict.codes[:MOST_SET_CODES])


def _group_answer(answers: Sequence[str], accepted: int, group: Group) -> str:
    if answers and not accepted:
        return "R"
    if accepted < len(answers):
        return "P"
    return "E" if group.codes or "E" in answers else "A"


def _clean(text: str, longest: int) -> str:
    """A value that cannot break the reply: printable ASCII without our own delimiters."""
    return re.sub(r"[^ -)+-9;-}]", " ", text)[:longest].strip()


def _fixed(text: str, width: int, otherwise: str = "") -> str:
    return (_clean(text, width) or otherwise).ljust(width)
