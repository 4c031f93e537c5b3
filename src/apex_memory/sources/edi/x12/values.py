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


class TimeOfDay(NamedTuple):
    """A time of day."""

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
    if hour > 23 or minute > 59 or second > 59:
        return None
    fraction = text[6:]
    return TimeOfDay(hour, minute, second, int(fraction.ljust(6, "0")) if fraction else 0)


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
        shown = f"{time.hour:02d}:{time.minute:02d}" if time else self.time
        zone = "local time" if self.zone == "LT" else self.zone
        return " ".join(filter(None, (str(day) if day else self.day, shown, zone if shown else "")))


def to_utc(day: date, time: TimeOfDay | None, zone: str) -> datetime:
    """Return the time in UTC.

    Local time (LT), no zone and unknown zones are read as UTC: the set does not give the place's zone.
    """
    local = datetime(day.year, day.month, day.day, *(time or (0, 0, 0, 0)))
    hours = _OFFSET_HOURS.get(zone[:1]) if len(zone) == 2 and zone[1] in "TSD" else None
    if zone in ("UT", "GM") or hours is None:
        return local.replace(tzinfo=UTC)
    # Hawaii has no daylight time.
    if zone[1] == "D" or (zone[1] == "T" and zone[0] != "H" and _is_daylight_time(local)):
        hours += 1
    return local.replace(tzinfo=timezone(timedelta(hours=hours))).astimezone(UTC)


def _is_daylight_time(local: datetime) -> bool:
    """In the US and Canada: second Sunday of March to first Sunday of November, at 2 o'clock."""
    march, november = datetime(local.year, 3, 8, 2), datetime(local.year, 11, 1, 2)
    starts = march + timedelta(days=(6 - march.weekday()) % 7)
    ends = november + timedelta(days=(6 - november.weekday()) % 7)
    return starts <= local < ends
