"""Bank transactions and the state of bank connections, told as documents."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from apex_memory.errors import Rejected
from apex_memory.model import Assertion, Document, Event
from apex_memory.sources.payloads import (
    as_mapping,
    as_string,
    parse_datetime,
    parse_identifier,
    sequence,
)

_INVOICE = re.compile(r"(?<![A-Z0-9])INV[- ]?(\d{3,12})(?!\d)", re.IGNORECASE)
_META = (
    "reference_number",
    "payee",
    "payer",
    "by_order_of",
    "reason",
    "payment_method",
    "payment_processor",
    "ppd_id",
)
_TIMES = ("datetime", "date", "authorized_datetime", "authorized_date")

LOGIN = "Have the bank's user log in again: open Plaid Link in update mode for this Item."
_REMEDIES: Mapping[str, str] = {
    "ITEM_LOGIN_REQUIRED": LOGIN,
    "ITEM_LOCKED": "The bank has locked the user out: unlock it at the bank, then log in again.",
    "USER_PERMISSION_REVOKED": "The user took the permission back: link the bank anew.",
    "ITEM_NOT_FOUND": "The Item is gone: link the bank anew and correct sources.plaid.items.",
    "INVALID_ACCESS_TOKEN": "Correct the Item's access_token in sources.plaid.items.",
    "PENDING_EXPIRATION": LOGIN,
    "PENDING_DISCONNECT": LOGIN,
    "NEW_ACCOUNTS_AVAILABLE": "Open Plaid Link in update mode to add the new accounts.",
}


@dataclass(frozen=True, slots=True)
class Transaction:
    """A transaction as Plaid tells it. `amount` is positive when money leaves the account."""

    id: str
    at: datetime
    amount: float
    currency: str
    item: str
    record: Mapping[str, Any]
    account: Mapping[str, Any]

    @classmethod
    def read(cls, payload: Mapping[str, Any]) -> Transaction:
        record = payload.get("transaction")
        if not isinstance(record, dict):
            raise Rejected("transaction: expected an object", remedy="is this Plaid's answer?")
        amount = record.get("amount")
        if isinstance(amount, bool) or not isinstance(amount, int | float):
            raise Rejected("transaction.amount: expected a number", remedy="see Plaid's answer")
        try:
            amount = float(amount)
        except OverflowError:
            raise Rejected("transaction.amount: too large", remedy="see Plaid's answer") from None
        time = next((name for name in _TIMES if record.get(name) is not None), "date")
        return cls(
            id=parse_identifier(record.get("transaction_id"), "transaction.transaction_id"),
            at=parse_datetime(record.get(time), f"transaction.{time}"),
            amount=amount,
            currency=as_string(record.get("iso_currency_code"))
            or as_string(record.get("unofficial_currency_code")),
            item=as_string(payload.get("item_id")),
            record=record,
            account=as_mapping(payload.get("account")),
        )

    @property
    def money(self) -> str:
        return f"{abs(self.amount):,.2f} {self.currency}".strip()

    @property
    def direction(self) -> str:
        return "paid out" if self.amount >= 0 else "received"

    @property
    def party(self) -> str:
        """Who is on the other side, as far as Plaid knows."""
        known = (
            as_mapping(item).get("name") for item in sequence(self.record.get("counterparties"))
        )
        meta = as_mapping(self.record.get("payment_meta"))
        side = "payee" if self.amount >= 0 else "payer"
        return next(
            filter(
                None,
                map(as_string, (self.record.get("merchant_name"), meta.get(side), *known, None)),
            ),
            "",
        )

    @property
    def words(self) -> str:
        """All that the bank wrote about it."""
        meta = as_mapping(self.record.get("payment_meta"))
        parts = [self.record.get(name) for name in ("name", "original_description")]
        parts += [meta.get(name) for name in _META]
        return "\n".join(dict.fromkeys(filter(None, map(as_string, parts))))

    @property
    def account_label(self) -> str:
        name = as_string(self.account.get("name")) or as_string(self.account.get("official_name"))
        mask = as_string(self.account.get("mask"))
        return f"{name} …{mask}" if name and mask else name or mask


def transaction_document(payload: Mapping[str, Any]) -> Document:
    """A `bank_transaction`: the record of one payment."""
    told = Transaction.read(payload)
    record, state = told.record, "pending" if told.record.get("pending") else "posted"
    who = told.party or as_string(record.get("name")) or "Bank transaction"
    category = as_mapping(record.get("personal_finance_category"))
    place = as_mapping(record.get("location"))
    address = [as_string(place.get(name)) for name in ("address", "city", "region", "postal_code")]
    lines = {
        "Bank transaction": f"{told.money} {told.direction}, {state}",
        "Paid to" if told.amount >= 0 else "Received from": told.party,
        "Date": as_string(record.get("date")) or f"{told.at:%Y-%m-%d}",
        "Authorized": as_string(record.get("authorized_date")),
        "Account": told.account_label,
        "Check": as_string(record.get("check_number")),
        "Category": as_string(category.get("detailed")).replace("_", " ").lower(),
        "Place": ", ".join(filter(None, address)),
    }
    head = "\n".join(f"{name}: {value}" for name, value in lines.items() if value)
    return Document(
        kind="bank_transaction",
        title=f"{who}: {told.money} {told.direction}",
        occurred_at=told.at,
        text=f"{head}\n\n{told.words}".strip(),
        about=f"payment:{told.id}",
        assertions=tuple(_assertions(told, state)),
        metadata={
            name: value
            for name, value in {
                "transaction_id": told.id,
                "pending_transaction_id": record.get("pending_transaction_id"),
                "item_id": told.item,
                "account_id": record.get("account_id"),
                "amount": told.amount,
                "currency": told.currency,
                "status": state,
                "channel": record.get("payment_channel"),
            }.items()
            if isinstance(value, str | float) and value != ""
        },
    )


def _assertions(told: Transaction, state: str) -> Iterator[Assertion]:
    own = f"payment:{told.id}"
    yield Assertion(subject=own, predicate="amount", value=told.money)
    yield Assertion(subject=own, predicate="status", value=state)
    if account := as_string(told.record.get("account_id")).strip():
        yield Assertion(subject=own, predicate="account", object=f"account:{account}")
        if told.account_label:
            yield Assertion(
                subject=f"account:{account}", predicate="name", value=told.account_label
            )
    if party := " ".join(told.party.split())[:200]:
        predicate = "paid_to" if told.amount >= 0 else "paid_by"
        yield Assertion(subject=own, predicate=predicate, object=f"company:{party}")
    # Banks cut signs out of what a payer writes: INV55045 and INV 55045 are INV-55045.
    for number in dict.fromkeys(_INVOICE.findall(told.words)):
        yield Assertion(subject=own, predicate="pays", object=f"invoice:INV-{number}")


def item_document(event: Event, payload: Mapping[str, Any]) -> Document:
    """A `bank_item`: how a bank connection is, by Plaid's webhook or by what our own calls met."""
    item = parse_identifier(payload.get("item_id"), "item_id")
    error = as_mapping(payload.get("error"))
    said = as_string(payload.get("webhook_code"))
    code = as_string(error.get("error_code")) or said or "WORKS"
    works = code in ("WORKS", "LOGIN_REPAIRED")
    state = "works" if works else code.replace("_", " ").lower()
    lines = {
        "Bank connection": item,
        "State": state,
        "Code": code,
        "Plaid says": as_string(error.get("error_message")),
        "For the user": as_string(error.get("display_message")),
        "Reason": as_string(payload.get("reason")),
        "Ends": as_string(payload.get("consent_expiration_time")),
        "What to do": "" if works else _REMEDIES.get(code, "See this code in Plaid's docs."),
    }
    return Document(
        kind="bank_item",
        title=f"Bank connection {item}: {state}",
        occurred_at=event.occurred_at,
        text="\n".join(f"{name}: {value}" for name, value in lines.items() if value),
        assertions=(Assertion(subject=f"bank_item:{item}", predicate="status", value=state),),
        metadata={"item_id": item, "code": code, "works": works},
    )
