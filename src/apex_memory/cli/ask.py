"""`apex search`, `document`, `entity`, `events`, `event`: the memory and its events, for people."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from rich.markup import escape

from apex_memory.cli.client import gateway
from apex_memory.cli.output import ago, between, console, moment, pairs, show_json, show_table

Json = Annotated[bool, typer.Option("--json", help="Machine output.")]


def search(
    question: Annotated[str, typer.Argument(help="A question, words, or an identifier.")],
    limit: Annotated[int, typer.Option("--limit", "-n", help="How many passages.")] = 5,
    source: Annotated[
        list[str] | None, typer.Option(help="Only these sources; may be repeated.")
    ] = None,
    kind: Annotated[
        list[str] | None, typer.Option(help="Only these kinds of document; may be repeated.")
    ] = None,
    since: Annotated[str | None, typer.Option(help="Not before this time (ISO).")] = None,
    until: Annotated[str | None, typer.Option(help="Before this time (ISO).")] = None,
    entity: Annotated[
        list[str] | None, typer.Option(help="Only documents that name this entity (type:key).")
    ] = None,
    json: Json = False,
) -> None:
    """Ask the memory.

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
    """Hits with snippet, scores and provenance; says what is degraded."""
    out = console()
    if answer["degraded"]:
        out.print(
            f"[yellow]degraded: {', '.join(answer['degraded'])}: the answer may be thinner than usual[/]"
        )
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


def _short(text: str, most: int) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"


def document(
    id: Annotated[str, typer.Argument(help="Document id, from a search.")], json: Json = False
) -> None:
    """Show a document: text, entities, versions, and the event it came from.

    Example: apex document 6f0d4f2c-…
    """
    with gateway() as api:
        found = api.call("GET", f"/v1/documents/{id}")
    if json:
        show_json(found)
        return
    out = console()
    out.print(
        f"[bold]{escape(found['title'])}[/]  [dim]{found['kind']} from {found['source']}[/]",
        highlight=False,
    )
    out.print(escape(found["text"]), highlight=False)
    pairs("Facts", {**found["metadata"], "entities": ", ".join(found["entities"])})
    show_table(
        "Versions",
        ("version", "event", "state", "committed"),
        [
            (v["version"], v["event_id"], v["state"], moment(v["committed_at"]))
            for v in found["versions"]
        ],
        empty="No versions.",
    )


def entity(
    ref: Annotated[str, typer.Argument(help="type:key, such as shipment:SHP-100045.")],
    json: Json = False,
) -> None:
    """Show what the memory says about a thing: names, relations, documents.

    Example: apex entity shipment:SHP-100045
    """
    type_, _, key = ref.partition(":")
    with gateway() as api:
        found = api.call("GET", f"/v1/entities/{type_}/{key}")
    if json:
        show_json(found)
        return
    out = console()
    if found["degraded"]:
        out.print(f"[yellow]degraded: {', '.join(found['degraded'])}: more may be known[/]")
    out.print(f"[bold]{ref}[/] {', '.join(found['names'])}", highlight=False)
    show_table(
        "Neighbours",
        ("entity", "relations"),
        list(found["neighbours"].items()),
        empty="No neighbours.",
    )
    show_table(
        "Documents",
        ("title", "source", "when", "id"),
        [
            (d["title"], d["source"], moment(d["occurred_at"])[:16], d["document_id"])
            for d in found["documents"]
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
    """List events, newest first, with where each one is.

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
                e["last_error"],
            )
            for e in answer["events"]
        ],
        empty="No events.",
    )


def event(
    id: Annotated[str, typer.Argument(help="Event id, from `apex events`.")], json: Json = False
) -> None:
    """Show one event's life: times, stores, attempts, and the workflow run that carried it.

    Example: apex event 0b6c3a7e-…
    """
    with gateway() as api:
        found = api.call("GET", f"/v1/events/{id}")
    if json:
        show_json(found)
        return
    show_event(found)


def show_event(found: dict[str, Any]) -> None:
    """One event's life: the steps in the order they happened, then what else is known."""
    began = found["received_at"]
    steps = [("received", began), ("prepared", found["prepared_at"])]
    steps += sorted(
        (
            (f"in {store}", state["at"])
            for store, state in found["stores"].items()
            if state.get("at")
        ),
        key=lambda step: step[1],
    )
    steps.append((found["state"], found["ended_at"]))
    show_table(
        f"{found['source']} {_short(found['event_id'], 80)}",
        ("step", "when (UTC)", "after"),
        [(step, moment(at), between(began, at)) for step, at in steps],
        empty="",
    )
    rest = {"document": found["document_id"], "attempts": found["attempts"] or ""}
    for name in ("owner", "deadline", "park_store", "last_error", "dead_letter"):
        if not (name in ("owner", "deadline") and found["ended_at"]):
            rest[name] = found.get(name) or ""
    out = console()
    for name, value in rest.items():
        if value:
            out.print(f"[dim]{name:>10}[/]  {escape(str(value))}", highlight=False, soft_wrap=True)
    if found.get("workflow_url"):
        out.print(f"[dim]{'run':>10}[/]  {found['workflow_url']}", highlight=False, soft_wrap=True)
