"""Sets of documents that answer a question about a kind and a state: open invoices, loads on the road, and so on.

They follow from the world alone, never from a document's words: how a source words a state must not change the set.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from datetime import timedelta

from apex_memory.simulate.quickbooks.webhooks import REALM
from apex_memory.simulate.samsara.simulator import Samsara
from apex_memory.simulate.turvo.records import turvo_id
from apex_memory.simulate.world import Shipment
from bench.memory.month.company import NOW
from bench.memory.month.vendors import BILL_DAYS, DEALS, Vendors, bill_paid_at, declined_loads

INVOICE_DAYS = 30
"""Days until a customer's invoice is due, as the simulator of QuickBooks writes it."""
LOST = "closedlost"


def named_sets(made: Vendors, keys: Collection[str]) -> Mapping[str, frozenset[str]]:
    """Return the keys of the documents of each set; `keys` are those of all documents of the month."""
    world = made.world
    loads = world.shipments
    sets: dict[str, Iterable[str]] = {
        "open-invoices": map(_invoice, filter(_is_open, loads)),
        "overdue-invoices": map(_invoice, filter(_is_overdue, loads)),
        "paid-invoices": map(_invoice, filter(_is_paid, loads)),
        "voided": [_invoice(load, 3_000) for load in loads if _billed(load) and _is_twice(load)],
        "open-bills": map(_bill, filter(_bill_is_open, loads)),
        "overdue-bills": map(_bill, filter(_bill_is_overdue, loads)),
        "paid-bills": map(_bill, filter(bill_paid_at, loads)),
        "declined-tenders": [
            f"edi/response:{load.carrier.scac}:{load.id}" for load in declined_loads(world)
        ],
        "cancelled": _cancelled(loads),
        "en-route": [_turvo(load) for load in loads if _is_on_the_road(load)],
        "picked-up": [_turvo(load) for load in loads if _last_step(load) == "picked_up"],
        "not-invoiced": [_turvo(load) for load in loads if _last_step(load) == "delivered"],
        "delayed": _delayed(loads, keys),
        "speeding": _vehicle_events(made, "SevereSpeedingStarted"),
        "low-fuel": _vehicle_events(made, "Alert"),
        "defects": _vehicle_events(made, "dvirSubmitted"),
        "fuel-paid": [f"plaid/transaction:txF{load.number}" for load in loads],
        "open-deals": [f"hubspot/deal:{id}" for id, _, stage, *_ in DEALS if stage != LOST],
        "lost-deals": [f"hubspot/deal:{id}" for id, _, stage, *_ in DEALS if stage == LOST],
        "newest-otri-chi": [_newest(keys, "sonar/index:OTRI/CHI/")],
        "newest-otri-dal": [_newest(keys, "sonar/index:OTRI/DAL/")],
        "newest-otri-usa": [_newest(keys, "sonar/index:OTRI/USA/")],
        "newest-nti": [_newest(keys, "sonar/index:NTI/USA/")],
    }
    for vehicle in world.vehicles:
        prefix = f"samsara/window:{vehicle.number}:"
        sets[f"position-{vehicle.unit}"] = [_newest(keys, prefix)]
        sets[f"truck-{vehicle.unit}"] = [f"samsara/vehicle:{vehicle.number}"]
    for company in (*world.customers, *world.carriers):
        ledger = "Vendor" if company.scac else "Customer"
        role = "carrier" if company.scac else "customer"
        sets[f"{role}-{company.number}"] = [
            f"hubspot/company:{company.number}",
            f"quickbooks/{REALM}:{ledger}:{company.number}",
        ]
        first = company.name.split()[0].lower()
        own = [load for load in loads if company in (load.customer, load.carrier)]
        sets[f"open-invoices-{first}"] = map(_invoice, filter(_is_open, own))
        sets[f"open-bills-{first}"] = map(_bill, filter(_bill_is_open, own))
        sets[f"received-{first}"] = _received(own)
        sets[f"paid-{first}"] = [f"plaid/transaction:txC{load.number}" for load in own]
        sets[f"loads-{first}"] = map(_turvo, own)
    for load in loads:
        sets |= _of_load(load, keys)
    return {name: frozenset(members) & frozenset(keys) for name, members in sets.items()}


