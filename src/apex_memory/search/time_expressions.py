"""Time expressions in a query: `yesterday`, `last week`, `in October`, a day in any form of `dates`. They boost, never filter.

Days are UTC, like every stored time. A day or month without a year is the latest one that is not in the future.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta

from apex_memory.dates import (
    MONTH,
    YEAR,
    DateOrder,
    WrittenDay,
    days_without_year,
    month_number,
    written_days,
)
from apex_memory.month_names import SURE_MONTH, WIDE_MONTH, month_named

DAY = timedelta(days=1)

_WEEKDAYS = ["mon", "tue", "wed", "thu", "fri", "sat", "sun"]
_NUMBERS = {
    **{"a": 1, "an": 1, "a couple of": 2, "couple of": 2, "a few": 3, "few": 3},
    **{"one": 1, "two": 2, "three": 3, "four": 4, "five": 5, "six": 6, "seven": 7, "eight": 8},
    **{"nine": 9, "ten": 10, "eleven": 11, "twelve": 12},
}
_UNITS = {
    "hour": timedelta(hours=1),
    "day": DAY,
    "week": 7 * DAY,
    "month": 30 * DAY,
    "quarter": 91 * DAY,
    "year": 365 * DAY,
}

# In English, and in the languages whose names of months are known.
_ARTICLES = frozenset({"the", "dem", "le", "el", "il"})
_BETWEEN = frozenset(
    {"between", "from", "zwischen", "vom", "entre", "tra", "dal", "tussen", "van", "od"}
)
_SINCE = frozenset(
    {"since", "after", "seit", "ab", "nach", "depuis", "après", "desde", "dal", "dopo", "sinds", "vanaf", "od", "po"}
)  # fmt: skip

_WEEKDAY = r"(mon|tues|wednes|thurs|fri|satur|sun)day"
_NUMBER = rf"(\d{{1,3}}|{'|'.join(sorted(_NUMBERS, key=len, reverse=True))})"
_UNIT = r"(hour|day|week|month|quarter|year)s?"


@dataclass(frozen=True, slots=True)
class TimeRange:
    """A range of time, `since` inclusive, `until` exclusive."""

    since: datetime
    until: datetime
    prefers_end: bool = False
    """Whether the end of the range is meant before all: `the latest`."""

    def closeness(self, moment: datetime) -> float:
        """Return 1 inside the range, where its end is meant 1 there only. From there it falls by e with every length of the range, a day at least."""
        if self.prefers_end:
            return math.exp(-abs(self.until - moment) / max(self.until - self.since, DAY))
        if self.since <= moment < self.until:
            return 1.0
        gap = self.since - moment if moment < self.since else moment - self.until
        return math.exp(-gap / max(self.until - self.since, DAY))

    def days(self, most: int) -> list[date]:
        """Return the days that lie in the range in full or in part; none if they are more than `most`, or its end is meant."""
        last = (self.until - timedelta(microseconds=1)).date()
        count = (last - self.since.date()).days + 1
        if count > most or self.prefers_end:
            return []
        return [self.since.date() + n * DAY for n in range(count)]


Reading = Callable[[re.Match[str], datetime], TimeRange]
"""Turns a match of a rule's pattern, and the time of the query, into a range. Raises `ValueError` for a date that does not exist."""


@dataclass(frozen=True, slots=True)
class _Expression:
    start: int
    end: int
    time_range: TimeRange


@dataclass(frozen=True, slots=True)
class QueryTime:
    """What a query says about time."""

    time_range: TimeRange | None
    """The range that it names; None if there is none."""
    undated: str
    """The query with a comma for each day that it names: `23.01.2024` is no code or number of a thing."""


def read_time(query: str, at: datetime, date_order: DateOrder = "auto") -> QueryTime:
    """Return the time that a query, made at the time `at`, names, and the query without its days."""
    days = _written(query, date_order)
    undated = query
    for day in reversed(days):
        undated = f"{undated[: day.start]},{undated[day.end :]}"
    return QueryTime(_time_range(query, at.astimezone(UTC), days), undated)


