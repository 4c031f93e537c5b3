"""`apex dead-letters`: events whose processing failed: inspect, redrive, discard."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from apex_memory.cli.client import gateway, with_commands
from apex_memory.cli.options import Limit
from apex_memory.cli.output import (
    Id,
    Json,
    ago,
    moment,
    pairs,
    say,
    say_more,
    show_json,
    show_table,
    size,
)

app = typer.Typer(help="Dead letters: list, show, redrive, discard.", no_args_is_help=True)
REDRIVE_LIMIT = 1_000  # most dead letters that one request redrives
Ids = Annotated[list[int], typer.Argument(help="Ids, from `apex dead-letters list`.")]


@app.command("list")
def list_letters(
    status: Annotated[
        str, typer.Option(help="open, retrying, resolved, discarded, superseded, or any.")
    ] = "open",
    source: Annotated[str | None, typer.Option(help="Only this source.")] = None,
    fingerprint: Annotated[
        str | None, typer.Option(help="Only this kind of failure, from the column `kind`.")
    ] = None,
    limit: Limit = 50,
    json: Json = False,
) -> None:
    """List dead letters, newest first.

    Example: apex dead-letters list --source frontapp
    """
    with gateway() as api:
        params = {"status": status, "source": source, "fingerprint": fingerprint}
        rows, following = api.pages("/v1/dead-letters", "dead_letters", params, limit)
    if json:
        show_json({"dead_letters": rows, "next": following})
        return
    show_table(
        "Dead letters",
        ("id", "status", "source", "event", "step", "why", "kind", "since"),
        [
            (
                r["id"],
                r["status"],
                r["source"],
                Id(r["event"]),
                r["step"],
                r["message"],
                r["fingerprint"],
                ago(r["last_at"]),
            )
            for r in rows
        ],
        empty="No dead letters.",
        free=("why",),
    )
    say_more(following)


@app.command("show")
def show(
    id: Annotated[int, typer.Argument(help="Id, from `apex dead-letters list`.")],
    json: Json = False,
) -> None:
    """Show a dead letter with its reason and its remedy.

    Example: apex dead-letters show 7
    """
    with gateway() as api:
        letter = api.call("GET", f"/v1/dead-letters/{id}")
    if json:
        show_json(letter)
        return
    pairs(f"Dead letter {id}", _facts(letter))


def _facts(letter: dict[str, Any]) -> dict[str, Any]:
    return {
        "status": letter["status"],
        "why": letter["message"],
        "what to do": with_commands(letter["remedy"]),
        "source": letter["source"],
        "event": letter["event"],
        "source's event": letter["event_id"],
        "document": letter["document_id"],
        "key": letter["document_key"],
        "payload": f"{size(letter['payload_bytes'])} of {letter['content_type']}: `apex payload {letter['event']}`"
        if letter["payload_bytes"]
        else "",
        "failed in": f"{letter['step']} ({letter['error']})",
        "kind": letter["fingerprint"],
        "attempts": letter["attempts"],
        "occurred": moment(letter["occurred_at"]),
        "first failed": moment(letter["first_at"]),
        "last failed": moment(letter["last_at"]),
        "resolution": letter["resolution"],
        "by": letter["actor"],
    }


@app.command("redrive")
def redrive(
    ids: Annotated[
        list[int] | None, typer.Argument(help="Ids, from `apex dead-letters list`.")
    ] = None,
    fingerprint: Annotated[
        str | None, typer.Option(help="All open ones with this fingerprint.")
    ] = None,
    source: Annotated[str | None, typer.Option(help="All open ones of this source.")] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only count what would be redriven.")
    ] = False,
    json: Json = False,
) -> None:
    """Process dead letters again from the prepare step, with their original versions.

    Example: apex dead-letters redrive 7 8, or: apex dead-letters redrive --fingerprint 9f3c21a0b7de --dry-run
    """
    body: dict[str, Any] = {
        "ids": ids or None,
        "fingerprint": fingerprint,
        "source": source,
        "dry_run": dry_run,
    }
    with gateway() as api:
        answer = api.call(
            "POST",
            "/v1/dead-letters/redrive",
            json={k: v for k, v in body.items() if v is not None},
        )
    if json:
        show_json(answer)
        return
    count = len(answer["dead_letters"])
    if dry_run:
        say(f"{count} would be redriven.")
    else:
        say(f"{count} redriven. `apex events --state dead` lists those that fail again.")
    if ids is None and count == REDRIVE_LIMIT:
        say("That is the most at once, those that failed longest ago. Repeat it for the others.")


@app.command("discard")
def discard(
    ids: Ids,
    reason: Annotated[str, typer.Option(help="The reason, for the audit log.")],
    json: Json = False,
) -> None:
    """Close dead letters permanently. The raw events are kept.

    Example: apex dead-letters discard 7 --reason "test data"
    """
    with gateway() as api:
        letters = [
            api.call("POST", f"/v1/dead-letters/{id}/discard", json={"reason": reason})
            for id in ids
        ]
    if json:
        show_json(letters)
        return
    say(f"{len(ids)} discarded.")
