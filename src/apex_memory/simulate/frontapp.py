"""Front: the shared inbox. Customers ask for their shipments, staff comment and answer; both kinds of webhook, and `/events`."""

from __future__ import annotations

import base64
import hmac
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, ClassVar, Literal

from starlette.requests import Request
from starlette.responses import JSONResponse, RedirectResponse, Response
from starlette.routing import Route

from apex_memory.simulate.vendor import Chaos, Push, Simulator, Truth
from apex_memory.simulate.world import Clock, Person, Shipment, World

SIGNING_KEY, API_SECRET, API_TOKEN = "simulated-signing-key", "simulated-secret", "simulated-token"
MOST = 15  # events a page
LISTED_AFTER = timedelta(minutes=2)  # events of mass actions show up in the list that much later
_OUTER = {
    "inbound": "inbound_received",
    "out_reply": "outbound_sent",
    "comment": "new_comment_added",
    "tag": "tag_added",
    "assign": "assignee_changed",
    "archive": "conversation_archived",
    "trash": "conversation_deleted",
    "conversations_merged": "conversation_moved",
}
_STATUS = {"archive": "archived", "trash": "deleted", "assign": "assigned"}

Via = Literal["application", "rule", "preview", "none"]


@dataclass(frozen=True, slots=True)
class _Event:
    """One event. `via` says which webhook carries it; `partial`: the list names its target by id alone."""

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


