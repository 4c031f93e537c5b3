"""One logistics world, the same for the same seed: shippers, carriers, trucks, and shipments from tender to payment.

Every vendor reports the same things in its own format, so the same shipment shows up in mail, transport system, EDI,
telematics, invoice, bank, CRM and chat. Times are the world's own; a `Clock` gives its present.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from time import monotonic

DAY = datetime(2026, 11, 2, 6, tzinfo=UTC)
"""When a world begins by default: a Monday morning."""


class Clock:
    """The world's time: it stands still, or runs at `speed` world seconds a second."""

    def __init__(self, start: datetime = DAY, *, speed: float = 0) -> None:
        self._start, self._speed, self._began = start, speed, monotonic()

    @property
    def now(self) -> datetime:
        return self._start + timedelta(seconds=(monotonic() - self._began) * self._speed)

    def run(self, speed: float) -> None:
        """Run from here on at `speed` world seconds a second; 0 stands still."""
        self._start, self._began = self.now, monotonic()
        self._speed = speed

    def advance_to(self, moment: datetime) -> None:
        """Set the time to `moment`, unless it is past already."""
        self._start, self._began = max(moment, self.now), monotonic()


@dataclass(frozen=True, slots=True)
class Place:
    city: str
    state: str
    zip: str
    latitude: float
    longitude: float


@dataclass(frozen=True, slots=True)
class Person:
    name: str
    email: str
    phone: str


@dataclass(frozen=True, slots=True)
class Company:
    """A customer (shipper) or a carrier. `number` is unique; vendors derive their ids from it."""

    number: int
    name: str
    domain: str
    people: tuple[Person, ...]
    scac: str = ""
    mc: str = ""


@dataclass(frozen=True, slots=True)
class Vehicle:
    number: int
    unit: str  # `T-204`, on the door and in a 214
    vin: str
    carrier: Company
    driver: Person


@dataclass(frozen=True, slots=True)
class Milestone:
    """A step of a shipment. `code` is one of `STEPS`; each vendor maps it to a code of its own."""

    code: str
    at: datetime
    place: Place | None = None


STEPS = (
    "tendered",
    "accepted",
    "dispatched",
    "at_pickup",
    "picked_up",
    "en_route",
    "at_delivery",
    "delivered",
    "invoiced",
    "paid",
)


@dataclass(frozen=True, slots=True)
class Shipment:
    """A load from origin to destination: number 100045 is `SHP-100045`. Money is in US cents.

    A cancelled shipment ends after `accepted`.
    """

    number: int
    customer: Company
    carrier: Company
    vehicle: Vehicle
    contact: Person  # who asks at the customer's
    origin: Place
    destination: Place
    commodity: str
    pallets: int
    pounds: int
    miles: int
    linehaul_cents: int
    fuel_cents: int
    pro: str
    po: str
    milestones: tuple[Milestone, ...]
    cancelled_at: datetime | None = None
    delayed_minutes: int = 0

    @property
    def id(self) -> str:
        return f"SHP-{self.number}"

    @property
    def invoice(self) -> str:
        return f"INV-{self.number - 45_000}"

    @property
    def total_cents(self) -> int:
        return self.linehaul_cents + self.fuel_cents

    def at(self, code: str) -> datetime | None:
        """Return when the step happens; None if it never does."""
        return next((step.at for step in self.milestones if step.code == code), None)

    def reached(self, now: datetime) -> Sequence[Milestone]:
        """Return the steps up to now, the oldest first."""
        return [step for step in self.milestones if step.at <= now]

    def position(self, now: datetime) -> tuple[float, float]:
        """Return where the truck is: latitude and longitude in degrees."""
        start = self.at("picked_up") or now
        end = self.at("at_delivery") or start + timedelta(hours=1)
        share = min(1.0, max(0.0, (now - start) / max(end - start, timedelta(seconds=1))))
        return (
            self.origin.latitude + share * (self.destination.latitude - self.origin.latitude),
            self.origin.longitude + share * (self.destination.longitude - self.origin.longitude),
        )


