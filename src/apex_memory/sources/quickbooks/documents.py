"""Documents of QuickBooks Online's records."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from apex_memory.errors import Rejected
from apex_memory.model import Assertion, Document, Event, slug
from apex_memory.sources.fields import as_words, labelled, remaining_lines
from apex_memory.sources.money import format_money, read_amount
from apex_memory.sources.payloads import as_mapping, as_string, parse_object, sequence
from apex_memory.sources.quickbooks.fields import FIELDS, OTHER_FIELDS
from apex_memory.sources.quickbooks.records import MAX_ID, RecordKey

MAX_NAME = 300  # characters of a name in a ref

_SHIPMENT = re.compile(r"(?<![\w-])SHP[-\s]?(\d{4,12})(?![\w-])", re.IGNORECASE | re.ASCII)
_PRO = re.compile(r"(?<![\w-])PRO[-\s#:]{0,3}(\d{5,11})(?![\w-])", re.IGNORECASE | re.ASCII)


@dataclass(frozen=True, slots=True)
class _Summary:
    """Title, entity, first lines and assertions of a record."""

    title: str
    about: str | None
    lines: dict[str, str]
    assertions: list[Assertion]


def record_document(event: Event) -> Document:
    """Return an `invoice`, `payment`, `bill`, `customer`, `vendor`, or a document of another kind, named after its entity."""
    key, body = RecordKey.parse(event.doc_key), parse_object(event.payload)
    if key is None:
        raise Rejected(
            f"{event.doc_key}: not the key of a record",
            remedy="check that this is a record of QuickBooks",
        )
    kind = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", key.entity).lower()
    # People and companies are not deleted in QuickBooks but made inactive, and may come back.
    if as_string(body.get("status")).lower() == "deleted" or body.get("Active") is False:
        return Document(kind=kind, title="", occurred_at=event.occurred_at, deleted=True)
    summary = _SUMMARIES.get(key.entity, _other)(key, body)
    fields = FIELDS.get(key.entity, OTHER_FIELDS)
    created = _line(as_mapping(body.get("MetaData")).get("CreateTime"))
    head = {
        **summary.lines,
        **_custom_fields(body),
        **_notes(body),
        "QuickBooks id": key.id,
        "Created": created,
    }
    lines = [
        labelled(head),
        *remaining_lines(body, shown=fields.shown, left_out=fields.left_out),
    ]
    items = "\n".join(_items(body))
    return Document(
        kind=kind,
        title=summary.title,
        occurred_at=event.occurred_at,
        text="\n\n".join(filter(None, ("\n".join(lines), items))),
        assertions=tuple(dict.fromkeys(summary.assertions)),
        metadata=_metadata(key, body),
        about=summary.about,
    )


def _invoice(key: RecordKey, body: Mapping[str, Any]) -> _Summary:
    number, customer = _line(body.get("DocNumber")), _name(body.get("CustomerRef"))
    ref = f"invoice:{number}" if number else f"invoice:{key.realm}-{key.id}"
    assertions = [
        Assertion(subject=ref, predicate="same_as", object=f"qbo_invoice:{key.realm}-{key.id}"),
        *_status_assertion(ref, body),
        *_amounts(ref, body),
        *_party_assertion(ref, "billed_to", "Customer", key, body),
        *_billed(ref, body),
        *_related(ref, "po", "po", _custom_fields(body).get("PO", "")),
    ]
    lines = {
        "Invoice": number or key.id,
        "Customer": customer,
        "Status": _state(body),
        **_sums(body),
        "Due": _line(body.get("DueDate")),
    }
    return _Summary(f"Invoice {number or key.id}", ref, lines, assertions)


def _bill(key: RecordKey, body: Mapping[str, Any]) -> _Summary:
    number, vendor = _line(body.get("DocNumber")), _name(body.get("VendorRef"))
    ref = f"bill:{key.realm}-{key.id}"
    billed = _billed(ref, body)
    pros = dict.fromkeys(f"pro:{match[1]}" for match in _PRO.finditer(_free_text(body)))
    role = "carrier" if billed or pros else "vendor"
    assertions = [
        *_status_assertion(ref, body),
        *_amounts(ref, body),
        *_party_assertion(ref, role, "Vendor", key, body),
        *billed,
        *(Assertion(subject=ref, predicate="pro", object=pro) for pro in pros),
        *_related(ref, "po", "po", _custom_fields(body).get("PO", "")),
    ]
    lines = {
        "Bill": number or key.id,
        "Vendor": vendor,
        "Status": _state(body),
        **_sums(body),
        "Due": _line(body.get("DueDate")),
    }
    title = " from ".join(filter(None, (f"Bill {number or key.id}", vendor)))
    return _Summary(title, ref, lines, assertions)


def _payment(key: RecordKey, body: Mapping[str, Any]) -> _Summary:
    customer, ref = _name(body.get("CustomerRef")), f"payment:{key.realm}-{key.id}"
    paid = list(dict.fromkeys(_paid_invoices(key, body)))
    assertions = [
        Assertion(subject=ref, predicate="name", value=f"Payment {key.id}"),
        *_voided_assertion(ref, body),
        *_amounts(ref, body),
        *_party_assertion(ref, "customer", "Customer", key, body),
        *(Assertion(subject=ref, predicate="pays", object=invoice) for invoice, _ in paid),
    ]
    lines = {
        "Payment": key.id,
        "Status": "voided" if _is_voided(body) else "",
        "Customer": customer,
        "Pays": ", ".join(number for _, number in paid if number),
        **_sums(body),
        "Reference": _line(body.get("PaymentRefNum")),
        "Method": _name(body.get("PaymentMethodRef")),
    }
    title = " from ".join(filter(None, (f"Payment {key.id}", customer)))
    return _Summary(title, ref, lines, assertions)


def _party(key: RecordKey, body: Mapping[str, Any]) -> _Summary:
    """Return the summary of a customer or a vendor."""
    name = (_line(body.get("DisplayName")) or _line(body.get("CompanyName")))[:MAX_NAME]
    ref = f"company:{name or key.id}"
    email = _line(as_mapping(body.get("PrimaryEmailAddr")).get("Address")).lower()[:MAX_NAME]
    address = as_mapping(body.get("BillAddr"))
    city_and_state = (_line(address.get("City")), _line(address.get("CountrySubDivisionCode")))
    town = " ".join(filter(None, city_and_state))
    own = f"qbo_{key.entity.lower()}:{key.realm}-{key.id}"
    assertions = [
        Assertion(subject=ref, predicate="name", value=name or key.id),
        Assertion(subject=ref, predicate="same_as", object=own),
        *_related(ref, "email", "email", email if "@" in email else ""),
        *_related(ref, "in", "location", town[:MAX_NAME]),
    ]
    for field in ("PrimaryPhone", "Mobile", "AlternatePhone"):
        assertions += _related(ref, "phone", "phone", _phone(body.get(field)))
    contact = (_line(body.get("GivenName")), _line(body.get("FamilyName")))
    whole_address = (_line(address.get("Line1")), town, _line(address.get("PostalCode")))
    company = _line(body.get("CompanyName"))
    lines = {
        key.entity: name or key.id,
        "Company": company if company != name else "",
        "Contact": " ".join(filter(None, contact)),
        "E-mail": email,
        "Phone": _line(as_mapping(body.get("PrimaryPhone")).get("FreeFormNumber")),
        "Address": ", ".join(filter(None, whole_address)),
        "Account": _line(body.get("AcctNum")),
        "Balance": _money(body.get("Balance"), body),
        "Currency": _currency(body),
        "Notes": _line(body.get("Notes")),
    }
    return _Summary(name or f"{key.entity} {key.id}", ref, lines, assertions)


def _phone(value: object) -> str:
    """Return a phone number; empty for a text with fewer than five digits, which is no number."""
    number = _line(as_mapping(value).get("FreeFormNumber"))[:MAX_NAME]
    return number if len(re.sub(r"\D", "", number)) >= 5 else ""


def _other(key: RecordKey, body: Mapping[str, Any]) -> _Summary:
    """Return the summary of a record of another kind, by the fields that most kinds have."""
    names = (_line(body.get(name)) for name in ("DocNumber", "Name", "DisplayName"))
    named = next(filter(None, names), key.id)
    roles = ("CustomerRef", "VendorRef", "EntityRef")
    party = next(filter(None, (_name(body.get(role)) for role in roles)), "")
    ref = f"qbo_{slug(key.entity).replace('-', '_')}:{key.realm}-{key.id}"
    lines = {
        key.entity: named,
        "Status": "voided" if _is_voided(body) else "",
        "With": party,
        **_sums(body),
    }
    assertions = [
        *_voided_assertion(ref, body),
        *_amounts(ref, body),
        *_party_assertion(ref, "with", "Customer", key, body),
        *_party_assertion(ref, "with", "Vendor", key, body),
        *_related(ref, "with", "company", _name(body.get("EntityRef"))),
        *_billed(ref, body),
    ]
    return _Summary(f"{key.entity} {named}", ref, lines, assertions)


_SUMMARIES: Mapping[str, Callable[[RecordKey, Mapping[str, Any]], _Summary]] = {
    "Invoice": _invoice,
    "Bill": _bill,
    "Payment": _payment,
    "Customer": _party,
    "Vendor": _party,
}


def _status(body: Mapping[str, Any]) -> str:
    """Return `open`, `paid`, `partly paid` or `voided`; empty where the record has no balance."""
    balance, total = _number(body.get("Balance")), _number(body.get("TotalAmt"))
    if _is_voided(body):
        return "voided"
    if balance is None:
        return ""
    if balance <= 0:  # also of an invoice over nothing
        return "paid"
    return "open" if total is None or balance >= total else "partly paid"


def _is_voided(body: Mapping[str, Any]) -> bool:
    """Return whether QuickBooks voided a transaction: it keeps the record, and says so in its note alone."""
    return as_string(body.get("PrivateNote")).lower().startswith("voided")


def _voided_assertion(ref: str, body: Mapping[str, Any]) -> list[Assertion]:
    return [Assertion(subject=ref, predicate="status", value="voided")] if _is_voided(body) else []


def _state(body: Mapping[str, Any]) -> str:
    """Return the status in the words of people who ask for it."""
    status, due = _status(body), _line(body.get("DueDate"))
    if status == "open":
        return ", ".join(filter(None, ("open, unpaid", due and f"due {due}")))
    return "partly paid, the balance is open" if status == "partly paid" else status


def _sums(body: Mapping[str, Any]) -> dict[str, str]:
    return {
        "Date": _line(body.get("TxnDate")),
        "Total": _money(body.get("TotalAmt"), body),
        "Balance": _money(body.get("Balance"), body),
    }


def _amounts(ref: str, body: Mapping[str, Any]) -> list[Assertion]:
    if read_amount(body.get("TotalAmt")) is None:
        return []
    total = _money(body.get("TotalAmt"), body)
    return [Assertion(subject=ref, predicate="amount", value=total)]


def _status_assertion(ref: str, body: Mapping[str, Any]) -> list[Assertion]:
    status = _status(body)
    return [Assertion(subject=ref, predicate="status", value=status)] if status else []


def _related(ref: str, predicate: str, kind: str, name: str) -> list[Assertion]:
    return [Assertion(subject=ref, predicate=predicate, object=f"{kind}:{name}")] if name else []


def _party_assertion(
    ref: str, predicate: str, entity: str, key: RecordKey, body: Mapping[str, Any]
) -> list[Assertion]:
    """Return the assertion of a customer or vendor: by name, else by its id, which the party's own record asserts too."""
    reference = as_mapping(body.get(f"{entity}Ref"))
    if name := _name(reference):
        return _related(ref, predicate, "company", name)
    id = _line(reference.get("value"))[:MAX_ID]
    object = f"{key.realm}-{id}" if id else ""
    return _related(ref, predicate, f"qbo_{entity.lower()}", object)