def _of_load(load: Shipment, keys: Collection[str]) -> dict[str, Iterable[str]]:
    """Return the sets with the documents of one load."""
    n = load.number
    ending = f"{load.carrier.scac}:{load.id}"
    return {
        f"shipment-{n}": [_turvo(load)],
        f"invoice-{n}": [_invoice(load), f"edi/invoice:{load.carrier.scac}:{load.invoice}"],
        f"bill-{n}": [_bill(load)],
        f"paid-{n}": [f"plaid/transaction:txC{n}"],
        f"tender-{n}": [f"edi/tender:{ending}", f"edi/cancellation:{ending}"],
        f"track-{n}": [f"llm/openai:track-{n}", f"llm/anthropic:track-{n}"],
        f"conversation-{n}": [key for key in keys if key.endswith(f"/conversation:cnv_{n}a")]
        + [f"frontapp/message:msg_{n}a1", f"frontapp/message:msg_{n}a5"],
        f"about-{n}": [key for key in keys if str(n) in key]
        + [_turvo(load), _invoice(load), _bill(load)],
    }


def _turvo(load: Shipment) -> str:
    return f"turvo/shipment:{turvo_id(load)}"


def _invoice(load: Shipment, offset: int = 0) -> str:
    return f"quickbooks/{REALM}:Invoice:{offset + load.number - 100_000}"


def _bill(load: Shipment) -> str:
    return f"quickbooks/{REALM}:Bill:{load.number - 100_000}"


def _last_step(load: Shipment) -> str:
    return "" if load.cancelled_at else load.reached(NOW)[-1].code


def _billed(load: Shipment) -> bool:
    at = load.at("invoiced")
    return at is not None and at <= NOW


def _is_paid(load: Shipment) -> bool:
    at = load.at("paid")
    return at is not None and at <= NOW


def _is_open(load: Shipment) -> bool:
    return _billed(load) and not _is_paid(load)


def _is_overdue(load: Shipment) -> bool:
    at = load.at("invoiced")
    return _is_open(load) and at is not None and at + timedelta(days=INVOICE_DAYS) < NOW


def _is_twice(load: Shipment) -> bool:
    return load.number % 4 == 0


def _bill_is_open(load: Shipment) -> bool:
    at = load.at("delivered")
    return at is not None and at <= NOW and bill_paid_at(load) is None


def _bill_is_overdue(load: Shipment) -> bool:
    at = load.at("delivered")
    return _bill_is_open(load) and at is not None and at + timedelta(days=BILL_DAYS) < NOW


def _is_on_the_road(load: Shipment) -> bool:
    return _last_step(load) == "en_route"


def _cancelled(loads: Iterable[Shipment]) -> list[str]:
    members: list[str] = []
    for load in loads:
        if load.cancelled_at:
            members.append(_turvo(load))
            members.append(f"edi/cancellation:{load.carrier.scac}:{load.id}")
            members.append(f"frontapp/message:msg_{load.number}a5")
    return members


def _delayed(loads: Iterable[Shipment], keys: Collection[str]) -> list[str]:
    """The carrier's report of the delay, the comment and the mail that say how late."""
    members: list[str] = []
    for load in loads:
        if not load.delayed_minutes:
            continue
        report = f"edi/status:{load.carrier.scac}:{load.id}:1:sSD"
        members += [key for key in keys if key.startswith(report)]
        members += [
            f"frontapp/comment:com_{load.number}a4",
            f"frontapp/message:msg_{load.number}a5",
        ]
    return members


def _vehicle_events(made: Vendors, type: str) -> list[str]:
    """Return the webhooks of a type that the vehicles sent."""
    simulator = made.by_name["samsara"]
    assert isinstance(simulator, Samsara)
    return [f"samsara/{event.key}" for event in simulator._events if event.type == type]


def _received(loads: Iterable[Shipment]) -> list[str]:
    members: list[str] = []
    for load in loads:
        members.append(f"plaid/transaction:txR{load.number}Posted")
        members.append(f"plaid/transaction:txR{load.number}Pending")
        members.append(f"quickbooks/{REALM}:Payment:{load.number - 100_000}")
    return members


def _newest(keys: Collection[str], prefix: str) -> str:
    """Return the greatest key with this prefix: such keys end with a time."""
    return max(key for key in keys if key.startswith(prefix))
