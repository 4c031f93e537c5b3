"""`apex status`, `hello`, `reconcile`, `rebuild`: check the health of the stack, and repair stores."""

from __future__ import annotations

from time import sleep
from typing import Annotated, Any

import typer
from rich.progress import BarColumn, Progress, TextColumn

from apex_memory.cli.client import Gateway, gateway
from apex_memory.cli.doctor import describe_load, is_slow
from apex_memory.cli.output import (
    Json,
    ago,
    between,
    console,
    duration,
    is_terminal,
    say,
    show_json,
    show_table,
)
from apex_memory.config import load_settings
from apex_memory.engines.state import read_stack

POLL_SECONDS = 0.5  # between two looks at the progress of a rebuild
GATEWAY_SECONDS = 60.0  # patience with a gateway that restarts meanwhile


def status(json: Json = False) -> None:
    """Show processes, stores, and unfinished events.

    Example: apex status
    """
    settings = load_settings()
    with gateway(settings) as api:
        report = api.call("GET", "/v1/status")
    stack = read_stack(settings.data_dir)
    if json:
        show_json(
            {**report, "processes": stack.model_dump(mode="json")["children"] if stack else {}}
        )
        return
    if stack:
        show_table(
            "Processes",
            ("name", "pid", "address", "version", "up", "restarts", "last exit"),
            [
                (
                    c.name,
                    c.pid or "down",
                    c.url,
                    c.version,
                    ago(c.since.isoformat()) if c.since else "",
                    c.restarts or "",
                    c.last_exit,
                )
                for c in stack.children.values()
            ],
            empty="",
            free=("version", "last exit"),
        )
    show_table(
        "Stores",
        ("store", "state", "engine"),
        [(s["name"], s["state"], s["version"]) for s in report["stores"]],
        empty="",
        free=("engine",),
    )
    show_table(
        "Metrics",
        ("process", "build", "address"),
        [(p["process"], p["build"], p["metrics"]) for p in report["processes"]],
        empty="",
        free=("build",),
    )
    show_table(
        "Unfinished events",
        ("source", "state", "waits for", "events", "oldest"),
        [
            (b["source"], b["state"], b["park_store"], b["events"], ago(b["oldest"]))
            for b in report["backlog"] or ()
        ],
        empty="No unfinished events."
        if report["backlog"] is not None
        else "Unknown: PostgreSQL is unavailable.",
    )
    if report["dead_letters"]:
        say((f"{report['dead_letters']} dead letters", "red"), ": see `apex dead-letters list`.")
    for workflow in report["temporal"]["failing"]:
        attempt = f": attempt {workflow['attempt']} of its current {workflow['what']}."
        say((f"{workflow['id']} fails", "red"), attempt)
    since = report["temporal"]["fallback_since"]
    if since:
        say(
            ("The fallback is in force", "yellow"),
            f" for {ago(since)}: the direct path processes all events until Temporal responds; backfills and replays wait for it.",
        )
    elif not report["temporal"]["reachable"]:
        say(
            ("Temporal does not respond", "red"),
            f": events land, and the direct path processes them after {settings.fallback_seconds:g} s.",
        )
    if absent := report["absent_build"]:
        say(("Events wait", "red"), f": {absent['detail']}.")
        say((f"→ {absent['remedy']}", "dim"), indent=2)
    reranker = report["reranker"]
    if reranker and reranker["state"] == "failing":
        say(
            ("The reranker fails", "yellow"),
            f": {reranker['reason'] or reranker['address']}. Searches keep their own order meanwhile.",
        )
    if is_slow(report["machine"]):
        say(("The machine is slow", "yellow"), f": {describe_load(report['machine'])}.")


