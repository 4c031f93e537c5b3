"""`apex events`, `event`, `payload`: what landed, and what became of it."""

from __future__ import annotations

import json as jsonlib
import sys
import time
from collections.abc import Sequence
from typing import Annotated, Any

import typer

from apex_memory.cli.ask import left_out
from apex_memory.cli.client import PAGE_ROWS, Gateway, gateway
from apex_memory.cli.options import AnyId, Limit, Since, iso
from apex_memory.cli.output import (
    Id,
    Json,
    Whole,
    ago,
    between,
    clean,
    is_terminal,
    moment,
    pairs,
    say,
    say_more,
    show_json,
    show_table,
    size,
    styled,
)
from apex_memory.client import Forbidden, Refused
from apex_memory.errors import Rejected

FOLLOW_SECONDS = 1.0  # between two looks for new events
PREVIEW_BYTES = 400
STATES = ("received", "prepared", "staged", "done", "superseded", "parked", "dead")
OPEN = ("received", "prepared", "staged", "parked")
COLUMNS = ("id", "source", "what", "state", "received", "took", "why")


def events(
    source: Annotated[str | None, typer.Option(help="Only this source.")] = None,
    state: Annotated[str | None, typer.Option(help=f"{', '.join(STATES)}.")] = None,
    since: Since = "",
    limit: Limit = 20,
    follow: Annotated[
        bool,
        typer.Option("--follow", "-f", help="Print a line for each change, until Ctrl-C."),
    ] = False,
    json: Json = False,
) -> None:
    """List events, newest first, with their states.

    Example: apex events --state parked
    """
    if state and state not in STATES:
        raise Rejected(f"--state {state}: no such state", remedy=f"states are {', '.join(STATES)}")
    params = {"source": source, "state": state, "since": iso(since)}
    with gateway() as api:
        if follow:
            _follow(api, {**params, "limit": min(limit, PAGE_ROWS)}, as_json=json)
            return
        rows, following = api.pages("/v1/events", "events", params, limit)
    if json:
        show_json({"events": rows, "next": following})
        return
    show_table(
        "Events",
        COLUMNS,
        [_row(event) for event in rows],
        empty="No events.",
        free=("what", "why"),
    )
    say_more(following)


def _row(event: dict[str, Any]) -> tuple[Any, ...]:
    return (
        Id(event["id"]),
        event["source"],
        _what(event),
        event["state"],
        f"{ago(event['received_at'])} ago",
        between(event["received_at"], event["ended_at"]),
        event["last_error"],
    )


def _what(event: dict[str, Any]) -> str:
    """Return what an event is about: its title, once it is prepared, or its source's id for it."""
    text = event["title"] or event["event_id"]
    return f"deletion: {text}" if event["deletion"] else str(text)


def _follow(api: Gateway, params: dict[str, Any], *, as_json: bool) -> None:
    """Print the newest events, oldest first, then each new one and each change of state, one line each."""
    shown: dict[str, str] = {}
    while True:
        page = api.call("GET", "/v1/events", params=params)["events"]
        waiting = [id for id, state in shown.items() if state in OPEN]
        changed = {event["id"]: event for event in page}
        missed = [id for id in waiting if id not in changed]
        for first in range(0, len(missed), 100):
            query = {"id": missed[first : first + 100], "limit": 100}
            rows = api.call("GET", "/v1/events", params=query)["events"]
            changed |= {event["id"]: event for event in rows}
        for event in reversed(changed.values()):
            if shown.get(event["id"]) != event["state"]:
                _follow_line(event, as_json=as_json)
            shown[event["id"]] = event["state"]
        time.sleep(FOLLOW_SECONDS)


