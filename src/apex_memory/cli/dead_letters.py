"""`apex dead-letters`: events whose processing failed: inspect, redrive, discard."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from apex_memory.cli.client import gateway
from apex_memory.cli.output import ago, console, pairs, show_json, show_table

app = typer.Typer(help="Dead letters: list, show, redrive, discard.", no_args_is_help=True)
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Ids = Annotated[list[int], typer.Argument(help="Ids, from `apex dead-letters list`.")]


@app.command("list")
def list_letters(
    status: Annotated[
        str, typer.Option(help="open, retrying, resolved, discarded, superseded, or any.")
    ] = "open",
    source: Annotated[str | None, typer.Option(help="Only this source.")] = None,
    limit: Annotated[int, typer.Option(help="Most rows.")] = 50,
    json: Json = False,
) -> None:
    """List dead letters, newest first.

    Example: apex dead-letters list --source frontapp
    """
    with gateway() as api:
        answer = api.call(
            "GET", "/v1/dead-letters", params={"status": status, "source": source, "limit": limit}
        )
    if json:
        show_json(answer)
        return
    show_table(
        "Dead letters",
        ("id", "status", "source", "event", "step", "why", "kind", "since"),
        [
            (
                r["id"],
                r["status"],
                r["source"],
                r["event_id"],
                r["step"],
                r["message"],
                r["fingerprint"],
                ago(r["last_at"]),
            )
            for r in answer["dead_letters"]
        ],
        empty="No dead letters.",
    )


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
    pairs(f"Dead letter {id}", letter)


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
        console().print(f"{count} would be redriven.")
    else:
        console().print(
            f"{count} redriven. `apex events --state dead` lists those that fail again."
        )


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
    console().print(f"{len(ids)} discarded.")
