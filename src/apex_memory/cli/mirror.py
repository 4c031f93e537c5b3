"""`apex mirror`: webhooks that are also forwarded to a former system, and those that it did not take."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from apex_memory.cli.client import gateway
from apex_memory.cli.options import Limit
from apex_memory.cli.output import Json, ago, say, say_more, show_json, show_table, size

app = typer.Typer(
    help="The mirror to a former system: status, list, redrive, discard.", no_args_is_help=True
)
MOST_MOVED = 10_000  # copies that one request changes
Ids = Annotated[list[int] | None, typer.Argument(help="Ids, from `apex mirror list`.")]


@app.command("status")
def status(json: Json = False) -> None:
    """Show the mirror of each source: its target, what waits, what is dead, and the last error.

    Example: apex mirror status
    """
    with gateway() as api:
        answer = api.call("GET", "/v1/mirror")
    if json:
        show_json(answer)
        return
    show_table(
        "Mirrors",
        ("source", "target", "webhooks", "waiting", "oldest", "dead", "delivered", "failing since", "last error"),
        [
            (
                row["source"],
                row["url"] or "none",
                row["mirror"],
                row["waiting"],
                ago(row["oldest"]),
                row["dead"],
                ago(row["delivered_at"]),
                ago(row["failing_since"]),
                row["last_error"],
            )
            for row in answer["mirrors"]
        ],
        empty="No source has a mirror: set mirror_url in its settings.",
        free=("target", "last error"),
    )  # fmt: skip


@app.command("list")
def list_copies(
    state: Annotated[
        str, typer.Option(help="waiting, delivered, dead, discarded, or any.")
    ] = "dead",
    source: Annotated[str | None, typer.Option(help="Only this source.")] = None,
    limit: Limit = 50,
    json: Json = False,
) -> None:
    """List mirrored webhooks, newest first; without options the dead letters.

    Example: apex mirror list --source frontapp
    """
    with gateway() as api:
        params = {"state": state, "source": source}
        rows, following = api.pages("/v1/mirror/copies", "copies", params, limit)
    if json:
        show_json({"copies": rows, "next": following})
        return
    show_table(
        "Mirrored webhooks",
        ("id", "state", "source", "received", "size", "attempts", "why"),
        [
            (
                row["id"],
                row["state"],
                row["source"],
                ago(row["received_at"]),
                size(row["bytes"]),
                row["attempts"],
                row["last_error"] or row["resolution"],
            )
            for row in rows
        ],
        empty="No mirrored webhooks.",
        free=("why",),
    )
    say_more(following)


@app.command("redrive")
def redrive(
    ids: Ids = None,
    source: Annotated[str | None, typer.Option(help="All dead ones of this source.")] = None,
    json: Json = False,
) -> None:
    """Send dead letters of the mirror again, in their order.

    Example: apex mirror redrive --source frontapp
    """
    _change("redrive", {"ids": ids or None, "source": source}, "redriven", json=json)


@app.command("discard")
def discard(
    reason: Annotated[str, typer.Option(help="The reason, for the audit log.")],
    ids: Ids = None,
    source: Annotated[str | None, typer.Option(help="All dead ones of this source.")] = None,
    waiting: Annotated[
        bool, typer.Option("--waiting", help="With --source: also those that wait.")
    ] = False,
    json: Json = False,
) -> None:
    """End copies for good and remove their content. Their events in Apex are not touched.

    Example: apex mirror discard 4711 --reason "sent by hand"
    """
    body = {"ids": ids or None, "source": source, "waiting": waiting, "reason": reason}
    _change("discard", body, "discarded", json=json)


def _change(action: str, body: dict[str, Any], done: str, *, json: bool) -> None:
    given = {name: value for name, value in body.items() if value is not None}
    with gateway() as api:
        answer = api.call("POST", f"/v1/mirror/{action}", json=given)
    if json:
        show_json(answer)
        return
    say(f"{answer['changed']} {done}.")
    if body["ids"] is None and answer["changed"] == MOST_MOVED:
        say("That is the most at once, the oldest. Repeat it for the others.")
