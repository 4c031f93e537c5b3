"""The month's company: Acme Logistics, its customers, carriers, trucks and loads, the same for the same seed.

The simulators of the vendors read it as any other `World`. Loads take days instead of hours, a few are from
December so that some invoices are overdue, and some are still on the road when the month ends.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

from apex_memory.simulate.world import (
    PLACES,
    Company,
    Milestone,
    Person,
    Place,
    Shipment,
    Vehicle,
    World,
)

SEED = 16
BEGIN = datetime(2025, 12, 8, 6, tzinfo=UTC)
MONTH = datetime(2026, 1, 5, 6, tzinfo=UTC)
NOW = datetime(2026, 1, 31, 12, tzinfo=UTC)
"""The time of the questions: the Saturday on which the month ends."""

FIRST_LOAD = 104_211
DECEMBER_LOADS = 12
LOADS_A_DAY = 4
WORKING_DAYS = 20
ROAD_FACTOR = 1.2  # miles by road for a mile by air

_CUSTOMERS = (
    ("Tidewater Tea", "bottled tea", "Rosalind Achterberg", "Felix Ndiaye"),
    ("Hollis Ceiling Systems", "ceiling tiles", "Wade Hollis", "Carmen Stroud"),
    ("Greenfork Garden Supply", "garden hoses", "Bettina Varga", "Louis Tranh"),
    ("Little Acorn Nutrition", "baby formula", "Dr. Sunita Bhalla", "Morten Kay"),
    ("Ferrow Wire Works", "copper wire", "Ansel Ferrow", "Judith Pell"),
    ("Bramble Pet Foods", "pet food", "Oksana Milne", "Terry Bramble"),
    ("Oakline Flooring", "laminate flooring", "Gideon Sparks", "Yvette Lamour"),
    ("Quillmark Paper", "copier paper", "Harriet Osei", "Don Castle"),
    ("Sunpatch Tomato", "tomato paste", "Marco Benedetti", "Lila Grant"),
    ("Voltedge Batteries", "car batteries", "Ingrid Solheim", "Kwame Asante"),
)
_SLOW_PAYERS = ("Oakline Flooring", "Bramble Pet Foods")
"""They had paid no load of December when the month ended."""

_CARRIERS = (
    ("Copperhead Express", "CPHX", "Lorna Tibbs", "Stan Kowal"),
    ("Lodestar Haulage", "LDSR", "Amadou Keita", "Fern Whitlock"),
    ("Marigold Freight Lines", "MGFL", "Celeste Ruiz", "Bo Haverford"),
    ("Ironwood Transport", "IRWD", "Gus Pappas", "Nell Ortega"),
    ("Plainsong Carriers", "PLSG", "Ezra Plain", "Tamsin Doyle"),
    ("Wren and Daughters Trucking", "WRND", "Maggie Wren", "Josie Wren"),
)
_DRIVERS = (
    *("Calvin Odom", "Sergei Balan", "Rhonda Vickers", "Miguel Santoro", "Pete Lundqvist"),
    *("Alma Quiroz", "Dwight Fenner", "Hank Tolliver", "Zeynep Arslan", "Curtis Boone"),
    *("Nadia Petrov", "Roy Castellaw", "Luther Gaines", "Winnie Cho"),
)
STAFF = (
    *("Noor Castellan", "Ted Abara", "Imogen Faulk", "Desmond Yee"),
    *("Paloma Reyes", "Victor Lindahl", "Hattie Brooks", "Grigor Manas"),
)
_DELAYS = (0, 0, 0, 0, 45, 90, 180)  # minutes late, drawn at random


def make_world(seed: int = SEED) -> World:
    """Return the world of the month. The same seed gives the same world."""
    dice = random.Random(seed)
    customers = tuple(
        _company(dice, 9101 + n, name, people) for n, (name, _, *people) in enumerate(_CUSTOMERS)
    )
    carriers = tuple(
        _company(dice, 541 + n, name, people, scac)
        for n, (name, scac, *people) in enumerate(_CARRIERS)
    )
    vehicles = tuple(
        Vehicle(
            281_474_900_500_001 + n,
            f"T-{311 + n}",
            f"3MONTHVIN{n:08d}",
            carriers[n % len(carriers)],
            person(dice, driver, carriers[n % len(carriers)].domain),
        )
        for n, driver in enumerate(_DRIVERS)
    )
    staff = tuple(person(dice, name, "acme.example") for name in STAFF)
    free_from = {vehicle.number: BEGIN for vehicle in vehicles}
    loads = []
    for n, day in enumerate(_days()):
        loads.append(_load(dice, FIRST_LOAD + n, day, customers, vehicles, free_from))
    return World(seed, BEGIN, customers, carriers, vehicles, tuple(loads), staff)


def person(dice: random.Random, name: str, domain: str) -> Person:
    first, last = name.removeprefix("Dr. ").lower().split()
    return Person(
        name,
        f"{first}.{last}@{domain}",
        f"+1{dice.randint(201, 989)}555{dice.randint(100, 9999):04d}",
    )


def _days() -> list[datetime]:
    """Return the day of each load: one a working day of December's weeks, then several a day."""
    days = [BEGIN + timedelta(days=n // 5 * 7 + n % 5) for n in range(DECEMBER_LOADS)]
    for n in range(WORKING_DAYS):
        days += [MONTH + timedelta(days=n // 5 * 7 + n % 5)] * LOADS_A_DAY
    return days


def _company(
    dice: random.Random, number: int, name: str, people: Sequence[str], scac: str = ""
) -> Company:
    domain = name.lower().replace(" ", "") + ".example"
    mc = str(dice.randint(100_000, 999_999)) if scac else ""
    return Company(
        number, name, domain, tuple(person(dice, each, domain) for each in people), scac, mc
    )


def _load(
    dice: random.Random,
    number: int,
    day: datetime,
    customers: Sequence[Company],
    vehicles: Sequence[Vehicle],
    free_from: dict[int, datetime],
) -> Shipment:
    place = dice.randrange(len(customers))
    customer = customers[place]
    origin, destination = dice.sample(PLACES, 2)
    miles, pallets = _miles(origin, destination), dice.randint(8, 26)
    delay = dice.choice(_DELAYS)
    cancelled = dice.random() < 0.08
    tendered = day + timedelta(minutes=dice.randint(420, 840))
    vehicle = _free_vehicle(dice, vehicles, free_from, tendered)
    steps = _milestones(dice, tendered, origin, destination, miles, delay)
    if cancelled:
        steps = steps[:2]
    else:
        free_from[vehicle.number] = steps[7].at
        paid = steps[8].at + timedelta(days=dice.randint(8, 24), minutes=dice.randint(0, 500))
        if customer.name in _SLOW_PAYERS and day < MONTH:
            paid = NOW + timedelta(days=dice.randint(10, 30))
        steps = (*steps, Milestone("paid", paid))
    return Shipment(
        number=number,
        customer=customer,
        carrier=vehicle.carrier,
        vehicle=vehicle,
        contact=dice.choice(customer.people),
        origin=origin,
        destination=destination,
        commodity=_CUSTOMERS[place][1],
        pallets=pallets,
        pounds=pallets * dice.randint(610, 1_650),
        miles=miles,
        linehaul_cents=miles * dice.randint(185, 260),
        fuel_cents=miles * 34,
        pro=f"PRO{691_000 + number - 100_000}",
        po=f"{dice.randint(20, 89)}{number - 100_000}",
        milestones=steps,
        cancelled_at=tendered + timedelta(hours=3) if cancelled else None,
        delayed_minutes=0 if cancelled else delay,
    )


def _miles(origin: Place, destination: Place) -> int:
    """Return the distance by road."""
    north = (origin.latitude - destination.latitude) * 69
    middle = math.radians((origin.latitude + destination.latitude) / 2)
    east = (origin.longitude - destination.longitude) * 69 * math.cos(middle)
    return round(math.hypot(north, east) * ROAD_FACTOR)


def _free_vehicle(
    dice: random.Random,
    vehicles: Sequence[Vehicle],
    free_from: dict[int, datetime],
    at: datetime,
) -> Vehicle:
    """Return a truck that is free at that time, or the one that is free first."""
    free = [vehicle for vehicle in vehicles if free_from[vehicle.number] <= at]
    return dice.choice(free) if free else min(vehicles, key=lambda item: free_from[item.number])


def _milestones(
    dice: random.Random,
    tendered: datetime,
    origin: Place,
    destination: Place,
    miles: int,
    delay: int,
) -> tuple[Milestone, ...]:
    """Return the steps from the tender to the invoice."""

    def after(at: datetime, least: int, most: int) -> datetime:
        return at + timedelta(minutes=dice.randint(least, most), milliseconds=dice.randint(0, 999))

    accepted = after(tendered, 25, 90)
    dispatched = after(accepted, 90, 240)
    at_pickup = after(tendered, 16 * 60, 21 * 60)
    picked_up = after(at_pickup, 40, 150)
    en_route = after(picked_up, 15, 40)
    hours_driven = miles / 50
    nights = int(hours_driven // 11)  # ten hours of rest after eleven of driving
    arrival = en_route + timedelta(hours=hours_driven + 10 * nights, minutes=delay)
    at_delivery = after(arrival, 0, 50)
    delivered = after(at_delivery, 35, 130)
    invoiced = after(delivered, 17 * 60, 30 * 60)
    return (
        Milestone("tendered", tendered),
        Milestone("accepted", accepted),
        Milestone("dispatched", dispatched),
        Milestone("at_pickup", at_pickup, origin),
        Milestone("picked_up", picked_up, origin),
        Milestone("en_route", en_route),
        Milestone("at_delivery", at_delivery, destination),
        Milestone("delivered", delivered, destination),
        Milestone("invoiced", invoiced),
    )
