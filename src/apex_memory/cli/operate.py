"""`apex status`, `hello`, `reconcile`: check the health of the stack, and repair stores."""

from __future__ import annotations

from typing import Annotated

import typer

from apex_memory.cli.client import gateway
from apex_memory.cli.doctor import describe_load, is_slow
from apex_memory.cli.output import Json, ago, duration, say, show_json, show_table
from apex_memory.config import load_settings
from apex_memory.engines.state import read_stack


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
    if not report["temporal"]["reachable"]:
        say(("Temporal does not respond", "red"), ": events land, and wait for it.")
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
