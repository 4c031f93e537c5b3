"""What a set holds: its parties, statuses, carrier and shipment number."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from apex_memory.sources.edi.x12.segments import Segment, element
from apex_memory.sources.edi.x12.values import StatedTime


def first_segment(segments: Sequence[Segment], name: str) -> Segment:
    """Return the first segment of this id; an empty one where there is none."""
    return next((segment for segment in segments if segment[0] == name), ())


def all_segments(segments: Sequence[Segment], name: str) -> list[Segment]:
    """Return all segments of this id."""
    return [segment for segment in segments if segment[0] == name]


def split_loops(
    segments: Sequence[Segment], head: str
) -> tuple[list[Segment], list[list[Segment]]]:
    """Return the segments before the first `head`, and for each `head` a list of it and what follows it."""
    before: list[Segment] = []
    loops: list[list[Segment]] = []
    for segment in segments:
        if segment[0] == head:
            loops.append([segment])
        elif loops:
            loops[-1].append(segment)
        else:
            before.append(segment)
    return before, loops


@dataclass(slots=True)
class Party:
    """An N1 with the N2, N3, N4 and G61 that follow it. `role` is a code of element 98."""

    role: str
    name: str
    number: str
    """Identification code (N1-04)."""
    street: str = ""
    city: str = ""
    state: str = ""
    zip: str = ""
    country: str = ""
    more: list[str] = field(default_factory=list)
    """What a second N4 holds."""
    contacts: list[tuple[str, str]] = field(default_factory=list)
    """Of each G61: the qualifier of its number (element 365), and name and number."""

    @property
    def city_line(self) -> str:
        """`COLUMBUS, OH 43215`."""
        return ", ".join(filter(None, (self.city, f"{self.state} {self.zip}".strip())))

    @property
    def location(self) -> str:
        """Ref of the city; empty where it is not known."""
        return f"location:{self.city} {self.state}".strip() if self.city else ""


def parse_parties(segments: Sequence[Segment]) -> list[Party]:
    """Return the parties in their order. A party without a name is named by its number."""
    parties: list[Party] = []
    current = None
    for segment in segments:
        match segment[0]:
            case "N1":
                name, number = element(segment, 2).strip(" ,"), element(segment, 4)
                current = Party(element(segment, 1), name or number, number)
                parties.append(current)
            case "N2" if current:
                names = (current.name, element(segment, 1), element(segment, 2))
                current.name = " ".join(filter(None, names))
            case "N3" if current:
                street = (current.street, element(segment, 1), element(segment, 2))
                current.street = ", ".join(filter(None, street))
            case "N4" if current and (current.city_line or current.country):
                current.more += filter(None, map(str.strip, segment[1:5]))
            case "N4" if current:
                current.city, current.state = element(segment, 1), element(segment, 2)
                current.zip, current.country = element(segment, 3), element(segment, 4)
            case "G61" if current:
                contact = " ".join(filter(None, (element(segment, 2), element(segment, 4))))
                current.contacts.append((element(segment, 3), contact))
            case _:
                current = None
    return parties


@dataclass(slots=True)
class Status:
    """An AT7 with the MS1 and MS2 that follow it. `line` is the LX it stands under."""

    line: str
    kind: str
    """`status` (AT7-01) or `appointment` (AT7-03)."""
    code: str
    reason: str
    when: StatedTime
    city: str = ""
    state: str = ""
    country: str = ""
    position: tuple[float, float] | None = None
    """Latitude and longitude in degrees."""
    unread_position: str = ""
    """The position as it came, where it cannot be read."""
    carrier: str = ""
    unit: str = ""


def parse_statuses(segments: Sequence[Segment]) -> list[Status]:
    """Return the statuses of a 214 in their order, each with the first MS1 and the first MS2 that follow it."""
    statuses: list[Status] = []
    line = ""
    open_for: set[str] = set()
    for segment in segments:
        name = segment[0]
        if name == "LX":
            line = element(segment, 1)
        elif name == "AT7":
            statuses.append(_parse_status(segment, line))
            open_for = {"MS1", "MS2"}
        elif name in open_for:
            open_for.remove(name)
            _add_to_status(statuses[-1], segment)
    return statuses


def _add_to_status(status: Status, segment: Segment) -> None:
    """Read an MS1 (place) or an MS2 (carrier and unit)."""
    if segment[0] == "MS2":
        status.carrier, status.unit = element(segment, 1), element(segment, 2)
        return
    status.city, status.state = element(segment, 1), element(segment, 2)
    status.country = element(segment, 3)
    status.position = _parse_position(segment)
    if status.position is None:
        status.unread_position = " ".join(filter(None, map(str.strip, segment[4:8])))


def _parse_status(segment: Segment, line: str) -> Status:
    when = StatedTime(element(segment, 5), element(segment, 6), element(segment, 7))
    if code := element(segment, 1):
        return Status(line, "status", code, element(segment, 2), when)
    return Status(line, "appointment", element(segment, 3), element(segment, 4), when)


def _parse_position(segment: Segment) -> tuple[float, float] | None:
    """Return latitude and longitude in degrees of an MS1, from DDDMMSS and the hemispheres."""
    longitude = _parse_degrees(element(segment, 4), element(segment, 6), 180)
    latitude = _parse_degrees(element(segment, 5), element(segment, 7), 90)
    if latitude is None or longitude is None:
        return None
    return latitude, longitude


def _parse_degrees(text: str, hemisphere: str, most: int) -> float | None:
    if len(text) != 7 or not (text.isascii() and text.isdecimal()):
        return None
    if hemisphere not in ("N", "S", "E", "W"):
        return None
    degrees = int(text[:3]) + int(text[3:5]) / 60 + int(text[5:]) / 3600
    if degrees > most:
        return None
    return round(-degrees if hemisphere in "SW" else degrees, 5)


def unattached_segments(segments: Sequence[Segment]) -> list[Segment]:
    """Return the segments that belong to a party or a status by their kind, but to none by their place."""
    unattached = []
    in_party = False
    open_for: set[str] = set()
    for segment in segments:
        name = segment[0]
        if name in ("N2", "N3", "N4", "G61"):
            if not in_party:
                unattached.append(segment)
            continue
        in_party = name == "N1"
        if name == "AT7":
            open_for = {"MS1", "MS2"}
        elif name in open_for:
            open_for.remove(name)
        elif name in ("MS1", "MS2"):
            unattached.append(segment)
    return unattached


def equipment_number(segment: Segment) -> str:
    """Return the number of an N7: initial, number and check digit, as it is painted on the container or trailer."""
    return element(segment, 1) + element(segment, 2) + element(segment, 18)


def carrier_code(segments: Sequence[Segment], default: str = "") -> str:
    """Return the SCAC of the carrier where the set gives it; else `default`, the carrier's side of the envelope."""
    for name, n in (("B2", 2), ("B1", 1), ("B10", 3), ("B3", 11)):
        if scac := element(first_segment(segments, name), n):
            return scac.upper()
    for reference in all_segments(segments, "L11"):
        if element(reference, 2) == "SCA":
            return element(reference, 1).upper() or default
    return default


def shipment_number(segments: Sequence[Segment]) -> str:
    """Return the shipment's number as the shipper gave it; empty where the set has none."""
    for name, n in (("B2", 4), ("B1", 2), ("B10", 2), ("B3", 3)):
        if number := element(first_segment(segments, name), n):
            return number
    return ""
