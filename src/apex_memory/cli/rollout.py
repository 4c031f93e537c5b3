"""`apex rollout`: move a source to Temporal, or the memory to another build, by shares of the documents."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from apex_memory.cli import rollout_shadow
from apex_memory.cli.client import gateway
from apex_memory.cli.output import (
    Json,
    Part,
    ago,
    minute,
    pairs,
    say,
    show_json,
    show_table,
)
from apex_memory.errors import Rejected

app = typer.Typer(
    help="Rollouts: move a source to Temporal, or the memory to another build, step by step.",
    no_args_is_help=True,
)

rollout_shadow.register(app)

Source = Annotated[str, typer.Argument(help="The source's name, from `apex sources`.")]
Subject = Annotated[str, typer.Argument(help="A source's name, or `build`.")]
Reason = Annotated[str, typer.Option(help="The reason, for the audit log.")]

MARKS: dict[str, Part] = {
    "passed": ("✓", "green"),
    "open": ("…", "dim"),
    "blocked": ("!", "yellow"),
    "violated": ("✗", "red"),
}


@app.command("start")
def start(
    subject: Subject,
    build: Annotated[
        str | None, typer.Option(help="Of subject `build`: the id of the candidate.")
    ] = None,
    steps: Annotated[
        str | None, typer.Option(help="Other steps than those of the settings: `shadow,10,100`.")
    ] = None,
    min_seconds: Annotated[
        float | None, typer.Option(help="Least duration of a step (seconds).")
    ] = None,
    min_events: Annotated[
        int | None, typer.Option(help="Least number of events in a step.")
    ] = None,
    promotion: Annotated[
        str | None,
        typer.Option(help="`manual`: each step needs `apex rollout approve`; or `automatic`."),
    ] = None,
    reason: Reason = "",
    json: Json = False,
) -> None:
    """Begin a rollout at the first step of its plan. Its gates then lead it on, hold it, or roll it back.

    Example: apex rollout start frontapp --steps shadow,10,50,100 --min-events 200 --reason "week two"
    """
    plan: dict[str, Any] = {
        "steps": _steps(steps) if steps is not None else None,
        "min_seconds": min_seconds,
        "min_events": min_events,
        "promotion": promotion,
    }
    body = {
        "build": build,
        "reason": reason,
        "plan": {name: value for name, value in plan.items() if value is not None},
    }
    _steer(subject, "start", {k: v for k, v in body.items() if v is not None}, json=json)


@app.command("status")
def status(
    subject: Annotated[
        str | None, typer.Argument(help="A source's name, or `build`. Without one: all of them.")
    ] = None,
    json: Json = False,
) -> None:
    """Show where rollouts are, what their gates say, and who changed what and why.

    Example: apex rollout status frontapp
    """
    with gateway() as api:
        response = api.call("GET", f"/v1/rollouts/{subject}" if subject else "/v1/rollouts")
    if json:
        show_json(response)
    elif subject:
        _show(response)
        _show_history(response)
    else:
        _show_all(response["rollouts"])


@app.command("list")
def list_rollouts(json: Json = False) -> None:
    """List the share of each source that is being rolled out.

    Example: apex rollout list
    """
    with gateway() as api:
        response = api.call("GET", "/v1/rollouts")
    if json:
        show_json(response)
        return
    _show_all(response["rollouts"])


@app.command("approve")
def approve(subject: Subject, reason: Reason = "", json: Json = False) -> None:
    """Let a rollout go on that is held or was rolled back, or allow the next step of a manual plan.

    Example: apex rollout approve frontapp --reason "looked at the differences"
    """
    _steer(subject, "approve", {"reason": reason}, json=json)


@app.command("hold")
def hold(subject: Subject, reason: Reason = "", json: Json = False) -> None:
    """Keep a rollout at its step until it is approved. Its gate may still roll it back.

    Example: apex rollout hold frontapp --reason "quarter end"
    """
    _steer(subject, "hold", {"reason": reason}, json=json)


@app.command("back")
def back(
    subject: Subject,
    to: Annotated[
        str | None,
        typer.Option(help="An earlier step: its share, `shadow`, or `off`. Else the one before."),
    ] = None,
    reason: Reason = "",
    json: Json = False,
) -> None:
    """Go back to an earlier step, and stay there until the rollout is approved; `off` ends it. It acts within a second.

    Example: apex rollout back frontapp --to off --reason "strange hits"
    """
    body = {"reason": reason} | ({"to": to} if to is not None else {})
    _steer(subject, "back", body, json=json)


@app.command("stop")
def stop(
    subject: Subject,
    keep: Annotated[bool, typer.Option("--keep", help="Leave the share as it is.")] = False,
    reason: Reason = "",
    json: Json = False,
) -> None:
    """End a rollout. The share becomes 0 within a second, unless it is kept.

    Example: apex rollout stop frontapp --reason "another time"
    """
    _steer(subject, "stop", {"reason": reason, "keep": keep}, json=json)


@app.command("set")
def set_share(
    source: Source,
    share: Annotated[
        str,
        typer.Argument(help="Per cent of the documents, `off` (0), or `shadow` (0, with copies)."),
    ],
    reason: Reason = "",
    json: Json = False,
) -> None:
    """Set what share of a source's documents goes through Temporal, without a plan. It acts within a second.

    Example: apex rollout set frontapp 10 --reason "first step"
    """
    body = {"share": _per_cent(share), "shadow": share == "shadow", "reason": reason}
    with gateway() as api:
        row = api.call("PUT", f"/v1/rollouts/{source}", json=body)
    if json:
        show_json(row)
        return
    copies = ", and processes copies of the others" if row["shadow"] else ""
    say(f"{source}: Temporal processes {row['share']} % of the documents{copies}.")


def _steer(subject: str, action: str, body: dict[str, Any], *, json: bool) -> None:
    with gateway() as api:
        row = api.call("POST", f"/v1/rollouts/{subject}/{action}", json=body)
    if json:
        show_json(row)
    else:
        _show(row)


def _show(row: dict[str, Any]) -> None:
    run = row["rollout"]
    processor = f"build {row['build']}" if row["subject"] == "build" else "Temporal"
    share = f"{processor} processes {row['share']} % of the documents"
    share += ", and copies of the others" if row["shadow"] else ""
    if run is None:
        pairs(row["subject"], {"share": share, "by": row["changed_by"], "why": row["reason"]})
        return
    facts = {
        "share": share,
        "rollout": f"{run['state']} at {run['step']}, of {' → '.join(run['steps'])} ({run['promotion']})",
        "since": f"{minute(run['step_began_at'])} ({ago(run['step_began_at'])})",
        "gate": "" if run["ended_at"] else run["verdict"],
        "last change": f"{run['changed_by']}: {run['reason']}" if run["reason"] else "",
    }
    pairs(row["subject"], facts)
    if run["ended_at"]:
        return
    for check in run["checks"]:
        say("  ", MARKS[check["result"]], f" {check['name']}: {check['detail']}")


def _show_history(row: dict[str, Any]) -> None:
    say("")
    show_table(
        "Changes",
        ("when", "who", "what", "share", "why"),
        [(minute(c["at"]), c["actor"], c["event"], _share(c), c["reason"]) for c in row["history"]],
        empty="No changes.",
        free=("why",),
    )


def _show_all(rows: list[dict[str, Any]]) -> None:
    show_table(
        "Rollouts",
        ("subject", "share", "rollout", "step", "changed", "by", "gate"),
        [_cells(row) for row in rows],
        empty="None: every source goes through Temporal as a whole.",
        free=("gate",),
    )


def _cells(row: dict[str, Any]) -> tuple[str, ...]:
    share, changed = _share(row), ago(row["changed_at"])
    run = row["rollout"]
    if run is None:
        return (row["subject"], share, "", "", changed, row["changed_by"], row["reason"])
    gate = row["reason"] if run["ended_at"] else run["verdict"]
    return (row["subject"], share, run["state"], run["step"], changed, row["changed_by"], gate)


def _share(row: dict[str, Any]) -> str:
    return f"{row['share']} %" + (" + shadow" if row["shadow"] else "")


def _steps(text: str) -> list[str | int]:
    """Return the steps of a plan from `shadow,10,100`. The gateway checks them."""
    names = [name.strip() for name in text.split(",")]
    return [int(name) if name.isascii() and name.isdecimal() else name for name in names]


def _per_cent(share: str) -> int:
    """Return the share in per cent. Raises `Rejected` for anything but `off`, `shadow` and 0 to 100."""
    if share in ("off", "shadow"):
        return 0
    number = share.removesuffix("%").strip()
    if not (number.isdecimal() and int(number) <= 100):
        raise Rejected(f"{share}: not a share", remedy="give 0 to 100, `off` or `shadow`")
    return int(number)
