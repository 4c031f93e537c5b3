"""`apex demo`: the main job on real input: start, land, wait until searchable, ask, show, stop."""

from __future__ import annotations

import asyncio
import os
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer

import apex_memory
from apex_memory import sources
from apex_memory.cli.ask import show_answer, show_event
from apex_memory.cli.client import Gateway, admin_key
from apex_memory.cli.ingest import follow, progress, send_files
from apex_memory.cli.output import console
from apex_memory.cli.up import Running, running, show_stack
from apex_memory.config import Settings, load_settings
from apex_memory.errors import Conflict
from apex_memory.stores.embedded.stack import read_stack

FOLDER = Path(".apex-demo")
SIGNING_KEY = "demo_signing_key"
QUESTIONS = (
    "Where is SHP-100045, and who asked about it?",
    "How is waiting time at the dock paid?",
    "Which reefer load got too warm on the way?",
)


def demo(
    keep: Annotated[
        bool, typer.Option("--keep", help="Leave the stack running at the end, until Ctrl-C.")
    ] = False,
) -> None:
    """Run the main job on real input in a folder of its own (./.apex-demo, made anew).

    Example: apex demo --keep
    """
    os.environ |= {
        "APEX_DATA_DIR": str(FOLDER),
        "APEX_SOURCES__FRONTAPP__SIGNING_KEYS": f'["{SIGNING_KEY}"]',
        "APEX_LOG_LEVEL": "warning",
        "APEX_PORT": os.environ.get("APEX_PORT", "0"),
    }
    settings = load_settings()
    if read_stack(FOLDER):
        raise Conflict(
            f"a demo runs already from {FOLDER}", remedy="stop it first (Ctrl-C in its terminal)"
        )
    if FOLDER.exists():
        shutil.rmtree(FOLDER)
    failed = asyncio.run(_demo(settings, keep=keep))
    if failed:
        raise Conflict(
            "the demo did not end as it should", remedy=f"see {FOLDER}/log, and run `apex doctor`"
        )


async def _demo(settings: Settings, *, keep: bool) -> bool:
    out = console()
    out.print(
        "[dim]Starting PostgreSQL, FalkorDB, Valkey, Qdrant Edge, Temporal, gateway and worker …[/]"
    )
    async with running(settings, _report) as stack:
        show_stack(settings, stack)
        good = await asyncio.to_thread(_tell, settings, stack)
        if keep:
            out.print(
                f"\nIt goes on running. In another terminal: [bold]export APEX_DATA_DIR={FOLDER}[/], then `apex search …`. Ctrl-C stops it.",
                highlight=False,
            )
            await stack.supervisor.wait()
    out.print("[dim]All stopped.[/]")
    return not good


def _report(name: str, what: str, detail: str) -> None:
    if what not in ("ready", "stopped"):
        console(stderr=True).print(f"  {name} {what}: {detail}", highlight=False)


def _tell(settings: Settings, stack: Running) -> bool:
    """Land, wait, ask, show. True when everything landed became searchable and every question found something."""
    out = console()
    api = Gateway(stack.url, admin_key(settings))
    try:
        out.rule("1. Land real inputs")
        result = _land(api, settings)
        out.print(
            f"{len(result['landed'])} events landed: {', '.join(result['lines'])}. "
            f"All searchable after {result['seconds']:.1f} s.",
            highlight=False,
        )
        found = True
        for n, question in enumerate(QUESTIONS, start=2):
            out.rule(f"{n}. {question}", style="dim")
            answer = api.call(
                "POST",
                "/v1/search",
                json={"query": question, "limit": 3, "passages_per_document": 1},
            )
            show_answer(answer)
            found = found and bool(answer["hits"]) and not answer["degraded"]
        out.rule("One event's life", style="dim")
        event = api.call("GET", f"/v1/events/{result['landed'][0]}")
        show_event(event)
        out.print(
            f"\nAPI docs     {stack.url}/docs\nTemporal UI  {stack.temporal_ui}/namespaces/apex/workflows",
            highlight=False,
        )
        return found and not result["failed"]
    finally:
        api.close()


def _land(api: Gateway, settings: Settings) -> dict[str, Any]:
    began = datetime.now(UTC)
    landed: list[str] = []
    lines = []
    for name, requests in _samples(settings):
        count = 0
        for item in requests:
            answer = api.call(
                "POST", item.route, content=item.body, headers=item.headers, params=item.query
            )
            landed += [event["id"] for event in answer["events"]]
            count += len(answer["events"])
        lines.append(f"{count} {name}")
    files = [(file, f"demo/{file.name}") for file in sorted(documents_folder().iterdir())]
    sent = send_files(api, files, wait=False, timeout=0, quiet=not sys.stderr.isatty())
    landed += sent["landed"]
    lines.append(
        f"{len(sent['landed'])} files ({', '.join(sorted({file.suffix[1:] for file, _ in files}))})"
    )
    with progress(quiet=not sys.stderr.isatty()) as bar:
        states = follow(api, landed, bar, timeout=120)
    failed = [id for id, state in states.items() if state not in ("done", "superseded")] + sent[
        "refused"
    ]
    for id in failed:
        console().print(f"[red]not searchable:[/] {id}")
    return {
        "landed": landed,
        "lines": lines,
        "failed": failed,
        "seconds": (datetime.now(UTC) - began).total_seconds(),
    }


@dataclass(frozen=True, slots=True)
class Signed:
    """A sample as its vendor would send it."""

    route: str
    body: bytes
    headers: dict[str, str]
    query: dict[str, str]


def _samples(settings: Settings) -> Iterator[tuple[str, list[Signed]]]:
    """Signed webhooks and conversations, built on each source's samples; documents come as files."""
    for name, source in sources.load(settings.sources).items():
        if name == "documents":
            continue
        at = datetime.now(UTC)
        requests = [
            Signed(
                source.route,
                sample.body,
                {"Content-Type": sample.content_type, **source.sign(sample.body, at)},
                dict(sample.query),
            )
            for sample in source.samples()
        ]
        yield source.title, requests


def documents_folder() -> Path:
    """The folder of example documents: in the package when installed, in the checkout otherwise."""
    package = Path(apex_memory.__file__).parent
    inside = package / "examples" / "documents"
    return inside if inside.exists() else package.parents[1] / "examples" / "documents"
