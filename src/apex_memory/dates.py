"""Days as people write them: `23.01.2024`, `1/23/24`, `2024-01-23`, `Jan 23, 2024`, `23 January`, `3. März 2026`. For texts and for questions.

Of numbers that may be two days, such as `03.04.2024`, the order decides; where only one reading is a day, that is taken.
Numbers of versions, addresses, telephones and records are no days.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import date
from functools import lru_cache
from typing import Literal

from apex_memory.month_names import month_named

DateOrder = Literal["auto", "day", "month"]
"""What comes first in a day of numbers alone: `auto` is the day before dots and dashes, and the month before slashes."""

MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
MONTH = (
    r"(jan(?:uary)?|feb(?:ruary)?|mar(?:ch)?|apr(?:il)?|may|june?|july?|aug(?:ust)?|"
    r"sept?(?:ember)?|oct(?:ober)?|nov(?:ember)?|dec(?:ember)?)"
)
_ENGLISH_NAME = re.compile(rf"{MONTH}\Z", re.IGNORECASE)
YEAR = r"((?:19|20)\d\d)"
_FIRST_OF_CENTURY = 69  # two digits from here on are of the 1900s, as in POSIX

_ISO = re.compile(rf"(?<![\w-]){YEAR}-(\d{{1,2}})-(\d{{1,2}})(?![\d-])", re.ASCII)
# With dots only in full, as `2026.1.3` is a version of some programs.
_YEAR_FIRST = re.compile(
    rf"(?<![\w/.=]){YEAR}(?:/(\d{{1,2}})/(\d{{1,2}})(?![\w/])|\.(\d\d)\.(\d\d)(?![\w/]|\.\d))",
    re.ASCII,
)
# Chinese, Japanese and Korean: `2026年3月5日`.
_YEAR_FIRST_NAMED = re.compile(
    rf"(?<![0-9]){YEAR}[ ]?[年년][ ]?(\d{{1,2}})[ ]?[月월][ ]?(\d{{1,2}})[ ]?[日号일]", re.ASCII
)
# With the name of the month in the middle: `2026-Mar-05`, `2026 March 5`, `2026. március 5.`, `2026 m. kovo 5 d.`.
_YEAR_BEFORE_NAME = re.compile(
    # The look behind stands inside, because a pattern that begins with digits is found faster.
    r"((?:19|20)(?<![\w/.=-]..)[0-9]{2})(?:\.?[ ]|[ ]?m\.[ ]|([-/]))"
    rf"([^\W\d_]{{3,12}})(?(2)\2|\.?[ ])([0-9]{{1,2}})(?:st|nd|rd|th)?"
    rf"(?![\w:%/-]|[.,][0-9]|,?[ ]{YEAR})",
    re.IGNORECASE,
)
_DAY_OF_YEAR_BEFORE = re.compile(r"(?:[0-9]|[0-9,./–-][ ]|([^\W\d_]{3,12})\.?[ ](?:del?[ ])?)\Z")
"""What stands before a year that belongs to the day before it: `March 3, 2026 March 5`."""
_YEAR_LAST = re.compile(
    # In a row of a CSV file the next cell may follow; a comma after `1.2.26` would be a decimal one.
    r"(?<![\w./#$€£-])(\d{1,2})([./-])(\d{1,2})\2((?:19|20)\d\d|\d\d)(?![\w/%-]|[.:]\d|(?<!\d{4})(?<!/\d\d),\d)",
    re.ASCII,
)
_MONTH_NAMED = re.compile(
    rf"(?<![\w-]){MONTH}\.?[ -](\d{{1,2}})(?:st|nd|rd|th)?(?:,?[ -]{YEAR}|,?[ ]['’](\d\d))?(?![\w%/-]|[.,:]\d)",
    re.IGNORECASE | re.ASCII,
)
# Two digits are a year after a sign (`3-Mar-26`), and after a blank where nothing follows that they could count.
_DAY_NAMED = re.compile(
    rf"(?<![\w$€£.,/-])(\d{{1,2}})(?:st|nd|rd|th)?(?: of)?[ /-]{MONTH}\.?"
    rf"(?:,?[ /-]{YEAR}|[/-]'?(\d\d)|,?[ ]'?(\d\d)(?=[ ]{{0,3}}(?:[,;)\]\n]|\.(?!\d)|\Z|\d{{1,2}}:\d\d)))?(?!(?u:\w)|-)",
    re.IGNORECASE | re.ASCII,
)
# In other languages: `3. März 2026`, `12 de marzo de 2026`, `1er mars`, `1º de maio`, `5-Okt-2026`, `15 maja 2026`.
_DAY_NAMED_ELSEWHERE = re.compile(
    r"(?<![\w$€£.,/-])([0-9]{1,2})(\.?[ ]|er[ ]|[º°ª.]?[ ](?:de|di)[ ]|[º°ª][ ]|[/-])([^\W\d_]{3,12})\.?"
    rf"(?:,?[ ](?:(?:de|del)[ ])?{YEAR}|[/-]{YEAR})?(?![\w-])",
    re.IGNORECASE,
)
# What joins the first and the last day of a range, or two days: `3-5 November`, `Nov 3 and 5`, `Oct 30 to Mon, Nov 2`.
_JOINT = r"(?:[ ]?[-–—&][ ]?|[ ](?:to|until|till|through|thru|and|bis|und|au|et|al|a|y|e|até|tot|t/m|en|do|i)[ ](?:the[ ])?)"
_RANGE_SIGN = re.compile(rf"{_JOINT}(?:[^\W\d_]{{2,10}}\.?,?[ ])?", re.IGNORECASE)
_DAYS_AFTER_MONTH = re.compile(
    rf"(?<![\w-]){MONTH}\.?[ ](\d{{1,2}})(?:st|nd|rd|th)?{_JOINT}(\d{{1,2}})(?:st|nd|rd|th)?"
    rf"(?:,?[ ]{YEAR}|,?[ ]['’](\d\d))(?![\w%/-]|[.,:]\d)",
    re.IGNORECASE,
)
_DAYS_BEFORE_MONTH = re.compile(
    rf"(?<![\w$€£.,/-])([0-9]{{1,2}})(?:st|nd|rd|th|er|\.)?{_JOINT}([0-9]{{1,2}})(?:st|nd|rd|th|\.)?[ ](?:(?:of|de|di)[ ])?"
    rf"([^\W\d_]{{3,12}})\.?,?[ ](?:(?:de|del)[ ])?{YEAR}(?![\w-])",
    re.IGNORECASE,
)
# Every range of days of one month has it. Few texts do, and looking for it takes a seventh of the patterns' own time.
_JOINED_NUMBERS = re.compile(
    rf"[0-9](?<![\w:$€£.,/-].)[0-9]?(?:st|nd|rd|th|er|\.)?{_JOINT}[0-9]{{1,2}}(?![0-9-])",
    re.IGNORECASE,
)
_WORD_BEFORE = re.compile(r"(\w+)[ ]\Z")
# Without a year, numbers are a day only after such a word: `3/4` may be a fraction, and `2.10` a price.
_WITHOUT_YEAR = re.compile(
    r"(?<![\w-])(?:on|since|until|till|before|after|between|and|from|by|dated)(?: the)? "
    r"(?!24/7)(?:(\d{1,2})(/)(\d{1,2})|(\d\d?)(\.)(\d\d)\.?|(\d\d)(-)(\d\d))(?![\w/%-]|[.,:]\d| of\b| (?:in|inch|inches|miles?|mile)\b)",
    re.IGNORECASE | re.ASCII,
)
# `from 12.10 to 14.50`: prices, `between 10-12`: a range, unless the word can stand before a day alone.
_SURELY_DAY_AFTER = frozenset({"on", "since", "dated"})
_DAY_BEFORE = re.compile(
    r"(?<![\w])(?:on|since|until|till|before|after|between|and|from|by|dated|of|to)(?: the)? \Z",
    re.IGNORECASE,
)
"""What stands before a day, where its numbers or its month may be something else."""
_MEASURED = re.compile(
    r"\s?(?:usd|eur|gbp|cad|mxn|dollars?|euros?|lbs?|kgs?|tons?|pallets?|miles?|mi|ft|[%])(?!\w)|\s(?:an?|per|each)\s",
    re.IGNORECASE,
)
"""What follows a number that is an amount."""
_VERSION = re.compile(
    r"(?<![\w])(?:v|ver|version|release|firmware|rev|revision|section|chapter|build)\.?[\s:#]{0,2}\Z",
    re.IGNORECASE,
)
_TIME = re.compile(
    r"(?:(?<![\w])(?:at|time|um|kl)\.?[\s:]{0,2}|(?:19|20)\d\d[ T-])\Z", re.IGNORECASE
)
"""What stands before a time of day with dots, `10.15.00`."""
_NUMBERED = re.compile(
    r"(?<![\w])(?:phone|tel|fax|ext|invoice|inv|load|shipment|po|bol|pro|ref|reference|number|no|id|account|acct|code|sort|"
    r"unit|size|truck)\b\.?[\s:#]{0,2}\Z",
    re.IGNORECASE,
)
_BEFORE_CHARS = 14  # before a number, in which a word may say that it is no day


@dataclass(frozen=True, slots=True)
class WrittenDay:
    """A day in a text, at the character offsets `start` to `end`; `year` is None where the text names none."""

    start: int
    end: int
    year: int | None
    month: int
    day: int

    def latest(self, today: date) -> date:
        """Return the day; without a year the latest such day that is not after `today`.

        Raises `ValueError` if there is no such day.
        """
        if self.year is not None:
            return date(self.year, self.month, self.day)
        return max(day for day in self._days(today) if day <= today)

    def nearest(self, to: date) -> date:
        """Return the day; without a year the one nearest to `to`. Raises `ValueError` if there is no such day."""
        if self.year is not None:
            return date(self.year, self.month, self.day)
        return min(self._days(to), key=lambda day: abs(day - to))

    def _days(self, around: date) -> list[date]:
        """Return the day in the years around a day: there are eight years between two 29 February at most."""
        far = 8 if (self.month, self.day) == (2, 29) else 1
        years = range(max(1, around.year - far), min(9999, around.year + far) + 1)
        return [date(year, self.month, self.day) for year in years if self._is_in(year)]

    def _is_in(self, year: int) -> bool:
        return _is_day(year, self.month, self.day)


def written_days(text: str, order: DateOrder = "auto") -> Iterator[WrittenDay]:
    """Yield the days that a text names, in no order. Those of numbers alone must have a year here."""
    yield from days_of_numbers(text, order)
    yield from named_days(text)
    yield from days_after_their_year(text)
    yield from days_named_elsewhere(text)
    yield from days_of_one_month(text)


def days_of_numbers(text: str, order: DateOrder = "auto") -> Iterator[WrittenDay]:
    """Yield the days of three numbers, in no order."""
    for match in _ISO.finditer(text):
        yield from _day(match, match[1], match[2], match[3])
    for match in _YEAR_FIRST.finditer(text):
        before = text[max(0, match.start() - _BEFORE_CHARS) : match.start()]
        if match[2] or not _VERSION.search(before):
            yield from _day(match, match[1], match[2] or match[4], match[3] or match[5])
    for match in () if text.isascii() else _YEAR_FIRST_NAMED.finditer(text):
        yield from _day(match, match[1], match[2], match[3])
    for match in _YEAR_LAST.finditer(text):
        yield from _of_numbers(match, text, order)


def named_days(text: str) -> Iterator[WrittenDay]:
    """Yield the days with the name of their month, with or without a year, in no order.

    In `3 Mar 26` and `Unit 5 Mar 3, 2026` the month's name stands between two numbers: the day is the one with four digits of a year,
    else the one before it.
    """
    yield from _with_years(text, _named_days(text))


def days_after_their_year(text: str) -> Iterator[WrittenDay]:
    """Yield the days whose year stands before the name of their month, in no order."""
    for match in _years_before_names(text):
        if month := _month(match[3]):
            yield from _day(match, match[1], month, match[4])


def _years_before_names(text: str) -> Iterator[re.Match[str]]:
    for match in _YEAR_BEFORE_NAME.finditer(text):
        start = match.start()
        before = _DAY_OF_YEAR_BEFORE.search(text, max(0, start - _BEFORE_CHARS), start)
        if before is None or (before[1] and not _month(before[1])):
            yield match


def _month(name: str) -> int | None:
    """Return 1 to 12 for the name of a month in any language; None for another word."""
    if _ENGLISH_NAME.match(name):
        return month_number(name)
    known = month_named(name)
    return known.month if known else None


def _named_days(text: str) -> Iterator[WrittenDay]:
    after = {match.start(1): match for match in _MONTH_NAMED.finditer(text)}
    for match in _years_before_names(text) if after else ():  # left to `days_after_their_year`
        after.pop(match.start(3), None)
    if _JOINED_NUMBERS.search(text):
        for match in _DAYS_AFTER_MONTH.finditer(text):  # left to `days_of_one_month`
            after.pop(match.start(1), None)
    for match in _DAY_NAMED.finditer(text):
        year = match[3] or match[4] or match[5]
        other = after.get(match.start(2))
        if other is not None and (other[3] or other[4]) and not match[3]:
            continue
        after.pop(match.start(2), None)
        if not _is_verb(match, match[2], year):
            yield from _day(match, year, month_number(match[2]), match[1])
    for match in after.values():
        year = match[3] or match[4]
        if not _is_verb(match, match[1], year):
            yield from _day(match, year, month_number(match[1]), match[2])


def days_of_one_month(text: str) -> Iterator[WrittenDay]:
    """Yield the days that share a month and a year with the next one, such as the 3rd in `3-5 November 2026` and both in `Nov 3-5, 2026`."""
    if not _JOINED_NUMBERS.search(text):
        return
    for match in _DAYS_AFTER_MONTH.finditer(text):
        month, year = month_number(match[1]), match[4] or match[5]
        yield from _day(match, year, month, match[2], end=match.end(2))
        yield from _day(match, year, month, match[3], start=match.start(3))
    for match in _DAYS_BEFORE_MONTH.finditer(text):
        named = _month(match[3])
        if named is None:
            continue
        yield from _day(match, match[4], named, match[1], end=match.end(1))
        if not text[match.start(2) - 1].isspace():  # behind a blank it is a day by itself
            yield from _day(match, match[4], named, match[2], start=match.start(2))


def _with_years(text: str, days: Iterator[WrittenDay]) -> Iterator[WrittenDay]:
    """Yield days; the first of a range whose year stands behind the last one has that year: `Oct 30 to Nov 2, 2026`."""
    following: WrittenDay | None = None
    for day in sorted(days, key=lambda day: day.start, reverse=True):
        known = day
        is_range = following is not None and _RANGE_SIGN.fullmatch(text, day.end, following.start)
        if following is not None and is_range and day.year is None and following.year is not None:
            is_of_year_before = (day.month, day.day) > (following.month, following.day)
            year = following.year - 1 if is_of_year_before else following.year
            if _is_day(year, day.month, day.day):
                known = replace(day, year=year)
        yield known
        following = known


def days_named_elsewhere(text: str) -> Iterator[WrittenDay]:
    """Yield the days with the name of their month in another language than English, with or without a year, in the order of the text.

    Without a year, a name that may be something else (`5 out`, `3 set`, `2 mars`) needs a word of its language before the day, or
    `de` behind it. What `named_days` reads is left to it.
    """
    yield from reversed([*_with_years(text, _days_named_elsewhere(text))])


def _days_named_elsewhere(text: str) -> Iterator[WrittenDay]:
    for match in _DAY_NAMED_ELSEWHERE.finditer(text):
        name = month_named(match[3])
        if name is None or (match[2] in (" ", "-", "/") and _ENGLISH_NAME.match(match[3])):
            continue
        year = match[4] or match[5]
        if not year and not name.is_sure and " d" not in match[2].lower():
            before = _WORD_BEFORE.search(text, max(0, match.start() - _BEFORE_CHARS), match.start())
            if before is None or before[1].lower() not in name.words_before:
                continue
        yield from _day(match, year, name.month, match[1])


def _is_verb(match: re.Match[str], month: str, year: str | None) -> bool:
    """Return whether a month's name is a verb: `truck 12 may be late`, `please march 5 trucks to the yard`."""
    if year or month not in ("may", "march"):
        return False
    before = match.string[max(0, match.start() - _BEFORE_CHARS) : match.start()]
    return not _DAY_BEFORE.search(before) and bool(before.strip())


