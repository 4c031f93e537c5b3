"""`apex search`, `document`, `entity`, `events`, `event`: search the memory and inspect events."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any
from urllib.parse import quote

import typer
from rich.markup import escape

from apex_memory.cli.client import gateway
from apex_memory.cli.output import ago, between, console, moment, pairs, show_json, show_table

Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def search(
    question: Annotated[str, typer.Argument(help="A question, words, or an identifier.")],
    limit: Annotated[int, typer.Option("--limit", "-n", help="How many passages.")] = 5,
    source: Annotated[
        list[str] | None, typer.Option(help="Only these sources; may be repeated.")
    ] = None,
    kind: Annotated[
        list[str] | None, typer.Option(help="Only these kinds of document; may be repeated.")
    ] = None,
    since: Annotated[
        str | None, typer.Option(help="Only documents at or after this time (ISO 8601).")
    ] = None,
    until: Annotated[
        str | None, typer.Option(help="Only documents before this time (ISO 8601).")
    ] = None,
    entity: Annotated[
        list[str] | None, typer.Option(help="Only documents that name this entity (type:key).")
    ] = None,
    json: Json = False,
) -> None:
    """Search the memory.

    Example: apex search "who asked about SHP-100045?" --source frontapp
    """
    body = {
        "query": question,
        "limit": limit,
        "filters": {
            "sources": source or [],
            "kinds": kind or [],
            "since": since,
            "until": until,
            "entities": entity or [],
        },
    }
    with gateway() as api:
        answer = api.call("POST", "/v1/search", json=body)
    if json:
        show_json(answer)
        return
    show_answer(answer)


def show_answer(answer: dict[str, Any]) -> None:
    """Print hits with excerpt, scores and provenance, and the stores that could not take part."""
    out = console()
    if answer["degraded"]:
        out.print(f"[yellow]degraded: {', '.join(answer['degraded'])}: some hits may be missing[/]")
    if not answer["hits"]:
        out.print("[dim]Nothing found.[/]")
    for hit in answer["hits"]:
        origin = hit["provenance"]
        about = f"{hit['kind']} from {hit['source']}, {moment(hit['occurred_at'])[:16]}"
        legs = ", ".join(f"{leg} {score:.2f}" for leg, score in hit["legs"].items())
        because = f"  names {', '.join(hit['why'])}" if hit["why"] else ""
        lines = (
            f"[bold]{hit['rank']}. {escape(hit['title'])}[/]  [dim]{about}[/]",
            f"   {escape(hit['excerpt'])}",
            f"   [dim]score {hit['score']:.2f} ({legs}){escape(because)}[/]",
            f"   [dim]event {origin['id']} ({escape(_short(origin['event_id'], 60))})[/]",
        )
        for line in lines:
            out.print(line, highlight=False, overflow="fold")


def left_out(degraded: Mapping[str, Mapping[str, int]]) -> str:
    """Return what limits left out of a document, for people; empty for a document that is whole."""
    parts: list[str] = []
    for limit, counts in sorted(degraded.items()):
        if "found" in counts:
            parts.append(f"{counts['kept']:,} of {counts['found']:,} {limit} kept")
        else:
            parts.append(f"{counts['left_out']:,} {limit} left out")
    return ", ".join(parts)


def _short(text: str, length: int) -> str:
    """Return the text, cut to `length` characters."""
    return text if len(text) <= length else text[: length - 1] + "…"


def document(
    id: Annotated[str, typer.Argument(help="Document id, from a search.")], json: Json = False
) -> None:
    """Show a document: text, entities, versions, and the event it came from.

    Example: apex document 6f0d4f2c-…
    """
    with gateway() as api:
        view = api.call("GET", f"/v1/documents/{id}")
    if json:
        show_json(view)
        return
    out = console()
    out.print(
        f"[bold]{escape(view['title'])}[/]  [dim]{view['kind']} from {view['source']}[/]",
        highlight=False,
    )
    if view["degraded"]:
        out.print(f"[yellow]not whole: {left_out(view['degraded'])}[/]", highlight=False)
    out.print(escape(view["text"]), highlight=False)
    pairs("Facts", {**view["metadata"], "entities": ", ".join(view["entities"])})
    show_table(
        "Versions",
        ("version", "event", "state", "committed"),
        [
            (v["version"], v["event_id"], v["state"], moment(v["committed_at"]))
            for v in view["versions"]
        ],
        empty="No versions.",
    )


def entity(
    ref: Annotated[str, typer.Argument(help="type:key, such as shipment:SHP-100045.")],
    json: Json = False,
) -> None:
    """Show what the memory knows about an entity: names, relations, documents.

    Example: apex entity shipment:SHP-100045
    """
    type_, _, key = ref.partition(":")
    with gateway() as api:
        view = api.call("GET", f"/v1/entities/{quote(type_, safe='')}/{quote(key, safe='')}")
    if json:
        show_json(view)
        return
    out = console()
    if view["degraded"]:
        out.print(f"[yellow]degraded: {', '.join(view['degraded'])}: some facts may be missing[/]")
    out.print(f"[bold]{ref}[/] {', '.join(view['names'])}", highlight=False)
    show_table(
        "Neighbours",
        ("entity", "relations"),
        list(view["neighbours"].items()),
        empty="No neighbours.",
    )
    show_table(
        "Documents",
        ("title", "source", "when", "id"),
        [
            (d["title"], d["source"], moment(d["occurred_at"])[:16], d["document_id"])
            for d in view["documents"]
        ],
        empty="No documents.",
    )


def events(
    source: Annotated[str | None, typer.Option(help="Only this source.")] = None,
    state: Annotated[
        str | None,
        typer.Option(help="received, prepared, staged, done, superseded, parked or dead."),
    ] = None,
    limit: Annotated[int, typer.Option("--limit", "-n", help="How many.")] = 20,
    json: Json = False,
) -> None:
    """List events, newest first, with their states.

    Example: apex events --state parked
    """
    with gateway() as api:
        answer = api.call(
            "GET", "/v1/events", params={"source": source, "state": state, "limit": limit}
        )
    if json:
        show_json(answer)
        return
    show_table(
        "Events",
        ("id", "source", "event", "state", "received", "took", "why"),
        [
            (
                e["id"],
                e["source"],
                e["event_id"],
                e["state"],
                ago(e["received_at"]) + " ago",
                between(e["received_at"], e["ended_at"]),
                e["last_error"] or left_out(e["degraded"]),
            )
            for e in answer["events"]
        ],
        empty="No events.",
    )


def event(
    id: Annotated[str, typer.Argument(help="Event id, from `apex events`.")], json: Json = False
) -> None:
    """Show an event: times, stores, attempts, and the workflow run that processed it.

    Example: apex event 0b6c3a7e-…
    """
    with gateway() as api:
        view = api.call("GET", f"/v1/events/{id}")
    if json:
        show_json(view)
        return
    show_event(view)


def show_event(view: dict[str, Any]) -> None:
    """Print the steps of an event in the order in which they happened, then the other facts."""
    began = view["received_at"]
    steps = [("received", began), ("prepared", view["prepared_at"])]
    steps += sorted(
        (
            (f"in {store}", state["at"])
            for store, state in view["stores"].items()
            if state.get("at")
        ),
        key=lambda step: step[1],
    )
    steps.append((view["state"], view["ended_at"]))
    show_table(
        f"{view['source']} {_short(view['event_id'], 80)}",
        ("step", "when (UTC)", "after"),
        [(step, moment(at), between(began, at)) for step, at in steps],
        empty="",
    )
    rest = {
        "document": view["document_id"],
        "attempts": view["attempts"] or "",
        "not whole": left_out(view["degraded"]),
    }
    for name in ("owner", "deadline", "park_store", "last_error", "dead_letter"):
        if not (name in ("owner", "deadline") and view["ended_at"]):
            rest[name] = view.get(name) or ""
    out = console()
    for name, value in rest.items():
        if value:
            out.print(f"[dim]{name:>10}[/]  {escape(str(value))}", highlight=False, soft_wrap=True)
    if view.get("workflow_url"):
        out.print(f"[dim]{'run':>10}[/]  {view['workflow_url']}", highlight=False, soft_wrap=True)