PLACES = (
    Place("Columbus", "OH", "43215", 39.9612, -82.9988),
    Place("Atlanta", "GA", "30303", 33.7490, -84.3880),
    Place("Dallas", "TX", "75201", 32.7767, -96.7970),
    Place("Memphis", "TN", "38103", 35.1495, -90.0490),
    Place("Chicago", "IL", "60601", 41.8781, -87.6298),
    Place("Kansas City", "MO", "64106", 39.0997, -94.5786),
    Place("Charlotte", "NC", "28202", 35.2271, -80.8431),
    Place("Denver", "CO", "80202", 39.7392, -104.9903),
)
_CUSTOMERS = (
    "Example Paper Co",
    "Sample Retail",
    "Harbor Foods",
    "Prairie Tools",
    "Lakeside Glass",
    "Cedar Furniture",
)
_CARRIERS = (
    ("Northwind Trucking", "NWTR"),
    ("Blue Ridge Freight", "BRFT"),
    ("Sunline Carriers", "SNLC"),
)
_FIRST = ("Dana", "Lee", "Marta", "Omar", "Priya", "Sam", "Ines", "Jon", "Ruth", "Tao")
_LAST = ("Whitfield", "Okafor", "Lindqvist", "Moreno", "Keller", "Nakamura", "Haddad", "Brandt")
_GOODS = (
    "paper rolls",
    "canned goods",
    "hand tools",
    "float glass",
    "oak tables",
    "frozen berries",
)


@dataclass(frozen=True, slots=True)
class World:
    """All that ever happens: companies, people, vehicles and shipments."""

    seed: int
    start: datetime
    customers: tuple[Company, ...]
    carriers: tuple[Company, ...]
    vehicles: tuple[Vehicle, ...]
    shipments: tuple[Shipment, ...]
    staff: tuple[Person, ...] = field(default=())
    """Our own people, at `acme.example`."""

    @classmethod
    def make(cls, seed: int = 1, *, shipments: int = 12, start: datetime = DAY) -> World:
        """Return a day of so many `shipments`, numbered from 100041 on. The same arguments give the same world."""
        dice = random.Random(seed)  # noqa: S311 -- a world, not a secret
        customers = tuple(_company(dice, 9001 + n, name) for n, name in enumerate(_CUSTOMERS))
        carriers = tuple(
            _company(dice, 511 + n, name, scac) for n, (name, scac) in enumerate(_CARRIERS)
        )
        vehicles = tuple(_vehicle(dice, n, carriers[n % len(carriers)]) for n in range(9))
        staff = tuple(_person(dice, "acme.example") for _ in range(4))
        loads = tuple(
            _shipment(dice, 100_041 + n, start, customers, vehicles) for n in range(shipments)
        )
        return cls(seed, start, customers, carriers, vehicles, loads, staff)


def _person(dice: random.Random, domain: str) -> Person:
    first, last = dice.choice(_FIRST), dice.choice(_LAST)
    phone = f"+1{dice.randint(201, 989)}555{dice.randint(100, 9999):04d}"
    return Person(f"{first} {last}", f"{first}.{last}@{domain}".lower(), phone)


def _company(dice: random.Random, number: int, name: str, scac: str = "") -> Company:
    domain = name.lower().replace(" ", "") + ".example"
    mc = str(dice.randint(100_000, 999_999)) if scac else ""
    people = tuple(_person(dice, domain) for _ in range(2))
    return Company(number, name, domain, people, scac, mc)


def _vehicle(dice: random.Random, n: int, carrier: Company) -> Vehicle:
    unit = f"T-{204 + n}"
    return Vehicle(
        281_474_900_000_001 + n, unit, f"1EXAMPLEVIN{n:06d}", carrier, _person(dice, carrier.domain)
    )


def _shipment(
    dice: random.Random,
    number: int,
    start: datetime,
    customers: tuple[Company, ...],
    vehicles: tuple[Vehicle, ...],
) -> Shipment:
    customer, vehicle = dice.choice(customers), dice.choice(vehicles)
    origin, destination = dice.sample(PLACES, 2)
    pallets, miles = dice.randint(6, 26), dice.randint(240, 900)
    delay = dice.choice((0, 0, 0, 45, 120))
    cancelled = dice.random() < 0.1 and number != 100_045
    steps = STEPS[:2] if cancelled else STEPS
    at = start + timedelta(minutes=dice.randint(0, 180))
    milestones = []
    for code in steps:
        place = origin if code in ("at_pickup", "picked_up") else destination
        where = place if code in ("at_pickup", "picked_up", "at_delivery", "delivered") else None
        milestones.append(Milestone(code, at, where))
        late = delay if code == "en_route" else 0
        at += timedelta(minutes=dice.randint(25, 90) + late, milliseconds=dice.randint(0, 999))
    return Shipment(
        number=number,
        customer=customer,
        carrier=vehicle.carrier,
        vehicle=vehicle,
        contact=dice.choice(customer.people),
        origin=origin,
        destination=destination,
        commodity=dice.choice(_GOODS),
        pallets=pallets,
        pounds=pallets * 760,
        miles=miles,
        linehaul_cents=miles * dice.randint(185, 260),
        fuel_cents=miles * 31,
        pro=f"PRO{778_000 + number - 100_000}",
        po=str(7_700 + number - 100_000),
        milestones=tuple(milestones),
        cancelled_at=at if cancelled else None,
        delayed_minutes=delay,
    )
