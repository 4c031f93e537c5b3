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
    days_after_their_year,
    days_named_elsewhere,
    days_of_numbers,
    days_of_one_month,
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
# Thousands by commas (in India also pairs of digits), apostrophes, or by dots where a comma has the decimals or there are
# two of them. Blanks alone do it in millions: `$5 100` may be two cells of a table.
_NUMBER = (
    r"\d{1,3}(?:,\d{3}){1,4}(?:\.\d{1,2})?|\d{1,3}(?:['’]\d{3}){1,4}(?:\.\d{1,2})?|\d{1,2}(?:,\d\d){1,4},\d{3}(?:\.\d{1,2})?"
    r"|\d{1,3}(?:\.\d{3}){1,4},\d\d|\d{1,3}(?:\.\d{3}){2,4}(?![\d.])|\d{1,3}(?:[ ]\d{3}){1,4}[.,]\d\d"
    r"|\d{1,3}(?:[ ]\d{3}){2,4}(?!\d)|\d{1,12}(?:\.\d{1,2})?"
)
# Groups of three after a code or a euro sign are one number, and `1.250,-` has no cents.
_GROUPED_NUMBER = r"\d{1,3}(?:\.\d{3}){0,4},-|\d{1,3}(?:[ ]\d{3}){1,4}(?:[.,]\d\d)?(?!\d)"
# `45,10` may be two cells of a table unless the currency is one that is written with a comma, or stands behind.
_COMMA_NUMBER = r"\d{1,12},\d\d"
_END = r"(?![\w%/]|[.,]\d)"
_NUMBER_END = (
    r"(?![\w%])(?:(?![.,]\d)|(?<=\.\d\d)(?=,))"  # the next cell of a row follows cents at once
)
_MINUS = r"(?:(?<![A-Z])[-−])?"  # not after a code: `USD-12` may be a name
_BEFORE = re.compile(
    rf"(?<![\w$€£₹])(?:({_CODES}|€)[ ]?{_MINUS}({_GROUPED_NUMBER}){_END}|(EUR|€)[ ]?{_MINUS}({_COMMA_NUMBER}){_END}"
    rf"|((?:{_CODES})\s?\$?|US\$|CA?\$|MX\$|AU?\$|NZ\$|HK\$|R\$|[$€£₹])\s?{_MINUS}\(?({_NUMBER})"
    rf"(\s?(?:thousand|million|billion|[KM](?![\w-]))|[kKM]?)(?:\s?({_CODES})\b)?{_NUMBER_END})",
    re.ASCII,
)
_BEFORE_FIRST = re.compile(r"(?:[$€£₹]|[A-Z](?=[A-Z]|\$))(?<![\w$€£₹].)", re.ASCII)
_SIGN_FIRST = re.compile(r"(?:[$€£₹]|[A-Z](?=[A-Z]?\$))(?<![\w$€£₹].)", re.ASCII)
_NAMES_AFTER = {
    "€": "EUR", "zł": "PLN", "Kč": "CZK", "₽": "RUB", "руб": "RUB", "₴": "UAH", "₺": "TRY", "₩": "KRW", "円": "JPY",
    "US dollar": "USD", "dollar": "USD", "euro": "EUR",
}  # fmt: skip
"""Names of currencies that stand after the number, beside the codes."""
_AFTER = re.compile(
    rf"(?<![\w$€£₹.,'’])(?<![\w)\]-]-)({_GROUPED_NUMBER}|{_COMMA_NUMBER}|{_NUMBER})(?:(?<=[.,]\d\d)-(?=\s))?\s?"
    rf"(?:({_CODES})(?!\w)|({'|'.join(_NAMES_AFTER)})s?(?![A-Za-z]|\s?\d))",
    re.ASCII,
)
_SIGN_OUTSIDE = re.compile(r"(?:(?<![\w)\]-])(?<!\d )|\A)[-−–]\Z")
_ALONE_BEFORE = re.compile(r"(?:(?:\A|[\n\t|:]|[ ]{2})[ ]?|[,;\"])\(\Z")
_ALONE_AFTER = re.compile(r"\)(?:[ ]?(?:\Z|[\n\t|]|[ ])|[,;\"])")
_MINUS_AFTER = re.compile(r"-[ ]?(?:\Z|[\n\t|])")
_DAY_SHAPES = (b"0-0", b"0/0", b"0.0.0", b"0.00.0", b"0?0", b"0? 0", b"0 ?")
"""One of them is in the shape (`char_shape`) of every text with a day of numbers alone; `?` stands for a sign beyond ASCII."""
_SCALE = {
    "": 1, "k": 1_000, "K": 1_000, "M": 1_000_000, "thousand": 1_000, "million": 1_000_000, "billion": 1_000_000_000,
}  # fmt: skip


def find_amounts(text: str) -> Iterator[ValueAt]:
    """Yield amounts with a currency, before or after the number. A bare `$` means US dollars.

    An amount is negative behind a minus sign, before one at the end of a cell or a line, and in parentheses that stand
    alone in a cell, a line or behind a label, as in accounts.
    """
    is_coded = any(code in text for code in _CODE_LIST)
    if is_coded or any(sign in text for sign in "$€£₹"):
        for match in matches(_BEFORE_FIRST if is_coded else _SIGN_FIRST, _BEFORE, text):
            n = next(n for n in (2, 4, 6) if match[n])
            sign = match[n - 1].replace(" ", "")
            currency = match[8] or _CURRENCY.get(sign) or sign.rstrip("$").strip()
            scale = _SCALE[(match[7] or "").strip()]
            inside = text[match.end(n - 1) : match.start(n)].strip()
            is_negative = bool(inside) or _is_negative(match)
            yield _amount(match[n], currency, scale, is_negative=is_negative), match.start()
    if is_coded or any(name in text for name in _NAMES_AFTER):
        for match in _AFTER.finditer(text):
            currency = match[2] or _NAMES_AFTER[match[3]]
            has_minus_after = text.startswith("-", match.end(1))
            is_negative = has_minus_after or _is_negative(match)
            yield _amount(match[1], currency, 1, is_negative=is_negative), match.start()


def _is_negative(amount: re.Match[str]) -> bool:
    """Return whether a sign or parentheses around an amount say that it is negative: not `$10-$12`, not `the rate ($1,250)`."""
    text, start, end = amount.string, amount.start(), amount.end()
    before = text[max(0, start - 4) : start]
    if _SIGN_OUTSIDE.search(before) or _MINUS_AFTER.match(text, end):
        return True
    return bool(_ALONE_BEFORE.search(before) and _ALONE_AFTER.match(text, end))


@lru_cache(maxsize=4_096)  # the rows of a table repeat their amounts
def _amount(digits: str, currency: str, scale: int, *, is_negative: bool) -> str:
    number = re.sub("[ '’]", "", digits).removesuffix(",-")
    if re.search(r",\d\d\Z", number) or number.count(".") > 1 or digits.endswith(",-"):
        number = number.replace(".", "").replace(",", ".")
    amount = Decimal(number.replace(",", "")) * scale
    return f"{-amount if is_negative and amount else amount:.2f} {currency}"


def find_dates(
    text: str, char_shape: bytes, at: date | None = None, order: DateOrder = "auto"
) -> Iterator[ValueAt]:
    """Yield the days that a text names. A day without a year is the one nearest to `at`, the text's own day if it is known."""
    if b"0" not in char_shape:
        return
    if any(shape in char_shape for shape in _DAY_SHAPES):
        for day in days_of_numbers(text, order):
            yield day.nearest(at or date.min).isoformat(), day.start
    for day in (*days_of_one_month(text), *days_after_their_year(text)):
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
