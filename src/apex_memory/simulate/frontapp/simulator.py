"""Front: the shared inbox. Customers ask for their shipments, staff comment and answer; both kinds of webhook, and `/events`."""

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
MOST = 15  # events a page
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
    """A conversation a shipment, a second one that is merged into it, and some that end in the bin."""

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

    def _push(self, event: Event) -> Push:
        inner = self._told(event, partial=event.via == "preview")
        if event.via == "application":
            envelope = {"type": _OUTER[event.type], "authorization": {"id": "cmp_sim"}}
            body = json.dumps({**envelope, "payload": inner}).encode()
            return Push(event.at, "/hooks/frontapp", body, sign_application)
        return Push(event.at, "/hooks/frontapp", json.dumps(inner).encode(), sign_rule)

    def _told(self, event: Event, *, partial: bool) -> dict[str, Any]:
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
            "source": {"_meta": {"type": "teammate"}, "data": teammate(event.actor)},
        }
        return {**told, "target": target} if target else told

    def _state(self, event: Event) -> dict[str, Any]:
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
            "assignee": teammate(assigned) if assigned else None,
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

    def _visible(self, id: str, field: str) -> Event | None:
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


def _conversation_truth(id: str, events: Sequence[Event], *, gone: bool) -> Truth:
    if gone:
        return Truth(f"conversation:{id}", deleted=True)
    # A preview, too, tells the conversation's state, if it came before its own full form.
    states = [e for e in events if e.body is None or e.partial or e.via == "preview"]
    last = states[-1]
    text = last.subject if last.body is not None else f"Last change: {last.type}"
    return Truth(f"conversation:{id}", text)


def _beyond(key: list[Any], last: list[Any], descending: bool) -> bool:
    return key < last if descending else key > last


def _error(status: int, title: str, headers: Mapping[str, str] | None = None) -> Response:
    body = {"_error": {"status": status, "title": title, "message": title}}
    return JSONResponse(body, status, headers)
