"""What a set must say to be understood, and what of it is wrong, in the words of a 997.

The table holds what is read here and no more: partners' own segments and codes pass. A fault in what identifies a thing
or states its price rejects the set, because taking it would be guessing; any other is noted, and the set is taken.
Element numbers, types and lengths are those of version 004010.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import date
from typing import NamedTuple

from apex_memory.sources.edi.x12.envelope import TransactionSet
from apex_memory.sources.edi.x12.segments import Segment, value

MOST_ERRORS = 50  # told of one set


class Element(NamedTuple):
    """`need`: `!` the set is nothing without it, `+` mandatory, empty: optional."""

    number: int
    type: str
    shortest: int
    longest: int
    need: str = ""


ELEMENTS: Mapping[str, Mapping[int, Element]] = {
    "B2": {
        2: Element(140, "ID", 2, 4),
        4: Element(145, "AN", 1, 30, "!"),
        6: Element(146, "ID", 2, 2, "+"),
    },
    "B2A": {1: Element(353, "ID", 2, 2, "!"), 2: Element(346, "ID", 2, 2)},
    "B1": {
        1: Element(140, "ID", 2, 4),
        2: Element(145, "AN", 1, 30, "!"),
        3: Element(373, "DT", 6, 8),
        4: Element(558, "ID", 1, 1, "!"),
    },
    "B10": {
        1: Element(127, "AN", 1, 30),
        2: Element(145, "AN", 1, 30),
        3: Element(140, "ID", 2, 4, "+"),
    },
    "B3": {
        2: Element(76, "AN", 1, 22, "!"),
        3: Element(145, "AN", 1, 30, "+"),
        4: Element(146, "ID", 2, 2, "+"),
        6: Element(373, "DT", 6, 8, "+"),
        7: Element(193, "N2", 1, 12, "!"),
        8: Element(202, "ID", 2, 2),
        9: Element(32, "DT", 6, 8),
        10: Element(374, "ID", 3, 3),
        11: Element(140, "ID", 2, 4),
    },
    "AT7": {
        1: Element(1650, "ID", 2, 2),
        2: Element(1651, "ID", 2, 2),
        3: Element(1652, "ID", 2, 2),
        4: Element(1651, "ID", 2, 2),
        5: Element(373, "DT", 6, 8),
        6: Element(337, "TM", 4, 8),
        7: Element(623, "ID", 2, 2),
    },
    "MS1": {
        1: Element(19, "AN", 2, 30),
        2: Element(156, "ID", 2, 2),
        4: Element(1654, "AN", 7, 7),
        5: Element(1655, "AN", 7, 7),
    },
    "MS2": {1: Element(140, "ID", 2, 4), 2: Element(207, "AN", 1, 10)},
    "LX": {1: Element(554, "N0", 1, 6, "+")},
    "S5": {1: Element(165, "N0", 1, 3, "+"), 2: Element(163, "ID", 2, 2, "+")},
    "G62": {2: Element(373, "DT", 6, 8), 4: Element(337, "TM", 4, 8)},
    "L1": {4: Element(58, "N2", 1, 12)},
    "L3": {5: Element(58, "N2", 1, 12)},
    "N1": {1: Element(98, "ID", 2, 3, "+"), 2: Element(93, "AN", 1, 60)},
    "N4": {1: Element(19, "AN", 2, 30), 2: Element(156, "ID", 2, 2)},
    "AK1": {1: Element(479, "ID", 2, 2, "!"), 2: Element(28, "N0", 1, 9, "!")},
    "AK9": {1: Element(715, "ID", 1, 1, "+")},
}
MANDATORY: Mapping[str, Mapping[str, bool]] = {
    "204": {"B2": True, "B2A": True},
    "990": {"B1": True},
    "214": {"B10": True},
    "210": {"B3": True, "L3": False},
    "997": {"AK1": True, "AK9": False},
}
"""By set: segments that must be there, and whether the set is nothing without them."""

_FORMS = {
    "N0": re.compile(r"-?\d+", re.ASCII),
    "N2": re.compile(r"-?\d+", re.ASCII),
    "DT": re.compile(r"\d+", re.ASCII),
    "TM": re.compile(r"\d+", re.ASCII),
}
_CODES = {353: frozenset({"00", "01", "04", "05"}), 558: frozenset("ACD")}


class ElementError(NamedTuple):
    """An AK4."""

    place: int
    number: int
    code: str
    bad: str = ""


@dataclass(frozen=True, slots=True)
class SegmentError:
    """An AK3, with its AK4s. `position` counts from 1, which is ST."""

    id: str
    position: int
    code: str
    elements: tuple[ElementError, ...] = ()


@dataclass(slots=True)
class Verdict:
    """What becomes of a set. `answer` is AK5-01: A taken, E taken with errors noted, R refused."""

    answer: str = "A"
    codes: list[str] = field(default_factory=list)
    errors: list[SegmentError] = field(default_factory=list)
    findings: list[str] = field(default_factory=list)
    reason: str = ""
    """Why it is refused."""


def judged(one: TransactionSet) -> Verdict:
    """Whether a set can be taken, and all that is to be said to its sender."""
    verdict = Verdict(codes=list(dict.fromkeys(one.codes)), findings=list(one.findings))
    if one.id not in MANDATORY:
        verdict.codes.insert(0, "1")
        return _refused(verdict, f"set {one.id} is not supported")
    fatal = "" if one.whole else "its beginning and its end do not belong together"
    if not one.control:
        verdict.codes.append("7")
        verdict.findings.append("ST02 is missing")
    verdict.findings += _blanks(one)
    for error, told, is_fatal in _errors(one):
        if len(verdict.errors) < MOST_ERRORS:
            verdict.errors.append(error)
        verdict.findings.append(told)
        fatal = fatal or (told if is_fatal else "")
    if verdict.errors:
        verdict.codes.append("5")
    if fatal:
        return _refused(verdict, fatal)
    verdict.answer = "E" if verdict.codes else "A"
    return verdict


def _blanks(one: TransactionSet) -> Iterator[str]:
    for segment in one.segments:
        for n in ELEMENTS.get(segment[0], {}):
            if n < len(segment) and segment[n][:1] == " " and segment[n].strip():
                yield f"{segment[0]}{n:02d} begins with a blank"


def _refused(verdict: Verdict, reason: str) -> Verdict:
    verdict.answer, verdict.reason = "R", reason
    if reason not in verdict.findings:
        verdict.findings.append(reason)
    return verdict


def _errors(one: TransactionSet) -> Iterator[tuple[SegmentError, str, bool]]:
    held = {segment[0] for segment in one.segments}
    for name, fatal in MANDATORY[one.id].items():
        if name not in held:
            place = 2 if fatal else len(one.segments)
            yield SegmentError(name, place, "3"), f"{name} is missing", fatal
    once: set[str] = set()
    for position, segment in enumerate(one.segments[1:-1], 2):
        name = segment[0]
        if not re.fullmatch(r"[A-Z][A-Z0-9]{1,2}", name):
            yield SegmentError(name[:3], position, "1"), f"{name[:10]!r} is no segment", False
            continue
        if MANDATORY[one.id].get(name) and name in once:
            yield SegmentError(name, position, "5"), f"{name} stands there twice", True
        once.add(name)
        wrong = list(_wrong_elements(segment))
        if wrong:
            elements = tuple(error for error, _ in wrong)
            told = "; ".join(_told(segment, error) for error in elements)
            yield SegmentError(name, position, "8", elements), told, any(f for _, f in wrong)


def _told(segment: Segment, error: ElementError) -> str:
    what = {
        "1": "is missing",
        "2": "is missing (one of several must be there)",
        "4": "is too short",
        "5": "is too long",
        "6": "has characters that its type does not allow",
        "7": "is no known code",
        "8": "is no date",
        "9": "is no time",
        "10": "excludes another element that is there too",
    }[error.code]
    return f"{segment[0]}{error.place:02d} {what}" + (f": {error.bad[:40]}" if error.bad else "")


def _wrong_elements(segment: Segment) -> Iterator[tuple[ElementError, bool]]:
    """Errors, and whether the set is nothing because of them."""
    for place, element in ELEMENTS.get(segment[0], {}).items():
        given = value(segment, place)
        if not given:
            if element.need in ("!", "+"):
                yield ElementError(place, element.number, "1"), element.need == "!"
        elif code := _fault(given, element):
            # A code that is not known is told, but what it says stays open: it is not our list.
            fatal = element.need == "!" and code in ("6", "8")
            yield ElementError(place, element.number, code, given), fatal
    yield from _relations(segment)


def _relations(segment: Segment) -> Iterator[tuple[ElementError, bool]]:
    if segment[0] == "B10" and not value(segment, 1) and not value(segment, 2):
        yield ElementError(2, 145, "2"), True
    elif segment[0] == "AT7":
        if value(segment, 1) and value(segment, 3):
            yield ElementError(3, 1652, "10", value(segment, 3)), False
        elif not value(segment, 1) and not value(segment, 3):
            yield ElementError(1, 1650, "2"), False


def _fault(given: str, element: Element) -> str:
    form = _FORMS.get(element.type)
    if form and not form.fullmatch(given):
        return "6"
    length = len(given.lstrip("-")) if element.type in ("N0", "N2") else len(given)
    if length < element.shortest:
        return "4"
    if length > element.longest:
        return "5"
    if element.type == "DT" and date_of(given) is None:
        return "8"
    if element.type == "TM" and clock(given) is None:
        return "9"
    known = _CODES.get(element.number)
    return "7" if known and given not in known else ""


def date_of(text: str) -> date | None:
    """CCYYMMDD or, from older partners, yyMMdd; of the years in which freight was told by X12."""
    if not re.fullmatch(r"\d{6}|\d{8}", text, re.ASCII):
        return None
    if len(text) == 6:
        text = ("19" if text > "69" else "20") + text
    if not "1970" <= text[:4] <= "2199":
        return None
    try:
        return date(int(text[:4]), int(text[4:6]), int(text[6:]))
    except ValueError:
        return None


def clock(text: str) -> tuple[int, int, int, int] | None:
    """HHmm[ss[d[d]]] as hours, minutes, seconds, microseconds."""
    if not re.fullmatch(r"\d{4}|\d{6,8}", text, re.ASCII):
        return None
    hours, minutes, seconds = int(text[:2]), int(text[2:4]), int(text[4:6] or 0)
    if hours > 23 or minutes > 59 or seconds > 59:
        return None
    return hours, minutes, seconds, int(text[6:].ljust(6, "0")) if text[6:] else 0


def cents(text: str) -> int | None:
    """An amount of type N2: two decimals are implied. None if it is anything else: nothing is guessed."""
    return int(text) if re.fullmatch(r"-?\d{1,15}", text, re.ASCII) else None
