"""The envelopes of X12: interchanges (ISA to IEA), groups (GS to GE) and transaction sets (ST to SE).

A fault of an envelope never costs the neighbours: a complete set is taken, an incomplete one is not.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field

from apex_memory.sources.edi.x12.segments import DelimitedSegments, Segment, element
from apex_memory.sources.edi.x12.values import parse_date, parse_time

GROUP_OF = {
    "204": "SM",
    "990": "GF",
    "214": "QM",
    "210": "IM",
    "997": "FA",
}
"""Functional identifier code (GS01) by set."""
MOST_STRAY_NAMES = 50  # of segments outside of any set that are counted by name, in an interchange


@dataclass(slots=True)
class TransactionSet:
    """From ST to SE. `error_codes` are the faults of its envelope, for the 997 (element 718)."""

    segments: list[Segment]
    error_codes: list[str] = field(default_factory=list)
    findings: list[str] = field(default_factory=list)
    _digest: str = field(default="", init=False, repr=False)

    @property
    def id(self) -> str:
        """Transaction set identifier (ST01), such as `214`."""
        return element(self.segments[0], 1)

    @property
    def control(self) -> str:
        """Control number (ST02)."""
        return element(self.segments[0], 2)

    @property
    def is_complete(self) -> bool:
        """Whether ST and SE belong together: SE is there, and its count or its control number fits."""
        return "2" not in self.error_codes and not {"3", "4"} <= set(self.error_codes)

    def digest(self) -> str:
        """Return the SHA-256 (hex) of the elements, whatever delimiters and line breaks they came with.

        It is kept: call it only once the set is complete.
        """
        if not self._digest:
            rows = ["\x1d".join(map(str.strip, segment)) for segment in self.segments]
            content = "\x1e".join(rows)
            self._digest = hashlib.sha256(content.encode("utf-8", "surrogatepass")).hexdigest()
        return self._digest


@dataclass(slots=True)
class Group:
    """From GS to GE. `header` is empty for sets without a group; `error_codes` are of element 716."""

    header: Segment = ()
    sets: list[TransactionSet] = field(default_factory=list)
    declared_sets: int | None = None
    """The number of sets by GE01; None where GE is missing or unreadable."""
    error_codes: list[str] = field(default_factory=list)

    @property
    def function(self) -> str:
        """Functional identifier code (GS01)."""
        return element(self.header, 1)

    @property
    def control(self) -> str:
        """Control number (GS06)."""
        return element(self.header, 6)


@dataclass(slots=True)
class Interchange:
    """From ISA to IEA; `header` is empty for groups and sets without an interchange."""

    header: Segment = ()
    groups: list[Group] = field(default_factory=list)
    acknowledgements: list[Segment] = field(default_factory=list)
    """TA1 segments: a partner's acknowledgement of an interchange of ours."""
    findings: list[str] = field(default_factory=list)

    @property
    def sender(self) -> str:
        """Interchange id of the sender (ISA06)."""
        return element(self.header, 6)

    @property
    def receiver(self) -> str:
        """Interchange id of the receiver (ISA08)."""
        return element(self.header, 8)

    @property
    def control(self) -> str:
        """Control number (ISA13)."""
        return element(self.header, 13)

    @property
    def is_test(self) -> bool:
        """Whether the sender marks it as a test (ISA15)."""
        return element(self.header, 15).upper() == "T"

    @property
    def identity(self) -> str:
        """Sender, receiver and control number, with their qualifiers; `none` without an ISA."""
        if not self.header:
            return "none"
        sender = f"{element(self.header, 5)}:{self.sender}"
        receiver = f"{element(self.header, 7)}:{self.receiver}"
        return f"{sender}>{receiver}/{self.control}"


def parse_envelopes(part: DelimitedSegments) -> Interchange:
    """Return the groups and sets in a part of a file, with the faults of their envelopes."""
    return _EnvelopeParser(part).interchange


