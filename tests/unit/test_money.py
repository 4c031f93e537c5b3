"""Amounts of money: read as sent, shown with the decimals of their currency, and never rounded to another amount."""

from __future__ import annotations

from typing import Any

import pytest

from apex_memory.sources.money import format_money, read_amount


@pytest.mark.parametrize(
    ("value", "currency", "shown"),
    [
        (1245, "USD", "1,245.00 USD"),
        ("1245.5", "USD", "1,245.50 USD"),
        ("1,245.50", "", "1,245.50"),
        (-44.9, "EUR", "-44.90 EUR"),
        (-0.0, "USD", "0.00 USD"),
        (125_000.0, "JPY", "125,000 JPY"),
        (12.345, "KWD", "12.345 KWD"),
        (12, "KWD", "12.000 KWD"),
        (0.00012345, "BTC", "0.00012345 BTC"),
        (1.0045, "USD", "1.0045 USD"),
        (0.1 + 0.2, "USD", "0.30 USD"),
        (10**400, "USD", None),
        (1e300, "USD", None),
        (float("nan"), "USD", None),
        ("1.245,00", "EUR", None),
        ("12,45", "EUR", None),
        ("9" * 1_000, "USD", None),
        ("", "USD", None),
        (True, "USD", None),
        (None, "USD", None),
        ({}, "USD", None),
    ],
)  # fmt: skip
def test_an_amount_keeps_its_value(value: Any, currency: str, shown: str | None) -> None:
    amount = read_amount(value)
    assert (None if amount is None else format_money(amount, currency)) == shown


def test_an_amount_without_groups() -> None:
    amount = read_amount(1245)
    assert amount is not None and format_money(amount, "USD", grouped=False) == "1245.00 USD"
