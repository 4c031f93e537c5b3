"""`apex dead-letters`: events that could not go on, and the ways out."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from apex_memory.cli.client import gateway
from apex_memory.cli.output import ago, console, pairs, show_json, show_table

app = typer.Typer(help="Dead letters: list, show, redrive, discard.", no_args_is_help=True)
Json = Annotated[bool, typer.Option("--json", help="Machine output.")]
Ids = Annotated[list[int], typer.Argument(help="Ids, from `apex dead-letters list`.")]


@app.command("list")
def list_letters(
    status: Annotated[
        str, typer.Option(help="open, retrying, resolved, discarded, superseded, or any.")
    ] = "open",
    source: Annotated[str | None, typer.Option(help="Only this source.")] = None,
    limit: Annotated[int, typer.Option(help="At most so many.")] = 50,
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
    """Show one dead letter: what, why, and the way out.

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
    fingerprint: Annotated[str | None, typer.Option(help="All open ones of this kind.")] = None,
    source: Annotated[str | None, typer.Option(help="All open ones of this source.")] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only say what would be sent round again.")
    ] = False,
    json: Json = False,
) -> None:
    """Send events round again from prepare, in their original order.

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
    said = "would be sent" if dry_run else "sent"
    console().print(
        f"{len(answer['dead_letters'])} {said} round again. `apex events --state dead` shows what fails anew."
    )


@app.command("discard")
def discard(
    ids: Ids,
    reason: Annotated[str, typer.Option(help="Why; kept in the audit.")],
    json: Json = False,
) -> None:
    """Close dead letters for good. The raw events stay.

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
