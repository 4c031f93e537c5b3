"""`apex sources`: list sources, pause, pull, backfill and replay them."""

from __future__ import annotations

import time
from typing import Annotated, Any

import typer

from apex_memory.cli.client import Gateway, gateway
from apex_memory.cli.ingest import progress
from apex_memory.cli.options import Limit, Since, Until, parse_time
from apex_memory.cli.output import (
    Id,
    Json,
    ago,
    duration,
    minute,
    say,
    say_more,
    show_json,
    show_table,
)

WAITS = (
    "Temporal does not respond: backfills and replays wait, and go on by themselves when it does."
)

app = typer.Typer(
    invoke_without_command=True,
)

Name = Annotated[str, typer.Argument(help="The source's name, from `apex sources`.")]
Wait = Annotated[
    bool, typer.Option("--wait/--no-wait", help="Wait for the end, with a progress bar.")
]


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
            "newest",
            "pulled",
            "docs",
            "backlog",
            "lag",
            "waits",
            "remark",
        ),
        [_row(row) for row in response["sources"]],
        empty="No sources.",
        free=("remark", "waits"),
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
        remark = f"needs {row['missing'].rpartition('.')[2]}"
    return (
        row["name"],
        row["priority"],
        row["pattern"],
        "not set up" if row["state"] == "not configured" else row["state"],
        ago(row["last_event_at"]),
        ago(row["pulled_at"]),
        row["documents"],
        row["backlog"] or "",
        duration(row["lag"]) if row["lag"] else "",
        ", ".join(waits),
        remark,
    )


def _decide(name: str, action: str, result: str, *, as_json: bool) -> None:
    with gateway() as api:
        answer = api.call("POST", f"/v1/sources/{name}/{action}")
    if as_json:
        show_json(answer)
        return
    say(f"{name} {result}.")
    if answer["note"]:
        say((answer["note"], "yellow"), stderr=True)


@app.command()
def enable(name: Name, json: Json = False) -> None:
    """Pull a source again after `disable`.

    Example: apex sources enable plaid
    """
    _decide(name, "enable", "is enabled", as_json=json)


@app.command()
def disable(name: Name, json: Json = False) -> None:
    """Stop pulling a source. Events that it sends still land and are processed.

    Example: apex sources disable sonar
    """
    _decide(name, "disable", "is disabled and no longer pulled", as_json=json)


@app.command()
def pause(name: Name, json: Json = False) -> None:
    """Stop processing and pulling a source, across restarts. Its events still land, and wait.

    Example: apex sources pause samsara
    """
    _decide(name, "pause", "is paused: its events land, and wait", as_json=json)


@app.command()
def resume(name: Name, json: Json = False) -> None:
    """Continue a paused source.

    Example: apex sources resume samsara
    """
    _decide(name, "resume", "continues", as_json=json)


@app.command()
def run(name: Name, json: Json = False) -> None:
    """Pull a source now instead of at the scheduled time.

    Example: apex sources run quickbooks
    """
    _decide(name, "run", "is being pulled", as_json=json)


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

    Open dead letters are left out: `apex dead-letters redrive` tries these again.

    Example: apex sources replay edi --since 2d
    """
    _begin(name, "replays", since, until, wait, json)


def _begin(name: str, kind: str, since: str, until: str, wait: bool, json: bool) -> None:
    body = {"since": parse_time(since).isoformat()}
    if until:
        body["until"] = parse_time(until).isoformat()
    with gateway() as api:
        row = api.call("POST", f"/v1/sources/{name}/{kind}", json=body)
        if wait:
            row = _watch(api, row, quiet=json)
    if json:
        show_json(row)
    else:
        say(
            f"{row['kind']} {row['id']} is {row['state']}: {row['landed']} of {row['seen']} events are new."
        )
        if row["waits_for"]:
            say((WAITS, "yellow"))
    if row["state"] == "failed":
        say((row["error"], "red"), stderr=True)
        raise typer.Exit(1)


def _watch(api: Gateway, row: dict[str, Any], *, quiet: bool) -> dict[str, Any]:
    with progress(quiet=quiet) as bar:
        task = bar.add_task(f"{row['kind']} of {row['source']}", total=None, detail="")
        while row["state"] == "running":
            time.sleep(0.5)
            row = api.call("GET", f"/v1/backfills/{row['id']}")
            bar.update(
                task,
                detail="waits for Temporal, which does not respond" if row["waits_for"] else "",
                completed=row["seen"],
                total=None if row["state"] == "running" else row["seen"],
            )
    return row


@app.command()
def backfills(limit: Limit = 50, json: Json = False) -> None:
    """List backfills and replays with their progress.

    Example: apex sources backfills
    """
    with gateway() as api:
        rows, following = api.pages("/v1/backfills", "backfills", {}, limit)
    if json:
        show_json({"backfills": rows, "next": following})
        return
    show_table(
        "Backfills and replays",
        ("id", "source", "kind", "state", "seen", "new", "since", "until", "began", "error"),
        [
            (
                Id(row["id"]),
                row["source"],
                row["kind"],
                "waits for Temporal" if row["waits_for"] else row["state"],
                row["seen"],
                row["landed"],
                minute(row["since"]),
                minute(row["until"]),
                ago(row["started_at"]),
                row["error"] or "",
            )
            for row in rows
        ],
        empty="None yet.",
        free=("error",),
    )
    if any(row["waits_for"] for row in rows):
        say((WAITS, "yellow"))
    say_more(following)


@app.command()
def cancel(
    id: Annotated[str, typer.Argument(help="Its id, from `apex sources backfills`.")],
    json: Json = False,
) -> None:
    """Cancel a backfill or replay after its current page. Events that have landed are kept.

    Example: apex sources cancel 0a3f6f4e-64c7-4d0f-9d83-2b8a4b0e6c11
    """
    with gateway() as api:
        row = api.call("DELETE", f"/v1/backfills/{_backfill_id(api, id)}")
    if json:
        show_json(row)
    else:
        say(f"{row['kind']} of {row['source']} is cancelled.")


def _backfill_id(api: Gateway, start: str) -> str:
    """Return the id that begins with `start`, as `apex sources backfills` shows it; `start` itself if none or several do."""
    rows = api.call("GET", "/v1/backfills", params={"limit": 500})["backfills"]
    ids = [str(row["id"]) for row in rows if str(row["id"]).startswith(start.lower())]
    return ids[0] if len(ids) == 1 else start


@app.command()
def files(
    source: Annotated[str, typer.Option("--source", "-s", help="Only this source.")] = "",
    limit: Limit = 50,
    json: Json = False,
) -> None:
    """List the files of batch sources: their events, problems found, acknowledgements sent.

    Example: apex sources files --source edi
    """
    with gateway() as api:
        rows, following = api.pages("/v1/files", "files", {"source": source or None}, limit)
    if json:
        show_json({"files": rows, "next": following})
        return
    show_table(
        "Files",
        ("name", "source", "bytes", "received", "events", "landed", "replies", "findings"),
        [
            (
                row["name"],
                row["source"],
                row["bytes"] if row["kept"] else f"{row['bytes']}, removed",
                ago(row["received_at"]),
                "" if row["events"] is None else row["events"],
                row["landed"],
                len(row["replies"]) or "",
                "; ".join(row["findings"]),
            )
            for row in rows
        ],
        empty="No files.",
        free=("name", "findings"),
    )
    say_more(following)
