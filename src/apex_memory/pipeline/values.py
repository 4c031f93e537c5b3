"""Amounts of money and dates in a text, in one format: `2450.00 USD`, `2026-03-03`."""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import date
from decimal import Decimal
from functools import lru_cache

from apex_memory.dates import (
    MONTHS,
    DateOrder,
    days_named_elsewhere,
    days_of_numbers,
    named_days,
)
from apex_memory.pipeline.text import matches

ValueAt = tuple[str, int]
"""A value in its one format, and its character offset."""

_CURRENCY = {
    "$": "USD", "US$": "USD", "C$": "CAD", "CA$": "CAD", "MX$": "MXN", "A$": "AUD", "AU$": "AUD", "NZ$": "NZD",
    "HK$": "HKD", "R$": "BRL", "€": "EUR", "£": "GBP", "₹": "INR",
}  # fmt: skip
_CODE_LIST = (
    "USD", "CAD", "EUR", "GBP", "MXN", "AUD", "BRL", "CHF", "CNY", "CZK", "DKK", "HKD", "INR", "JPY", "NOK", "NZD", "PLN", "SEK",
)  # fmt: skip
_CODES = "|".join(_CODE_LIST)
# Thousands by commas (in India also pairs of digits), apostrophes, or by dots where a comma has the decimals.
_NUMBER = (
    r"\d{1,3}(?:,\d{3}){1,4}(?:\.\d{1,2})?|\d{1,3}(?:['’]\d{3}){1,4}(?:\.\d{1,2})?|\d{1,2}(?:,\d\d){1,4},\d{3}(?:\.\d{1,2})?"
    r"|\d{1,3}(?:\.\d{3}){1,4},\d\d|\d{1,3}(?:[ ]\d{3}){1,4}[.,]\d\d|\d{1,12}(?:\.\d{1,2})?"
)
# `45,10` may be two cells of a table unless the currency is one that is written with a comma, or stands behind.
_COMMA_NUMBER = r"\d{1,12},\d\d"
_END = r"(?![\w%/]|[.,]\d)"
_NUMBER_END = (
    r"(?![\w%])(?:(?![.,]\d)|(?<=\.\d\d)(?=,))"  # the next cell of a row follows cents at once
)
_BEFORE = re.compile(
    rf"(?<![\w$€£₹])(?:((?:{_CODES})\s?\$?|US\$|CA?\$|MX\$|AU?\$|NZ\$|HK\$|R\$|[$€£₹])\s?({_NUMBER})"
    rf"(\s?(?:thousand|million|billion)|[kKM]?)(?:\s?({_CODES})\b)?{_NUMBER_END}|(EUR|€)\s?({_COMMA_NUMBER}){_END})",
    re.ASCII,
)
_BEFORE_FIRST = re.compile(r"(?:[$€£₹]|[A-Z](?=[A-Z]|\$))(?<![\w$€£₹].)", re.ASCII)
_SIGN_FIRST = re.compile(r"(?:[$€£₹]|[A-Z](?=[A-Z]?\$))(?<![\w$€£₹].)", re.ASCII)
_AFTER = re.compile(
    rf"(?<![\w$€£₹.,'’-])(?:({_NUMBER})\s?(?:({_CODES})(?!\w)|(€)(?!\s?\d))"
    rf"|({_COMMA_NUMBER})\s?(?:(EUR)(?!\w)|(€)(?!\s?\d)))",
    re.ASCII,
)
_DAY_SHAPES = (b"0-0", b"0/0", b"0.0.0", b"0.00.0")  # one of them is in every day of numbers alone
_SCALE = {
    "": 1, "k": 1_000, "K": 1_000, "M": 1_000_000, "thousand": 1_000, "million": 1_000_000, "billion": 1_000_000_000,
}  # fmt: skip


def find_amounts(text: str) -> Iterator[ValueAt]:
    """Yield amounts with a currency, before or after the number. A bare `$` means US dollars."""
    is_coded = any(code in text for code in _CODE_LIST)
    if not is_coded and not any(sign in text for sign in "$€£₹"):
        return
    for match in matches(_BEFORE_FIRST if is_coded else _SIGN_FIRST, _BEFORE, text):
        sign = (match[1] or match[5]).replace(" ", "")
        currency = match[4] or _CURRENCY.get(sign) or sign.rstrip("$").strip()
        scale = _SCALE[(match[3] or "").strip()]
        yield _amount(match[2] or match[6], currency, scale), match.start()
    for match in _AFTER.finditer(text) if is_coded or "€" in text else ():
        currency = match[2] or match[5] or _CURRENCY[match[3] or match[6]]
        yield _amount(match[1] or match[4], currency, 1), match.start()


@lru_cache(maxsize=4_096)  # the rows of a table repeat their amounts
def _amount(digits: str, currency: str, scale: int) -> str:
    number = re.sub("[ '’]", "", digits)
    if re.search(r",\d\d\Z", number):
        number = number.replace(".", "").replace(",", ".")
    return f"{Decimal(number.replace(',', '')) * scale:.2f} {currency}"


def find_dates(
    text: str, char_shape: bytes, at: date | None = None, order: DateOrder = "auto"
) -> Iterator[ValueAt]:
    """Yield the days that a text names. A day without a year is the one nearest to `at`, the text's own day if it is known."""
    if b"0" not in char_shape:
        return
    if any(shape in char_shape for shape in _DAY_SHAPES):
        for day in days_of_numbers(text, order):
            yield day.nearest(at or date.min).isoformat(), day.start
    for day in days_named_elsewhere(text):
        if day.year is not None or at:
            yield day.nearest(at or date.min).isoformat(), day.start
    lower = text.lower()
    if not any(month in lower for month in MONTHS):
        return
    for day in named_days(text):
        # `may` and `march` in lower case are other words, too.
        is_day = day.year is not None or (at and not text[day.start : day.end].islower())
        if is_day:
            yield day.nearest(at or date.min).isoformat(), day.start