def _follow_line(event: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        # One document a line, so that a reader need not wait for an end.
        sys.stdout.write(jsonlib.dumps(event, default=str) + "\n")
        sys.stdout.flush()
        return
    id = event["id"][:8] if is_terminal() else event["id"]
    took = between(event["received_at"], event["ended_at"])
    when = moment(event["ended_at"] or event["received_at"])[11:19]
    why = f"  {event['last_error']}" if event["last_error"] else ""
    what = " ".join(_what(event).split())
    say(
        f"{when}  {id}  {event['source']:<11} {event['state']:<10} {took:>7}  {what}",
        (why, "red"),
    )
    sys.stdout.flush()


def event(id: AnyId, json: Json = False) -> None:
    """Show an event: what it is, times, stores, attempts, and the workflow run that processed it.

    Example: apex event 0b6c3a7e
    """
    with gateway() as api:
        view = api.call("GET", f"/v1/events/{api.resolve(id)['event']}")
        preview = "" if json else _preview(api, view)
    if json:
        show_json(view)
        return
    show_event(view, preview=preview)


def _preview(api: Gateway, view: dict[str, Any]) -> str:
    """Return the beginning of a text payload on one line; empty if it is binary, absent, or closed to this key."""
    if not view["payload_bytes"]:
        return ""
    try:
        body = api.download(f"/v1/events/{view['id']}/payload", params={"first": PREVIEW_BYTES})
    except Forbidden:
        return "(an admin key shows it)"
    except Refused:
        return ""
    text = body.decode("utf-8", "ignore")
    binary = "\x00" in text or len(text.encode()) < len(body) - 3  # 3: a character cut at the end
    # A blank after each comma: a line of compact JSON could not be broken anywhere.
    return "" if binary else " ".join(clean(text).replace(",", ", ").split())


def show_event(view: dict[str, Any], *, preview: str = "") -> None:
    """Print what an event is, its steps in the order in which they happened, then the other facts."""
    kind = view["kind"] or view["content_type"]
    what = "deletion" if view["deletion"] else kind
    title = view["title"] or view["event_id"]
    say((title, "bold"), (f"  {what} from {view['source']}, ", "dim"), view["state"])
    if view["deletion"]:
        say("This event deletes its document: the text is removed from every store.")
    began = view["received_at"]
    show_table(
        "",
        ("step", "when (UTC)", "after"),
        [(step, moment(at), between(began, at)) for step, at in _steps(view)],
        empty="",
    )
    pairs("", _facts(view, preview))


def _steps(view: dict[str, Any]) -> Sequence[tuple[str, str | None]]:
    """Return the steps of an event with their times. A deletion leaves the stores, everything else enters them."""
    into = "out of" if view["deletion"] else "in"
    stores = [
        (f"{into} {store}", state["at"])
        for store, state in view["stores"].items()
        if state.get("at")
    ]
    last = "deleted" if view["deletion"] and view["state"] == "done" else view["state"]
    return [
        ("received", view["received_at"]),
        ("prepared", view["prepared_at"]),
        *sorted(stores, key=lambda step: step[1]),
        (last, view["ended_at"]),
    ]


def _facts(view: dict[str, Any], preview: str) -> dict[str, Any]:
    ended = view["ended_at"]
    if view["payload_bytes"] is None:
        payload = "no longer kept"
    elif view["payload_bytes"]:
        payload = f"{size(view['payload_bytes'])} of {view['content_type']}"
        payload += f": {preview}" if preview else ""
    else:
        payload = ""
    return {
        "event": view["id"],
        "source's event": view["event_id"],
        "document": view["document_id"],
        "occurred": moment(view["occurred_at"]),
        "payload": payload,
        "not whole": left_out(view["degraded"]),
        "attempts": view["attempts"] or "",
        "owner": "" if ended else view["owner"],
        "next attempt": "" if ended else moment(view["deadline"]),
        "waits for": view["park_store"],
        "error": view["last_error"],
        "remedy": view["remedy"],
        "dead letter": view["dead_letter"],
        "path": view["path"],
        "build": view["build"],
        "run": view["workflow_url"],
        "trace": Whole(view["trace_url"] or view["trace_id"] or ""),
    }


def payload(
    id: AnyId,
    first: Annotated[
        int | None, typer.Option(min=1, help="Only so many bytes from its beginning.")
    ] = None,
) -> None:
    """Print the stored payload of an event. It may hold personal data, so it needs an admin key.

    Of a webhook it is the body, byte for byte. Of a document and a conversation it is what was read of the request.

    Example: apex payload 0b6c3a7e > event.json
    """
    with gateway() as api:
        event_id = api.resolve(id)["event"]
        body = api.download(f"/v1/events/{event_id}/payload", params={"first": first})
    if is_terminal():
        # A terminal would act on control characters.
        sys.stdout.write(styled(body.decode("utf-8", "replace")).plain + "\n")
        return
    sys.stdout.flush()
    sys.stdout.buffer.write(body)
    sys.stdout.buffer.flush()
