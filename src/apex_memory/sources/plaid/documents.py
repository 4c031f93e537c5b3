"""Documents of bank transactions and bank connections."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import Any

from apex_memory.errors import Rejected
from apex_memory.model import Assertion, Document, Event
from apex_memory.sources.fields import RecordFields, labelled, remaining_lines
from apex_memory.sources.money import format_money, read_amount
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
HEALTH = ("ERROR", "LOGIN_REPAIRED", "USER_PERMISSION_REVOKED")
"""Codes of `ITEM` webhooks that report the state of the connection. All others are notices about it."""

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

TRANSACTION = RecordFields(
    "bank_transaction",
    shown={
        "item_id": "metadata",
        "transaction.transaction_id": "text metadata assertion",
        "transaction.pending_transaction_id": "text metadata",
        "transaction.account_id": "text metadata assertion",
        "transaction.amount": "text title metadata assertion",
        "transaction.iso_currency_code": "text title metadata assertion",
        "transaction.date": "text",
        "transaction.authorized_date": "text",
        "transaction.name": "text",
        "transaction.original_description": "text",
        "transaction.merchant_name": "text title assertion",
        "transaction.pending": "text metadata assertion",
        "transaction.datetime": "text time",
        "transaction.authorized_datetime": "text",
        "transaction.payment_channel": "metadata",
        "transaction.check_number": "text",
        "transaction.location.address": "text",
        "transaction.location.city": "text",
        "transaction.location.region": "text",
        "transaction.location.postal_code": "text",
        "transaction.personal_finance_category.detailed": "text",
        **{f"transaction.payment_meta.{name}": "text" for name in _META},
        "account.name": "text assertion",
        "account.mask": "text assertion",
    },
    left_out={
        "account.account_id": "the transaction's own `account_id`",
        "transaction.logo_url": "a picture",
        "transaction.personal_finance_category_icon_url": "a picture",
        "transaction.counterparties.logo_url": "a picture",
    },
)
ITEM = RecordFields(
    "bank_item",
    shown={
        "item_id": "text title metadata assertion",
        "account_id": "text",
        "webhook_code": "text title metadata assertion",
        "error.error_code": "text",
        "error.error_message": "text",
        "error.display_message": "text",
        "reason": "text",
        "consent_expiration_time": "text",
    },
    left_out={
        "webhook_type": "`ITEM` for all of them",
        "environment": "the environment of `base_url`",
        "error.status": "an HTTP status, which the code replaces",
        "error.request_id": "names the call at Plaid",
        "error.documentation_url": "follows from the code",
    },
)


@dataclass(frozen=True, slots=True)
class Transaction:
    """A transaction of Plaid. `amount` is positive when money leaves the account."""

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
            raise Rejected(
                "transaction: expected an object", remedy="check that the record comes from Plaid"
            )
        amount = record.get("amount")
        if isinstance(amount, str):
            amount = read_amount(amount)
        if isinstance(amount, bool) or not isinstance(amount, int | float | Decimal):
            raise Rejected(
                "transaction.amount: expected a number",
                remedy="see the transaction in Plaid's response",
            )
        try:
            amount = float(amount)
        except OverflowError:
            raise Rejected(
                "transaction.amount: too large", remedy="see the transaction in Plaid's response"
            ) from None
        return cls(
            id=parse_identifier(record.get("transaction_id"), "transaction.transaction_id"),
            at=_time(record),
            amount=amount,
            currency=as_string(record.get("iso_currency_code"))
            or as_string(record.get("unofficial_currency_code")),
            item=as_string(payload.get("item_id")),
            record=record,
            account=as_mapping(payload.get("account")),
        )

    @property
    def money(self) -> str:
        amount = read_amount(abs(self.amount))
        if amount is None:
            return f"{abs(self.amount):,.2f} {self.currency}".strip()
        return format_money(amount, self.currency)

    @property
    def direction(self) -> str:
        return "paid out" if self.amount >= 0 else "received"

    @property
    def party(self) -> str:
        """The other side of the payment: the merchant, the payee or payer, else the first counterparty; empty if unknown."""
        meta = as_mapping(self.record.get("payment_meta"))
        side = "payee" if self.amount >= 0 else "payer"
        names = [self.record.get("merchant_name"), meta.get(side)]
        counterparties = sequence(self.record.get("counterparties"))
        names += [as_mapping(counterparty).get("name") for counterparty in counterparties]
        return next(filter(None, map(as_string, names)), "")

    @property
    def words(self) -> str:
        """The bank's own words: name, description, and the fields of the payment."""
        meta = as_mapping(self.record.get("payment_meta"))
        parts = [self.record.get(name) for name in ("name", "original_description")]
        parts += [meta.get(name) for name in _META]
        return "\n".join(dict.fromkeys(filter(None, map(as_string, parts))))

    @property
    def account_label(self) -> str:
        name = as_string(self.account.get("name")) or as_string(self.account.get("official_name"))
        mask = as_string(self.account.get("mask"))
        return f"{name} …{mask}" if name and mask else name or mask


def _time(record: Mapping[str, Any]) -> datetime:
    """Return the first time that can be read: one that cannot must not cost the payment. Raises `Rejected` where there is none."""
    for name in _TIMES:
        with contextlib.suppress(Rejected):
            return parse_datetime(record.get(name), name)
    return parse_datetime(record.get("date"), "transaction.date")