class FrontSimulator(Simulator):
    """A conversation a shipment, a second one that is merged into it, and some that end in the bin."""

    name: ClassVar[str] = "frontapp"

    def __init__(self, world: World, clock: Clock, chaos: Chaos) -> None:
        super().__init__(world, clock, chaos)
        events = [event for shipment in world.shipments for event in _told(world, shipment)]
        self._events = sorted(events, key=lambda event: (event.emitted, event.id))

    def settings(self, base: str) -> dict[str, Any]:
        return {
            "signing_keys": [SIGNING_KEY],
            "api_secrets": [API_SECRET],
            "api_token": API_TOKEN,
            "base_url": base,
            "requests_per_minute": 60_000,
        }

    def routes(self) -> Sequence[Route]:
        return [
            Route("/events", self._list),
            Route("/events/{id}", self._one),
            Route("/messages/{id}", self._thing),
            Route("/comments/{id}", self._thing),
            Route("/conversations/{id}", self._conversation),
        ]

    def pushes(self, since: datetime, until: datetime) -> Iterator[Push]:
        for event in self._events:
            if since < event.at <= until and event.via != "none":
                yield self._push(event)

    def truth(self, until: datetime) -> Sequence[Truth]:
        told = [event for event in self._events if event.listed_at <= until]
        binned = {event.conversation for event in told if event.type == "trash"}
        held = []
        for event in told:
            if event.body is not None:
                gone = event.conversation in binned
                text = (
                    "" if gone else str(event.body["text" if event.kind == "message" else "body"])
                )
                held.append(Truth(f"{event.kind}:{event.target}", text, gone))
            if event.merged:
                text = f"Merged into: {event.conversation}"
                held.append(Truth(f"conversation:{event.merged}", text))
        merged = {event.merged for event in told}
        for id in sorted({event.conversation for event in told} - merged):
            mine = [event for event in told if event.conversation == id]
            if any(event.body is None for event in mine):
                held.append(_conversation_truth(id, mine, gone=id in binned))
        return held

    def _push(self, event: _Event) -> Push:
        inner = self._told(event, partial=event.via == "preview")
        if event.via == "application":
            envelope = {"type": _OUTER[event.type], "authorization": {"id": "cmp_sim"}}
            body = json.dumps({**envelope, "payload": inner}).encode()
            return Push(event.at, "/hooks/frontapp", body, sign_application)
        return Push(event.at, "/hooks/frontapp", json.dumps(inner).encode(), sign_rule)

    def _told(self, event: _Event, *, partial: bool) -> dict[str, Any]:
        """An event in Front's words."""
        target: dict[str, Any] | None = None
        if event.body is not None:
            data = {"id": event.target} if partial else event.body
            target = {"_meta": {"type": event.kind}, "data": data}
        elif event.merged:
            target = {"_meta": {"type": "deleted_conversation_ids"}, "data": [event.merged]}
        elif event.type == "tag":
            target = {"_meta": {"type": "tag"}, "data": {"id": "tag_eta", "name": "ETA"}}
        state = {"id": event.conversation} if partial else self._state(event)
        told = {
            "_links": {"self": f"https://acme.api.frontapp.com/events/{event.id}"},
            "id": event.id,
            "type": event.type,
            "emitted_at": event.emitted,
            "conversation": state,
            "source": {"_meta": {"type": "teammate"}, "data": _teammate(event.actor)},
        }
        return {**told, "target": target} if target else told

    def _state(self, event: _Event) -> dict[str, Any]:
        before = [
            one
            for one in self._events
            if one.conversation == event.conversation and one.at <= event.at
        ]
        changes = [one.type for one in before if one.type in _STATUS]
        assigned = next((one.actor for one in before if one.type == "assign"), None)
        return {
            "id": event.conversation,
            "type": "email",
            "subject": event.subject,
            "status": _STATUS[changes[-1]] if changes else "unassigned",
            "assignee": _teammate(assigned) if assigned else None,
            "recipient": {"handle": "ops@example.com", "role": "from"},
            "tags": [{"id": "tag_eta", "name": "ETA"}],
            "links": [],
            "custom_fields": {},
            "is_private": False,
        }

    async def _list(self, request: Request) -> Response:
        if refused := self._refused(request):
            return refused
        asked = request.query_params
        if token := asked.get("page_token"):
            after, before, descending, last = json.loads(base64.urlsafe_b64decode(token))
        else:
            after = float(asked.get("q[after]", 0))
            before = float(asked.get("q[before]", 1e12))
            descending, last = asked.get("sort_order", "desc") != "asc", None
        found = [
            event
            for event in self._events
            if after < event.emitted < before and event.listed_at <= self.clock.now
        ]
        if descending:
            found.reverse()
        keys = [[event.emitted, event.id] for event in found]
        start = next(
            (n for n, key in enumerate(keys) if last and _beyond(key, last, descending)), None
        )
        start = (len(found) if start is None else start) if last else 0
        limit = min(MOST, int(asked.get("limit", MOST)))
        page = found[start : start + limit]
        following = None
        if start + limit < len(found):
            state = json.dumps([after, before, descending, keys[start + limit - 1]]).encode()
            token = base64.urlsafe_b64encode(state).decode()
            own = request.url.replace(query="")
            following = f"{own}?limit={limit}&page_token={token}"
        return JSONResponse(
            {
                "_pagination": {"next": following},
                "_links": {"self": str(request.url)},
                "_results": [self._told(event, partial=event.partial) for event in page],
            },
            headers={"x-ratelimit-limit": "50", "x-ratelimit-remaining": "49"},
        )

    async def _one(self, request: Request) -> Response:
        if refused := self._refused(request):
            return refused
        found = self._visible(request.path_params["id"], "id")
        # The one event, too, names its target only: its body is a call of its own.
        return JSONResponse(self._told(found, partial=True)) if found else _error(404, "Not found")

    async def _thing(self, request: Request) -> Response:
        if refused := self._refused(request):
            return refused
        found = self._visible(request.path_params["id"], "target")
        return JSONResponse(found.body) if found else _error(404, "Not found")

    async def _conversation(self, request: Request) -> Response:
        """A conversation that was merged away leads to the one it is in now."""
        if refused := self._refused(request):
            return refused
        id = request.path_params["id"]
        if into := self._visible(id, "merged"):
            path = request.url.path.replace(id, into.conversation)
            return RedirectResponse(str(request.url.replace(path=path)), 301)
        mine = [e for e in self._events if e.conversation == id and e.at <= self.clock.now]
        return JSONResponse(self._state(mine[-1])) if mine else _error(404, "Not found")

    def _visible(self, id: str, field: str) -> _Event | None:
        now = self.clock.now
        return next((e for e in self._events if getattr(e, field) == id and e.at <= now), None)

    def _refused(self, request: Request) -> Response | None:
        if request.headers.get("authorization") != f"Bearer {API_TOKEN}":
            return _error(401, "Unauthenticated")
        if self.chaos.strikes(self.chaos.limits):
            return _error(429, "Too many requests", {"retry-after": "0.02", "x-front-tier": "1"})
        if self.chaos.strikes(self.chaos.errors):
            return _error(503, "Unavailable", {"retry-after": "0.02"})
        return None


def sign_application(body: bytes, at: datetime) -> dict[str, str]:
    """The headers of an application webhook."""
    stamp = str(int(at.timestamp() * 1000))
    digest = hmac.digest(SIGNING_KEY.encode(), f"{stamp}:".encode() + body, "sha256")
    signature = base64.b64encode(digest).decode()
    return {"X-Front-Request-Timestamp": stamp, "X-Front-Signature": signature}


def sign_rule(body: bytes, at: datetime) -> dict[str, str]:
    """The header of a rule's webhook, which signs no time."""
    digest = hmac.digest(API_SECRET.encode(), body, "sha1")
    return {"X-Front-Signature": base64.b64encode(digest).decode()}


