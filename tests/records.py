"""A full record of each kind, with every field that the vendor's contract has, for tests of what becomes of its fields."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any

from apex_memory.model import Document, Event, Priority, micros
from apex_memory.sources.base import InboundRequest, Source
from apex_memory.sources.hubspot.documents import record_event
from apex_memory.sources.hubspot.object_types import OBJECT_TYPES
from apex_memory.sources.pages import BackfillRange
from apex_memory.sources.payloads import canonical
from apex_memory.sources.quickbooks import records as quickbooks
from apex_memory.sources.registry import load
from apex_memory.sources.samsara.source import Samsara
from apex_memory.sources.samsara.stats import read_vehicle

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


RECORDS: dict[tuple[str, ...], Record] = {
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


def _turvo_stop(n: int, type: tuple[str, str]) -> dict[str, Any]:
    return {
        "id": 70 + n,
        "stopType": {"key": type[0], "value": type[1]},
        "location": {"id": 310 + n, "name": f"Dock {n}"},
        "timezone": "America/New_York",
        "address": {
            "line1": f"{n} Example Way",
            "line2": f"Suite {n}",
            "city": "Columbus",
            "state": "OH",
            "zip": f"4321{n}",
            "country": "US",
        },
        "appointment": {"start": f"2025-11-0{n}T12:00:00Z", "end": f"2025-11-0{n}T13:00:00Z"},
        "attributes": {
            "arrival": f"2025-11-0{n}T12:10:00Z",
            "departed": f"2025-11-0{n}T12:50:00Z",
        },
        "notes": f"gate {n}",
        "deleted": False,
    }


_TURVO_TIMES = [
    *(("startDate", "date"), ("endDate", "date"), ("statusHistory", 0, "lastUpdatedOn")),
    *(
        (*holder, n, *field)
        for holder in (("globalRoute",), ("customerOrder", 0, "route"))
        for n in (0,)
        for field in (
            ("appointment", "start"),
            ("attributes", "arrival"),
            ("attributes", "departed"),
        )
    ),
]
TURVO = {
    "id": 1000450123,
    "customId": "SHP-100045",
    "ltlShipment": False,
    "status": {"code": {"key": "2105", "value": "En route"}, "notes": "Left at dawn"},
    "startDate": {"date": "2025-11-01T12:00:00Z", "timeZone": "America/New_York"},
    "endDate": {"date": "2025-11-02T19:00:00Z", "timeZone": "America/Chicago"},
    "lane": {"start": "Columbus, OH", "end": "Atlanta, GA"},
    "transportation": {"mode": {"key": "24105", "value": "TL"}, "serviceType": {"value": "Any"}},
    "equipment": [
        {"type": {"key": "1200", "value": "Van"}, "size": {"value": "53 ft"}, "weight": 42}
    ],
    "externalIds": [{"type": {"key": "1", "value": "Dock"}, "value": "D-12"}],
    "globalRoute": [_turvo_stop(1, ("1500", "Pickup"))],
    "customerOrder": [
        {
            "id": 71,
            "customer": {"id": 9001, "name": "Example Paper Co"},
            "costs": {"totalAmount": 1245.5, "currency": {"key": "1550", "value": "USD"}},
            "externalIds": [{"type": {"value": "Purchase order #"}, "value": "PO 7745"}],
            "items": [{"name": "Paper rolls", "qty": 24, "notes": "keep dry"}],
            "route": [_turvo_stop(2, ("1501", "Delivery"))],
            "deleted": False,
        }
    ],
    "carrierOrder": [
        {
            "id": 44,
            "carrier": {
                "id": 512,
                "name": "Northwind Trucking",
                "scac": "NWTR",
                "mcNumber": 123456,
            },
            "drivers": [{"context": {"id": 5, "name": "Luis Ortega"}, "phone": "+1 614 555 0142"}],
            "externalIds": [{"type": {"value": "Truck #"}, "value": "T-204"}],
            "deleted": False,
        }
    ],
    "statusHistory": [
        {"code": {"key": "2103", "value": "Dispatched"}, "lastUpdatedOn": "2025-11-01T10:00:00Z"}
    ],
    "tracking": {"isTrackable": True, "eta": "2025-11-02T18:30:00Z"},
    "lastUpdatedOn": "2025-11-01T14:00:00Z",
    "updated": "2025-11-01T14:00:00Z",
    "createdDate": "2025-10-30T08:00:00Z",
}
RECORDS |= {
    ("turvo", "shipment"): _of(
        "turvo",
        "shipment:1000450123",
        TURVO,
        others={
            ("status", "code", "key"): "2106",
            ("statusHistory", 0, "code", "key"): "2104",
            **dict.fromkeys(_TURVO_TIMES, "2025-12-24T06:07:00Z"),
        },
    )
}


_TEAMMATE = {
    "id": "tea_1",
    "email": "dana@acme.example",
    "username": "dana",
    "first_name": "Dana",
    "last_name": "Whitfield",
    "is_admin": True,
    "is_available": True,
    "is_blocked": True,
}
_FRONT_CONVERSATION = {
    "_links": {"self": "https://acme.api.frontapp.com/conversations/cnv_51a"},
    "id": "cnv_51a",
    "subject": "ETA for SHP-100045?",
    "status": "assigned",
    "ticket_ids": ["TIC-7"],
    "assignee": _TEAMMATE,
    "recipient": {"handle": "ops@example.com", "name": "Ops Desk", "role": "from"},
    "tags": [
        {
            "id": "tag_3",
            "name": "Urgent load",
            "highlight": "pink",
            "is_private": True,
            "is_visible_in_conversation_lists": True,
            "created_at": 1692808372.298,
            "updated_at": 1692808372.298,
        }
    ],
    "links": [
        {"id": "top_1", "name": "Ticket 9", "type": "web", "external_url": "https://t.example/9"}
    ],
    "custom_fields": {"Load number": "L-778", "Rolls": 24},
    "is_private": True,
    "created_at": 1761955199.9,
    "scheduled_reminders": [{"created_at": 1761955199.9, "scheduled_at": 1761999999.0}],
    "last_message": {"id": "msg_87", "text": "another one"},
    "metadata": {"external_conversation_ids": ["x"]},
}


def _front(record: str, type: str, source: Any, target: Any) -> dict[tuple[str, ...], Record]:
    body = {
        "_links": {"self": "https://acme.api.frontapp.com/events/evt_7q1"},
        "id": "evt_7q1",
        "type": type,
        "emitted_at": 1761955200.5,
        "conversation": _FRONT_CONVERSATION,
        "source": source,
        "target": target,
    }
    times = [("emitted_at",), ("conversation", "created_at")]
    times += [("target", "data", name) for name in ("created_at", "posted_at")]
    return {
        ("frontapp", record): _of(
            "frontapp",
            "message:msg_88",
            body,
            others={**dict.fromkeys(times, 1761999999.5), ("target", "_meta", "type"): "tag"},
            closed=(
                ("_links",),
                ("conversation", "_links"),
                ("conversation", "metadata"),
                ("conversation", "last_message"),
                ("conversation", "recipient"),
                ("source", "_meta"),
                ("target", "_meta"),
                ("target", "data", "metadata"),
                ("target", "data", "metadata", "headers"),
                ("target", "data", "attachments", 0, "metadata"),
            ),
        )
    }


_INBOX = {
    "_meta": {"type": "inboxes"},
    "data": [
        {
            "id": "inb_3",
            "name": "Dispatch",
            "address": "in-3@in.frontapp.example",
            "send_as": "dispatch@acme.example",
            "type": "smtp",
            "is_private": True,
            "is_public": True,
        }
    ],
}
_ATTACHMENT = {
    "id": "fil_1",
    "filename": "pod.pdf",
    "url": "https://acme.api.frontapp.com/download/fil_1",
    "content_type": "application/pdf",
    "size": 48123,
    "metadata": {"is_inline": False, "cid": "c-1"},
}
RECORDS |= _front(
    "email and message",
    "inbound",
    _INBOX,
    {
        "_meta": {"type": "message"},
        "data": {
            "id": "msg_88",
            "type": "email",
            "is_inbound": True,
            "created_at": 1761955199.8,
            "subject": "Re: ETA for SHP-100045?",
            "blurb": "Hello, when",
            "body": "<p>Hello, when will it come?</p>",
            "text": "Hello, when will it come?",
            "author": _TEAMMATE,
            "is_draft": True,
            "draft_mode": "shared",
            "version": "v-3",
            "error_type": "bounce",
            "signature": {"name": "Short one"},
            "metadata": {"headers": {"in_reply_to": "x"}},
            "recipients": [
                {"handle": "ops@example.com", "role": "from", "name": "Ops Desk"},
                {"handle": "dispatch@acme.example", "role": "to", "name": "Dispatch Desk"},
            ],
            "attachments": [_ATTACHMENT],
        },
    },
)
RECORDS |= _front(
    "comment",
    "comment",
    {"_meta": {"type": "teammate"}, "data": _TEAMMATE},
    {
        "_meta": {"type": "comment"},
        "data": {
            "id": "com_5",
            "body": "Call the driver",
            "posted_at": 1761955199.8,
            "author": _TEAMMATE,
            "attachments": [_ATTACHMENT],
            "is_pinned": True,
        },
    },
)
RECORDS |= _front(
    "conversation",
    "tag",
    {"_meta": {"type": "teammate"}, "data": _TEAMMATE},
    {"_meta": {"type": "tag"}, "data": {"id": "tag_9", "name": "Claims"}},
)


_COMPLETION = {
    "conversation_id": "conv-ex-1",
    "format": "openai.chat",
    "title": "Where is it",
    "model": "gpt-ex",
    "agent": {"id": "dispatch-agent", "name": "Dispatch Agent"},
    "user": {"id": "morgan@brightline.example", "name": "Morgan"},
    "metadata": {"team": "night shift"},
    "created_at": "2025-11-01T10:00:00Z",
    "updated_at": "2025-11-01T11:00:00Z",
    "usage": {"total_tokens": 12},
    "temperature": 0.5,
    "project": "Freight desk",
    "prompt_cache_key": "cache-9",
    "messages": [
        {"role": "user", "content": "Where is SHP-100045?"},
        {
            "role": "assistant",
            "content": "I look",
            "tool_calls": [
                {"id": "c9", "function": {"name": "track", "arguments": "{SHP-100045}"}}
            ],
        },
        {"role": "tool", "tool_call_id": "c9", "content": "En route"},
    ],
}
_TIMES: dict[Steps, str] = {
    ("created_at",): "2025-11-01T09:00:00Z",
    ("updated_at",): "2025-11-01T11:30:00Z",
    ("messages", 0, "role"): "assistant",
    ("messages", 1, "role"): "user",
    ("messages", 2, "role"): "user",
    ("messages", 1, "tool_calls", 0, "id"): "c8",
    ("messages", 2, "tool_call_id"): "c8",
}


def _llm_event(body: Any) -> Event:
    request = InboundRequest(canonical(body), {"content-type": "application/json"}, {}, AT)
    (event,) = SOURCES["llm"].receive(request).events
    return event


RECORDS[("llm", "conversation")] = Record(
    SOURCES["llm"],
    _llm_event,
    _COMPLETION,
    others=_TIMES | {("format",): "openai.chat"},
    closed=(
        ("messages", 0),
        ("messages", 1),
        ("messages", 2),
        ("messages", 1, "tool_calls", 0),
        ("messages", 1, "tool_calls", 0, "function"),
        ("metadata",),
        ("usage",),
    ),
)
_ANSWER = {
    "id": "msg_01Xy",
    "type": "message",
    "role": "assistant",
    "model": "claude-ex",
    "content": [{"type": "text", "text": "Near Knoxville"}],
    "stop_reason": "max_tokens",
    "usage": {"input_tokens": 5},
    "container_note": "from cache",
}
_ANSWER_CLOSED = (("content", 0), ("usage",))
_PAIR = {
    "conversation_id": "conv-ex-2",
    "request": {
        "model": "claude-ex",
        "max_tokens": 100,
        "messages": [{"role": "user", "content": "Where is it?"}],
        "service_note": "night",
    },
}


def _below(outer: Steps, closed: tuple[Steps, ...]) -> tuple[Steps, ...]:
    return tuple((*outer, *steps) for steps in closed)


RECORDS |= {
    ("llm", "conversation", "response"): Record(
        SOURCES["llm"],
        _llm_event,
        _ANSWER,
        others={
            ("type",): "message",
            ("role",): "user",
            ("content", 0, "type"): "output_text",
        },
        closed=_ANSWER_CLOSED,
    ),
    ("llm", "conversation", "pair"): Record(
        SOURCES["llm"],
        _llm_event,
        {**_PAIR, "response": _ANSWER},
        others={
            ("request", "model"): "claude-ex",
            ("response", "type"): "message",
            ("response", "content", 0, "type"): "output_text",
            ("request", "messages", 0, "role"): "assistant",
        },
        closed=(("request", "messages", 0), *_below(("response",), _ANSWER_CLOSED)),
    ),
    ("llm", "conversation", "recorded"): Record(
        SOURCES["llm"],
        _llm_event,
        {**_PAIR, "response": {"status": 200, "headers": {"x": "y"}, "body": _ANSWER}},
        others={
            ("request", "model"): "claude-ex",
            ("response", "body", "type"): "message",
            ("response", "body", "content", 0, "type"): "output_text",
            ("request", "messages", 0, "role"): "assistant",
        },
        closed=(
            ("request", "messages", 0),
            ("response", "headers"),
            *_below(("response", "body"), _ANSWER_CLOSED),
        ),
    ),
    ("llm", "conversation", "completion"): Record(
        SOURCES["llm"],
        _llm_event,
        {
            "id": "chatcmpl-B9",
            "object": "chat.completion",
            "created": 1762000000,
            "model": "gpt-ex",
            "system_fingerprint": "fp_1",
            "choices": [{"message": {"role": "assistant", "content": "At dock 4"}}],
        },
        others={("choices", 0, "message", "role"): "user"},
        closed=(("choices", 0), ("choices", 0, "message")),
    ),
    ("llm", "conversation", "claude"): Record(
        SOURCES["llm"],
        _llm_event,
        {
            "uuid": "3f0c-1",
            "name": "Scorecard",
            "summary": "About carriers",
            "account": {"uuid": "acc-1"},
            "project": {"uuid": "prj-1", "name": "Carriers"},
            "created_at": "2025-11-01T10:00:00Z",
            "updated_at": "2025-11-01T11:00:00Z",
            "chat_messages": [{"sender": "human", "text": "Score them"}],
        },
        others={
            ("created_at",): "2025-11-01T09:00:00Z",
            ("updated_at",): "2025-11-01T11:30:00Z",
            ("chat_messages", 0, "sender"): "assistant",
        },
        closed=(("chat_messages", 0),),
    ),
    ("llm", "conversation", "chatgpt"): Record(
        SOURCES["llm"],
        _llm_event,
        {
            "conversation_id": "6543-c",
            "title": "Dock times",
            "create_time": 1762000000.5,
            "update_time": 1762000100.5,
            "default_model_slug": "gpt-ex",
            "current_node": "n1",
            "gizmo_id": "g-77",
            "is_archived": True,
            "mapping": {
                "n1": {
                    "message": {
                        "author": {"role": "user"},
                        "content": {"content_type": "text", "parts": ["When is dock 4 free?"]},
                    }
                }
            },
        },
        others={("mapping", "n1", "message", "author", "role"): "assistant"},
        closed=tuple(
            ("mapping", *steps)
            for steps in (
                (),
                ("n1",),
                ("n1", "message"),
                ("n1", "message", "author"),
                ("n1", "message", "content"),
            )
        ),
    ),
}


def _window_event(body: Any) -> Event:
    """Return the event of the window of a vehicle's points, as the feed returns them."""
    source = SOURCES["samsara"]
    assert isinstance(source, Samsara)
    start = datetime(2025, 11, 1, 14, 0, tzinfo=UTC)
    sane = BackfillRange(start - timedelta(days=1), start + timedelta(days=1))
    readings, unread = read_vehicle(body, "data[0]", sane, source.window_seconds)
    assert unread is None
    return source.aggregate_window(body["id"], start, readings, 1)


