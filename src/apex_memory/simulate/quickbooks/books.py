"""The books of a company in QuickBooks' format: customers, vendors, and each shipment's invoice, payment and bill."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from typing import Any

from apex_memory.simulate.world import Company, Shipment, World

PACIFIC = timezone(timedelta(hours=-8))  # its times carry an offset
USD = {"value": "USD", "name": "United States Dollar"}


@dataclass(slots=True)
class Books:
    """Records by (type, id), each a list of versions (time, body), oldest first. Times are whole seconds."""

    versions: dict[tuple[str, str], list[tuple[datetime, dict[str, Any]]]] = field(
        default_factory=dict
    )
    merges: list[tuple[datetime, str, str, str]] = field(default_factory=list)
    """Merges of records: time, type, the id that stays, the id that is removed."""

    def put(self, entity: str, id: str, at: datetime, body: Mapping[str, Any]) -> None:
        """Add a version; its sync token is one more than the last one's."""
        versions = self.versions.setdefault((entity, id), [])
        at = at.replace(microsecond=0)
        created = versions[0][0] if versions else at
        meta = {"CreateTime": iso(created), "LastUpdatedTime": iso(at)}
        own = {
            "domain": "QBO",
            "sparse": False,
            "Id": id,
            "SyncToken": str(len(versions)),
            "MetaData": meta,
        }
        versions.append((at, {**body, **own}))

    def delete(self, entity: str, id: str, at: datetime) -> None:
        """Add a deletion as the newest version."""
        at = at.replace(microsecond=0)
        stub = {"domain": "QBO", "status": "Deleted", "Id": id}
        self.versions[entity, id].append((at, {**stub, "MetaData": {"LastUpdatedTime": iso(at)}}))

    def now(self, entity: str, now: datetime) -> list[tuple[datetime, dict[str, Any]]]:
        """Return the current version of each record of a type: time and body."""
        current = []
        for (kind, _), versions in self.versions.items():
            past = [version for version in versions if version[0] <= now]
            if kind == entity and past:
                current.append(past[-1])
        return current


def books_of(world: World) -> Books:
    """Return all records of a world, with all their versions."""
    books = Books()
    opened = world.start - timedelta(days=2)
    for company in world.customers:
        books.put("Customer", str(company.number), opened, _party(company))
    for company in world.carriers:
        books.put("Vendor", str(company.number), opened, _party(company))
    _inactive_and_merged(books, world, opened)
    for shipment in world.shipments:
        _transactions(books, shipment)
    return books


def _inactive_and_merged(books: Books, world: World, opened: datetime) -> None:
    """A customer made inactive, one that comes back, and a vendor entered twice and merged."""
    start, carrier = world.start, world.carriers[0]
    for n, name in enumerate(("Closed Mills", "Seasonal Orchards")):
        body = {"DisplayName": name, "Active": True, "Notes": f"{name}, called monthly."}
        books.put("Customer", str(9_900 + n), opened, body)
        left_at = start + timedelta(hours=4 + n)
        books.put("Customer", str(9_900 + n), left_at, {**body, "Active": False})
        if n:
            returned = {**body, "Notes": f"{name} is back."}
            books.put("Customer", str(9_900 + n), left_at + timedelta(hours=3), returned)
    merged = start + timedelta(hours=7)
    twice = {"DisplayName": f"{carrier.name} (2)", "Active": True, "Notes": "Entered twice."}
    books.put("Vendor", "9990", opened, twice)
    books.delete("Vendor", "9990", merged)
    books.merges.append((merged.replace(microsecond=0), "Vendor", str(carrier.number), "9990"))


def _transactions(books: Books, shipment: Shipment) -> None:
    id = str(shipment.number - 100_000)
    if delivered := shipment.at("delivered"):
        books.put("Bill", id, delivered, _bill(shipment))
    billed, paid = shipment.at("invoiced"), shipment.at("paid")
    if billed is None or paid is None:
        return
    invoice = _invoice(shipment)
    books.put("Invoice", id, billed, invoice)
    if shipment.number % 4 == 0:  # entered twice: one is deleted, one voided
        twice, void = str(2_000 + int(id)), str(3_000 + int(id))
        books.put("Invoice", twice, billed, {**invoice, "DocNumber": f"{shipment.invoice}-2"})
        books.delete("Invoice", twice, billed + timedelta(minutes=20))
        wrong = {**invoice, "DocNumber": f"{shipment.invoice}-3"}
        books.put("Invoice", void, billed, wrong)
        books.put(
            "Invoice",
            void,
            billed + timedelta(minutes=30),
            {**wrong, "PrivateNote": "Voided", "Balance": 0},
        )
    note = f"{shipment.invoice} is paid."
    link = [{"TxnId": id, "TxnType": "Payment"}]
    paid_invoice = {**invoice, "Balance": 0, "LinkedTxn": link, "PrivateNote": note}
    books.put("Payment", id, paid, _payment(shipment, id))
    books.put("Invoice", id, paid, paid_invoice)