def _told(world: World, shipment: Shipment) -> Iterator[_Event]:
    started = shipment.at("en_route") or shipment.at("accepted")
    assert started is not None, "every shipment is accepted"
    began = started + timedelta(minutes=3)
    yield from _asked(world, shipment, began)
    if shipment.number % 3 == 0:
        yield from _asked_again(world, shipment, began + timedelta(minutes=4))
    if shipment.number % 2 == 0:
        yield from _binned(world, shipment, began + timedelta(minutes=1))


def _asked(world: World, shipment: Shipment, began: datetime) -> Iterator[_Event]:
    """The usual course: a question, a rule's tag, somebody takes it, looks it up, and answers."""
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

    def event(n: int, name: str, minutes: float, **more: Any) -> _Event:
        at = began + timedelta(minutes=minutes)
        return _Event(f"evt_{number}a{n}", name, at, conversation, subject, staff, **more)

    mail = _mail(f"msg_{number}a1", shipment.contact, "dispatch@acme.example", subject, ask, began)
    yield event(1, "inbound", 0, **_message(mail), via=rule)
    yield event(2, "tag", 0.01)
    yield event(3, "assign", 2)
    posted = round((began + timedelta(minutes=2)).timestamp(), 3)
    comment = {
        "id": f"com_{number}a4",
        "body": note,
        "author": _teammate(staff),
        "posted_at": posted,
    }
    # At the very same millisecond: only ids tell the two apart at a page's edge.
    about = {"body": comment, "kind": "comment", "target": comment["id"]}
    yield event(4, "comment", 2, **about, partial=number % 4 == 1)
    replied = began + timedelta(minutes=12)
    reply = _mail(f"msg_{number}a5", staff, shipment.contact.email, subject, answer, replied)
    yield event(5, "out_reply", 12, **_message({**reply, "is_inbound": False}), partial=True)
    # Mass actions send no webhook.
    yield event(6, "archive", 30, via="none" if number % 2 else "application")


def _asked_again(world: World, shipment: Shipment, began: datetime) -> Iterator[_Event]:
    """The customer writes once more, and the two conversations become one."""
    number, staff = shipment.number, world.staff[0]
    subject, colleague = f"Any news on {shipment.id}", shipment.customer.people[0]
    text = f"Has {shipment.id} been picked up in {shipment.origin.city} yet?"
    mail = _mail(f"msg_{number}c1", colleague, "dispatch@acme.example", subject, text, began)
    asked = _Event(
        f"evt_{number}c1", "inbound", began, f"cnv_{number}c", subject, staff, **_message(mail)
    )
    yield asked
    at = began + timedelta(minutes=9)
    yield _Event(
        f"evt_{number}c2",
        "conversations_merged",
        at,
        f"cnv_{number}a",
        f"ETA for {shipment.id}?",
        staff,
        merged=f"cnv_{number}c",
    )


def _binned(world: World, shipment: Shipment, began: datetime) -> Iterator[_Event]:
    """Something nobody asked for."""
    number, staff = shipment.number, world.staff[-1]
    conversation, subject = f"cnv_{number}b", "Your weekly load board digest"
    sender = Person("Load Board", "digest@loadboard.example", "")
    text = f"Lane of the week: {shipment.origin.city} to {shipment.destination.city}."
    mail = _mail(f"msg_{number}b1", sender, "dispatch@acme.example", subject, text, began)
    kept = _Event(
        f"evt_{number}b1", "inbound", began, conversation, subject, staff, **_message(mail)
    )
    yield kept
    at = began + timedelta(minutes=10)
    yield _Event(f"evt_{number}b2", "trash", at, conversation, subject, staff)


def _conversation_truth(id: str, events: Sequence[_Event], *, gone: bool) -> Truth:
    if gone:
        return Truth(f"conversation:{id}", deleted=True)
    # A preview, too, tells the conversation's state, if it came before its own full form.
    states = [e for e in events if e.body is None or e.partial or e.via == "preview"]
    last = states[-1]
    text = last.subject if last.body is not None else f"Last change: {last.type}"
    return Truth(f"conversation:{id}", text)


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


def _teammate(person: Person) -> dict[str, Any]:
    first, _, last = person.name.partition(" ")
    id = f"tea_{person.email.partition('@')[0].replace('.', '')}"
    return {"id": id, "email": person.email, "first_name": first, "last_name": last}


def _beyond(key: list[Any], last: list[Any], descending: bool) -> bool:
    return key < last if descending else key > last


def _error(status: int, title: str, headers: Mapping[str, str] | None = None) -> Response:
    body = {"_error": {"status": status, "title": title, "message": title}}
    return JSONResponse(body, status, headers)
