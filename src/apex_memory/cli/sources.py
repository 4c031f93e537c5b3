"""`apex sources`: list sources, pause, pull, backfill and replay them."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any

import typer
from rich.text import Text

from apex_memory.cli.client import Gateway, gateway
from apex_memory.cli.ingest import progress
from apex_memory.cli.output import ago, console, show_json, show_table
from apex_memory.errors import Rejected

app = typer.Typer(
    invoke_without_command=True,
)

Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Name = Annotated[str, typer.Argument(help="The source's name, from `apex sources`.")]
Since = Annotated[
    str,
    typer.Option("--since", help="Start: `2026-11-01`, `2026-11-01T08:00Z`, or `7d`, `12h` ago."),
]
Until = Annotated[str, typer.Option("--until", help="End, exclusive. Default: now.")]
Wait = Annotated[
    bool, typer.Option("--wait/--no-wait", help="Wait for the end, with a progress bar.")
]
_COLOURS = {
    "failing": "red",
    "stalled": "red",
    "not configured": "dim",
    "disabled": "dim",
    "paused": "yellow",
    "working": "cyan",
    "idle": "green",
}


@app.callback()
def sources(context: typer.Context, json: Json = False) -> None:
    """List sources: pattern, priority, state, last event, backlog, lag, and errors.

    Example: apex sources --json
    """
    if context.invoked_subcommand is None:
        list_sources(json)


@app.command("list")
def list_sources(json: Json = False) -> None:
    """List sources: pattern, priority, state, last event, backlog, lag, and errors.

    Example: apex sources list
    """
    with gateway() as api:
        response = api.call("GET", "/v1/sources")
    if json:
        show_json(response)
        return
    show_table(
        "Sources",
        (
            "source",
            "",
            "pattern",
            "state",
            "last event",
            "last pull",
            "documents",
            "backlog",
            "lag",
            "waits",
            "remark",
        ),
        [_row(row) for row in response["sources"]],
        empty="No sources.",
    )


def _row(row: dict[str, Any]) -> tuple[Any, ...]:
    waits = [
        f"{row[name]} {name}"
        for name in ("change_hints", "files", "windows", "parked")
        if row[name]
    ]
    if row["dead_letters"]:
        waits.append(f"{row['dead_letters']} dead")
    remark = row["error"] if row["state"] == "failing" else ""
    if row["missing"]:
        remark = f"set sources.{row['name']}.{row['missing']}"
    colour = _COLOURS[row["state"]]
    return (
        row["name"],
        row["priority"],
        row["pattern"],
        Text(row["state"], style=colour),
        ago(row["last_event_at"]),
        ago(row["pulled_at"]),
        row["documents"],
        row["backlog"] or "",
        f"{row['lag']:.0f} s" if row["lag"] else "",
        ", ".join(waits),
        remark,
    )


def _decide(name: str, action: str, result: str) -> None:
    with gateway() as api:
        answer = api.call("POST", f"/v1/sources/{name}/{action}")
    console().print(f"{name} {result}.", highlight=False)
    if answer["note"]:
        console(stderr=True).print(f"[yellow]{answer['note']}[/]", highlight=False)


@app.command()
def enable(name: Name) -> None:
    """Pull a source again after `disable`.

    Example: apex sources enable plaid
    """
    _decide(name, "enable", "is enabled")


@app.command()
def disable(name: Name) -> None:
    """Stop pulling a source. Events that it sends still land and are processed.

    Example: apex sources disable sonar
    """
    _decide(name, "disable", "is disabled and no longer pulled")


@app.command()
def pause(name: Name) -> None:
    """Stop processing and pulling a source, across restarts. Its events still land, and wait.

    Example: apex sources pause samsara
    """
    _decide(name, "pause", "is paused: its events land, and wait")


@app.command()
def resume(name: Name) -> None:
    """Continue a paused source.

    Example: apex sources resume samsara
    """
    _decide(name, "resume", "continues")


@app.command()
def run(name: Name) -> None:
    """Pull a source now instead of at the scheduled time.

    Example: apex sources run quickbooks
    """
    _decide(name, "run", "is being pulled")


@app.command()
def backfill(
    name: Name, since: Since, until: Until = "", wait: Wait = True, json: Json = False
) -> None:
    """Fetch a time range from the vendor again, at the lowest priority and a limited rate.

    Example: apex sources backfill hubspot --since 30d --until 2026-11-01
    """
    _begin(name, "backfills", since, until, wait, json)


@app.command()
def replay(
    name: Name, since: Since, until: Until = "", wait: Wait = True, json: Json = False
) -> None:
    """Process raw events that landed in a time range again, for example after an improvement of the parser.

    Example: apex sources replay edi --since 2d
    """
    _begin(name, "replays", since, until, wait, json)


def _begin(name: str, kind: str, since: str, until: str, wait: bool, json: bool) -> None:
    body = {"since": moment(since).isoformat()}
    if until:
        body["until"] = moment(until).isoformat()
    with gateway() as api:
        row = api.call("POST", f"/v1/sources/{name}/{kind}", json=body)
        if wait:
            row = _watch(api, row, quiet=json)
    if json:
        show_json(row)
    else:
        console().print(
            f"{row['kind']} {row['id']} is {row['state']}: {row['landed']} of {row['seen']} events are new.",
            highlight=False,
        )
    if row["state"] == "failed":
        console(stderr=True).print(f"[red]{row['error']}[/]", highlight=False)
        raise typer.Exit(1)


def _watch(api: Gateway, row: dict[str, Any], *, quiet: bool) -> dict[str, Any]:
    with progress(quiet=quiet) as bar:
        task = bar.add_task(f"{row['kind']} of {row['source']}", total=None)
        while row["state"] == "running":
            time.sleep(0.5)
            rows = api.call("GET", "/v1/backfills", params={"limit": 500})["backfills"]
            row = next(item for item in rows if item["id"] == row["id"])
            bar.update(
                task,
                completed=row["seen"],
                total=None if row["state"] == "running" else row["seen"],
            )
    return row


@app.command()
def backfills(json: Json = False) -> None:
    """List backfills and replays with their progress.

    Example: apex sources backfills
    """
    with gateway() as api:
        response = api.call("GET", "/v1/backfills")
    if json:
        show_json(response)
        return
    show_table(
        "Backfills and replays",
        ("id", "source", "kind", "state", "seen", "new", "since", "until", "began", "error"),
        [
            (
                row["id"],
                row["source"],
                row["kind"],
                row["state"],
                row["seen"],
                row["landed"],
                row["since"][:16],
                row["until"][:16],
                ago(row["started_at"]),
                row["error"] or "",
            )
            for row in response["backfills"]
        ],
        empty="None yet.",
    )


@app.command()
def cancel(
    id: Annotated[str, typer.Argument(help="Its id, from `apex sources backfills`.")],
) -> None:
    """Cancel a backfill or replay after its current page. Events that have landed are kept.

    Example: apex sources cancel 0a3f6f4e-64c7-4d0f-9d83-2b8a4b0e6c11
    """
    with gateway() as api:
        row = api.call("DELETE", f"/v1/backfills/{id}")
    console().print(f"{row['kind']} of {row['source']} is cancelled.", highlight=False)


@app.command()
def files(
    source: Annotated[str, typer.Option("--source", "-s", help="Only this source.")] = "",
    json: Json = False,
) -> None:
    """List the files of batch sources: their events, problems found, acknowledgements sent.

    Example: apex sources files --source edi
    """
    with gateway() as api:
        response = api.call("GET", "/v1/files", params={"source": source} if source else {})
    if json:
        show_json(response)
        return
    show_table(
        "Files",
        ("name", "source", "bytes", "received", "events", "landed", "replies", "findings"),
        [
            (
                row["name"],
                row["source"],
                row["bytes"],
                ago(row["received_at"]),
                "" if row["events"] is None else row["events"],
                row["landed"],
                ", ".join(row["replies"]),
                "; ".join(row["findings"]),
            )
            for row in response["files"]
        ],
        empty="No files.",
    )


def moment(text: str) -> datetime:
    """Return the time of `7d`, `12h`, `30m` ago, or of a date or time in ISO 8601 (UTC without a zone). Raises `Rejected`."""
    unit = {"d": "days", "h": "hours", "m": "minutes"}.get(text[-1:], "")
    try:
        if unit and text[:-1].isdigit():
            return datetime.now(UTC) - timedelta(**{unit: int(text[:-1])})
        parsed = datetime.fromisoformat(text)
    except (ValueError, OverflowError):
        raise Rejected(
            f"{text!r} is not a time",
            remedy="write `7d`, `12h`, `2026-11-01` or `2026-11-01T08:00Z`",
        ) from None
    return parsed if parsed.tzinfo else parsed.replace(tzinfo=UTC)