def _party(company: Company) -> dict[str, Any]:
    person = company.people[0]
    return {
        "DisplayName": company.name,
        "CompanyName": company.name,
        "GivenName": person.name.split()[0],
        "FamilyName": person.name.split()[-1],
        "PrimaryEmailAddr": {"Address": f"billing@{company.domain}"},
        "PrimaryPhone": {"FreeFormNumber": person.phone},
        "Active": True,
        "Balance": 0,
        "Notes": f"SCAC {company.scac}, MC {company.mc}." if company.scac else "Net 30.",
    }


def _invoice(shipment: Shipment) -> dict[str, Any]:
    total = shipment.total_cents / 100
    lane = f"{shipment.origin.city} {shipment.origin.state} to {shipment.destination.city} {shipment.destination.state}"
    lines = [("Freight", shipment.linehaul_cents, f"{shipment.id} {lane}")]
    lines.append(("Fuel surcharge", shipment.fuel_cents, f"{shipment.id}, {shipment.miles} miles"))
    return {
        "DocNumber": shipment.invoice,
        "TxnDate": f"{shipment.at('invoiced'):%Y-%m-%d}",
        "DueDate": f"{(shipment.at('invoiced') or shipment.milestones[-1].at) + timedelta(days=30):%Y-%m-%d}",
        "CurrencyRef": USD,
        "CustomerRef": {"value": str(shipment.customer.number), "name": shipment.customer.name},
        "CustomField": [
            {"DefinitionId": "1", "Name": "PO", "Type": "StringType", "StringValue": shipment.po}
        ],
        "CustomerMemo": {"value": f"Thank you for shipping with us. PO {shipment.po}."},
        "PrivateNote": f"Delivered by {shipment.carrier.name}, unit {shipment.vehicle.unit}.",
        "Line": [
            {
                "Id": str(n),
                "LineNum": n,
                "Description": description,
                "Amount": cents / 100,
                "DetailType": "SalesItemLineDetail",
                "SalesItemLineDetail": {"ItemRef": {"value": str(n), "name": item}},
            }
            for n, (item, cents, description) in enumerate(lines, 1)
        ]
        + [{"Amount": total, "DetailType": "SubTotalLineDetail", "SubTotalLineDetail": {}}],
        "TotalAmt": total,
        "Balance": total,
        "LinkedTxn": [],
    }


def _payment(shipment: Shipment, invoice_id: str) -> dict[str, Any]:
    total = shipment.total_cents / 100
    named = {"Name": "txnReferenceNumber", "Value": shipment.invoice}
    return {
        "TxnDate": f"{shipment.at('paid'):%Y-%m-%d}",
        "CurrencyRef": USD,
        "CustomerRef": {"value": str(shipment.customer.number), "name": shipment.customer.name},
        "PaymentRefNum": f"ACH{shipment.number}",
        "PrivateNote": f"ACH from {shipment.customer.name} for {shipment.invoice}.",
        "TotalAmt": total,
        "Line": [
            {
                "Amount": total,
                "LinkedTxn": [{"TxnId": invoice_id, "TxnType": "Invoice"}],
                "LineEx": {
                    "any": [
                        {
                            "name": "{http://schema.intuit.com/finance/v3}NameValue",
                            "nil": False,
                            "value": named,
                        }
                    ]
                },
            }
        ],
    }


def _bill(shipment: Shipment) -> dict[str, Any]:
    total = round(shipment.total_cents * 0.86) / 100
    return {
        "DocNumber": shipment.pro,
        "TxnDate": f"{shipment.at('delivered'):%Y-%m-%d}",
        "CurrencyRef": USD,
        "VendorRef": {"value": str(shipment.carrier.number), "name": shipment.carrier.name},
        "PrivateNote": f"{shipment.pro} for {shipment.id}.",
        "Line": [
            {
                "Id": "1",
                "Description": f"Line haul {shipment.id}",
                "Amount": total,
                "DetailType": "AccountBasedExpenseLineDetail",
                "AccountBasedExpenseLineDetail": {
                    "AccountRef": {"value": "80", "name": "Purchased transportation"}
                },
            }
        ],
        "TotalAmt": total,
        "Balance": total,
    }


def iso(at: datetime, timespec: str = "seconds") -> str:
    """Return a time as QuickBooks writes it."""
    return at.astimezone(PACIFIC).isoformat(timespec=timespec)
