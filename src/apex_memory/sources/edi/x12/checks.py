"""Checks of a set's elements: what must be there to understand it, and which faults a 997 reports.

The table holds the elements that are read here and no more: partners' own segments and codes pass. A fault in what
identifies a thing or states its price refuses the set, because taking it would be guessing; any other fault is reported,
and the set is taken. Element numbers, types and lengths are those of version 004010.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from typing import NamedTuple

from apex_memory.sources.edi.x12.envelope import TransactionSet
from apex_memory.sources.edi.x12.segments import Segment, element
from apex_memory.sources.edi.x12.values import ZONES, parse_date, parse_time

MOST_ERRORS = 50  # reported of one set, in its 997 and in words


class ElementRule(NamedTuple):
    """What an element must be. `need`: `!` the set is refused without it, `+` mandatory, empty: optional."""

    number: int
    type: str
    shortest: int
    longest: int
    need: str = ""


ELEMENTS: Mapping[str, Mapping[int, ElementRule]] = {
    "B2": {
        2: ElementRule(140, "ID", 2, 4),
        4: ElementRule(145, "AN", 1, 30, "!"),
        6: ElementRule(146, "ID", 2, 2, "+"),
    },
    "B2A": {1: ElementRule(353, "ID", 2, 2, "!"), 2: ElementRule(346, "ID", 2, 2)},
    "B1": {
        1: ElementRule(140, "ID", 2, 4),
        2: ElementRule(145, "AN", 1, 30, "!"),
        3: ElementRule(373, "DT", 6, 8),
        4: ElementRule(558, "ID", 1, 1, "!"),
    },
    "B10": {
        1: ElementRule(127, "AN", 1, 30),
        2: ElementRule(145, "AN", 1, 30),
        3: ElementRule(140, "ID", 2, 4, "+"),
    },
    "B3": {
        2: ElementRule(76, "AN", 1, 22, "!"),
        3: ElementRule(145, "AN", 1, 30, "+"),
        4: ElementRule(146, "ID", 2, 2, "+"),
        6: ElementRule(373, "DT", 6, 8, "+"),
        7: ElementRule(193, "N2", 1, 12, "!"),
        8: ElementRule(202, "ID", 2, 2),
        9: ElementRule(32, "DT", 6, 8),
        10: ElementRule(374, "ID", 3, 3),
        11: ElementRule(140, "ID", 2, 4),
    },
    "AT7": {
        1: ElementRule(1650, "ID", 2, 2),
        2: ElementRule(1651, "ID", 2, 2),
        3: ElementRule(1652, "ID", 2, 2),
        4: ElementRule(1651, "ID", 2, 2),
        5: ElementRule(373, "DT", 6, 8),
        6: ElementRule(337, "TM", 4, 8),
        7: ElementRule(623, "ID", 2, 2),
    },
    "MS1": {
        1: ElementRule(19, "AN", 2, 30),
        2: ElementRule(156, "ID", 2, 2),
        4: ElementRule(1654, "AN", 7, 7),
        5: ElementRule(1655, "AN", 7, 7),
    },
    "MS2": {1: ElementRule(140, "ID", 2, 4), 2: ElementRule(207, "AN", 1, 10)},
    "LX": {1: ElementRule(554, "N0", 1, 6, "+")},
    "S5": {1: ElementRule(165, "N0", 1, 3, "+"), 2: ElementRule(163, "ID", 2, 2, "+")},
    "G62": {
        2: ElementRule(373, "DT", 6, 8),
        4: ElementRule(337, "TM", 4, 8),
        5: ElementRule(623, "ID", 2, 2),
    },
    "L1": {4: ElementRule(58, "N2", 1, 12)},
    "L3": {5: ElementRule(58, "N2", 1, 12)},
    "N1": {1: ElementRule(98, "ID", 2, 3, "+"), 2: ElementRule(93, "AN", 1, 60)},
    "N4": {1: ElementRule(19, "AN", 2, 30), 2: ElementRule(156, "ID", 2, 2)},
    "AK1": {1: ElementRule(479, "ID", 2, 2, "!"), 2: ElementRule(28, "N0", 1, 9, "!")},
    "AK9": {1: ElementRule(715, "ID", 1, 1, "+")},
}
MANDATORY_SEGMENTS: Mapping[str, Mapping[str, bool]] = {
    "204": {"B2": True, "B2A": True},
    "990": {"B1": True},
    "214": {"B10": True},
    "210": {"B3": True, "L3": False},
    "997": {"AK1": True, "AK9": False},
}
"""By set: the segments that must be there, and whether the set is refused without them."""

_FORMS = {
    "N0": re.compile(r"-?\d+", re.ASCII),
    "N2": re.compile(r"-?\d+", re.ASCII),
    "DT": re.compile(r"\d+", re.ASCII),
    "TM": re.compile(r"\d+", re.ASCII),
}
_KNOWN_CODES = {
    353: frozenset({"00", "01", "04", "05"}),
    558: frozenset("ACD"),
    623: ZONES,
}
_ERROR_TEXTS = {
    "1": "is missing",
    "2": "is missing (one of several must be there)",
    "4": "is too short",
    "5": "is too long",
    "6": "has characters that its type does not allow",
    "7": "is no known code",
    "8": "is no date",
    "9": "is no time",
    "10": "excludes another element that is there too",
}
"""By data element syntax error code (element 723)."""


class ElementError(NamedTuple):
    """An AK4: position in the segment, element number, error code (element 723), and the bad value."""

    place: int
    number: int
    code: str
    bad: str = ""


@dataclass(frozen=True, slots=True)
class SegmentError:
    """An AK3, with its AK4s. `position` counts from 1, which is ST; `code` is of element 720."""

    id: str
    position: int
    code: str
    elements: tuple[ElementError, ...] = ()


class _Fault(NamedTuple):
    """An error, its finding in words, and whether it refuses the set."""

    error: SegmentError
    finding: str
    refuses: bool


@dataclass(slots=True)
class Verdict:
    """Whether a set is taken. `outcome` is AK5-01: A taken, E taken with errors noted, R refused."""

    outcome: str = "A"
    error_codes: list[str] = field(default_factory=list)
    """Of element 718, for AK5."""
    errors: list[SegmentError] = field(default_factory=list)
    findings: list[str] = field(default_factory=list)
    reason: str = ""
    """Why it is refused; empty if it is not."""

    def refuse(self, reason: str) -> Verdict:
        """Refuse the set for `reason`, and return the verdict."""
        self.outcome, self.reason = "R", reason
        if reason not in self.findings:
            self.findings.append(reason)
        return self


def check_set(item: TransactionSet) -> Verdict:
    """Return whether a set can be taken, and all faults that its sender should hear of."""
    verdict = Verdict(
        error_codes=list(dict.fromkeys(item.error_codes)), findings=list(item.findings)
    )
    if item.id not in MANDATORY_SEGMENTS:
        verdict.error_codes.insert(0, "1")
        return verdict.refuse(f"set {item.id} is not supported")
    reason = "" if item.is_complete else "its beginning and its end do not belong together"
    if not item.control:
        verdict.error_codes.append("7")
        verdict.findings.append("ST02 is missing")
    verdict.findings += islice(_leading_blanks(item), MOST_ERRORS)
    unreported = 0
    for fault in _faults(item):
        if len(verdict.errors) < MOST_ERRORS:
            verdict.errors.append(fault.error)
            verdict.findings.append(fault.finding)
        else:
            unreported += 1
        if fault.refuses and not reason:
            reason = fault.finding
    if unreported:
        verdict.findings.append(f"{unreported} more errors of this kind")
    if verdict.errors:
        verdict.error_codes.append("5")
    if reason:
        return verdict.refuse(reason)
    verdict.outcome = "E" if verdict.error_codes else "A"
    return verdict


def _leading_blanks(item: TransactionSet) -> Iterator[str]:
    for segment in item.segments:
        for n in ELEMENTS.get(segment[0], {}):
            if n < len(segment) and segment[n][:1] == " " and segment[n].strip():
                yield f"{segment[0]}{n:02d} begins with a blank"


def _faults(item: TransactionSet) -> Iterator[_Fault]:
    mandatory = MANDATORY_SEGMENTS[item.id]
    present = {segment[0] for segment in item.segments}
    for name, refuses in mandatory.items():
        if name not in present:
            position = 2 if refuses else len(item.segments)
            yield _Fault(SegmentError(name, position, "3"), f"{name} is missing", refuses)

    seen: set[str] = set()
    for position, segment in enumerate(item.segments[1:-1], 2):
        name = segment[0]
        if not re.fullmatch(r"[A-Z][A-Z0-9]{1,2}", name):
            yield _Fault(
                SegmentError(name[:3], position, "1"), f"{name[:10]!r} is no segment", False
            )
            continue
        if mandatory.get(name) and name in seen:
            yield _Fault(SegmentError(name, position, "5"), f"{name} stands there twice", True)
        seen.add(name)
        wrong = list(_element_errors(segment))
        if wrong:
            elements = tuple(error for error, _ in wrong)
            finding = "; ".join(_describe(segment, error) for error in elements)
            refuses = any(refuses for _, refuses in wrong)
            yield _Fault(SegmentError(name, position, "8", elements), finding, refuses)


def _describe(segment: Segment, error: ElementError) -> str:
    text = f"{segment[0]}{error.place:02d} {_ERROR_TEXTS[error.code]}"
    return f"{text}: {error.bad[:40]}" if error.bad else text


def _element_errors(segment: Segment) -> Iterator[tuple[ElementError, bool]]:
    """Yield each error, and whether it refuses the set."""
    for place, rule in ELEMENTS.get(segment[0], {}).items():
        text = element(segment, place)
        if not text:
            if rule.need in ("!", "+"):
                yield ElementError(place, rule.number, "1"), rule.need == "!"
        elif code := _error_code(text, rule):
            # A wrong length or an unknown code (4, 5, 7) refuses nothing: the code lists here are incomplete.
            refuses = rule.need == "!" and code in ("6", "8")
            yield ElementError(place, rule.number, code, text), refuses
    yield from _condition_errors(segment)


def _condition_errors(segment: Segment) -> Iterator[tuple[ElementError, bool]]:
    """Yield breaches of the conditions between elements of one segment."""
    if segment[0] == "B10" and not element(segment, 1) and not element(segment, 2):
        yield ElementError(2, 145, "2"), True
    elif segment[0] == "AT7":
        if element(segment, 1) and element(segment, 3):
            yield ElementError(3, 1652, "10", element(segment, 3)), False
        elif not element(segment, 1) and not element(segment, 3):
            yield ElementError(1, 1650, "2"), False


def _error_code(text: str, rule: ElementRule) -> str:
    """Return the error code (element 723) of a value; empty if it is valid."""
    form = _FORMS.get(rule.type)
    if form and not form.fullmatch(text):
        return "6"
    length = len(text.lstrip("-")) if rule.type in ("N0", "N2") else len(text)
    if length < rule.shortest:
        return "4"
    if length > rule.longest:
        return "5"
    if rule.type == "DT" and parse_date(text) is None:
        return "8"
    if rule.type == "TM" and parse_time(text) is None:
        return "9"
    known = _KNOWN_CODES.get(rule.number)
    return "7" if known and text not in known else ""
