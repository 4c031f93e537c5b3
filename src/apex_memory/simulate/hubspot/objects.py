"""HubSpot's objects, version by version: companies, contacts, and a deal a shipment."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from apex_memory.simulate.world import Company, Shipment, World

SINGULAR = {"companies": "company", "contacts": "contact", "deals": "deal"}
STAGES = {
    "tendered": "appointmentscheduled",
    "accepted": "contractsent",
    "delivered": "closedwon",
    "paid": "closedwon",
}
TOUCHED = {"companies": "description", "contacts": "jobtitle", "deals": "description"}


@dataclass(frozen=True, slots=True)
class Version:
    """An object from `at` on. `archived`: in the recycle bin."""

    at: datetime
    properties: Mapping[str, str]
    archived: bool = False


Objects = dict[tuple[str, int], list[Version]]
"""By plural and id, the oldest version first."""


def objects_of(world: World) -> Objects:
    """Return all that the CRM ever holds of a world."""
    objects: Objects = {}
    imported = world.start - timedelta(days=1)
    people: dict[str, int] = {}
    for company in (*world.customers, *world.carriers):
        put(objects, "companies", company.number, Version(imported, _company(company)))
        for person in company.people:
            if person.email not in people:
                people[person.email] = 1_000 * len(people) + company.number
                properties = {
                    "firstname": person.name.split()[0],
                    "lastname": person.name.split()[-1],
                    "email": person.email,
                    "phone": person.phone,
                    "company": company.name,
                    "associatedcompanyid": str(company.number),
                    "jobtitle": "Dispatcher" if company.scac else "Buyer",
                }
                put(objects, "contacts", people[person.email], Version(imported, properties))
    _archive_contacts(objects, world, sorted(people.values()))
    for shipment in world.shipments:
        _deal(objects, shipment)
    return objects


def put(objects: Objects, plural: str, id: int, version: Version) -> None:
    """Add a version of an object."""
    versions = objects.setdefault((plural, id), [])
    versions.append(version)
    versions.sort(key=lambda item: item.at)


def last_of(versions: Sequence[Version], now: datetime) -> Version:
    """Return the version that is current at `now`; the first one before its time."""
    past = [version for version in versions if version.at <= now]
    return past[-1] if past else versions[0]


def _archive_contacts(objects: Objects, world: World, contacts: Sequence[int]) -> None:
    """Archive the first three contacts, and restore the first of them."""
    for n, id in enumerate(contacts[:3]):
        (first,) = objects["contacts", id]
        archived_at = world.start + timedelta(hours=3 + n, minutes=7)
        put(objects, "contacts", id, Version(archived_at, first.properties, archived=True))
        if n == 0:
            put(
                objects, "contacts", id, Version(archived_at + timedelta(hours=4), first.properties)
            )


def _deal(objects: Objects, shipment: Shipment) -> None:
    title = f"{shipment.id} {shipment.origin.city} {shipment.origin.state} to {shipment.destination.city} {shipment.destination.state}"
    stage = ""
    for step in shipment.milestones:
        stage = STAGES.get(step.code, stage)
        properties = {
            "dealname": title,
            "dealstage": stage,
            "pipeline": "default",
            "amount": f"{shipment.total_cents / 100:.2f}",
            "deal_currency_code": "USD",
            "hs_primary_associated_company": str(shipment.customer.number),
            "description": f"{shipment.pallets} pallets of {shipment.commodity} for {shipment.customer.name}, PO {shipment.po}. Shipment is {step.code}.",
        }
        put(objects, "deals", shipment.number, Version(step.at, properties))
    if shipment.cancelled_at:
        put(
            objects,
            "deals",
            shipment.number,
            Version(shipment.cancelled_at, properties, archived=True),
        )


def _company(company: Company) -> dict[str, str]:
    kind = "carrier" if company.scac else "customer"
    properties = {
        "name": company.name,
        "domain": company.domain,
        "phone": company.people[0].phone,
        "lifecyclestage": kind,
        "description": f"A {kind}; asks and orders through {company.people[0].name}.",
    }
    if company.scac:
        properties |= {"scac": company.scac, "mc_number": company.mc}
    return properties
