"""The transactions of the world's two bank accounts in Plaid's format: a log of changes for each."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from apex_memory.simulate.world import Shipment, World

OPERATING, PAYABLES = "itm_operating", "itm_payables"
ACCOUNTS = {
    OPERATING: ("acc_operating", "Operating Checking", "4501"),
    PAYABLES: ("acc_payables", "Carrier Payables", "7710"),
}
_NULL_META = (
    "by_order_of",
    "payee",
    "payer",
    "payment_method",
    "payment_processor",
    "ppd_id",
    "reason",
    "reference_number",
)
_NULL_PLACE = ("address", "city", "region", "postal_code", "country", "lat", "lon", "store_number")


@dataclass(frozen=True, slots=True)
class Change:
    """A transaction is added or modified; with `record` None it is removed."""

    at: datetime
    id: str
    record: Mapping[str, Any] | None


def receipts(world: World) -> Iterator[Change]:
    """Yield customers' payments: pending first, then posted under another id."""
    for shipment in world.shipments:
        if (paid := shipment.at("paid")) is None:
            continue
        posted = paid + timedelta(minutes=40)
        reference = shipment.invoice if shipment.number % 2 else shipment.invoice.replace("-", "")
        name = f"ACH CREDIT {shipment.customer.name.upper()} {reference}"
        cents, number = -shipment.total_cents, shipment.number
        first, last = f"txR{number}Pending", f"txR{number}Posted"
        fields: dict[str, Any] = {
            "merchant_name": shipment.customer.name,
            "payment_channel": "other",
        }
        pending = record(first, OPERATING, paid, cents, f"PENDING {name}", pending=True, **fields)
        yield Change(paid, first, pending)
        yield Change(posted, first, None)
        posted_fields: dict[str, Any] = {**fields, "pending_transaction_id": first}
        yield Change(posted, last, record(last, OPERATING, posted, cents, name, **posted_fields))


def payments(world: World) -> Iterator[Change]:
    """Yield our payments: carriers, fuel, and holds."""
    for shipment in world.shipments:
        yield from _carrier_pay(shipment)
        yield from _fuel(shipment)
        if shipment.number % 3 == 0:
            yield from _hold(shipment)


def _carrier_pay(shipment: Shipment) -> Iterator[Change]:
    """The carrier is paid; a little later Plaid completes the bank's short description."""
    if (invoiced := shipment.at("invoiced")) is None:
        return
    at, id = invoiced + timedelta(minutes=20), f"txC{shipment.number}"
    carrier, cents = shipment.carrier.name, shipment.linehaul_cents * 4 // 5
    yield Change(at, id, record(id, PAYABLES, at, cents, f"WIRE OUT {shipment.number}"))
    reason = f"{shipment.id} {shipment.pro}"
    completed = record(
        id,
        PAYABLES,
        at,
        cents,
        f"{carrier.upper()} {shipment.id}",
        merchant_name=carrier,
        payment_meta={**dict.fromkeys(_NULL_META), "payee": carrier, "reason": reason},
    )
    yield Change(at + timedelta(minutes=35), id, completed)


def _fuel(shipment: Shipment) -> Iterator[Change]:
    """Fuel by card: a hold of a round sum, then the actual cost under another id."""
    if (rolling := shipment.at("en_route")) is None:
        return
    at, posted = rolling + timedelta(minutes=10), rolling + timedelta(minutes=75)
    first, last = f"txF{shipment.number}Hold", f"txF{shipment.number}"
    name = f"FUEL DESK {shipment.origin.city.upper()} {shipment.origin.state} UNIT {shipment.vehicle.unit}"
    yield Change(at, first, record(first, PAYABLES, at, 10_000, f"HOLD {name}", pending=True))
    yield Change(posted, first, None)
    fields: dict[str, Any] = {"merchant_name": "Fuel Desk", "pending_transaction_id": first}
    cents = 10_000 + shipment.miles * 19
    yield Change(posted, last, record(last, PAYABLES, posted, cents, name, **fields))


def _hold(shipment: Shipment) -> Iterator[Change]:
    """A hold that is released: removed, with nothing in its place."""
    if (arrived := shipment.at("at_pickup")) is None:
        return
    at, id = arrived + timedelta(minutes=5), f"txL{shipment.number}"
    yield Change(at, id, record(id, PAYABLES, at, 7_500, "LUMPER HOLD", pending=True))
    yield Change(at + timedelta(minutes=90), id, None)


def record(
    id: str,
    item: str,
    at: datetime,
    cents: int,
    name: str,
    *,
    pending: bool = False,
    **fields: Any,
) -> dict[str, Any]:
    """Return a transaction in Plaid's format; positive amounts are money out. `fields` replace defaults."""
    day = f"{at.astimezone(UTC):%Y-%m-%d}"
    return {
        "account_id": ACCOUNTS[item][0],
        "account_owner": None,
        "amount": cents / 100,
        "authorized_date": day,
        "authorized_datetime": None,
        "category": None,
        "category_id": None,
        "check_number": None,
        "counterparties": [],
        "date": day,
        "datetime": at.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "iso_currency_code": "USD",
        "location": dict.fromkeys(_NULL_PLACE),
        "merchant_name": None,
        "name": name,
        "original_description": None,
        "payment_channel": "in store" if "FUEL" in name else "other",
        "payment_meta": dict.fromkeys(_NULL_META),
        "pending": pending,
        "pending_transaction_id": None,
        "personal_finance_category": {
            "primary": "TRANSFER_IN" if cents < 0 else "GENERAL_SERVICES",
            "detailed": "TRANSFER_IN_DEPOSIT"
            if cents < 0
            else "GENERAL_SERVICES_POSTAGE_AND_SHIPPING",
            "confidence_level": "HIGH",
        },
        "transaction_code": None,
        "transaction_id": id,
        "unofficial_currency_code": None,
        **fields,
    }


def order(change: Change) -> tuple[datetime, bool, str]:
    """Return the sort key of a change: removals come before additions of the same time."""
    return change.at, change.record is not None, change.id


def state(log: Sequence[Change]) -> dict[str, Mapping[str, Any]]:
    """Return the transactions that exist after these changes, by id."""
    records: dict[str, Mapping[str, Any]] = {}
    for change in log:
        records.pop(change.id, None)
        if change.record is not None:
            records[change.id] = change.record
    return records
