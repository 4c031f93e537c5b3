"""Front, the shared inbox: customers ask for their shipments, staff comment and reply. Both kinds of webhook, and `/events`."""

from __future__ import annotations

import base64
import hmac
import json
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any, ClassVar

from starlette.requests import Request
from starlette.responses import JSONResponse, RedirectResponse, Response
from starlette.routing import Route

from apex_memory.simulate.frontapp.events import Event, events_of, teammate
from apex_memory.simulate.vendor import Chaos, Push, Simulator, Truth
from apex_memory.simulate.world import Clock, World

SIGNING_KEY, API_SECRET, API_TOKEN = "simulated-signing-key", "simulated-secret", "simulated-token"
PAGE_SIZE = 15  # events
_STATUS = {"archive": "archived", "trash": "deleted", "assign": "assigned"}
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


class FrontSimulator(Simulator):
    """A conversation a shipment, some with a second one merged into it, some with a digest in the trash."""

    name: ClassVar[str] = "frontapp"

    def __init__(self, world: World, clock: Clock, chaos: Chaos) -> None:
        super().__init__(world, clock, chaos)
        self._events = events_of(world)

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
            Route("/events", self._list_events),
            Route("/events/{id}", self._show_event),
            Route("/messages/{id}", self._show_target),
            Route("/comments/{id}", self._show_target),
            Route("/conversations/{id}", self._show_conversation),
        ]

    def pushes(self, since: datetime, until: datetime) -> Iterator[Push]:
        for event in self._events:
            if since < event.at <= until and event.via != "none":
                yield self._push(event)

    def truth(self, until: datetime) -> Sequence[Truth]:
        events = [event for event in self._events if event.listed_at <= until]
        trashed = {event.conversation for event in events if event.type == "trash"}
        truth = []
        for event in events:
            if event.body is not None:
                key = f"{event.kind}:{event.target}"
                if event.conversation in trashed:
                    truth.append(Truth(key, deleted=True))
                else:
                    text = event.body["text" if event.kind == "message" else "body"]
                    truth.append(Truth(key, str(text)))
            if event.merged:
                text = f"Merged into: {event.conversation}"
                truth.append(Truth(f"conversation:{event.merged}", text))
        merged = {event.merged for event in events}
        for id in sorted({event.conversation for event in events} - merged):
            own_events = [event for event in events if event.conversation == id]
            if any(event.body is None for event in own_events):
                truth.append(_conversation_truth(id, own_events, deleted=id in trashed))
        return truth

    def _push(self, event: Event) -> Push:
        payload = self._payload(event, partial=event.via == "preview")
        if event.via == "application":
            envelope = {"type": _OUTER[event.type], "authorization": {"id": "cmp_sim"}}
            body = json.dumps({**envelope, "payload": payload}).encode()
            return Push(event.at, "/hooks/frontapp", body, sign_application)
        return Push(event.at, "/hooks/frontapp", json.dumps(payload).encode(), sign_rule)

    def _payload(self, event: Event, *, partial: bool) -> dict[str, Any]:
        """Return an event in Front's format; `partial`: conversation and target by id alone."""
        target: dict[str, Any] | None = None
        if event.body is not None:
            data = {"id": event.target} if partial else event.body
            target = {"_meta": {"type": event.kind}, "data": data}
        elif event.merged:
            target = {"_meta": {"type": "deleted_conversation_ids"}, "data": [event.merged]}
        elif event.type == "tag":
            target = {"_meta": {"type": "tag"}, "data": {"id": "tag_eta", "name": "ETA"}}
        state = {"id": event.conversation} if partial else self._state(event)
        payload = {
            "_links": {"self": f"https://acme.api.frontapp.com/events/{event.id}"},
            "id": event.id,
            "type": event.type,
            "emitted_at": event.emitted,
            "conversation": state,
            "source": {"_meta": {"type": "teammate"}, "data": teammate(event.actor)},
        }
        return {**payload, "target": target} if target else payload

    def _state(self, event: Event) -> dict[str, Any]:
        """Return the conversation as it is after an event."""
        history = [
            item
            for item in self._events
            if item.conversation == event.conversation and item.at <= event.at
        ]
        changes = [item.type for item in history if item.type in _STATUS]
        assigned = next((item.actor for item in history if item.type == "assign"), None)
        return {
            "id": event.conversation,
            "type": "email",
            "subject": event.subject,
            "status": _STATUS[changes[-1]] if changes else "unassigned",
            "assignee": teammate(assigned) if assigned else None,
            "recipient": {"handle": "ops@example.com", "role": "from"},
            "tags": [{"id": "tag_eta", "name": "ETA"}],
            "links": [],
            "custom_fields": {},
            "is_private": False,
        }

    async def _list_events(self, request: Request) -> Response:
        if refused := self._refused(request):
            return refused
        query = request.query_params
        if token := query.get("page_token"):
            after, before, descending, last = json.loads(base64.urlsafe_b64decode(token))
        else:
            after = float(query.get("q[after]", 0))
            before = float(query.get("q[before]", 1e12))
            descending, last = query.get("sort_order", "desc") != "asc", None
        listed = [
            event
            for event in self._events
            if after < event.emitted < before and event.listed_at <= self.clock.now
        ]
        if descending:
            listed.reverse()
        keys = [[event.emitted, event.id] for event in listed]
        start = 0
        if last:
            beyond = (n for n, key in enumerate(keys) if _is_beyond(key, last, descending))
            start = next(beyond, len(listed))
        limit = min(PAGE_SIZE, int(query.get("limit", PAGE_SIZE)))
        page = listed[start : start + limit]
        next_url = None
        if start + limit < len(listed):
            state = json.dumps([after, before, descending, keys[start + limit - 1]]).encode()
            token = base64.urlsafe_b64encode(state).decode()
            own_url = request.url.replace(query="")
            next_url = f"{own_url}?limit={limit}&page_token={token}"
        return JSONResponse(
            {
                "_pagination": {"next": next_url},
                "_links": {"self": str(request.url)},
                "_results": [self._payload(event, partial=event.partial) for event in page],
            },
            headers={"x-ratelimit-limit": "50", "x-ratelimit-remaining": "49"},
        )

    async def _show_event(self, request: Request) -> Response:
        if refused := self._refused(request):
            return refused
        event = self._visible(request.path_params["id"], "id")
        if event is None:
            return _error(404, "Not found")
        # A single event, too, has only the id of its target: the body takes a call of its own.
        return JSONResponse(self._payload(event, partial=True))

    async def _show_target(self, request: Request) -> Response:
        if refused := self._refused(request):
            return refused
        event = self._visible(request.path_params["id"], "target")
        return JSONResponse(event.body) if event else _error(404, "Not found")

    async def _show_conversation(self, request: Request) -> Response:
        """A conversation that was merged into another one redirects to it."""
        if refused := self._refused(request):
            return refused
        id = request.path_params["id"]
        if into := self._visible(id, "merged"):
            path = request.url.path.replace(id, into.conversation)
            return RedirectResponse(str(request.url.replace(path=path)), 301)
        now = self.clock.now
        events = [event for event in self._events if event.conversation == id and event.at <= now]
        return JSONResponse(self._state(events[-1])) if events else _error(404, "Not found")

    def _visible(self, id: str, field: str) -> Event | None:
        """Return the first event up to now whose `field` is `id`."""
        for event in self._events:
            if getattr(event, field) == id and event.at <= self.clock.now:
                return event
        return None

    def _refused(self, request: Request) -> Response | None:
        if request.headers.get("authorization") != f"Bearer {API_TOKEN}":
            return _error(401, "Unauthenticated")
        if self.chaos.strikes(self.chaos.limits):
            return _error(429, "Too many requests", {"retry-after": "0.02", "x-front-tier": "1"})
        if self.chaos.strikes(self.chaos.errors):
            return _error(503, "Unavailable", {"retry-after": "0.02"})
        return None


