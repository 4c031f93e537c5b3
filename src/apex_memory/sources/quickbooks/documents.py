"""QuickBooks Online's records as documents."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from apex_memory.errors import Rejected
from apex_memory.model import Assertion, Document, Event, slug
from apex_memory.sources.payloads import as_mapping, as_string, parse_object, sequence
from apex_memory.sources.quickbooks.records import MOST_ID, Key

MOST = 300  # characters of a name in a ref

_SHIPMENT = re.compile(r"(?<![\w-])SHP[-\s]?(\d{4,12})(?![\w-])", re.IGNORECASE | re.ASCII)
_PRO = re.compile(r"(?<![\w-])PRO[-\s#:]{0,3}(\d{5,11})(?![\w-])", re.IGNORECASE | re.ASCII)


def record_document(event: Event) -> Document:
    """An `invoice`, `payment`, `bill`, `customer`, `vendor`, or any other kind of record by its name."""
    key, body = Key.parse(event.doc_key), parse_object(event.payload)
    if key is None:
        raise Rejected(
            f"{event.doc_key}: no record's key", remedy="is this a record of QuickBooks?"
        )
    kind = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", key.entity).lower()
    # People and companies are not deleted there but made inactive, and may come back.
    if as_string(body.get("status")).lower() == "deleted" or body.get("Active") is False:
        return Document(kind=kind, title="", occurred_at=event.occurred_at, deleted=True)
    tell = _TELLERS.get(key.entity, _anything)
    title, about, lines, said = tell(key, body)
    rows = [*lines.items(), *_custom(body).items(), *_notes(body).items()]
    text = "\n".join(f"{label}: {value}" for label, value in rows if value)
    items = "\n".join(_items(body))
    text = "\n\n".join(filter(None, (text, items)))
    return Document(
        kind=kind,
        title=title,
        occurred_at=event.occurred_at,
        text=text or title,
        assertions=tuple(dict.fromkeys(said)),
        metadata=_metadata(key, body),
        about=about,
    )


Told = tuple[str, str | None, dict[str, str], list[Assertion]]


def _invoice(key: Key, body: Mapping[str, Any]) -> Told:
    number, customer = _line(body.get("DocNumber")), _name(body.get("CustomerRef"))
    ref = f"invoice:{number}" if number else f"invoice:{key.realm}-{key.id}"
    said = [
        Assertion(subject=ref, predicate="same_as", object=f"qbo_invoice:{key.realm}-{key.id}"),
        Assertion(subject=ref, predicate="status", value=_status(body)),
        *_amounts(ref, body),
        *_related(ref, "billed_to", "company", customer),
        *_billed(ref, body),
        *_related(ref, "po", "po", _custom(body).get("PO", "")),
    ]
    lines = {
        "Invoice": number or key.id,
        "Customer": customer,
        "Status": _status(body),
        **_sums(body),
        "Due": _line(body.get("DueDate")),
    }
    return f"Invoice {number or key.id}", ref, lines, said


def _bill(key: Key, body: Mapping[str, Any]) -> Told:
    number, vendor = _line(body.get("DocNumber")), _name(body.get("VendorRef"))
    ref = f"bill:{key.realm}-{key.id}"
    billed = _billed(ref, body)
    pros = dict.fromkeys(f"pro:{match[1]}" for match in _PRO.finditer(_said(body)))
    said = [
        Assertion(subject=ref, predicate="status", value=_status(body)),
        *_amounts(ref, body),
        *_related(ref, "carrier" if billed or pros else "vendor", "company", vendor),
        *billed,
        *(Assertion(subject=ref, predicate="pro", object=pro) for pro in pros),
        *_related(ref, "po", "po", _custom(body).get("PO", "")),
    ]
    lines = {
        "Bill": number or key.id,
        "Vendor": vendor,
        "Status": _status(body),
        **_sums(body),
        "Due": _line(body.get("DueDate")),
    }
    return " from ".join(filter(None, (f"Bill {number or key.id}", vendor))), ref, lines, said


def _payment(key: Key, body: Mapping[str, Any]) -> Told:
    customer, ref = _name(body.get("CustomerRef")), f"payment:{key.realm}-{key.id}"
    paid = list(dict.fromkeys(_paid(key, body)))
    said = [
        Assertion(subject=ref, predicate="name", value=f"Payment {key.id}"),
        *_amounts(ref, body),
        *_related(ref, "customer", "company", customer),
        *(Assertion(subject=ref, predicate="pays", object=object) for object, _ in paid),
    ]
    lines = {
        "Payment": key.id,
        "Customer": customer,
        "Pays": ", ".join(label for _, label in paid if label),
        **_sums(body),
        "Reference": _line(body.get("PaymentRefNum")),
        "Method": _name(body.get("PaymentMethodRef")),
    }
    return " from ".join(filter(None, (f"Payment {key.id}", customer))), ref, lines, said


def _party(key: Key, body: Mapping[str, Any]) -> Told:
    name = (_line(body.get("DisplayName")) or _line(body.get("CompanyName")))[:MOST]
    ref = f"company:{name or key.id}"
    email = _line(as_mapping(body.get("PrimaryEmailAddr")).get("Address")).lower()[:MOST]
    phone = _line(as_mapping(body.get("PrimaryPhone")).get("FreeFormNumber"))[:MOST]
    place = as_mapping(body.get("BillAddr"))
    town = " ".join(filter(None, map(_line, (place.get("City"), place.get("CountrySubDivisionCode")))))  # fmt: skip
    said = [
        Assertion(subject=ref, predicate="name", value=name or key.id),
        Assertion(
            subject=ref,
            predicate="same_as",
            object=f"qbo_{key.entity.lower()}:{key.realm}-{key.id}",
        ),
        *_related(ref, "email", "email", email if "@" in email else ""),
        *_related(ref, "phone", "phone", phone if len(re.sub(r"\D", "", phone)) >= 5 else ""),
        *_related(ref, "in", "location", town[:MOST]),
    ]
    lines = {
        key.entity: name or key.id,
        "Company": _line(body.get("CompanyName")) if body.get("CompanyName") != name else "",
        "Contact": " ".join(filter(None, map(_line, (body.get("GivenName"), body.get("FamilyName"))))),
        "E-mail": email,
        "Phone": phone,
        "Address": ", ".join(filter(None, (_line(place.get("Line1")), town, _line(place.get("PostalCode"))))),
        "Account": _line(body.get("AcctNum")),
        "Balance": _money(body.get("Balance"), body),
        "Notes": _line(body.get("Notes")),
    }  # fmt: skip
    return name or f"{key.entity} {key.id}", ref, lines, said


def _anything(key: Key, body: Mapping[str, Any]) -> Told:
    """A kind of record that is told by what most records have."""
    named = next((text for name in ("DocNumber", "Name", "DisplayName") if (text := _line(body.get(name)))), key.id)  # fmt: skip
    party = next((text for name in ("CustomerRef", "VendorRef", "EntityRef") if (text := _name(body.get(name)))), "")  # fmt: skip
    ref = f"qbo_{slug(key.entity).replace('-', '_')}:{key.realm}-{key.id}"
    lines = {key.entity: named, "With": party, **_sums(body)}
    said = [*_amounts(ref, body), *_related(ref, "with", "company", party), *_billed(ref, body)]
    return f"{key.entity} {named}", ref, lines, said


_TELLERS: Mapping[str, Callable[[Key, Mapping[str, Any]], Told]] = {
    "Invoice": _invoice,
    "Bill": _bill,
    "Payment": _payment,
    "Customer": _party,
    "Vendor": _party,
}


def _status(body: Mapping[str, Any]) -> str:
    balance, total = _number(body.get("Balance")), _number(body.get("TotalAmt"))
    if as_string(body.get("PrivateNote")).lower().startswith("voided"):
        return "voided"
    if balance is None or total is None or total <= 0 or balance >= total:
        return "open"
    return "paid" if balance <= 0 else "partly paid"


def _sums(body: Mapping[str, Any]) -> dict[str, str]:
    return {
        "Date": _line(body.get("TxnDate")),
        "Total": _money(body.get("TotalAmt"), body),
        "Balance": _money(body.get("Balance"), body),
    }


def _amounts(ref: str, body: Mapping[str, Any]) -> list[Assertion]:
    total = _money(body.get("TotalAmt"), body)
    return [Assertion(subject=ref, predicate="amount", value=total)] if total else []


def _related(ref: str, predicate: str, kind: str, name: str) -> list[Assertion]:
    return [Assertion(subject=ref, predicate=predicate, object=f"{kind}:{name}")] if name else []


def _billed(ref: str, body: Mapping[str, Any]) -> list[Assertion]:
    """What a bill is for, as its lines, custom fields and notes name it."""
    shipments = dict.fromkeys(f"shipment:SHP-{m[1]}" for m in _SHIPMENT.finditer(_said(body)))
    return [Assertion(subject=ref, predicate="bills", object=one) for one in shipments]


def _said(body: Mapping[str, Any]) -> str:
    return "\n".join(
        (_line(body.get("DocNumber")), *_custom(body).values(), *_notes(body).values(), *_items(body))
    )  # fmt: skip


def _paid(key: Key, body: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Refs of the invoices that a payment is for, by number where it is told, else by QuickBooks' own id."""
    for line in sequence(body.get("Line")):
        more = sequence(as_mapping(as_mapping(line).get("LineEx")).get("any"))
        values = [as_mapping(as_mapping(one).get("value")) for one in more]
        number = next((_line(one.get("Value")) for one in values if one.get("Name") == "txnReferenceNumber"), "")  # fmt: skip
        for linked in map(as_mapping, sequence(as_mapping(line).get("LinkedTxn"))):
            if linked.get("TxnType") != "Invoice":
                continue
            if number:
                yield f"invoice:{number[:MOST]}", number
            elif id := _line(linked.get("TxnId")):
                yield f"qbo_invoice:{key.realm}-{id[:MOST_ID]}", ""


