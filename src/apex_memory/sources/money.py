"""Amounts of money as text, with the decimals of their currency."""

from __future__ import annotations

import re
from decimal import Decimal, InvalidOperation

MAX_AMOUNT = 10**15
MAX_LENGTH = 100  # characters of a text that holds an amount
MAX_DECIMALS = 18  # as many as the smallest unit of any currency has

_GROUPED = re.compile(r"[+-]?\d{1,3}(,\d{3})+(\.\d*)?", re.ASCII)
_WITHOUT_DECIMALS = frozenset(
    [
        "BIF",
        "CLP",
        "DJF",
        "GNF",
        "ISK",
        "JPY",
        "KMF",
        "KRW",
        "PYG",
        "RWF",
        "UGX",
        "UYI",
        "VND",
        "VUV",
        "XAF",
        "XOF",
        "XPF",
    ]
)
_WITH_THREE_DECIMALS = frozenset(["BHD", "IQD", "JOD", "KWD", "LYD", "OMR", "TND"])


def read_amount(value: object) -> Decimal | None:
    """Return a number, or a text that holds one; None for anything else, and beyond `MAX_AMOUNT`.

    Commas are read between groups of three digits alone: `1.245,00` is another way of writing.
    """
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    # A double holds 15 digits; more are left by a vendor's arithmetic.
    text = f"{value:.15g}" if isinstance(value, float) else str(value)[:MAX_LENGTH].strip()
    if _GROUPED.fullmatch(text):
        text = text.replace(",", "")
    try:
        amount = Decimal(text)
    except InvalidOperation:
        return None
    return amount if amount.is_finite() and abs(amount) < MAX_AMOUNT else None


def format_money(amount: Decimal, currency: str, *, grouped: bool = True) -> str:
    """Return `1,245.00 USD`, `1,245 JPY` (ISO 4217 gives the decimals of a currency); `1245.00 USD` where not `grouped`.

    An amount that has more decimals than its currency keeps them: rounded, it would be another amount.
    """
    decimals = 2
    if currency in _WITHOUT_DECIMALS:
        decimals = 0
    elif currency in _WITH_THREE_DECIMALS:
        decimals = 3
    exponent = amount.normalize().as_tuple().exponent
    own = -exponent if isinstance(exponent, int) else 0
    shown = f"{amount or Decimal():,.{min(max(decimals, own), MAX_DECIMALS)}f}"
    return f"{shown if grouped else shown.replace(',', '')} {currency}".rstrip()
