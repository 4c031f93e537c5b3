"""A full record of each kind, with every field that the vendor's contract has, for tests of what becomes of its fields."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from apex_memory.model import Document, Event, Priority
from apex_memory.sources.base import Source
from apex_memory.sources.hubspot.documents import OBJECT_TYPES, record_event
from apex_memory.sources.payloads import canonical
from apex_memory.sources.quickbooks import records as quickbooks
from apex_memory.sources.registry import load

AT = datetime(2025, 11, 20, 12, tzinfo=UTC)
SOURCES = load({})
Steps = tuple[str | int, ...]


@dataclass(frozen=True, slots=True)
class Record:
    """A record and the event that its source makes of it. `others`: other values of fields that accept few."""

    source: Source
    event: Callable[[Any], Event]
    body: Any
    others: Mapping[Steps, Any] = field(default_factory=dict)
    closed: tuple[Steps, ...] = ()
    """Objects that take no further fields, such as an enum."""

    def document(self, body: Any) -> Document:
        return self.source.document(self.event(body))

    def version(self, body: Any) -> int:
        return self.event(body).version

    def leaves(self) -> Iterator[Steps]:
        for steps, value in _walk(self.body):
            if not isinstance(value, dict | list) and value not in (None, ""):
                yield steps

    def open_places(self) -> Iterator[Steps]:
        for steps, value in _walk(self.body):
            if isinstance(value, dict) and steps not in self.closed:
                yield steps


def _walk(value: Any, steps: Steps = ()) -> Iterator[tuple[Steps, Any]]:
    yield steps, value
    inner: Mapping[Any, Any] = {}
    if isinstance(value, dict):
        inner = value
    elif isinstance(value, list):
        inner = dict(enumerate(value))
    for step, item in inner.items():
        yield from _walk(item, (*steps, step))


def event_of(source: str, key: str) -> Callable[[Any], Event]:
    """Return how an event of a source is made of a body that is its payload."""
    return lambda body: Event(
        source=source,
        event_id="e",
        doc_key=key,
        version=1,
        occurred_at=AT,
        payload=canonical(body),
        priority=Priority.P2,
    )


PLAID_TRANSACTION = {
    "item_id": "itm_a",
    "account": {
        "account_id": "acEx01",
        "name": "Operating Checking",
        "official_name": "Business Advantage",
        "mask": "4501",
        "type": "depository",
        "subtype": "checking",
    },
    "transaction": {
        "transaction_id": "txEx0002",
        "account_id": "acEx01",
        "amount": 1245.5,
        "iso_currency_code": "USD",
        "unofficial_currency_code": None,
        "date": "2025-11-03",
        "datetime": "2025-11-03T10:00:00Z",
        "authorized_date": "2025-11-01",
        "authorized_datetime": "2025-11-01T09:00:00Z",
        "name": "NORTHWIND TRUCKING",
        "original_description": "ACH NORTHWIND 8812",
        "merchant_name": "Northwind Trucking",
        "merchant_entity_id": "mrch_81",
        "website": "northwind.example",
        "pending": False,
        "pending_transaction_id": "txEx0001",
        "payment_channel": "other",
        "check_number": "1007",
        "transaction_code": "direct debit",
        "transaction_type": "special",
        "account_owner": "Pat Okafor",
        "logo_url": "https://plaid.example/logo.png",
        "location": {
            "address": "9 Placeholder Ave",
            "city": "Atlanta",
            "region": "GA",
            "postal_code": "30303",
            "country": "US",
            "store_number": "S-118",
            "lat": 33.74,
            "lon": -84.38,
        },
        "payment_meta": {
            "reference_number": "ref-55",
            "ppd_id": "ppd-6",
            "payee": "Northwind Inc",
            "payer": "Apex Shipper",
            "by_order_of": "Lee",
            "payment_method": "ACH",
            "payment_processor": "Dwolla",
            "reason": "INV-55012",
        },
        "personal_finance_category": {
            "primary": "TRANSPORTATION",
            "detailed": "TRANSPORTATION_FREIGHT",
            "confidence_level": "HIGH",
        },
        "personal_finance_category_icon_url": "https://plaid.example/icon.png",
        "counterparties": [
            {
                "name": "Northwind Trucking",
                "type": "merchant",
                "entity_id": "ent_1",
                "website": "northwind.example",
                "logo_url": "https://plaid.example/n.png",
                "confidence_level": "VERY_HIGH",
            }
        ],
    },
}
PLAID_ITEM = {
    "webhook_type": "ITEM",
    "webhook_code": "PENDING_DISCONNECT",
    "item_id": "itm_a",
    "account_id": "acEx01",
    "environment": "production",
    "reason": "INSTITUTION_MIGRATION",
    "consent_expiration_time": "2025-12-01T13:25:17Z",
    "disconnect_time": "2025-12-02T00:00:00Z",
    "new_webhook_url": "https://hooks.example.com/plaid",
    "user_id": "usr_2",
    "error": {
        "error_type": "ITEM_ERROR",
        "error_code": "ITEM_LOGIN_REQUIRED",
        "error_message": "the login details changed",
        "display_message": "log in again",
        "suggested_action": "open Link",
        "documentation_url": "https://plaid.example/docs",
        "request_id": "rq_1",
        "status": 400,
    },
}


def _of(source: str, key: str, body: Any, **more: Any) -> Record:
    return Record(SOURCES[source], event_of(source, key), body, **more)


RECORDS: dict[tuple[str, str], Record] = {
    ("plaid", "bank_transaction"): _of(
        "plaid",
        "transaction:txEx0002",
        PLAID_TRANSACTION,
        others={
            ("transaction", "date"): "2025-11-09",
            ("transaction", "datetime"): "2025-11-09T10:00:00Z",
            ("transaction", "authorized_datetime"): "2025-11-02T09:00:00Z",
        },
    ),
    ("plaid", "bank_item"): _of("plaid", "item:itm_a", PLAID_ITEM),
}


def _hubspot(type: str, properties: Mapping[str, Any]) -> Record:
    body = {
        "id": "6001",
        "createdAt": "2025-10-01T08:00:00Z",
        "updatedAt": "2025-11-01T14:00:00Z",
        "archived": False,
        "archivedAt": "2025-11-01T14:00:00Z",
        "properties": {
            "createdate": "2025-10-01T08:00:00Z",
            "hs_object_id": "6001",
            "hs_lastmodifieddate": "2025-11-01T14:00:00Z",
            **properties,
        },
        "associations": {"companies": {"results": [{"id": "9001", "type": "deal_to_company"}]}},
    }
    return Record(
        SOURCES["hubspot"],
        lambda body: record_event(OBJECT_TYPES[type], body),
        body,
        others={
            ("id",): "6077",
            ("updatedAt",): "2025-11-09T14:00:00Z",
            ("properties", "amount"): "13777",
        },
    )


RECORDS |= {
    ("hubspot", "company"): _hubspot(
        "companies",
        {
            "name": "Northwind Trucking",
            "domain": "northwind.example",
            "website": "www.northwind.example",
            "phone": "+1 614 555 0123",
            "address": "100 Example Way",
            "city": "Columbus",
            "state": "OH",
            "zip": "43215",
            "country": "United States",
            "industry": "TRANSPORTATION",
            "type": "VENDOR",
            "lifecyclestage": "customer",
            "numberofemployees": "120",
            "annualrevenue": "7000000",
            "description": "A carrier of paper",
            "scac": "NWTR",
            "mc_number": "123456",
            "hs_num_child_companies": "2",
        },
    ),
    ("hubspot", "contact"): _hubspot(
        "contacts",
        {
            "firstname": "Dana",
            "lastname": "Whitfield",
            "email": "dana@paper.example",
            "phone": "+1 614 555 0123",
            "mobilephone": "+1 614 555 0124",
            "jobtitle": "Buyer",
            "company": "Example Paper Co",
            "city": "Columbus",
            "state": "OH",
            "lifecyclestage": "lead",
            "hs_lead_status": "OPEN",
            "message": "Call me about Atlanta",
            "associatedcompanyid": "9001",
            "hubspot_owner_id": "77",
            "favourite_lane": "ATL",
        },
    ),
    ("hubspot", "deal"): _hubspot(
        "deals",
        {
            "dealname": "Lane bid ATL",
            "dealstage": "closedwon",
            "pipeline": "default",
            "amount": "12500",
            "deal_currency_code": "USD",
            "closedate": "2025-12-01T00:00:00Z",
            "dealtype": "newbusiness",
            "hs_priority": "high",
            "hs_next_step": "Send the contract",
            "description": "A dedicated lane",
            "hubspot_owner_id": "77",
            "hs_primary_associated_company": "9001",
            "hs_forecast_amount": "11000",
        },
    ),
}


QUICKBOOKS_OWN = {
    "domain": "QBO",
    "sparse": False,
    "Id": "501",
    "SyncToken": "3",
    "MetaData": {
        "CreateTime": "2025-10-30T09:00:00-07:00",
        "LastUpdatedTime": "2025-11-01T07:05:11-07:00",
    },
    "CustomField": [
        {"DefinitionId": "1", "Name": "PO", "Type": "StringType", "StringValue": "PO-7781"},
        {"DefinitionId": "2", "Name": "Pallets", "Type": "NumberType", "NumberValue": 24},
        {"DefinitionId": "3", "Name": "Loaded", "Type": "DateType", "DateValue": "2025-10-31"},
    ],
    "CustomerMemo": {"value": "Thank you for the freight"},
    "PrivateNote": "Ask for the POD",
    "CurrencyRef": {"value": "USD", "name": "United States Dollar"},
}
QUICKBOOKS_TRANSACTION = {
    **QUICKBOOKS_OWN,
    "DocNumber": "INV-55012",
    "TxnDate": "2025-11-01",
    "TotalAmt": 1245.5,
    "Balance": 845.5,
    "CustomerRef": {"value": "58", "name": "Sample Retail"},
    "Line": [
        {
            "Id": "1",
            "LineNum": 1,
            "Amount": 1300.0,
            "Description": "Columbus to Atlanta",
            "DetailType": "SalesItemLineDetail",
            "SalesItemLineDetail": {
                "ItemRef": {"value": "7", "name": "Freight"},
                "Qty": 1,
                "UnitPrice": 1300.0,
                "TaxCodeRef": {"value": "NON"},
            },
        },
        {
            "Amount": 54.5,
            "DetailType": "DiscountLineDetail",
            "DiscountLineDetail": {
                "PercentBased": True,
                "DiscountPercent": 4.2,
                "DiscountAccountRef": {"value": "86", "name": "Discounts given"},
            },
        },
    ],
    "TxnTaxDetail": {
        "TxnTaxCodeRef": {"value": "5"},
        "TotalTax": 12.25,
        "TaxLine": [
            {
                "Amount": 12.25,
                "DetailType": "TaxLineDetail",
                "TaxLineDetail": {"TaxPercent": 8.1, "TaxRateRef": {"value": "3"}},
            }
        ],
    },
    "LinkedTxn": [{"TxnId": "77", "TxnType": "Estimate"}],
    "BillAddr": {"Line1": "9 Placeholder Ave", "City": "Atlanta", "PostalCode": "30303"},
    "ShipAddr": {"Line1": "1 Dock Road", "City": "Macon"},
    "BillEmail": {"Address": "ap@retail.example"},
    "SalesTermRef": {"value": "3", "name": "Net 30"},
    "TrackingNum": "TRK-91",
    "EmailStatus": "EmailSent",
}
QUICKBOOKS_PARTY = {
    **QUICKBOOKS_OWN,
    "DisplayName": "Northwind Trucking",
    "CompanyName": "Northwind Inc",
    "PrintOnCheckName": "Northwind Checks",
    "GivenName": "Lee",
    "FamilyName": "Okafor",
    "PrimaryEmailAddr": {"Address": "ap@nw.example"},
    "PrimaryPhone": {"FreeFormNumber": "(614) 555-0100"},
    "Mobile": {"FreeFormNumber": "(614) 555-0101"},
    "AlternatePhone": {"FreeFormNumber": "(614) 555-0102"},
    "Fax": {"FreeFormNumber": "(614) 555-0103"},
    "WebAddr": {"URI": "https://nw.example"},
    "BillAddr": {
        "Id": "12",
        "Line1": "100 Example Way",
        "Line2": "Dock 4",
        "City": "Columbus",
        "CountrySubDivisionCode": "OH",
        "PostalCode": "43215",
        "Country": "US",
    },
    "AcctNum": "A-9",
    "Balance": 90.5,
    "Notes": "Pays late",
    "TaxIdentifier": "XX-7",
    "Active": True,
    "TermRef": {"value": "3"},
}


def _quickbooks(entity: str, body: Mapping[str, Any]) -> Record:
    return Record(
        SOURCES["quickbooks"],
        lambda body: quickbooks.record_event("9130", entity, body, AT),
        body,
        others={
            ("SyncToken",): "4",
            ("MetaData", "LastUpdatedTime"): "2025-11-02T07:05:11-07:00",
        },
    )


_VENDOR_SIDE = {
    **{name: value for name, value in QUICKBOOKS_TRANSACTION.items() if name != "CustomerRef"},
    "VendorRef": {"value": "12", "name": "Northwind Trucking"},
}
_PAYMENT = {
    **{name: value for name, value in QUICKBOOKS_TRANSACTION.items() if name != "DocNumber"},
    "PaymentRefNum": "ck-1007",
    "PaymentMethodRef": {"value": "2", "name": "Check"},
    "UnappliedAmt": 12.5,
    "DepositToAccountRef": {"value": "35"},
    "Line": [
        {
            "Amount": 1245.5,
            "Description": "For the freight",
            "LinkedTxn": [{"TxnId": "501", "TxnType": "Invoice"}],
            "LineEx": {"any": [{"value": {"Name": "txnOpenBalance", "Value": "1245.50"}}]},
        }
    ],
}
RECORDS |= {
    ("quickbooks", "invoice"): _quickbooks(
        "Invoice", {**QUICKBOOKS_TRANSACTION, "DueDate": "2025-12-01"}
    ),
    ("quickbooks", "bill"): _quickbooks("Bill", {**_VENDOR_SIDE, "DueDate": "2025-12-01"}),
    ("quickbooks", "payment"): _quickbooks("Payment", _PAYMENT),
    ("quickbooks", "customer"): _quickbooks("Customer", QUICKBOOKS_PARTY),
    ("quickbooks", "vendor"): _quickbooks("Vendor", QUICKBOOKS_PARTY),
    ("quickbooks", "every other kind of record"): _quickbooks("PurchaseOrder", _VENDOR_SIDE),
}
