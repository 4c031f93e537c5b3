"""Events of the shared inbox: a conversation a shipment, some with a second one merged into it, some with a digest for the trash."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Literal

from apex_memory.simulate.world import Person, Shipment, World

LISTED_AFTER = timedelta(minutes=2)  # events of mass actions are listed that much later

Via = Literal["application", "rule", "preview", "none"]


@dataclass(frozen=True, slots=True)
class Event:
    """One event. `via` is the webhook that sends it; `partial`: the list has only the id of its target."""

    id: str
    type: str
    at: datetime
    conversation: str
    subject: str
    actor: Person
    body: Mapping[str, Any] | None = None
    kind: str = ""
    target: str = ""
    merged: str = ""
    via: Via = "application"
    partial: bool = False

    @property
    def emitted(self) -> float:
        return round(self.at.timestamp(), 3)

    @property
    def listed_at(self) -> datetime:
        return self.at + (LISTED_AFTER if self.via == "none" else timedelta(0))


def events_of(world: World) -> list[Event]:
    """Return all events of a world in the order of Front's list."""
    events: list[Event] = []
    for shipment in world.shipments:
        events += _shipment_events(world, shipment)
    return sorted(events, key=lambda event: (event.emitted, event.id))


def _shipment_events(world: World, shipment: Shipment) -> Iterator[Event]:
    started = shipment.at("en_route") or shipment.at("accepted")
    assert started is not None, "every shipment is accepted"
    began = started + timedelta(minutes=3)
    yield from _conversation(world, shipment, began)
    if shipment.number % 3 == 0:
        yield from _merged_conversation(world, shipment, began + timedelta(minutes=4))
    if shipment.number % 2 == 0:
        yield from _digest(world, shipment, began + timedelta(minutes=1))


def _conversation(world: World, shipment: Shipment, began: datetime) -> Iterator[Event]:
    """The usual course: a question, a rule's tag, an assignment, a comment, and a reply."""
    number, staff = shipment.number, world.staff[shipment.number % len(world.staff)]
    conversation, subject = f"cnv_{number}a", f"ETA for {shipment.id}?"
    rule: Via = ("application", "rule", "preview")[number % 3]
    ask = (
        f"Hello, when will {shipment.id} (PO {shipment.po}) with {shipment.pallets} pallets of "
        f"{shipment.commodity} reach {shipment.destination.city}?\n\n{shipment.contact.name}, {shipment.customer.name}"
    )
    late = f" It runs {shipment.delayed_minutes} minutes late." if shipment.delayed_minutes else ""
    note = (
        f"Called {shipment.vehicle.driver.name}, unit {shipment.vehicle.unit}: on the road.{late}"
    )
    answer = (
        f"{shipment.id} left {shipment.origin.city}, {shipment.origin.state} with {shipment.carrier.name}, "
        f"{shipment.pro}.{late}\n\n{staff.name}"
    )
    if shipment.cancelled_at:
        answer = f"{shipment.id} was cancelled.\n\n{staff.name}"

    def event(n: int, name: str, minutes: float, **more: Any) -> Event:
        at = began + timedelta(minutes=minutes)
        return Event(f"evt_{number}a{n}", name, at, conversation, subject, staff, **more)

    mail = _mail(f"msg_{number}a1", shipment.contact, "dispatch@acme.example", subject, ask, began)
    yield event(1, "inbound", 0, **_message(mail), via=rule)
    yield event(2, "tag", 0.01)
    yield event(3, "assign", 2)
    posted = round((began + timedelta(minutes=2)).timestamp(), 3)
    comment = {
        "id": f"com_{number}a4",
        "body": note,
        "author": teammate(staff),
        "posted_at": posted,
    }
    # At the same millisecond as the assignment: only ids order the two at the end of a page.
    about = {"body": comment, "kind": "comment", "target": comment["id"]}
    yield event(4, "comment", 2, **about, partial=number % 4 == 1)
    replied = began + timedelta(minutes=12)
    reply = _mail(f"msg_{number}a5", staff, shipment.contact.email, subject, answer, replied)
    yield event(5, "out_reply", 12, **_message({**reply, "is_inbound": False}), partial=True)
    # Mass actions send no webhook.
    yield event(6, "archive", 30, via="none" if number % 2 else "application")


def _merged_conversation(world: World, shipment: Shipment, began: datetime) -> Iterator[Event]:
    """A colleague asks too, and the two conversations are merged."""
    number, staff = shipment.number, world.staff[0]
    subject, colleague = f"Any news on {shipment.id}", shipment.customer.people[0]
    text = f"Has {shipment.id} been picked up in {shipment.origin.city} yet?"
    mail = _mail(f"msg_{number}c1", colleague, "dispatch@acme.example", subject, text, began)
    inbound = Event(
        f"evt_{number}c1", "inbound", began, f"cnv_{number}c", subject, staff, **_message(mail)
    )
    yield inbound
    at = began + timedelta(minutes=9)
    yield Event(
        f"evt_{number}c2",
        "conversations_merged",
        at,
        f"cnv_{number}a",
        f"ETA for {shipment.id}?",
        staff,
        merged=f"cnv_{number}c",
    )


def _digest(world: World, shipment: Shipment, began: datetime) -> Iterator[Event]:
    """A newsletter that is moved to the trash."""
    number, staff = shipment.number, world.staff[-1]
    conversation, subject = f"cnv_{number}b", "Your weekly load board digest"
    sender = Person("Load Board", "digest@loadboard.example", "")
    text = f"Lane of the week: {shipment.origin.city} to {shipment.destination.city}."
    mail = _mail(f"msg_{number}b1", sender, "dispatch@acme.example", subject, text, began)
    inbound = Event(
        f"evt_{number}b1", "inbound", began, conversation, subject, staff, **_message(mail)
    )
    yield inbound
    at = began + timedelta(minutes=10)
    yield Event(f"evt_{number}b2", "trash", at, conversation, subject, staff)


def _message(mail: Mapping[str, Any]) -> dict[str, Any]:
    return {"body": mail, "kind": "message", "target": mail["id"]}


def _mail(
    id: str, sender: Person, to: str, subject: str, text: str, at: datetime
) -> dict[str, Any]:
    return {
        "id": id,
        "type": "email",
        "is_inbound": True,
        "created_at": round(at.timestamp(), 3),
        "subject": subject,
        "blurb": text[:60],
        "body": "".join(f"<p>{line}</p>" for line in text.split("\n\n")),
        "text": text,
        "author": None,
        "is_draft": False,
        "error_type": None,
        "recipients": [
            {"handle": sender.email, "role": "from", "name": sender.name},
            {"handle": to, "role": "to", "name": None},
        ],
        "attachments": [],
        "metadata": {},
    }


def teammate(person: Person) -> dict[str, Any]:
    first, _, last = person.name.partition(" ")
    id = f"tea_{person.email.partition('@')[0].replace('.', '')}"
    return {"id": id, "email": person.email, "first_name": first, "last_name": last}
