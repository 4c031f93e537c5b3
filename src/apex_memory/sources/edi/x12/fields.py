"""What stands in a set: its parties, stops, statuses, times and amounts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta, timezone

from apex_memory.sources.edi.x12.checks import clock, date_of
from apex_memory.sources.edi.x12.segments import Segment, value

_OFFSETS = {"A": -9.0, "C": -6.0, "E": -5.0, "H": -10.0, "M": -7.0, "N": -3.5, "P": -8.0, "T": -4.0}


def first(segments: Sequence[Segment], name: str) -> Segment:
    """The first segment of this id; an empty one where there is none."""
    return next((segment for segment in segments if segment[0] == name), ())


def every(segments: Sequence[Segment], name: str) -> list[Segment]:
    return [segment for segment in segments if segment[0] == name]


def loops(segments: Sequence[Segment], head: str) -> tuple[list[Segment], list[list[Segment]]]:
    """The segments before the first `head`, and a list for each `head` with what follows it."""
    before: list[Segment] = []
    found: list[list[Segment]] = []
    for segment in segments:
        if segment[0] == head:
            found.append([segment])
        else:
            (found[-1] if found else before).append(segment)
    return before, found


@dataclass(slots=True)
class Party:
    role: str
    name: str
    number: str
    street: str = ""
    city: str = ""
    state: str = ""
    zip: str = ""
    country: str = ""
    contacts: list[str] = field(default_factory=list)

    @property
    def place(self) -> str:
        return ", ".join(filter(None, (self.city, f"{self.state} {self.zip}".strip())))

    @property
    def location(self) -> str:
        """Ref of the city; empty where it is not known."""
        return f"location:{self.city} {self.state}".strip() if self.city else ""


def parties(segments: Sequence[Segment]) -> list[Party]:
    """N1 with the N2, N3, N4 and G61 that follow it."""
    found: list[Party] = []
    current = None
    for segment in segments:
        match segment[0]:
            case "N1":
                name, number = value(segment, 2).strip(" ,"), value(segment, 4)
                current = Party(value(segment, 1), name or number, number)
                found.append(current)
            case "N2" if current:
                current.name = f"{current.name} {value(segment, 1)}".strip()
            case "N3" if current:
                current.street = ", ".join(filter(None, (value(segment, 1), value(segment, 2))))
            case "N4" if current:
                current.city, current.state = value(segment, 1), value(segment, 2)
                current.zip, current.country = value(segment, 3), value(segment, 4)
            case "G61" if current:
                parts = (value(segment, 2), value(segment, 4))
                current.contacts.append(" ".join(filter(None, parts)))
            case _:
                current = None
    return found


@dataclass(frozen=True, slots=True)
class Moment:
    """A date and time as the partner writes it. `at` is None where there is no date that can be read."""

    day: str
    time: str = ""
    zone: str = ""

    @property
    def at(self) -> datetime | None:
        day = date_of(self.day)
        return zoned(day, clock(self.time), self.zone) if day else None

    def __str__(self) -> str:
        """`2025-11-01 08:15 ET`; what cannot be read stands as it came."""
        day, time = date_of(self.day), clock(self.time)
        shown = f"{time[0]:02d}:{time[1]:02d}" if time else self.time
        zone = "local time" if self.zone == "LT" else self.zone
        return " ".join(filter(None, (str(day) if day else self.day, shown, zone if shown else "")))


def zoned(day: date, time: tuple[int, int, int, int] | None, zone: str) -> datetime:
    """In UTC. Local time (LT), no zone and unknown zones are taken as UTC: the place's zone is not in the set."""
    local = datetime(day.year, day.month, day.day, *(time or (0, 0, 0, 0)))
    hours = _OFFSETS.get(zone[:1]) if len(zone) == 2 and zone[1] in "TSD" else None
    if zone in ("UT", "GM") or hours is None:
        return local.replace(tzinfo=UTC)
    if zone[1] == "D" or (zone[1] == "T" and zone[0] != "H" and _summer(local)):
        hours += 1
    return local.replace(tzinfo=timezone(timedelta(hours=hours))).astimezone(UTC)


def _summer(local: datetime) -> bool:
    """Daylight time of the US and Canada: second Sunday of March to first Sunday of November, at 2 o'clock."""
    march, november = datetime(local.year, 3, 8, 2), datetime(local.year, 11, 1, 2)
    starts = march + timedelta(days=(6 - march.weekday()) % 7)
    ends = november + timedelta(days=(6 - november.weekday()) % 7)
    return starts <= local < ends


@dataclass(slots=True)
class Status:
    """An AT7 with the MS1 and MS2 that follow it. `kind` is `status` or `appointment`."""

    line: str
    kind: str
    code: str
    reason: str
    when: Moment
    city: str = ""
    state: str = ""
    position: tuple[float, float] | None = None
    carrier: str = ""
    unit: str = ""


def statuses(segments: Sequence[Segment]) -> list[Status]:
    found: list[Status] = []
    line = ""
    for segment in segments:
        match segment[0]:
            case "LX":
                line = value(segment, 1)
            case "AT7":
                stated = value(segment, 1)
                found.append(
                    Status(
                        line,
                        "status" if stated else "appointment",
                        stated or value(segment, 3),
                        value(segment, 2 if stated else 4),
                        Moment(value(segment, 5), value(segment, 6), value(segment, 7)),
                    )
                )
            case "MS1" if found:
                found[-1].city, found[-1].state = value(segment, 1), value(segment, 2)
                found[-1].position = _position(segment)
            case "MS2" if found:
                found[-1].carrier, found[-1].unit = value(segment, 1), value(segment, 2)
    return found


def _position(segment: Segment) -> tuple[float, float] | None:
    """Latitude and longitude in degrees, from DDDMMSS and the hemispheres."""
    longitude = _degrees(value(segment, 4), value(segment, 6), 180)
    latitude = _degrees(value(segment, 5), value(segment, 7), 90)
    return (latitude, longitude) if latitude is not None and longitude is not None else None


def _degrees(text: str, side: str, most: int) -> float | None:
    if len(text) != 7 or not (text.isascii() and text.isdecimal()) or side not in tuple("NSEW"):
        return None
    degrees = int(text[:3]) + int(text[3:5]) / 60 + int(text[5:]) / 3600
    return round(-degrees if side in "SW" else degrees, 5) if degrees <= most else None


def carrier(segments: Sequence[Segment], otherwise: str = "") -> str:
    """The SCAC of the carrier, where the set gives it; else `otherwise`, the carrier's side of the envelope."""
    for name, place in (("B2", 2), ("B1", 1), ("B10", 3), ("B3", 11)):
        if scac := value(first(segments, name), place):
            return scac.upper()
    said = (value(one, 1) for one in every(segments, "L11") if value(one, 2) == "SCA")
    return next(said, "").upper() or otherwise


def shipment(segments: Sequence[Segment]) -> str:
    """The shipment's number, as the shipper gave it."""
    for name, place in (("B2", 4), ("B1", 2), ("B10", 2), ("B3", 3)):
        if number := value(first(segments, name), place):
            return number
    return ""