def _time_range(query: str, at: datetime, days: Sequence[WrittenDay]) -> TimeRange | None:
    expressions = _expressions(query, at, days)
    if not expressions:
        return None
    first = expressions[0]
    words_before = [word for word in query[: first.start].lower().split() if word not in _ARTICLES]
    preposition = words_before[-1] if words_before else ""
    if preposition in _BETWEEN and len(expressions) > 1:
        until = max(first.time_range.until, expressions[1].time_range.until)
        return TimeRange(first.time_range.since, until)
    if preposition in _SINCE and first.time_range.since < at:
        return TimeRange(first.time_range.since, at)
    return first.time_range


def _written(query: str, date_order: DateOrder) -> list[WrittenDay]:
    """Return the days by position. Of two that overlap, as in `12 May 9`, the first one counts."""
    days: list[WrittenDay] = []
    every = [*written_days(query, date_order), *days_without_year(query, date_order)]
    for day in sorted(every, key=lambda day: (day.start, -day.end)):
        if not days or days[-1].end <= day.start:
            days.append(day)
    return days


def _expressions(query: str, at: datetime, written: Sequence[WrittenDay]) -> list[_Expression]:
    """Return the time expressions by position; of several at one position, that of the earlier rule first.

    A written day wins over what overlaps it, and over the weekday before it: `Tuesday, 23 January` is one day.
    """
    days: list[_Expression] = []
    for day in written:
        # A day that does not exist in any of the last years is no expression.
        with suppress(ValueError):
            start = datetime.combine(day.latest(at.date()), datetime.min.time(), UTC)
            days.append(_Expression(day.start, day.end, _day(start)))
    expressions = list(days)
    for pattern, reading in _RULES:
        for match in pattern.finditer(query):
            if any(day.start - 2 <= match.end() and match.start() < day.end for day in days):
                continue
            # A time that does not exist, such as a year before 1, is no expression.
            with suppress(ValueError, OverflowError):
                time_range = reading(match, at)
                expressions.append(_Expression(match.start(), match.end(), time_range))
    return sorted(expressions, key=lambda expression: expression.start)


def _midnight(at: datetime) -> datetime:
    return at.replace(hour=0, minute=0, second=0, microsecond=0)


def _day(start: datetime) -> TimeRange:
    return TimeRange(start, start + DAY)