def sign_application(body: bytes, at: datetime) -> dict[str, str]:
    """Return the headers of an application webhook."""
    stamp = str(int(at.timestamp() * 1000))
    digest = hmac.digest(SIGNING_KEY.encode(), f"{stamp}:".encode() + body, "sha256")
    signature = base64.b64encode(digest).decode()
    return {"X-Front-Request-Timestamp": stamp, "X-Front-Signature": signature}


def sign_rule(body: bytes, at: datetime) -> dict[str, str]:
    """Return the header of a rule's webhook, whose signature covers no time."""
    digest = hmac.digest(API_SECRET.encode(), body, "sha1")
    return {"X-Front-Signature": base64.b64encode(digest).decode()}


def _conversation_truth(id: str, events: Sequence[Event], *, deleted: bool) -> Truth:
    if deleted:
        return Truth(f"conversation:{id}", deleted=True)
    # A preview, too, holds the conversation's state, if it came before its own full form.
    states = [
        event for event in events if event.body is None or event.partial or event.via == "preview"
    ]
    last = states[-1]
    text = last.subject if last.body is not None else f"Last change: {last.type}"
    return Truth(f"conversation:{id}", text)


def _is_beyond(key: list[Any], last: list[Any], descending: bool) -> bool:
    return key < last if descending else key > last


def _error(status: int, title: str, headers: Mapping[str, str] | None = None) -> Response:
    body = {"_error": {"status": status, "title": title, "message": title}}
    return JSONResponse(body, status, headers)