def days_without_year(text: str, order: DateOrder = "auto") -> Iterator[WrittenDay]:
    """Yield the days of two numbers, such as `on 1/23` or `since 23.01.`, in the order of the text."""
    for match in _WITHOUT_YEAR.finditer(text):
        first = 1 + 3 * next(n for n in range(3) if match[3 * n + 1])
        word = match[0].split()[0].lower()
        if match[first + 1] != "/" and word not in _SURELY_DAY_AFTER:
            continue
        if _MEASURED.match(text, match.end()):
            continue
        day, month = _day_and_month(match[first], match[first + 1], match[first + 2], order)
        yield from _day(match, None, month, day, start=match.start(first))


def month_number(name: str) -> int:
    """Return 1 to 12 for an English month's name or its first three letters."""
    return MONTHS.index(name[:3].lower()) + 1


def _of_numbers(match: re.Match[str], text: str, order: DateOrder) -> Iterator[WrittenDay]:
    sign, year = match[2], match[4]
    before = text[max(0, match.start() - _BEFORE_CHARS) : match.start()]
    if sign == "." and (_VERSION.search(before) or _TIME.search(before)):
        return
    if len(year) == 2 and (_NUMBERED.search(before) or _MEASURED.match(text, match.end())):
        return
    day, month = _day_and_month(match[1], sign, match[3], order)
    yield from _day(match, year, month, day)


def _day_and_month(first: str, sign: str, second: str, order: DateOrder) -> tuple[int, int]:
    """Return day and month of two numbers in the given order, or in the other one where only that can be."""
    day_first = order == "day" or (order == "auto" and sign != "/")
    day, month = (int(first), int(second)) if day_first else (int(second), int(first))
    if month > 12 >= day:
        day, month = month, day
    return day, month


def _day(
    match: re.Match[str],
    year: str | None,
    month: str | int,
    day: str | int,
    *,
    start: int | None = None,
    end: int | None = None,
) -> Iterator[WrittenDay]:
    number = None if year is None else int(year)
    if number is not None and number < 100:
        number += 1900 if number >= _FIRST_OF_CENTURY else 2000
    if _is_day(2024 if number is None else number, int(month), int(day)):
        begin = match.start() if start is None else start
        stop = match.end() if end is None else end
        yield WrittenDay(begin, stop, number, int(month), int(day))


@lru_cache(maxsize=4_096)  # the rows of a table repeat their days
def _is_day(year: int, month: int, day: int) -> bool:
    """Return whether the calendar has a day: not 31 November."""
    try:
        date(year, month, day)
    except ValueError:
        return False
    return True
