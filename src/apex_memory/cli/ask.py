"""`apex search`, `document`, `documents`, `delete`, `entity`: the memory and its documents."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import typer

from apex_memory.cli.client import gateway
from apex_memory.cli.options import AnyId, Limit, Since, Until, iso
from apex_memory.cli.output import (
    Id,
    Json,
    ago,
    clean,
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
from apex_memory.client import Attribute, DocumentSummary, Hit, Relation, SearchAnswer
from apex_memory.errors import Conflict

DELETE_SECONDS = 30  # longest that `apex delete` waits until the document is gone from every store
WEAK = "Weak evidence: these passages may not answer the question."
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
    document: Annotated[
        list[str] | None,
        typer.Option(help="Only this document and the files in it, by any id; may be repeated."),
    ] = None,
    conversation: Annotated[
        list[str] | None,
        typer.Option(
            "--conversation",
            "--thread",
            help="Only this conversation or thread, by any id of it or of a message in it; may be repeated.",
        ),
    ] = None,
    person: Annotated[
        list[str] | None,
        typer.Option(
            help="Only documents that name this person: a whole name or an e-mail address; may be repeated."
        ),
    ] = None,
    max_tokens: Annotated[
        int | None,
        typer.Option(
            "--max-tokens",
            help="Print the best passages as one text of at most so many tokens, with citations, to paste into a prompt.",
        ),
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
    with gateway() as api:
        answer = api.search(
            question,
            limit=limit,
            sources=source or (),
            kinds=kind or (),
            since=iso(since),
            until=iso(until),
            entities=entity or (),
            documents=document or (),
            conversations=conversation or (),
            people=person or (),
            max_tokens=max_tokens,
            explain=explain,
        )
    if json:
        show_json(answer.as_json())
        return
    if max_tokens is not None:
        show_context(answer)
        return
    filtered = any((source, kind, since, until, entity, document, conversation, person))
    show_answer(answer, explain=explain, filtered=filtered)


def show_answer(answer: SearchAnswer, *, explain: bool = False, filtered: bool = False) -> None:
    """Print an answer as a page of results: what it lacks, the hits, and how current their sources are."""
    if answer.degraded:
        names = ", ".join(answer.degraded)
        say(
            (
                f"Without {names}: hits may be missing or in another order. See `apex doctor`.",
                "yellow",
            )
        )
    within = " that passes the filters" if filtered else ""
    for identifier in answer.unknown:
        say((f"No document{within} holds {identifier}.", "yellow"))
    if not answer.hits:
        say((f"No document{within} matches." if filtered else "Nothing found.", "dim"))
    elif answer.unknown:
        say(("The nearest passages are about something else:", "dim"))
    elif answer.evidence == "weak":
        say((WEAK, "yellow"))
    margin = len(str(len(answer.hits))) + 2
    for n, hit in enumerate(answer.hits):
        if n:
            say("")
        _show_hit(hit, margin=margin, explain=explain)
    _show_freshness(answer)


def _show_hit(hit: Hit, *, margin: int, explain: bool) -> None:
    """Print rank and title; kind, source, time and speaker; the passage with the matched words; its page."""
    say((f"{hit.rank:<{margin}}", "dim"), (hit.title, "bold"), hanging=margin)
    at = hit.turn.at if hit.turn and hit.turn.at else hit.occurred_at
    about = [hit.kind, hit.source, f"{minute(at)} UTC"]
    if hit.turn:
        about.append(hit.turn.speaker)
    dot = (" · ", "dim")
    parts: list[str | tuple[str, str]] = []
    for text in about:
        parts += [(text, "green"), dot]
    say(*parts, (shown_id(hit.document_id), "cyan"), indent=margin)
    say(*_marked(hit), indent=margin)
    if hit.link.startswith("http"):
        say((hit.link, "dim"), indent=margin)
    if explain:
        legs = ", ".join(f"{leg} {score:.2f}" for leg, score in hit.legs.items())
        names = f", names {', '.join(hit.why)}" if hit.why else ""
        say((f"score {hit.score:.2f} ({legs}){names}", "dim"), indent=margin)
        if hit.points:
            points = ", ".join(f"{leg} {value:+.2f}" for leg, value in hit.points.items())
            say((f"points: {points}", "dim"), indent=margin)
        origin = hit.provenance
        say((f"event {origin.id} ({origin.event_id})", "dim"), indent=margin)


def _marked(hit: Hit) -> list[str | tuple[str, str]]:
    """Return the excerpt in parts, those of the question's words in bold."""
    parts: list[str | tuple[str, str]] = []
    last = 0
    for start, end in hit.highlights:
        parts += [hit.excerpt[last:start], (hit.excerpt[start:end], "bold yellow")]
        last = end
    return [*parts, hit.excerpt[last:]]


def _show_freshness(answer: SearchAnswer) -> None:
    """Print how current the sources of an answer are: a line for all, and one for each that is behind."""
    current = [state for state in answer.freshness if not state.behind]
    if current and answer.hits:
        ages: list[str] = []
        for state in current:
            newest = f"newest event {ago(state.last_event_at)} ago" if state.last_event_at else ""
            pulled = f"fetched {ago(state.pulled_at)} ago" if state.pulled_at else ""
            ages.append(f"{state.source} ({', '.join(filter(None, (newest, pulled)))})")
        say("")
        say((f"Sources: {', '.join(ages)}", "dim"))
    for state in answer.freshness:
        if state.behind:
            say(
                (f"{state.source} is behind, newer events may be missing: {state.reason}", "yellow")
            )