def _custom(body: Mapping[str, Any]) -> dict[str, str]:
    fields = map(as_mapping, sequence(body.get("CustomField")))
    told = {
        _line(one.get("Name")): next(
            (text for kind in ("String", "Number", "Date") if (text := _line(one.get(f"{kind}Value")))),
            "",
        )
        for one in fields
    }  # fmt: skip
    return {name: value for name, value in told.items() if name and value}


def _notes(body: Mapping[str, Any]) -> dict[str, str]:
    return {
        "Message": _line(as_mapping(body.get("CustomerMemo")).get("value")),
        "Note": _line(body.get("PrivateNote")),
    }


def _items(body: Mapping[str, Any]) -> list[str]:
    rows = []
    for line in map(as_mapping, sequence(body.get("Line"))):
        detail = as_mapping(line.get(as_string(line.get("DetailType"))))
        item = _name(detail.get("ItemRef")) or _name(detail.get("AccountRef"))
        what = ": ".join(filter(None, (item, _line(line.get("Description")))))
        if what:
            rows.append(" ".join(filter(None, ("-", what, _money(line.get("Amount"), body)))))
    return rows


def _metadata(key: Key, body: Mapping[str, Any]) -> dict[str, Any]:
    known = {
        "realm": key.realm,
        "entity": key.entity,
        "number": _line(body.get("DocNumber")),
        "date": _line(body.get("TxnDate")),
        "currency": _line(as_mapping(body.get("CurrencyRef")).get("value")),
        "amount": _number(body.get("TotalAmt")),
        "balance": _number(body.get("Balance")),
        "status": _status(body) if key.entity in ("Invoice", "Bill") else "",
    }
    return {name: value for name, value in known.items() if value not in ("", None)}


def _name(reference: object) -> str:
    return _line(as_mapping(reference).get("name"))[:MOST]


def _line(value: object) -> str:
    if isinstance(value, int | float) and not isinstance(value, bool):
        value = str(value)
    return " ".join(as_string(value).split())


def _number(value: object) -> float | None:
    try:
        number = float(value) if isinstance(value, int | float | str) else None
    except (ValueError, OverflowError):
        return None
    return number if number is not None and abs(number) < 1e15 else None


def _money(value: object, body: Mapping[str, Any]) -> str:
    number = _number(value)
    if number is None:
        return ""
    return f"{number:,.2f} {_line(as_mapping(body.get('CurrencyRef')).get('value'))}".rstrip()
