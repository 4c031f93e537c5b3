"""`apex status`, `doctor`, `hello`, `reconcile`: is it well, and if not, what to do."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Annotated, Any, Literal

import typer

from apex_memory.cli.client import Gateway, admin_key, gateway, gateway_url
from apex_memory.cli.output import ago, console, show_json, show_table
from apex_memory.config import Settings, load_settings
from apex_memory.engines.state import read_stack
from apex_memory.errors import ApexError

Json = Annotated[bool, typer.Option("--json", help="Machine output.")]
LEAST_DISK = 1_000_000_000  # bytes


def status(json: Json = False) -> None:
    """Show what runs, how far behind it is, and what waits.

    Example: apex status
    """
    settings = load_settings()
    with gateway(settings) as api:
        found = api.call("GET", "/v1/status")
    stack = read_stack(settings.data_dir)
    if json:
        show_json(
            {**found, "processes": stack.model_dump(mode="json")["children"] if stack else {}}
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
        )
    show_table(
        "Stores",
        ("store", "state", "engine"),
        [(s["name"], s["state"], s["version"]) for s in found["stores"]],
        empty="",
    )
    show_table(
        "Not at an end",
        ("source", "state", "waits for", "events", "oldest"),
        [
            (b["source"], b["state"], b["park_store"], b["events"], ago(b["oldest"]))
            for b in found["backlog"] or ()
        ],
        empty="Nothing waits." if found["backlog"] is not None else "Not known without PostgreSQL.",
    )
    if found["dead_letters"]:
        console().print(
            f"[red]{found['dead_letters']} dead letters[/]: see `apex dead-letters list`."
        )
    if not found["temporal"]["reachable"]:
        console().print("[red]Temporal does not answer[/]: events land, and wait for it.")


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of `apex doctor`."""

    what: str
    state: Literal["good", "bad", "note"]
    detail: str
    remedy: str = ""


def doctor(json: Json = False) -> None:
    """Look for what is wrong, and say the way out of each. Exit code 1 if anything is.

    Example: apex doctor
    """
    findings = list(examine())
    if json:
        show_json([asdict(finding) for finding in findings])
    else:
        marks = {"good": "[green]✓[/]", "bad": "[red]✗[/]", "note": "[yellow]![/]"}
        for finding in findings:
            console().print(
                f"{marks[finding.state]} {finding.what}: {finding.detail}", highlight=False
            )
            if finding.remedy:
                console().print(f"    [dim]→ {finding.remedy}[/]", highlight=False)
    if any(finding.state == "bad" for finding in findings):
        raise typer.Exit(1)


def examine() -> Iterator[Finding]:
    """Findings, from the settings outwards; stops where nothing further can be known."""
    try:
        settings = load_settings()
    except ApexError as error:
        yield Finding("settings", "bad", str(error), error.remedy)
        return
    yield Finding("settings", "good", f"data in {settings.data_dir}")
    yield from _disk(settings)
    yield from _processes(settings)
    try:
        url = gateway_url(settings)
    except ApexError as error:
        yield Finding("gateway", "bad", str(error), error.remedy)
        return
    api = Gateway(url, admin_key(settings))
    try:
        found = api.call("GET", "/v1/status")
        sources = api.call("GET", "/v1/sources")["sources"]
    except ApexError as error:
        yield Finding("gateway", "bad", str(error), error.remedy)
        return
    finally:
        api.close()
    yield Finding("gateway", "good", f"answers at {url}")
    yield from _inside(found)
    yield from _sources(sources)


def _disk(settings: Settings) -> Iterator[Finding]:
    place = settings.data_dir if settings.data_dir.exists() else settings.data_dir.absolute().parent
    free = shutil.disk_usage(place).free
    if free < LEAST_DISK:
        yield Finding(
            "disk",
            "bad",
            f"{free / 1e9:.1f} GB free at {place}",
            "free space there: engines stop taking events when it is full",
        )
    else:
        yield Finding("disk", "good", f"{free / 1e9:.0f} GB free")


