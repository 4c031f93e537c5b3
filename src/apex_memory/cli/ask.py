"""`apex search`, `document`, `documents`, `delete`, `entity`: the memory and its documents."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any
from urllib.parse import quote

import typer

from apex_memory.cli.client import gateway
from apex_memory.cli.options import AnyId, Limit, Since, Until, iso
from apex_memory.cli.output import (
    Id,
    Json,
    ago,
    is_terminal,
    minute,
    moment,
    pairs,
    say,
    say_more,
    show_json,
    show_table,
    shown_id,
)
from apex_memory.errors import Conflict

DELETE_SECONDS = 30  # longest that `apex delete` waits until the document is gone from every store
SHOWN_DOCUMENTS = 20  # of an entity

Sources = Annotated[
    list[str] | None, typer.Option("--source", help="Only these sources; may be repeated.")
]
Kinds = Annotated[
    list[str] | None,
    typer.Option("--kind", help="Only these kinds of document; may be repeated."),
]


def search(
    question: Annotated[str, typer.Argument(help="A question, words, or an identifier.")],
    limit: Annotated[int, typer.Option("--limit", "-n", help="How many passages.")] = 5,
    source: Sources = None,
    kind: Kinds = None,
    since: Since = "",
    until: Until = "",
    entity: Annotated[
        list[str] | None, typer.Option(help="Only documents that name this entity (type:key).")
    ] = None,
    explain: Annotated[
        bool,
        typer.Option("--explain", help="Also print why each passage is there: scores and events."),
    ] = False,
    json: Json = False,
) -> None:
    """Search the memory.

    Example: apex search "who asked about SHP-100045?" --source frontapp --since 7d
    """
    body = {
        "query": question,
        "limit": limit,
        "filters": {
            "sources": source or [],
            "kinds": kind or [],
            "since": iso(since),
            "until": iso(until),
            "entities": entity or [],
        },
    }
    with gateway() as api:
        answer = api.call("POST", "/v1/search", json=body)
    if json:
        show_json(answer)
        return
    filtered = any((source, kind, since, until, entity))
    show_answer(answer, explain=explain, filtered=filtered)


def show_answer(answer: dict[str, Any], *, explain: bool = False, filtered: bool = False) -> None:
    """Print hits, each with its document's id, and before them what the search lacks: stores, identifiers."""
    if answer["degraded"]:
        names = ", ".join(answer["degraded"])
        say((f"Without {names}: some hits may be missing. See `apex doctor`.", "yellow"))
    within = " that passes the filters" if filtered else ""
    for identifier in answer["unknown"]:
        say((f"No document{within} holds {identifier}.", "yellow"))
    if not answer["hits"]:
        say((f"No document{within} matches." if filtered else "Nothing found.", "dim"))
        return
    if answer["unknown"]:
        say(("The nearest passages are about something else:", "dim"))
    for hit in answer["hits"]:
        _show_hit(hit, explain=explain)


def _show_hit(hit: dict[str, Any], *, explain: bool) -> None:
    about = f"{hit['kind']} from {hit['source']}, {minute(hit['occurred_at'])}"
    id = shown_id(hit["document_id"])
    say(f"{hit['rank']}. ", (hit["title"], "bold"), (f"  {about}  ", "dim"), (id, "cyan"))
    say(" ".join(hit["excerpt"].split()), indent=3)
    if explain:
        legs = ", ".join(f"{leg} {score:.2f}" for leg, score in hit["legs"].items())
        names = f", names {', '.join(hit['why'])}" if hit["why"] else ""
        say((f"score {hit['score']:.2f} ({legs}){names}", "dim"), indent=3)
        origin = hit["provenance"]
        say((f"event {origin['id']} ({origin['event_id']})", "dim"), indent=3)


def left_out(degraded: Mapping[str, Mapping[str, int]]) -> str:
    """Return what limits left out of a document, for people; empty for a document that is whole."""
    parts: list[str] = []
    for limit, counts in sorted(degraded.items()):
        if "found" in counts:
            parts.append(f"{counts['kept']:,} of {counts['found']:,} {limit} kept")
        else:
            parts.append(f"{counts['left_out']:,} {limit} left out")
    return ", ".join(parts)


def document(id: AnyId, json: Json = False) -> None:
    """Show a document: text, entities, versions, and the event it came from.

    Example: apex document 6f0d4f2c
    """
    with gateway() as api:
        view = api.call("GET", f"/v1/documents/{api.resolve(id)['document']}")
    if json:
        show_json(view)
        return
    say((view["title"], "bold"), (f"  {view['kind']} from {view['source']}", "dim"))
    if view["degraded"]:
        say((f"not whole: {left_out(view['degraded'])}", "yellow"))
    for line in view["text"].splitlines():
        say(line)
    say("")
    facts = {
        "document": view["document_id"],
        "key": view["key"],
        "occurred": moment(view["occurred_at"]),
        **view["metadata"],
        "entities": ", ".join(view["entities"]),
    }
    pairs("Facts", facts)
    show_table(
        "Versions",
        ("event", "state", "committed", "version", "source's event"),
        [
            (Id(v["id"]), v["state"], moment(v["committed_at"]), v["version"], v["event_id"])
            for v in view["versions"]
        ],
        empty="No versions.",
        free=("source's event",),
    )


