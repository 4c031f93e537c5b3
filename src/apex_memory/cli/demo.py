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
from apex_memory.cli.ask import show_answer
from apex_memory.cli.client import Gateway
from apex_memory.cli.demo_rollout import show_rollout
from apex_memory.cli.doctor import examine
from apex_memory.cli.events import show_event
from apex_memory.cli.ingest import SentFile, send_files
from apex_memory.cli.output import console, duration, rule, say, show_table, styled
from apex_memory.cli.up import Running, running, show_stack
from apex_memory.client.location import api_key
from apex_memory.config import EMBEDDED, Settings, load_settings
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
STALL_SECONDS = 180.0
"""Without any progress for so long, the demo gives up. A slow machine is given as long as it needs."""
SLOW_SECONDS = 20.0  # after so long the display says what it waits for
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
    world = World.make(shipments=SHIPMENTS, start=yesterday())
    clock = Clock(world.start)
    simulators = [kind(world, clock, Chaos()) for kind in simulator_classes()]
    async with serve_simulators(simulators) as served:
        settings = _settings(served)
        say(
            (
                "Starting the engines, gateway, worker …",
                "dim",
            )
        )
        async with running(settings, _report) as stack:
            show_stack(settings, stack)
            good = await _day(settings, stack, simulators, clock)
            if keep:
                say("")
                say(
                    "The stack keeps running. In another terminal: ",
                    (f"export APEX_DATA_DIR={FOLDER}", "bold"),
                    ", then `apex search …`. Ctrl-C stops it.",
                )
                await stack.supervisor.wait()
    say(("All stopped.", "dim"))
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
    settings = load_settings()
    if settings.temporal == EMBEDDED and not settings.temporal_ui:
        # Its UI shows what was done, and ends with the demo.
        return load_settings(temporal_ui=EMBEDDED)
    return settings


def _report(name: str, what: str, detail: str) -> None:
    if what not in ("ready", "stopped"):
        say(f"  {name} {what}: {detail}", stderr=True)