RECORDS |= {
    ("sonar", "market_index"): _of(
        "sonar",
        "index:OTRI/ATL/2025-11-01",
        {"index": "OTRI", "qualifier": "ATL", "date": "2025-11-01", "value": 6.42, "unit": "pct"},
        others={("date",): "2025-11-09"},
    ),
    ("sonar", "market_index", "other names"): _of(
        "sonar",
        "index:OTRI/ATL/2025-11-01",
        {
            "ticker": "OTRI",
            "granularity": "ATL",
            "data_timestamp": "2025-11-01T00:00:00",
            "data_value": 6.42,
            "granularity_level": "KMA",
        },
        others={("data_timestamp",): "2025-11-09T00:00:00"},
    ),
    ("sonar", "market_alert"): Record(
        SOURCES["sonar"],
        lambda body: replace(
            event_of("sonar", "alert:1")(body),
            occurred_at=datetime.fromisoformat(body["timestamp"]),
            version=micros(datetime.fromisoformat(body["timestamp"])),
        ),
        {
            "type": "alert",
            "timestamp": "2025-11-01T14:03:20+00:00",
            "data": {
                "id": "alr_1",
                "title": "Rejections jump",
                "text": "SHP-100045 is on this lane.",
                "severity": "high",
                "index": "otri",
                "qualifier": "atl",
                "values": {"from": 6.4, "to": 9.1},
            },
        },
        others={("timestamp",): "2025-11-02T14:03:20+00:00"},
        closed=((),),
    ),
    ("samsara", "vehicle_event, address, driver and vehicle"): Record(
        SOURCES["samsara"],
        lambda body: replace(
            event_of("samsara", "event:1")(body), occurred_at=datetime(2025, 11, 1, tzinfo=UTC)
        ),
        {
            "eventId": "5a0c1c7e-01",
            "eventTime": "2025-11-01T00:00:00+00:00",
            "eventType": "GeofenceEntry",
            "orgId": 20001,
            "webhookId": "1411",
            "data": {
                "summary": "Unit 204 entered the yard",
                "vehicle": {
                    "id": "281474900000001",
                    "name": "Unit 204",
                    "externalIds": {"samsara.vin": "1EXAMPLEVIN000001", "fleet": "F-9"},
                    "licensePlate": "09999",
                },
                "driver": {"id": "88", "name": "Dana Whitfield", "phone": "614-555-0100"},
                "address": {
                    "id": "99",
                    "name": "Main yard",
                    "formattedAddress": "100 Example Way, Columbus, OH 43215",
                    "geofence": {"circle": {"radiusMeters": 25}},
                },
                "odometerMeters": 12345678,
            },
        },
        others={("eventTime",): "2025-11-02T00:00:00+00:00"},
        closed=((),),
    ),
    ("samsara", "vehicle_window"): Record(
        SOURCES["samsara"],
        _window_event,
        {
            "id": "281474900000001",
            "name": "Unit 204",
            "externalIds": {"samsara.vin": "1EXAMPLEVIN000001"},
            "gps": [
                {
                    "time": "2025-11-01T14:01:20Z",
                    "latitude": 39.9612,
                    "longitude": -82.9988,
                    "headingDegrees": 182,
                    "speedMilesPerHour": 61.5,
                    "isEcuSpeed": True,
                    "reverseGeo": {"formattedLocation": "I-71, Columbus, OH, 43215"},
                }
            ],
            "engineStates": [{"time": "2025-11-01T14:01:18Z", "value": "On"}],
            "fuelPercents": [{"time": "2025-11-01T14:01:18Z", "value": 71}],
            "decorations": {"x": 1},
        },
        others={
            ("id",): "281474900000002",
            ("gps", 0, "time"): "2025-11-01T14:03:20Z",
            ("engineStates", 0, "time"): "2025-11-01T14:02:18Z",
            ("fuelPercents", 0, "value"): 44,
            ("gps", 0, "reverseGeo", "formattedLocation"): "I-71, Qwxz, OH, 43215",
            ("gps", 0, "latitude"): 38.1,
            ("gps", 0, "longitude"): -81.1,
        },
    ),
}
