"""Amounts of money and dates in a text, in one format: `2450.00 USD`, `2026-03-03`."""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import date
from decimal import Decimal

from apex_memory.dates import MONTHS, DateOrder, days_of_numbers, named_days
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
_DAY_SHAPES = (b"0-0", b"0/0", b"0.0.0", b"0.00.0")  # one of them is in every day of numbers alone
_SCALE = {"": 1, "k": 1_000, "K": 1_000, "M": 1_000_000}


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


def find_dates(
    text: str, char_shape: bytes, at: date | None = None, order: DateOrder = "auto"
) -> Iterator[ValueAt]:
    """Yield the days that a text names. A day without a year is the one nearest to `at`, the text's own day if it is known."""
    if b"0" not in char_shape:
        return
    if any(shape in char_shape for shape in _DAY_SHAPES):
        for day in days_of_numbers(text, order):
            yield day.nearest(at or date.min).isoformat(), day.start
    lower = text.lower()
    if not any(month in lower for month in MONTHS):
        return
    for day in named_days(text):
        # `may` and `march` in lower case are other words, too.
        is_day = day.year is not None or (at and not text[day.start : day.end].islower())
        if is_day:
            yield day.nearest(at or date.min).isoformat(), day.start