def _billed(ref: str, body: Mapping[str, Any]) -> list[Assertion]:
    """Return the shipments that a bill or invoice is for, as its lines, custom fields and notes name them."""
    numbers = dict.fromkeys(match[1] for match in _SHIPMENT.finditer(_free_text(body)))
    return [
        Assertion(subject=ref, predicate="bills", object=f"shipment:SHP-{number}")
        for number in numbers
    ]


def _free_text(body: Mapping[str, Any]) -> str:
    """Return what people wrote into a record: its number, custom fields, notes and lines."""
    written = [_line(body.get("DocNumber")), *_custom_fields(body).values()]
    return "\n".join([*written, *_notes(body).values(), *_items(body)])


def _paid_invoices(key: RecordKey, body: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield ref and number of the invoices that a payment is for.

    The ref is the number where the payment has it, else QuickBooks' own id; then the number is empty.
    """
    for line in map(as_mapping, sequence(body.get("Line"))):
        number = _reference_number(line)
        for linked in map(as_mapping, sequence(line.get("LinkedTxn"))):
            if linked.get("TxnType") != "Invoice":
                continue
            if number:
                yield f"invoice:{number[:MAX_NAME]}", number
            elif id := _line(linked.get("TxnId")):
                yield f"qbo_invoice:{key.realm}-{id[:MAX_ID]}", ""


def _reference_number(line: Mapping[str, Any]) -> str:
    """Return the number of the invoice that a payment's line is for, which its extension `LineEx` holds."""
    for entry in sequence(as_mapping(line.get("LineEx")).get("any")):
        value = as_mapping(as_mapping(entry).get("value"))
        if value.get("Name") == "txnReferenceNumber":
            return _line(value.get("Value"))
    return ""


def _custom_fields(body: Mapping[str, Any]) -> dict[str, str]:
    """Return the custom fields that have name and value."""
    fields: dict[str, str] = {}
    for field in map(as_mapping, sequence(body.get("CustomField"))):
        values = (_line(field.get(f"{type}Value")) for type in ("String", "Number", "Date"))
        name, value = _line(field.get("Name")), next(filter(None, values), "")
        if name and value:
            fields[name] = value
    return fields


def _notes(body: Mapping[str, Any]) -> dict[str, str]:
    return {
        "Message": _line(as_mapping(body.get("CustomerMemo")).get("value")),
        "Note": _line(body.get("PrivateNote")),
    }


def _items(body: Mapping[str, Any]) -> list[str]:
    """Return a row for each line with an amount or a description, named by its item, its account or its type."""
    rows: list[str] = []
    for line in map(as_mapping, sequence(body.get("Line"))):
        type = as_string(line.get("DetailType"))
        detail = as_mapping(line.get(type))
        item = _name(detail.get("ItemRef")) or _name(detail.get("AccountRef"))
        description = _line(line.get("Description"))
        amount = _money(line.get("Amount"), body)
        if not item and not description:
            item = as_words(type.removesuffix("LineDetail"))
        label = ": ".join(filter(None, (item, description)))
        if label or amount:
            rows.append(" ".join(filter(None, ("-", label, amount))))
    return rows


def _metadata(key: RecordKey, body: Mapping[str, Any]) -> dict[str, Any]:
    metadata = {
        "realm": key.realm,
        "entity": key.entity,
        "id": key.id,
        "number": _line(body.get("DocNumber")),
        "date": _line(body.get("TxnDate")),
        "currency": _currency(body),
        "amount": _number(body.get("TotalAmt")),
        "balance": _number(body.get("Balance")),
        "status": _status(body) if key.entity in ("Invoice", "Bill") else "",
    }
    return {name: value for name, value in metadata.items() if value not in ("", None)}


def _name(reference: object) -> str:
    return _line(as_mapping(reference).get("name"))[:MAX_NAME]


def _line(value: object) -> str:
    """Return a text or a number as one line, empty for anything else."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        value = str(value)
    return " ".join(as_string(value).split())


def _number(value: object) -> float | None:
    amount = read_amount(value)
    return None if amount is None else float(amount)


def _currency(body: Mapping[str, Any]) -> str:
    return _line(as_mapping(body.get("CurrencyRef")).get("value"))


def _money(value: object, body: Mapping[str, Any]) -> str:
    """Return an amount with its currency; a text or number that is no amount as it came."""
    amount = read_amount(value)
    if amount is None:
        return _line(value)
    return format_money(amount, _currency(body))