def hello(json: Json = False) -> None:
    """Run the smoke test: one small workflow through Temporal and every store.

    Example: apex hello
    """
    with gateway() as api:
        report = api.call("POST", "/v1/hello")
    if json:
        show_json(report)
        return
    show_table(
        "Hello",
        ("part", "state", "answer"),
        [(p["name"], p["state"], p["answer"]) for p in report["parts"]],
        empty="",
        free=("answer",),
    )
    away = [p["name"] for p in report["parts"] if p["state"] != "ready"]
    took = duration(report["milliseconds"] / 1000)
    if away:
        say((f"Unavailable: {', '.join(away)}.", "red"), f" {took}.")
    else:
        say(("All respond", "green"), f" after {took}.")
    say(f"Workflow: {report['workflow_url'] or report['workflow_id']}")


def reconcile(
    store: Annotated[str, typer.Argument(help="graph or vectors.")],
    prune: Annotated[
        bool,
        typer.Option(
            "--prune",
            help="Also remove stages that PostgreSQL does not know, without waiting a day.",
        ),
    ] = False,
    json: Json = False,
) -> None:
    """Compare a store with PostgreSQL: restore what it lost, remove what PostgreSQL does not know. Restores an empty store too.

    Example: apex reconcile vectors
    """
    with gateway() as api:
        report = api.call(
            "POST", f"/v1/stores/{store}/reconcile", json={"prune": prune}, timeout=86_400
        )
    if json:
        show_json(report)
        return
    say(
        f"{store}: {report['stages']} stages checked, {report['repaired']} documents repaired, "
        f"{report['removed']} stray stages removed, {report['left']} left alone."
    )
    if report["errors"]:
        raise typer.Exit(1)


def rebuild(
    store: Annotated[str, typer.Argument(help="graph, vectors or cache.")],
    json: Json = False,
) -> None:
    """Write everything to a store again, from PostgreSQL, and verify it; empty the cache. Nothing is embedded again.

    Everything works meanwhile; searches report the store as degraded. Use it for a store that is damaged, or to fill
    a new engine after its URL was changed. Safe to repeat. When the command is interrupted, the rebuild goes on.

    Example: apex rebuild graph
    """
    with gateway() as api:
        started = api.call("POST", f"/v1/stores/{store}/rebuild")
        report = _follow_rebuild(api, started, quiet=json)
    if json:
        show_json(report)
    else:
        _report_rebuild(report)
    if report["state"] != "done":
        raise typer.Exit(1)


def _follow_rebuild(api: Gateway, report: dict[str, Any], *, quiet: bool) -> dict[str, Any]:
    """Return the report of a rebuild that has ended. Shows its progress on a terminal."""
    path = f"/v1/stores/{report['store']}/rebuild"
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TextColumn("{task.completed} of {task.total}", markup=False),
    )
    shown = is_terminal(stderr=True) and not quiet
    with Progress(*columns, console=console(stderr=True), transient=True, disable=not shown) as bar:
        task = bar.add_task(f"Rebuilding {report['store']}", total=report["total"])
        while report["state"] == "running":
            sleep(POLL_SECONDS)
            report = api.call("GET", path, patience=GATEWAY_SECONDS)
            bar.update(task, completed=report["done"], total=report["total"])
    return report


def _report_rebuild(report: dict[str, Any]) -> None:
    store = report["store"]
    if report["state"] == "interrupted":
        say((f"{store} is not rebuilt", "red"), ": the gateway that did it ended.")
        say(("→ the workers complete the store by themselves; or run it again", "dim"), indent=2)
    elif report["state"] == "failed":
        say((f"{store} is not rebuilt", "red"), f": {report['error']}")
        say((f"→ {report['remedy']}", "dim"), indent=2)
    elif store == "cache":
        say(
            ("Emptied", "green"), f": {report['done']:,} entries removed; it fills again by itself."
        )
    else:
        took = between(report["started_at"], report["ended_at"])
        repaired = f", {report['repaired']:,} of them afterwards" if report["repaired"] else ""
        say(
            ("Rebuilt", "green"),
            f": {report['done']:,} documents in {store}{repaired}, verified by their tallies, in {took}.",
        )