def _processes(settings: Settings) -> Iterator[Finding]:
    stack = read_stack(settings.data_dir)
    if stack is None:
        yield Finding(
            "processes",
            "note",
            f"no stack runs from {settings.data_dir}",
            "start it with `apex up`",
        )
        return
    for child in stack.children.values():
        log = settings.data_dir / "log" / f"{child.name}.log"
        if not child.pid:
            yield Finding(
                child.name,
                "bad",
                f"is down ({child.last_exit or 'starting'})",
                f"it is started again by itself; see {log}",
            )
        elif child.restarts:
            yield Finding(
                child.name,
                "note",
                f"was started again {child.restarts} times, last exit {child.last_exit}",
                f"see {log}",
            )
        else:
            yield Finding(child.name, "good", f"{child.version or 'runs'}, pid {child.pid}")


def _inside(found: dict[str, Any]) -> Iterator[Finding]:
    for store in found["stores"]:
        if store["state"] == "ready":
            yield Finding(f"store {store['name']}", "good", store["version"])
        else:
            remedy = "events wait and searches say so until it is back; check its address and log"
            if store["state"] == "recovering":
                remedy = "it restarted and is being checked against PostgreSQL; this ends by itself"
            yield Finding(f"store {store['name']}", "bad", store["state"], remedy)
    if found["temporal"]["reachable"]:
        yield Finding("temporal", "good", found["temporal"]["address"])
    else:
        yield Finding(
            "temporal",
            "bad",
            f"{found['temporal']['address']} does not answer",
            "events land and wait; start it, or check APEX_TEMPORAL",
        )
    if parked := found["parked"]:
        yield Finding(
            "parked",
            "note",
            f"{parked} events wait for a store",
            "they go on by themselves when it is back",
        )
    if found["dead_letters"]:
        yield Finding(
            "dead letters",
            "note",
            f"{found['dead_letters']} are open",
            "`apex dead-letters list` says why, `redrive` or `discard` them",
        )


def _sources(rows: Sequence[dict[str, Any]]) -> Iterator[Finding]:
    for row in rows:
        name = f"source {row['name']}"
        if row["state"] == "failing":
            yield Finding(
                name, "bad", row["error"], "it is tried again by itself; see `apex sources`"
            )
        elif row["state"] in ("paused", "disabled"):
            yield Finding(
                name, "note", row["state"], f"`apex sources {_UNDO[row['state']]} {row['name']}`"
            )


_UNDO = {"paused": "resume", "disabled": "enable"}


def hello(json: Json = False) -> None:
    """The smoke test: one small workflow through Temporal and every store.

    Example: apex hello
    """
    with gateway() as api:
        found = api.call("POST", "/v1/hello")
    if json:
        show_json(found)
        return
    show_table(
        "Hello",
        ("part", "state", "answer"),
        [(p["name"], p["state"], p["answer"]) for p in found["parts"]],
        empty="",
    )
    away = [p["name"] for p in found["parts"] if p["state"] != "ready"]
    said = f"[red]Away: {', '.join(away)}.[/]" if away else "[green]All answer.[/]"
    console().print(
        f"{said} {found['milliseconds']:.0f} ms. The run: {found['workflow_url'] or found['workflow_id']}",
        highlight=False,
        soft_wrap=True,
    )


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
    """Compare a store with PostgreSQL, both ways: repair what it lost, remove what is left over. Restores an empty store too.

    Example: apex reconcile vectors
    """
    with gateway() as api:
        found = api.call(
            "POST", f"/v1/stores/{store}/reconcile", json={"prune": prune}, timeout=86_400
        )
    if json:
        show_json(found)
        return
    console().print(
        f"{store}: {found['stages']} stages checked, {found['repaired']} documents repaired, "
        f"{found['removed']} stray stages removed, {found['left']} left alone."
    )
    if found["errors"]:
        raise typer.Exit(1)
