"""Amounts of money and dates in a text, in one format: `2450.00 USD`, `2026-03-03`."""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import date
from decimal import Decimal

from apex_memory.pipeline.text import matches

ValueAt = tuple[str, int]
"""A value in its one format, and its character offset."""

_CURRENCY = {"$": "USD", "US$": "USD", "C$": "CAD", "CA$": "CAD", "€": "EUR", "£": "GBP"}
_CODES = "USD|CAD|EUR|GBP|MXN"
_NUMBER = r"\d{1,3}(?:,\d{3}){1,4}(?:\.\d{1,2})?|\d{1,12}(?:\.\d{1,2})?"
_BEFORE = re.compile(
    rf"(?<![\w$€£])((?:{_CODES})\s?\$?|US\$|CA?\$|[$€£])\s?({_NUMBER})([kKM]?)(?:\s?({_CODES})\b)?(?![\w%]|[.,]\d)",
    re.ASCII,
)
_BEFORE_FIRST = re.compile(r"[UCEGM$€£](?<![\w$€£].)", re.ASCII)
_AFTER = re.compile(rf"(?<![\w$€£.,-])({_NUMBER})\s?({_CODES})(?!\w)", re.ASCII)
_SCALE = {"": 1, "k": 1_000, "K": 1_000, "M": 1_000_000}

_MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
_MONTH = (
    r"(jan(?:uary)?|feb(?:ruary)?|mar(?:ch)?|apr(?:il)?|may|june?|july?|aug(?:ust)?|"
    r"sept?(?:ember)?|oct(?:ober)?|nov(?:ember)?|dec(?:ember)?)\.?"
)
_YEAR = r"((?:19|20)\d\d)(?!\w)"
_ISO = re.compile(r"(?<![\w-])((?:19|20)\d\d)-(\d\d)-(\d\d)(?!\d|-)", re.ASCII)
_SLASHED = re.compile(r"(?<![\w/])(\d{1,2})/(\d{1,2})/((?:19|20)?\d\d)(?![\w/])", re.ASCII)
_MONTH_FIRST = re.compile(
    rf"(?<!\w){_MONTH} (\d{{1,2}})(?:st|nd|rd|th)?,? {_YEAR}", re.IGNORECASE | re.ASCII
)
_DAY_FIRST = re.compile(
    rf"(?<!\w)(\d{{1,2}})(?:st|nd|rd|th)? {_MONTH},? {_YEAR}", re.IGNORECASE | re.ASCII
)


def find_amounts(text: str) -> Iterator[ValueAt]:
    """Yield amounts with a currency. A bare `$` means US dollars."""
    named = any(code in text for code in _CODES.split("|"))
    signed = named or any(sign in text for sign in "$€£")
    for match in matches(_BEFORE_FIRST, _BEFORE, text) if signed else ():
        sign = match[1].replace(" ", "")
        currency = match[4] or _CURRENCY.get(sign) or sign.rstrip("$").strip()
        yield _amount(match[2], currency, _SCALE[match[3]]), match.start()
    for match in _AFTER.finditer(text) if named else ():
        yield _amount(match[1], match[2], 1), match.start()


def _amount(digits: str, currency: str, scale: int) -> str:
    return f"{Decimal(digits.replace(',', '')) * scale:.2f} {currency}"


def find_dates(text: str, char_shape: bytes) -> Iterator[ValueAt]:
    """Yield dates with a year. `3/4/2026` is read month first, unless only the other order is a date."""
    for match in _ISO.finditer(text) if b"0000-00-00" in char_shape else ():
        yield from _date(match[1], match[2], match[3], match.start())
    for match in _SLASHED.finditer(text) if b"0/0" in char_shape else ():
        year = match[3] if len(match[3]) == 4 else f"20{match[3]}"
        month, day = match[1], match[2]
        if int(month) > 12:
            month, day = day, month
        yield from _date(year, month, day, match.start())
    named = b" 0000" in char_shape
    for match in _MONTH_FIRST.finditer(text) if named else ():
        yield from _date(match[3], _month(match[1]), match[2], match.start())
    for match in _DAY_FIRST.finditer(text) if named else ():
        yield from _date(match[3], _month(match[2]), match[1], match.start())


def _month(name: str) -> str:
    return str(_MONTHS.index(name[:3].lower()) + 1)


def _date(year: str, month: str, day: str, start: int) -> Iterator[ValueAt]:
    try:
        yield date(int(year), int(month), int(day)).isoformat(), start
    except ValueError:  # the 31st of June is not a date
        return