def transaction_document(payload: Mapping[str, Any]) -> Document:
    """Return a `bank_transaction`, the record of one payment."""
    transaction = Transaction.read(payload)
    record = transaction.record
    state = "pending" if record.get("pending") else "posted"
    party = transaction.party or as_string(record.get("name")) or "Bank transaction"
    category = as_mapping(record.get("personal_finance_category"))
    place = as_mapping(record.get("location"))
    address = [as_string(place.get(name)) for name in ("address", "city", "region", "postal_code")]
    lines = {
        "Bank transaction": f"{transaction.money} {transaction.direction}, {state}",
        "Paid to" if transaction.amount >= 0 else "Received from": transaction.party,
        "Date": as_string(record.get("date")) or f"{transaction.at:%Y-%m-%d}",
        "Time": as_string(record.get("datetime")),
        "Authorized": as_string(record.get("authorized_date")),
        "Authorized at": as_string(record.get("authorized_datetime")),
        "Account": transaction.account_label,
        "Account id": as_string(record.get("account_id")),
        "Check": as_string(record.get("check_number")),
        "Category": as_string(category.get("detailed")).replace("_", " ").lower(),
        "Place": ", ".join(filter(None, address)),
        "Transaction": transaction.id,
        "Pending transaction": as_string(record.get("pending_transaction_id")),
    }
    head = [
        labelled(lines),
        *remaining_lines(payload, shown=TRANSACTION.shown, left_out=TRANSACTION.left_out),
    ]
    metadata = {
        "transaction_id": transaction.id,
        "pending_transaction_id": record.get("pending_transaction_id"),
        "item_id": transaction.item,
        "account_id": record.get("account_id"),
        "amount": transaction.amount,
        "currency": transaction.currency,
        "status": state,
        "channel": record.get("payment_channel"),
    }
    return Document(
        kind="bank_transaction",
        title=f"{party}: {transaction.money} {transaction.direction}",
        occurred_at=transaction.at,
        text="\n".join(head) + f"\n\n{transaction.words}".rstrip(),
        about=f"payment:{transaction.id}",
        assertions=tuple(_assertions(transaction, state)),
        metadata={
            name: value
            for name, value in metadata.items()
            if isinstance(value, str | float) and value != ""
        },
    )


def _assertions(transaction: Transaction, state: str) -> Iterator[Assertion]:
    own = f"payment:{transaction.id}"
    yield Assertion(subject=own, predicate="amount", value=transaction.money)
    yield Assertion(subject=own, predicate="status", value=state)
    if account := as_string(transaction.record.get("account_id")).strip():
        yield Assertion(subject=own, predicate="account", object=f"account:{account}")
        if transaction.account_label:
            yield Assertion(
                subject=f"account:{account}", predicate="name", value=transaction.account_label
            )
    if party := " ".join(transaction.party.split())[:200]:
        predicate = "paid_to" if transaction.amount >= 0 else "paid_by"
        yield Assertion(subject=own, predicate=predicate, object=f"company:{party}")
    # Banks cut signs out of what a payer writes: INV55045 and INV 55045 are INV-55045.
    for number in dict.fromkeys(_INVOICE.findall(transaction.words)):
        yield Assertion(subject=own, predicate="pays", object=f"invoice:INV-{number}")


def item_document(event: Event, payload: Mapping[str, Any]) -> Document:
    """Return a `bank_item`: the state of a connection, or a notice about it that leaves its state alone."""
    item = parse_identifier(payload.get("item_id"), "item_id")
    error = as_mapping(payload.get("error"))
    webhook = as_string(payload.get("webhook_code"))
    is_notice = bool(webhook) and webhook not in HEALTH
    code = webhook if is_notice else as_string(error.get("error_code")) or webhook or "WORKS"
    works = code in ("WORKS", "LOGIN_REPAIRED")
    state = "works" if works else code.replace("_", " ").lower()
    lines = {
        "Bank connection": item,
        "Notice" if is_notice else "State": state,
        "Code": code,
        "Error": as_string(error.get("error_code")) if is_notice else "",
        "At": f"{event.occurred_at:%Y-%m-%d %H:%M} UTC",
        "Account": as_string(payload.get("account_id")),
        "Plaid's message": as_string(error.get("error_message")),
        "For the user": as_string(error.get("display_message")),
        "Reason": as_string(payload.get("reason")),
        "Ends": as_string(payload.get("consent_expiration_time")),
        "What to do": _remedy(code, works=works, is_notice=is_notice),
    }
    predicate = "notice" if is_notice else "status"
    subject = f"bank_item:{item}"
    return Document(
        kind="bank_item",
        title=f"Bank connection {item}: {state}",
        occurred_at=event.occurred_at,
        text="\n".join(
            [
                labelled(lines),
                *remaining_lines(payload, shown=ITEM.shown, left_out=ITEM.left_out),
            ]
        ),
        assertions=(Assertion(subject=subject, predicate=predicate, value=state),),
        metadata={"item_id": item, "code": code, **({} if is_notice else {"works": works})},
    )


def _remedy(code: str, *, works: bool, is_notice: bool) -> str:
    """Return what to do about a code; nothing for a connection that works, or a notice that needs no action."""
    if code in _REMEDIES:
        return _REMEDIES[code]
    return "" if works or is_notice else "See this code in Plaid's docs."
