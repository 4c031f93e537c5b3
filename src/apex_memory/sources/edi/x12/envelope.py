"""Interchanges, groups and sets: which segments belong together, and where the envelopes contradict what is in them.

A fault of an envelope never costs the neighbours: a set that is whole is taken, a set that has no end is not.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field

from apex_memory.sources.edi.x12.segments import Part, Segment, value

GROUP_OF = {
    "204": "SM",
    "990": "GF",
    "214": "QM",
    "210": "IM",
    "997": "FA",
}


@dataclass(slots=True)
class TransactionSet:
    """From ST to SE. `codes` say to the partner what is wrong with its envelope (element 718)."""

    segments: list[Segment]
    codes: list[str] = field(default_factory=list)
    findings: list[str] = field(default_factory=list)
    _digest: str = field(default="", init=False, repr=False)

    @property
    def id(self) -> str:
        return value(self.segments[0], 1)

    @property
    def control(self) -> str:
        return value(self.segments[0], 2)

    @property
    def whole(self) -> bool:
        """Its beginning and its end belong together, as far as anything tells."""
        return "2" not in self.codes and not {"3", "4"} <= set(self.codes)

    def digest(self) -> str:
        """SHA-256 (hex) of what it says, whatever delimiters and line breaks it came with. Only once it is complete."""
        if not self._digest:
            said = "\x1e".join(["\x1d".join(map(str.strip, one)) for one in self.segments])
            self._digest = hashlib.sha256(said.encode("utf-8", "surrogatepass")).hexdigest()
        return self._digest


@dataclass(slots=True)
class Group:
    """From GS to GE; `header` is empty for sets that stand without one. `codes` are of element 716."""

    header: Segment = ()
    sets: list[TransactionSet] = field(default_factory=list)
    declared: int | None = None
    codes: list[str] = field(default_factory=list)

    @property
    def function(self) -> str:
        return value(self.header, 1)

    @property
    def control(self) -> str:
        return value(self.header, 6)


@dataclass(slots=True)
class Interchange:
    """From ISA to IEA; `header` is empty for sets that stand without one."""

    header: Segment = ()
    groups: list[Group] = field(default_factory=list)
    acknowledgements: list[Segment] = field(default_factory=list)
    """TA1: what a partner says of an interchange of ours."""
    findings: list[str] = field(default_factory=list)

    @property
    def sender(self) -> str:
        return value(self.header, 6)

    @property
    def receiver(self) -> str:
        return value(self.header, 8)

    @property
    def control(self) -> str:
        return value(self.header, 13)

    @property
    def identity(self) -> str:
        """Sender, receiver and control number, with their qualifiers."""
        if not self.header:
            return "none"
        parties = (f"{value(self.header, n)}:{value(self.header, n + 1)}" for n in (5, 7))
        return f"{'>'.join(parties)}/{self.control}"


def opened(part: Part) -> Interchange:
    """What a part of a file holds."""
    return _Opening(part).interchange


class _Opening:
    """Walks through the segments of one part."""

    def __init__(self, part: Part) -> None:
        self.interchange = Interchange(findings=list(part.findings))
        self._findings = self.interchange.findings
        self._group: Group | None = None
        self._set: TransactionSet | None = None
        self._closed = False
        self._stray: dict[str, int] = {}
        for segment in part.segments:
            self._take(segment)
        self._end(part)

    def _take(self, segment: Segment) -> None:
        match segment[0]:
            case "ISA":
                self.interchange.header = segment
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
                self._stray[name[:3]] = self._stray.get(name[:3], 0) + 1
            case _:
                self._set.segments.append(segment)

    def _end(self, part: Part) -> None:
        if part.cut and self._set is not None:
            self._findings.append("the file ends in the middle of a segment")
        self._leave_group()
        if part.enveloped and not self._closed:
            self._findings.append("IEA is missing")
        if not part.enveloped:
            self._findings.append("sets without an interchange: no ISA")
        elif not self.interchange.groups and not self.interchange.acknowledgements:
            self._findings.append("an interchange header without content")
        for name, count in self._stray.items():
            self._findings.append(f"{count} segments {name} outside of any set were skipped")

    def _open_group(self, segment: Segment) -> None:
        self._leave_group()
        self._group = Group(segment)
        self.interchange.groups.append(self._group)
        if len(segment) > 9:
            self._findings.append(f"group {self._group.control}: GS has more than 8 elements")

    def _open_set(self, segment: Segment) -> None:
        self._leave_set()
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
        count, control = value(segment, 1), value(segment, 2)
        held = len(self._set.segments)
        if not (count.isdecimal() and count.isascii()) or int(count[:9]) != held:
            self._note(f"SE01 says {count or 'nothing'}, there are {held} segments", "4")
        if control.partition(" ")[0] != self._set.control:
            self._note(f"SE02 says {control or 'nothing'}, ST02 {self._set.control}", "3")
        elif control != self._set.control:
            self._note(f"text after the number in SE02: {control}")
        self._set = None

    def _leave_set(self) -> None:
        if self._set is not None:
            self._note("SE is missing: the set may not be whole", "2")
            self._set = None

    def _close_group(self, segment: Segment) -> None:
        self._leave_set()
        group, self._group = self._group, None
        if group is None or not group.header:
            self._findings.append("GE without GS")
            return
        count, control = value(segment, 1), value(segment, 2)
        group.declared = int(count[:6]) if count.isdecimal() and count.isascii() else None
        if group.declared != len(group.sets):
            group.codes.append("5")
            self._findings.append(
                f"group {group.control}: GE01 says {count or 'nothing'}, there are {len(group.sets)} sets"
            )
        if control != group.control:
            group.codes.append("4")
            self._findings.append(
                f"group {group.control}: GE02 says {control or 'nothing'}, GS06 {group.control}"
            )

    def _leave_group(self) -> None:
        self._leave_set()
        if self._group is not None and self._group.header:
            self._group.codes.append("3")
            self._findings.append(f"group {self._group.control}: GE is missing")
        self._group = None

    def _close_interchange(self, segment: Segment) -> None:
        self._leave_group()
        self._closed = True
        count, control = value(segment, 1), value(segment, 2)
        groups = sum(bool(group.header) for group in self.interchange.groups)
        if count.lstrip("0") != str(groups or ""):
            self._findings.append(f"IEA01 says {count or 'nothing'}, there are {groups} groups")
        if control.lstrip("0") != self.interchange.control.lstrip("0"):
            self._findings.append(
                f"IEA02 says {control or 'nothing'}, ISA13 {self.interchange.control}"
            )

    def _note(self, what: str, *codes: str) -> None:
        assert self._set is not None
        self._set.findings.append(what)
        self._set.codes += codes


def repeated(interchanges: Sequence[Interchange]) -> list[str]:
    """Control numbers that stand in one file for different things; to the partners' own groups goes code 19."""
    findings: list[str] = []
    seen: dict[tuple[str, ...], str] = {}
    for interchange in interchanges:
        for group in interchange.groups:
            for one in group.sets:
                key = (interchange.identity, group.function, group.control, one.id, one.control)
                other = seen.setdefault(key, one.digest())
                if interchange.header and other != one.digest():
                    findings.append(
                        f"conflict: set {one.id} {one.control} of interchange {interchange.control} stands here twice"
                        " with different content"
                    )
                    if "19" not in group.codes:
                        group.codes.append("19")
    return findings
