"""`apex demo`: a compressed working day of nine vendors: start the stack, play the day, search, show, stop."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import Annotated, Any

import httpx2
import typer
from rich.live import Live
from rich.table import Table

import apex_memory
from apex_memory.cli.ask import show_answer, show_event
from apex_memory.cli.client import Gateway, admin_key
from apex_memory.cli.ingest import send_files
from apex_memory.cli.output import console, show_table
from apex_memory.cli.up import Running, running, show_stack
from apex_memory.config import Settings, load_settings
from apex_memory.engines.state import read_stack
from apex_memory.errors import Conflict, require_extra
from apex_memory.simulate.day import DayPlayback, end_of, yesterday
from apex_memory.simulate.delivery import Delivery
from apex_memory.simulate.registry import simulator_classes
from apex_memory.simulate.server import SimulatorServer, serve_simulators
from apex_memory.simulate.vendor import Chaos, Simulator
from apex_memory.simulate.world import Clock, World

FOLDER = Path(".apex-demo")
SHIPMENTS = 5
STEPS = 12  # parts of the day
STEP_SECONDS = 0.1
SETTLE_SECONDS = 90.0
POLL_SECONDS = 1.0
REFRESH_SECONDS = 0.5  # between two queries for the backlog
SHIPMENT = "SHP-100045"
QUESTIONS = (
    f"Where is {SHIPMENT}, who asked about it, and what was billed?",
    "Which payments did the bank book for freight invoices?",
    "How is waiting time at the dock paid?",
)


def demo(
    keep: Annotated[
        bool, typer.Option("--keep", help="Keep the stack running at the end, until Ctrl-C.")
    ] = False,
) -> None:
    """Run a day of all sources against simulated vendors, in a folder of its own (./.apex-demo, which is recreated).

    Example: apex demo --keep
    """
    for package in ("asyncssh", "xberg"):
        require_extra(package, extra="embedded", feature="apex demo")
    if read_stack(FOLDER):
        raise Conflict(
            f"a demo is running already from {FOLDER}",
            remedy="stop it first (Ctrl-C in its terminal)",
        )
    if FOLDER.exists():
        shutil.rmtree(FOLDER)
    if asyncio.run(_demo(keep=keep)):
        raise Conflict("the demo is incomplete", remedy=f"see the logs in {FOLDER}/log")


async def _demo(*, keep: bool) -> bool:
    out = console()
    world = World.make(shipments=SHIPMENTS, start=yesterday())
    clock = Clock(world.start)
    simulators = [kind(world, clock, Chaos()) for kind in simulator_classes()]
    async with serve_simulators(simulators) as served:
        settings = _settings(served)
        out.print(
            "[dim]Starting PostgreSQL, FalkorDB, Valkey, Qdrant Edge, Temporal, gateway and worker …[/]"
        )
        async with running(settings, _report) as stack:
            show_stack(settings, stack)
            good = await _day(settings, stack, simulators, clock)
            if keep:
                out.print(
                    f"\nThe stack keeps running. In another terminal: [bold]export APEX_DATA_DIR={FOLDER}[/], then `apex search …`. Ctrl-C stops it.",
                    highlight=False,
                )
                await stack.supervisor.wait()
    out.print("[dim]All stopped.[/]")
    return not good


def _settings(served: SimulatorServer) -> Settings:
    """Settings that point every source at its simulator, polled as often as a compressed day needs."""
    tables = served.settings()
    for name, table in tables.items():
        if name not in ("llm",):
            table.setdefault("poll_seconds", POLL_SECONDS)
    os.environ |= {
        "APEX_DATA_DIR": str(FOLDER),
        "APEX_SOURCES": json.dumps(tables, default=str),
        "APEX_LOG_LEVEL": "warning",
        "APEX_PORT": os.environ.get("APEX_PORT", "0"),
    }
    return load_settings()


def _report(name: str, what: str, detail: str) -> None:
    if what not in ("ready", "stopped"):
        console(stderr=True).print(f"  {name} {what}: {detail}", highlight=False)


async def _day(
    settings: Settings, stack: Running, simulators: Sequence[Simulator], clock: Clock
) -> bool:
    """Play the day, search, show. Return True when every event was processed and every question has hits."""
    out, key = console(), admin_key(settings)
    api = Gateway(stack.url, key)
    try:
        out.rule("1. A day of nine sources")
        async with httpx2.AsyncClient(timeout=30) as http:
            delivery = Delivery(stack.url, key, http)
            result = await _play(api, DayPlayback(simulators, delivery, clock))
        out.print(result.line(), highlight=False)
        for refused in delivery.refused:
            out.print(f"[red]refused:[/] {refused}", highlight=False)
        has_hits = await asyncio.to_thread(_search, api)
        out.print(
            f"\nAPI docs     {stack.url}/docs\nTemporal UI  {stack.temporal_ui}/namespaces/apex/workflows",
            highlight=False,
        )
        return has_hits and result.settled and not delivery.refused
    finally:
        api.close()


@dataclass(frozen=True, slots=True)
class DayResult:
    """The state of every source after the day."""

    rows: Sequence[Mapping[str, Any]]
    seconds: float
    files: Sequence[Path] = ()
    """Documents sent from a folder."""

    @property
    def settled(self) -> bool:
        return not any(
            row["backlog"]
            or row["change_hints"]
            or row["files"]
            or row["dead_letters"]
            or row["error"]
            for row in self.rows
        )

    def line(self) -> str:
        total = sum(row["documents"] for row in self.rows)
        end = "all done" if self.settled else "[red]some are still in progress[/]"
        kinds = ", ".join(sorted({file.suffix[1:] for file in self.files}))
        return (
            f"{total} documents of {len(self.rows)} sources are in memory after {self.seconds:.1f} s, "
            f"{len(self.files)} of them files ({kinds}); {end}."
        )


async def _play(api: Gateway, playback: DayPlayback) -> DayResult:
    """Play the day step by step, with a table of the sources. Return when every event is in memory, or time is up."""
    began, end = monotonic(), end_of(playback.simulators[0].world)
    start = playback.clock.now
    files = asyncio.create_task(asyncio.to_thread(_send_documents, api))
    with Live(console=console(stderr=True), refresh_per_second=8, transient=True) as live:
        for n in range(1, STEPS + 1):
            playback.clock.advance_to(start + (end - start) * n / STEPS)
            await playback.send_due()
            await _show_progress(api, live, playback)
            await asyncio.sleep(STEP_SECONDS)
        await playback.delivery.flush()
        await files
        pulled = [row["name"] for row in await _rows(api) if row["pulled_at"]]
        for name in pulled:  # the last changes are fetched now, not at the scheduled time
            await asyncio.to_thread(api.call, "POST", f"/v1/sources/{name}/run")
        quiet, known = 0, -1
        while quiet < 2 and monotonic() - began < SETTLE_SECONDS:
            rows = await _show_progress(api, live, playback)
            now = sum(row["documents"] for row in rows)
            quiet = quiet + 1 if DayResult(rows, 0).settled and now == known else 0
            known = now
            await asyncio.sleep(REFRESH_SECONDS)
    rows = await _rows(api)
    show_table(
        "",
        ("source", "", "by", "documents", "state"),
        [
            (row["title"], row["priority"], row["pattern"], row["documents"], row["state"])
            for row in rows
        ],
        empty="",
    )
    return DayResult(rows, monotonic() - began, list(documents_folder().iterdir()))


async def _show_progress(
    api: Gateway, live: Live, playback: DayPlayback
) -> Sequence[Mapping[str, Any]]:
    rows = await _rows(api)
    table = Table(box=None, pad_edge=False, header_style="dim", title_justify="left")
    table.title = f"{playback.until:%A %H:%M} in the simulated world"
    for column in ("source", "", "by", "sent", "in memory", "waiting"):
        table.add_column(column)
    for row in rows:
        table.add_row(
            row["title"],
            row["priority"],
            row["pattern"],
            str(playback.delivery.sent.get(row["name"], "")),
            str(row["documents"]),
            str(row["backlog"] + row["change_hints"] + row["files"] or ""),
        )
    live.update(table)
    return rows


async def _rows(api: Gateway) -> Sequence[Mapping[str, Any]]:
    response = await asyncio.to_thread(api.call, "GET", "/v1/sources")
    rows: Sequence[Mapping[str, Any]] = response["sources"]
    return rows


def _send_documents(api: Gateway) -> dict[str, Any]:
    files = [(file, f"demo/{file.name}") for file in sorted(documents_folder().iterdir())]
    return send_files(api, files, wait=False, timeout=0, quiet=True)


def _search(api: Gateway) -> bool:
    """Search, and show one shipment in all sources. Return True when every question has hits."""
    out = console()
    complete = True
    for n, question in enumerate(QUESTIONS, start=2):
        out.rule(f"{n}. {question}", style="dim")
        answer = api.call(
            "POST",
            "/v1/search",
            json={"query": question, "limit": 8 if n == 2 else 3, "passages_per_document": 1},
        )
        show_answer(answer)
        complete = complete and bool(answer["hits"]) and not answer["degraded"]
    out.rule(f"One shipment in all sources: {SHIPMENT}", style="dim")
    documents = _naming(api)
    sources = Counter(row["source"] for row in documents)
    show_table(
        "",
        ("source", "documents", "the latest"),
        [
            (name, count, next(row["title"] for row in documents if row["source"] == name))
            for name, count in sources.most_common()
        ],
        empty="Nothing.",
    )
    out.rule("One event, step by step", style="dim")
    event = next(row["provenance"]["id"] for row in documents)
    show_event(api.call("GET", f"/v1/events/{event}"))
    return complete and len(sources) > 1


def _naming(api: Gateway) -> list[dict[str, Any]]:
    """Return the search hits that name the shipment, newest first."""
    answer = api.call(
        "POST",
        "/v1/search",
        json={
            "query": "",
            "limit": 100,
            "passages_per_document": 1,
            "filters": {"entities": [f"shipment:{SHIPMENT}"]},
        },
    )
    hits: list[dict[str, Any]] = answer["hits"]
    return hits


def documents_folder() -> Path:
    """Return the folder of example documents: in the package when installed, in the checkout otherwise."""
    package = Path(apex_memory.__file__).parent
    inside = package / "examples" / "documents"
    return inside if inside.exists() else package.parents[1] / "examples" / "documents"