def show_context(answer: SearchAnswer) -> None:
    """Print the context alone, to paste or pipe; what it lacks and how large it is on stderr."""
    context = answer.context
    if context is None:
        return
    if context.text:
        sys.stdout.write(clean(context.text) + "\n")
    notes = [
        f"about {context.tokens:,} tokens, {context.max_tokens:,} at most",
        f"{len(context.citations)} passages",
    ]
    if context.left_out:
        notes.append(f"{context.left_out} more left out")
    if any(citation.cut for citation in context.citations):
        notes.append("a sentence is cut: it is longer than the limit")
    say(("; ".join(notes), "dim"), stderr=True)
    for part in answer.degraded:
        say(
            (f"Without {part}: passages may be missing or in another order.", "yellow"), stderr=True
        )
    for identifier in answer.unknown:
        say((f"No document holds {identifier}.", "yellow"), stderr=True)
    if context.text and not answer.unknown and answer.evidence == "weak":
        say((WEAK, "yellow"), stderr=True)
    for state in answer.freshness:
        if state.behind:
            say((f"{state.source} is behind: {state.reason}", "yellow"), stderr=True)


def left_out(degraded: Mapping[str, Mapping[str, int]]) -> str:
    """Return what limits left out of a document, for people; empty for a document that is whole."""
    parts: list[str] = []
    for name, counts in sorted(degraded.items()):
        limit = name.replace("_", " ")
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
        view = api.get_document(api.resolve(id)["document"])
    if json:
        show_json(view.as_json())
        return
    say((view.title, "bold"), (f"  {view.kind} from {view.source}", "dim"))
    if view.degraded:
        say((f"not whole: {left_out(view.degraded)}", "yellow"))
    for line in view.text.splitlines():
        say(line)
    say("")
    facts = {
        "document": view.document_id,
        "key": view.key,
        "occurred": moment(view.occurred_at),
        **view.metadata,
        "entities": ", ".join(view.entities),
    }
    pairs("Facts", facts)
    show_table(
        "Versions",
        ("event", "state", "committed", "version", "source's event"),
        [(Id(v.id), v.state, moment(v.committed_at), v.version, v.event_id) for v in view.versions],
        empty="No versions.",
        free=("source's event",),
    )
    if view.version_count > len(view.versions):
        say((f"The newest {len(view.versions)} of {view.version_count} versions.", "dim"))


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
        listed, following = api.pages("/v1/documents", "documents", params, limit)
    if json:
        show_json({"documents": listed, "next": following})
        return
    rows = list(map(DocumentSummary.model_validate, listed))
    show_table("Documents", *_document_rows(rows), empty="No documents.", free=("title", "kind"))
    say_more(following)


def _document_rows(
    rows: Sequence[DocumentSummary],
) -> tuple[tuple[str, ...], list[tuple[Any, ...]]]:
    columns = ("id", "source", "kind", "title", "occurred", "changed", "")
    return columns, [
        (
            Id(row.document_id),
            row.source,
            row.kind,
            row.title,
            minute(row.occurred_at),
            f"{ago(row.committed_at)} ago",
            "deleted" if row.deleted else "",
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
        if not yes:
            view = api.get_document(document_id)
            _confirm(f"Delete {view.title!r} from {view.source} (document {document_id})?")
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
    with gateway() as api:
        view = api.get_entity(ref)
    if json:
        show_json(view.as_json())
        return
    if view.degraded:
        names = ", ".join(view.degraded)
        say((f"Without {names}: some facts may be missing. See `apex doctor`.", "yellow"))
    say((ref, "bold"), f"  {', '.join(view.names)}")
    pairs("", _distinct(view.attributes))
    show_table(
        "Related",
        ("entity", "as", "times"),
        [
            (other, ", ".join(_relations(view.relations, other)), count)
            for other, count in view.neighbours.items()
        ],
        empty="",
        free=("entity", "as"),
    )
    columns, cells = _document_rows(view.documents[:SHOWN_DOCUMENTS])
    # Without the time of the change, which says little about an entity.
    show_table(
        "Documents, newest first",
        columns[:5],
        [row[:5] for row in cells],
        empty="",
        free=("title", "kind"),
    )
    if len(view.documents) > SHOWN_DOCUMENTS:
        say((f"and {len(view.documents) - SHOWN_DOCUMENTS} earlier ones: use --json", "dim"))


def _distinct(attributes: Sequence[Attribute]) -> dict[str, str]:
    """Return the distinct values of each attribute, in their order."""
    values: dict[str, dict[str, None]] = {}
    for attribute in attributes:
        values.setdefault(attribute.predicate, {})[attribute.value] = None
    return {predicate: ", ".join(texts) for predicate, texts in values.items()}


def _relations(relations: Sequence[Relation], other: str) -> list[str]:
    """Return the distinct predicates between the entity and `other`."""
    return list(
        dict.fromkeys(
            relation.predicate
            for relation in relations
            if other in (relation.subject, relation.object)
        )
    )
