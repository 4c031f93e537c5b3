"""`apex builds`: builds of Apex side by side, and which of them processes which share of the documents."""

from __future__ import annotations

from typing import Annotated, Any
from urllib.parse import quote

import typer

from apex_memory.cli.client import gateway
from apex_memory.cli.output import Json, ago, say, show_json, show_table

app = typer.Typer(invoke_without_command=True)

BuildId = Annotated[str, typer.Argument(help="The build, as `apex builds list` shows it.")]
Reason = Annotated[str, typer.Option("--reason", help="Why, for the audit trail.")]
Unchecked = Annotated[
    bool, typer.Option("--unchecked", help="Go on although the build has not passed its check.")
]
CHECK_SECONDS = 330.0  # a check ends within five minutes


@app.callback()
def builds(context: typer.Context, json: Json = False) -> None:
    """Builds of Apex side by side: list, check, ramp, promote, roll back, retire. Without a command: list.

    Example: apex builds --json
    """
    if context.invoked_subcommand is None:
        list_builds(json)


@app.command("list")
def list_builds(json: Json = False) -> None:
    """List the builds whose workers have run here: role, share, state in Temporal, workers and runs.

    Example: apex builds list
    """
    with gateway() as api:
        report = api.call("GET", "/v1/builds")
    if json:
        show_json(report)
        return
    show_table(
        "Builds",
        ("build", "role", "share", "in Temporal", "workers", "runs", "unfinished", "check", "seen"),
        [_cells(row) for row in report["builds"]],
        empty="None: no worker has run here yet.",
    )
    if report["routing"] == "external":
        say("The routing belongs to somebody else (`routing = external`); Apex follows it.")
    if not report["temporal"]:
        say(("Temporal does not respond", "red"), ": shares act all the same.")
    elif not report["in_line"]:
        say(("Temporal has another routing", "yellow"), ": a worker brings it into line.")
    current = next((row for row in report["builds"] if row["role"] == "current"), None)
    if current and not current["alive"]:
        say(
            (f"No worker of the current build {current['build']} runs", "red"),
            ": events land, and wait. Start one, or `apex builds promote` another build.",
        )


def _cells(row: dict[str, Any]) -> tuple[object, ...]:
    check = {True: "passed", False: "failed", None: ""}[row["check_passed"]]
    pollers = row["pollers"] if row["pollers"] is not None else "?"
    return (
        row["build"],
        row["role"],
        f"{row['share']} %" if row["share"] else "",
        row["status"] or "",
        pollers if row["alive"] else "none",
        row["runs"] if row["runs"] is not None else "",
        row["unfinished"] or "",
        check,
        ago(row["seen_at"]) if row["seen_at"] else "",
    )


@app.command("check")
def check(
    build: BuildId,
    histories: Annotated[
        int, typer.Option("--histories", help="Newest runs of each workflow that are replayed.")
    ] = 20,
    json: Json = False,
) -> None:
    """Check a build before it processes documents: stores, models, and a replay of recent runs of this installation.

    Example: apex builds check 0.3.0-5f1c09aa2b
    """
    with gateway() as api:
        result = api.call(
            "POST",
            f"/v1/builds/{quote(build)}/check",
            json={"histories": histories},
            timeout=CHECK_SECONDS,
        )
    if json:
        show_json(result)
    elif result["passed"]:
        say((f"{build} passed", "green"), f": {result['detail']}.")
    else:
        say((f"{build} failed", "red"), f": {result['detail']}")
    if not result["passed"]:
        raise typer.Exit(1)


@app.command("ramp")
def ramp(
    build: BuildId,
    share: Annotated[int, typer.Argument(min=1, max=100, help="Per cent of the documents.")],
    reason: Reason = "",
    unchecked: Unchecked = False,
    json: Json = False,
) -> None:
    """Let a build process a share of the documents. It acts with the next batch, in every process.

    Example: apex builds ramp 0.3.0-5f1c09aa2b 10
    """
    body = {"share": share, "reason": reason, "unchecked": unchecked}
    _change(f"{quote(build)}/ramp", body, json=json)


@app.command("promote")
def promote(
    build: BuildId, reason: Reason = "", unchecked: Unchecked = False, json: Json = False
) -> None:
    """Make a build current: it processes every document. The one that was current is kept for a rollback.

    Example: apex builds promote 0.3.0-5f1c09aa2b
    """
    _change(f"{quote(build)}/promote", {"reason": reason, "unchecked": unchecked}, json=json)


@app.command("rollback")
def rollback(reason: Reason = "", json: Json = False) -> None:
    """End the rollout of the candidate; without one, make the previous build current again.

    Example: apex builds rollback --reason "titles are wrong"
    """
    _change("rollback", {"reason": reason}, json=json)


@app.command("retire")
def retire(build: BuildId, reason: Reason = "", json: Json = False) -> None:
    """End a build for good: it claims nothing, and its workflows end.

    Example: apex builds retire 0.1.0-7e2f0c91aa
    """
    _change(f"{quote(build)}/retire", {"reason": reason}, json=json)


def _change(path: str, body: dict[str, Any], *, json: bool) -> None:
    with gateway() as api:
        result = api.call("POST", f"/v1/builds/{path}", json=body)
    if json:
        show_json(result)
        return
    say(f"{result['current']} is current", f" and processes {100 - result['share']} %.")
    if result["candidate"]:
        say(f"{result['candidate']} is the candidate and processes {result['share']} %.")
    if result["previous"]:
        say(f"{result['previous']} was current before.")
    if result["taken_back"]:
        say(f"{result['taken_back']} unfinished events were taken back.")