def _month(year: int, month: int) -> TimeRange:
    start = datetime(year, month, 1, tzinfo=UTC)
    return TimeRange(start, datetime(year + month // 12, month % 12 + 1, 1, tzinfo=UTC))


def _quarter(year: int, quarter: int) -> TimeRange:
    return TimeRange(_month(year, 3 * quarter - 2).since, _month(year, 3 * quarter).until)


def _year(year: int) -> TimeRange:
    return TimeRange(datetime(year, 1, 1, tzinfo=UTC), datetime(year + 1, 1, 1, tzinfo=UTC))


def _unit_of(name: str, at: datetime) -> TimeRange:
    """Return the calendar's hour, day, week (from Monday), month, quarter or year around a moment."""
    today = _midnight(at)
    if name == "week":
        monday = today - at.weekday() * DAY
        return TimeRange(monday, monday + 7 * DAY)
    if name == "month":
        return _month(at.year, at.month)
    if name == "quarter":
        return _quarter(at.year, (at.month + 2) // 3)
    if name == "year":
        return _year(at.year)
    if name == "hour":
        hour = at.replace(minute=0, second=0, microsecond=0)
        return TimeRange(hour, hour + timedelta(hours=1))
    return _day(today)


def _count(word: str) -> int:
    return int(word) if word.isdigit() else _NUMBERS[word.lower()]


def _iso_month(match: re.Match[str], at: datetime) -> TimeRange:
    return _month(int(match[1]), int(match[2]))


def _month_name(match: re.Match[str], at: datetime) -> TimeRange:
    number = month_number(match[1])
    year = int(match[2]) if match[2] else at.year - (number > at.month)
    return _month(year, number)


def _month_elsewhere(match: re.Match[str], at: datetime) -> TimeRange:
    name = month_named(match[1])
    assert name is not None  # the pattern consists of the names
    year = int(match[2]) if match[2] else at.year - (name.month > at.month)
    return _month(year, name.month)


def _weekday(match: re.Match[str], at: datetime) -> TimeRange:
    back = (at.weekday() - _WEEKDAYS.index(match[2][:3].lower())) % 7
    if back == 0 and match[1]:  # `last Monday` on a Monday
        back = 7
    return _day(_midnight(at) - back * DAY)


def _ago(match: re.Match[str], at: datetime) -> TimeRange:
    unit = match[2].lower()
    then = at - _count(match[1]) * _UNITS[unit]
    if unit in {"hour", "day"}:
        return _unit_of(unit, then)
    return TimeRange(then - _UNITS[unit] / 2, then + _UNITS[unit] / 2)


def _last_few(match: re.Match[str], at: datetime) -> TimeRange:
    return TimeRange(at - _count(match[1]) * _UNITS[match[2].lower()], at)


def _last(match: re.Match[str], at: datetime) -> TimeRange:
    unit = match[1].lower()
    return _unit_of(unit, _unit_of(unit, at).since - timedelta(microseconds=1))


_RULES: tuple[tuple[re.Pattern[str], Reading], ...] = tuple(
    (re.compile(rf"(?<![\w-])(?:{pattern})(?![\w-])", re.IGNORECASE | re.ASCII), reading)
    for pattern, reading in (
        (rf"{YEAR}-(\d\d)", _iso_month),
        (rf"{MONTH} {YEAR}", _month_name),
        (
            rf"(?:in|of|during|since|from|last|this|early|late|mid|until|before|after|for|through) {MONTH}(?! (?:19|20)\d\d)()",
            _month_name,
        ),
        # In other languages, whose letters are not ASCII: `März 2026`, `marzo de 2026`, `im März`.
        (rf"(?u:({WIDE_MONTH})\.?(?: del?)?) {YEAR}", _month_elsewhere),
        (
            rf"(?:im|in|seit|ab|en|depuis|em|desde|nel|sinds|od) (?u:({SURE_MONTH}))(?! (?:19|20)\d\d)()",
            _month_elsewhere,
        ),
        (
            rf"Q([1-4])(?: (?:of )?{YEAR})?",
            lambda m, at: _quarter(
                int(m[2] or at.year - (int(m[1]) * 3 - 2 > at.month)), int(m[1])
            ),
        ),
        (rf"in {YEAR}", lambda m, at: _year(int(m[1]))),
        (rf"(last )?{_WEEKDAY}", _weekday),
        (rf"{_NUMBER} {_UNIT} ago", _ago),
        (rf"(?:last|past|previous) {_NUMBER} {_UNIT}", _last_few),
        (r"(?:last|previous|past) (week|month|quarter|year)", _last),
        (r"this (week|month|quarter|year)", lambda m, at: _unit_of(m[1].lower(), at)),
        (
            "last night",
            lambda m, at: TimeRange(
                _midnight(at) - timedelta(hours=6), _midnight(at) + timedelta(hours=6)
            ),
        ),
        ("day before yesterday", lambda m, at: _day(_midnight(at) - 2 * DAY)),
        ("yesterday", lambda m, at: _day(_midnight(at) - DAY)),
        (
            "today(?:['’]?s)?|tonight|this (?:morning|afternoon|evening)",
            lambda m, at: _day(_midnight(at)),
        ),
        ("tomorrow", lambda m, at: _day(_midnight(at) + DAY)),
        (
            "recently|lately|these days",
            lambda m, at: TimeRange(at - 7 * DAY, at + timedelta(seconds=1)),
        ),
        (
            "latest|newest|most recent|last known|current(?:ly)?|right now",
            lambda m, at: TimeRange(at - 7 * DAY, at + timedelta(seconds=1), prefers_end=True),
        ),
    )
)