async def _day(
    settings: Settings, stack: Running, simulators: Sequence[Simulator], clock: Clock
) -> bool:
    """Play the day, search, show, roll out.

    Return True when every event was processed, every question has hits, and the rollouts went as they should.
    """
    key = api_key(settings)
    # On a slow machine PostgreSQL may have no time for a question, and the gateway says so (503).
    with Gateway(stack.url, key, settings.connections_tls, patience=STALL_SECONDS) as api:
        rule("1. A day of nine sources")
        verify = settings.connections_tls.verify()
        async with httpx2.AsyncClient(timeout=STALL_SECONDS, verify=verify) as http:
            delivery = Delivery(stack.url, key, http)
            result = await _play(api, DayPlayback(simulators, delivery, clock))
        say(result.line())
        for refused in delivery.refused:
            say(("refused:", "red"), f" {refused}")
        if not result.settled:
            await asyncio.to_thread(_show_what_is_wrong, result.rows)
        has_hits = await asyncio.to_thread(_search, api)
        rule("A rollout: to Temporal by steps, then a bad build")
        log = settings.data_dir / "log" / "bad-build.log"
        rolled_out = await show_rollout(api, stack.environment, log)
        say("")
        say(f"API docs     {stack.url}/docs")
        if stack.temporal_ui:
            say(f"Temporal UI  {stack.temporal_ui}/namespaces/apex/workflows")
        return has_hits and result.settled and not delivery.refused and rolled_out


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
        end = "all done" if self.settled else "some are still in progress"
        kinds = ", ".join(sorted({file.suffix[1:] for file in self.files}))
        return (
            f"{total} documents of {len(self.rows)} sources are in memory after {duration(self.seconds)}, "
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
        await _settle(api, live, playback)
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


async def _settle(api: Gateway, live: Live, playback: DayPlayback) -> None:
    """Return when everything is in memory, or when nothing has changed for `STALL_SECONDS`."""
    quiet, known = 0, None
    began = changed = monotonic()
    while quiet < 2 and monotonic() - changed < STALL_SECONDS:
        slow = monotonic() - began > SLOW_SECONDS
        rows = await _show_progress(api, live, playback, explain=slow)
        now = progress_of(rows)
        quiet = quiet + 1 if DayResult(rows, 0).settled and now == known else 0
        if now != known:
            known, changed = now, monotonic()
        await asyncio.sleep(REFRESH_SECONDS)


def progress_of(rows: Sequence[Mapping[str, Any]]) -> tuple[int, ...]:
    """Return what changes while sources are worked on: documents, and everything that waits."""
    counts: list[int] = []
    for row in rows:
        counts += [row["documents"], row["backlog"], row["change_hints"], row["files"]]
    return tuple(counts)


def waiting_for(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return what each unfinished source waits for, the most first."""
    kinds = {
        "backlog": "events",
        "change_hints": "changes to fetch",
        "files": "files",
        "dead_letters": "dead letters",
    }
    lines: list[tuple[int, str]] = []
    for row in rows:
        counts = {text: row[name] for name, text in kinds.items() if row[name]}
        if counts or row["error"]:
            parts = [f"{count} {text}" for text, count in counts.items()]
            parts += [row["error"]] if row["error"] else []
            lines.append((sum(counts.values()), f"{row['title']}: {', '.join(parts)}"))
    return [line for _, line in sorted(lines, reverse=True)]


def _show_what_is_wrong(rows: Sequence[Mapping[str, Any]]) -> None:
    """Print what is unfinished, and what `apex doctor` says: the stack still runs now, and not when the demo ends."""
    say((f"Nothing has changed for {STALL_SECONDS:.0f} s. Unfinished:", "red"))
    for line in waiting_for(rows):
        say(line, indent=2)
    for finding in examine():
        if finding.state == "bad":
            say(("✗", "red"), f" {finding.what}: {finding.detail}", indent=2)


async def _show_progress(
    api: Gateway, live: Live, playback: DayPlayback, *, explain: bool = False
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
    if explain and (waiting := waiting_for(rows)):
        table.caption = styled(f"This machine is slow, or busy. Waiting for {waiting[0]}")
        table.caption_justify = "left"
    live.update(table)
    return rows


async def _rows(api: Gateway) -> Sequence[Mapping[str, Any]]:
    response = await asyncio.to_thread(api.call, "GET", "/v1/sources")
    rows: Sequence[Mapping[str, Any]] = response["sources"]
    return rows


def _send_documents(api: Gateway) -> None:
    files = [SentFile(file, f"demo/{file.name}") for file in sorted(documents_folder().iterdir())]
    send_files(api, files, wait=False, timeout=0, quiet=True)


def _search(api: Gateway) -> bool:
    """Search, and show one shipment in all sources. Return True when every question has hits."""
    complete = True
    for n, question in enumerate(QUESTIONS, start=2):
        rule(f"{n}. {question}")
        answer = api.search(question, limit=8 if n == 2 else 3, passages_per_document=1)
        show_answer(answer)
        complete = complete and bool(answer.hits) and not answer.degraded
    rule(f"One shipment in all sources: {SHIPMENT}")
    documents = api.search(
        entities=[f"shipment:{SHIPMENT}"], limit=100, passages_per_document=1
    ).hits
    sources = Counter(hit.source for hit in documents)
    show_table(
        "",
        ("source", "documents", "the latest"),
        [
            (name, count, next(hit.title for hit in documents if hit.source == name))
            for name, count in sources.most_common()
        ],
        empty="Nothing.",
        free=("the latest",),
    )
    rule("One event, step by step")
    show_event(api.call("GET", f"/v1/events/{documents[0].provenance.id}"))
    return complete and len(sources) > 1


def documents_folder() -> Path:
    """Return the folder of example documents: in the package when installed, in the checkout otherwise."""
    package = Path(apex_memory.__file__).parent
    inside = package / "examples" / "documents"
    return inside if inside.exists() else package.parents[1] / "examples" / "documents"