def documents(
    source: Sources = None,
    kind: Kinds = None,
    deleted: Annotated[
        bool, typer.Option("--deleted", help="Also list deleted documents.")
    ] = False,
    limit: Limit = 20,
    json: Json = False,
) -> None:
    """List documents, the newest change first.

    Example: apex documents --source turvo --limit 50
    """
    params = {"source": source, "kind": kind, "deleted": deleted or None}
    with gateway() as api:
        rows, following = api.pages("/v1/documents", "documents", params, limit)
    if json:
        show_json({"documents": rows, "next": following})
        return
    show_table("Documents", *_document_rows(rows), empty="No documents.", free=("title", "kind"))
    say_more(following)


def _document_rows(rows: list[dict[str, Any]]) -> tuple[tuple[str, ...], list[tuple[Any, ...]]]:
    columns = ("id", "source", "kind", "title", "occurred", "changed", "")
    return columns, [
        (
            Id(row["document_id"]),
            row["source"],
            row["kind"],
            row["title"],
            minute(row["occurred_at"]),
            f"{ago(row['committed_at'])} ago",
            "deleted" if row["deleted"] else "",
        )
        for row in rows
    ]


def delete(
    id: AnyId,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask for confirmation.")] = False,
    json: Json = False,
) -> None:
    """Delete a document from every store. Its raw payloads are kept; sending a newer version restores it.

    Example: apex delete 6f0d4f2c
    """
    with gateway() as api:
        document_id = api.resolve(id)["document"]
        title = ""
        if not yes:
            view = api.call("GET", f"/v1/documents/{document_id}")
            title = view["title"]
            _confirm(f"Delete {title!r} from {view['source']} (document {document_id})?")
        receipt = api.call(
            "DELETE",
            f"/v1/documents/{document_id}",
            params={"wait": "searchable", "timeout": DELETE_SECONDS},
        )
    if json:
        show_json(receipt)
        return
    event = receipt["events"][0]["id"]
    if receipt["searchable"]:
        say(f"Document {document_id} is deleted from every store (event {event}).")
    else:
        say(f"The deletion of document {document_id} is stored; see `apex event {event}`.")


def _confirm(question: str) -> None:
    """Ask on a terminal. Raises `Conflict` where nobody can answer, and `typer.Abort` for a no."""
    if not is_terminal(stderr=True):
        raise Conflict("delete needs a confirmation", remedy="add --yes")
    say(question, stderr=True)
    typer.confirm("Delete it", abort=True, err=True)


def entity(
    ref: Annotated[str, typer.Argument(help="type:key, such as shipment:SHP-100045.")],
    json: Json = False,
) -> None:
    """Show what the memory knows about an entity: names, attributes, relations, documents.

    Example: apex entity shipment:SHP-100045
    """
    type_, _, key = ref.partition(":")
    with gateway() as api:
        view = api.call("GET", f"/v1/entities/{quote(type_, safe='')}/{quote(key, safe='')}")
    if json:
        show_json(view)
        return
    if view["degraded"]:
        names = ", ".join(view["degraded"])
        say((f"Without {names}: some facts may be missing. See `apex doctor`.", "yellow"))
    say((ref, "bold"), f"  {', '.join(view['names'])}")
    pairs("", _distinct(view["attributes"]))
    show_table(
        "Related",
        ("entity", "as", "times"),
        [
            (other, ", ".join(_relations(view["relations"], other)), count)
            for other, count in view["neighbours"].items()
        ],
        empty="",
        free=("entity", "as"),
    )
    rows = sorted(view["documents"], key=lambda row: str(row["occurred_at"]), reverse=True)
    columns, cells = _document_rows(rows[:SHOWN_DOCUMENTS])
    # Without the time of the change, which says little about an entity.
    show_table(
        "Documents, newest first",
        columns[:5],
        [row[:5] for row in cells],
        empty="",
        free=("title", "kind"),
    )
    if len(rows) > SHOWN_DOCUMENTS:
        say((f"and {len(rows) - SHOWN_DOCUMENTS} earlier ones: use --json", "dim"))


def _distinct(attributes: list[dict[str, Any]]) -> dict[str, str]:
    """Return the distinct values of each attribute, in their order."""
    values: dict[str, dict[str, None]] = {}
    for attribute in attributes:
        values.setdefault(attribute["predicate"], {})[attribute["value"]] = None
    return {predicate: ", ".join(texts) for predicate, texts in values.items()}


def _relations(relations: list[dict[str, Any]], other: str) -> list[str]:
    """Return the distinct predicates between the entity and `other`."""
    return list(
        dict.fromkeys(
            relation["predicate"]
            for relation in relations
            if other in (relation["subject"], relation["object"])
        )
    )
