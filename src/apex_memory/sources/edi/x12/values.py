"""Dates, times, zones and amounts as X12 writes them (data types DT, TM and N2, element 623)."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta, timezone
from typing import NamedTuple

_OFFSET_HOURS = {
    "A": -9.0,
    "C": -6.0,
    "E": -5.0,
    "H": -10.0,
    "M": -7.0,
    "N": -3.5,
    "P": -8.0,
    "T": -4.0,
}
"""Standard time of the zones of element 623 by their first letter, in hours from UTC."""
ZONES = frozenset(
    {"GM", "LT", "UT"}
    | {letter + kind for letter in _OFFSET_HOURS for kind in "TSD"}
    | {f"{number:02d}" for number in range(1, 25)}
)
"""Codes of element 623."""


class TimeOfDay(NamedTuple):
    """A time of day. Hour 24 is the midnight at the end of the day, which some partners write."""

    hour: int
    minute: int
    second: int
    microsecond: int


def parse_date(text: str) -> date | None:
    """Return the date of CCYYMMDD or, from older partners, yyMMdd; None if it is not one of 1970 to 2199."""
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


def parse_time(text: str) -> TimeOfDay | None:
    """Return the time of HHmm[ss[d[d]]]; None if it is not one."""
    if not re.fullmatch(r"\d{4}|\d{6,8}", text, re.ASCII):
        return None
    hour, minute, second = int(text[:2]), int(text[2:4]), int(text[4:6] or 0)
    fraction = text[6:]
    if hour == 24 and not int(text[2:]):
        return TimeOfDay(24, 0, 0, 0)
    if hour > 23 or minute > 59 or second > 59:
        return None
    return TimeOfDay(hour, minute, second, int(fraction.ljust(6, "0")) if fraction else 0)


def local_time(day: date, time: TimeOfDay | None) -> datetime:
    """Return date and time without a zone; midnight where there is no time."""
    hour, minute, second, microsecond = time or (0, 0, 0, 0)
    start = datetime(day.year, day.month, day.day)
    return start + timedelta(hours=hour, minutes=minute, seconds=second, microseconds=microsecond)


def parse_amount(text: str) -> int | None:
    """Return an amount of type N2 in cents: two decimals are implied. None for anything else: nothing is guessed."""
    return int(text) if re.fullmatch(r"-?\d{1,15}", text, re.ASCII) else None


@dataclass(frozen=True, slots=True)
class StatedTime:
    """Date, time and zone code as the partner writes them. `at` is None where the date cannot be read."""

    day: str
    time: str = ""
    zone: str = ""

    @property
    def at(self) -> datetime | None:
        day = parse_date(self.day)
        return to_utc(day, parse_time(self.time), self.zone) if day else None

    def __str__(self) -> str:
        """`2025-11-01 08:15 ET`; what cannot be read is shown as it came."""
        day, time = parse_date(self.day), parse_time(self.time)
        if day and time:
            shown = f"{local_time(day, time):%Y-%m-%d %H:%M}"
        else:
            shown = " ".join(filter(None, (str(day) if day else self.day, self.time)))
        return " ".join(filter(None, (shown, self._zone_name() if self.time else "")))

    def _zone_name(self) -> str:
        if self.zone == "LT":
            return "local time"
        hours = _numbered_offset(self.zone)
        return self.zone if hours is None else f"UTC{hours:+03d}:00"


def to_utc(day: date, time: TimeOfDay | None, zone: str) -> datetime:
    """Return the time in UTC.

    Local time (LT), no zone and unknown zones are read as UTC: the set does not give the place's zone.
    """
    local = local_time(day, time)
    numbered = _numbered_offset(zone)
    if numbered is not None:
        return (local - timedelta(hours=numbered)).replace(tzinfo=UTC)
    hours = _OFFSET_HOURS.get(zone[:1]) if len(zone) == 2 and zone[1] in "TSD" else None
    if zone in ("UT", "GM") or hours is None:
        return local.replace(tzinfo=UTC)
    # Hawaii has no daylight time.
    if zone[1] == "D" or (zone[1] == "T" and zone[0] != "H" and _is_daylight_time(local)):
        hours += 1
    return local.replace(tzinfo=timezone(timedelta(hours=hours))).astimezone(UTC)


def _numbered_offset(zone: str) -> int | None:
    """Return the hours from UTC of a numbered zone: 01 to 12 are UTC+1 to UTC+12, 13 to 24 are UTC-12 to UTC-1."""
    if not re.fullmatch(r"\d{2}", zone, re.ASCII) or not 1 <= int(zone) <= 24:
        return None
    number = int(zone)
    return number if number <= 12 else number - 25


def _is_daylight_time(local: datetime) -> bool:
    """In the US and Canada: second Sunday of March to first Sunday of November, at 2 o'clock."""
    march = datetime(local.year, 3, 8, 2)
    starts = march + timedelta(days=(6 - march.weekday()) % 7)
    return starts <= local < _end_of_daylight_time(local.year)


def _end_of_daylight_time(year: int) -> datetime:
    november = datetime(year, 11, 1, 2)
    return november + timedelta(days=(6 - november.weekday()) % 7)


def is_repeated_hour(local: datetime) -> bool:
    """Return whether the clock shows this hour twice: the one before daylight time ends in the US and Canada."""
    end = _end_of_daylight_time(local.year)
    return end - timedelta(hours=1) <= local < end