class _EnvelopeParser:
    """Reads the segments of one part in their order."""

    def __init__(self, part: DelimitedSegments) -> None:
        self.interchange = Interchange(findings=list(part.findings))
        self._findings = self.interchange.findings
        self._group: Group | None = None
        self._set: TransactionSet | None = None
        self._closed = False
        self._stray: dict[str, int] = {}
        for segment in part.segments:
            self._read(segment)
        self._end(part)

    def _read(self, segment: Segment) -> None:
        match segment[0]:
            case "ISA":
                self.interchange.header = segment
                if parse_date(element(segment, 9)) is None:
                    self._findings.append(
                        f"ISA09 is no date: {element(segment, 9)[:20] or 'empty'}"
                    )
            case "GS":
                self._open_group(segment)
            case "ST":
                self._open_set(segment)
            case "SE":
                self._close_set(segment)
            case "GE":
                self._close_group(segment)
            case "IEA":
                self._close_interchange(segment)
            case "TA1":
                self.interchange.acknowledgements.append(segment)
            case name if self._set is None:
                known = name[:3] in self._stray or len(self._stray) < MOST_STRAY_NAMES
                key = name[:3] if known else "of other names"
                self._stray[key] = self._stray.get(key, 0) + 1
            case _:
                self._set.segments.append(segment)

    def _end(self, part: DelimitedSegments) -> None:
        if part.truncated and self._set is not None:
            self._findings.append("the file ends in the middle of a segment")
        self._abandon_group()
        if part.enveloped and not self._closed:
            self._findings.append("IEA is missing")
        if not part.enveloped:
            self._findings.append("sets without an interchange: no ISA")
        elif not self.interchange.groups and not self.interchange.acknowledgements:
            self._findings.append("an interchange header without content")
        for name, count in self._stray.items():
            self._findings.append(f"{count} segments {name} outside of any set were skipped")

    def _open_group(self, segment: Segment) -> None:
        self._abandon_group()
        self._group = Group(segment)
        self.interchange.groups.append(self._group)
        if len(segment) > 9:
            self._findings.append(f"group {self._group.control}: GS has more than 8 elements")
        if parse_date(element(segment, 4)) is None:
            self._findings.append(
                f"group {self._group.control}: GS04 is no date: {element(segment, 4)[:20] or 'empty'}"
            )
        if parse_time(element(segment, 5)) is None:
            self._findings.append(
                f"group {self._group.control}: GS05 is no time: {element(segment, 5)[:20] or 'empty'}"
            )

    def _open_set(self, segment: Segment) -> None:
        self._abandon_set()
        if self._group is None:
            self._group = Group()
            self.interchange.groups.append(self._group)
            if self.interchange.header:
                self._findings.append("sets without a group: no GS")
        self._set = TransactionSet([segment])
        self._group.sets.append(self._set)
        expected = GROUP_OF.get(self._set.id)
        if expected and self._group.header and self._group.function != expected:
            self._note(
                f"stands in a group {self._group.function or '(none)'}, where {expected} is due"
            )

    def _close_set(self, segment: Segment) -> None:
        if self._set is None:
            self._findings.append("SE without ST")
            return
        self._set.segments.append(segment)
        count, control = element(segment, 1), element(segment, 2)
        actual = len(self._set.segments)
        if not (count.isdecimal() and count.isascii()) or int(count[:9]) != actual:
            self._note(f"SE01 is {count or 'empty'}, there are {actual} segments", "4")
        if control.partition(" ")[0] != self._set.control:
            self._note(f"SE02 is {control or 'empty'}, ST02 is {self._set.control}", "3")
        elif control != self._set.control:
            self._note(f"text after the number in SE02: {control}")
        self._set = None

    def _abandon_set(self) -> None:
        """Leave a set that has no SE."""
        if self._set is not None:
            self._note("SE is missing: the set may be incomplete", "2")
            self._set = None

    def _close_group(self, segment: Segment) -> None:
        self._abandon_set()
        group, self._group = self._group, None
        if group is None or not group.header:
            self._findings.append("GE without GS")
            return
        count, control = element(segment, 1), element(segment, 2)
        group.declared_sets = int(count[:6]) if count.isdecimal() and count.isascii() else None
        if group.declared_sets != len(group.sets):
            group.error_codes.append("5")
            self._findings.append(
                f"group {group.control}: GE01 is {count or 'empty'}, there are {len(group.sets)} sets"
            )
        if control != group.control:
            group.error_codes.append("4")
            self._findings.append(
                f"group {group.control}: GE02 is {control or 'empty'}, GS06 is {group.control}"
            )

    def _abandon_group(self) -> None:
        """Leave a group that has no GE."""
        self._abandon_set()
        if self._group is not None and self._group.header:
            self._group.error_codes.append("3")
            self._findings.append(f"group {self._group.control}: GE is missing")
        self._group = None

    def _close_interchange(self, segment: Segment) -> None:
        self._abandon_group()
        self._closed = True
        count, control = element(segment, 1), element(segment, 2)
        groups = sum(bool(group.header) for group in self.interchange.groups)
        if count.lstrip("0") != str(groups or ""):
            self._findings.append(f"IEA01 is {count or 'empty'}, there are {groups} groups")
        if control.lstrip("0") != self.interchange.control.lstrip("0"):
            self._findings.append(
                f"IEA02 is {control or 'empty'}, ISA13 is {self.interchange.control}"
            )

    def _note(self, finding: str, *error_codes: str) -> None:
        assert self._set is not None
        self._set.findings.append(finding)
        self._set.error_codes += error_codes


def find_repetitions(interchanges: Sequence[Interchange]) -> list[str]:
    """Return a finding for each set of a file whose control numbers or whose content stand there before.

    Other content under the same control numbers is a conflict, which gives its group error code 19 (element 716:
    duplicate control number). Where a whole interchange is repeated, each of its sets is a finding.
    """
    findings: list[str] = []
    digests: dict[tuple[str, ...], str] = {}
    contents: dict[tuple[str, tuple[Segment, ...]], str] = {}
    for interchange in interchanges:
        for group in interchange.groups:
            for item in group.sets:
                name = (
                    f"set {item.id} {item.control} of interchange {interchange.control or 'none'}"
                )
                envelope = (interchange.identity, group.function, group.control)
                control = (*envelope, item.id, item.control)
                content = (interchange.sender, tuple(item.segments[1:-1]))
                is_repeated = control in digests
                first_digest = digests.setdefault(control, item.digest())
                first_name = contents.setdefault(content, name)
                if is_repeated and first_digest == item.digest():
                    findings.append(f"{name} stands here twice with the same content")
                elif is_repeated and interchange.header:
                    findings.append(f"conflict: {name} stands here twice with different content")
                    if "19" not in group.error_codes:
                        group.error_codes.append("19")
                elif first_name != name:
                    findings.append(f"{name} has the same content as {first_name}")
    return findings
