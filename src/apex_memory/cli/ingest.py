"""`apex ingest`: folders and files into the memory, with a progress bar."""

from __future__ import annotations

import mimetypes
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from time import monotonic, sleep
from typing import Annotated, Any

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from apex_memory.cli.client import Gateway, Refused, gateway
from apex_memory.cli.output import console, show_json, show_table
from apex_memory.errors import Rejected

OPEN = ("received", "prepared", "staged")
STATES_AT_ONCE = 500
TYPES = {".eml": "message/rfc822", ".msg": "application/vnd.ms-outlook", ".md": "text/markdown"}


def ingest(
    paths: Annotated[
        list[Path], typer.Argument(help="Files and folders; hidden files are left out.")
    ],
    wait: Annotated[
        bool, typer.Option("--wait/--no-wait", help="Wait until all is searchable.")
    ] = True,
    timeout: Annotated[float, typer.Option(help="Longest to wait, in seconds.")] = 600,
    json: Annotated[bool, typer.Option("--json", help="Machine output.")] = False,
) -> None:
    """Bring documents into the memory. Unchanged files are recognised; changed ones become new versions.

    Example: apex ingest ./contracts rate-confirmation.pdf
    """
    files = list(_files(paths))
    if not files:
        raise Rejected("no files there", remedy="name files, or folders that hold some")
    with gateway() as api:
        result = send_files(api, files, wait=wait, timeout=timeout, quiet=json)
    if json:
        show_json(result)
    else:
        _say(result)
    if result["refused"] or result["dead"]:
        raise typer.Exit(1)


def _files(paths: Sequence[Path]) -> Iterator[tuple[Path, str]]:
    """(file, key): the key is the path below what was named, so the same folder gives the same documents."""
    for path in paths:
        if path.is_file():
            yield path, path.name
        elif path.is_dir():
            for file in sorted(path.rglob("*")):
                inside = file.relative_to(path)
                if file.is_file() and not any(part.startswith(".") for part in inside.parts):
                    yield file, f"{path.resolve().name}/{inside.as_posix()}"
        else:
            raise Rejected(f"{path}: no such file or folder", remedy="check the path")


def send_files(
    api: Gateway, files: Sequence[tuple[Path, str]], *, wait: bool, timeout: float, quiet: bool
) -> dict[str, Any]:
    """Land files; answers event ids, duplicates, refusals, and the states they reached."""
    result: dict[str, Any] = {"landed": [], "known": 0, "refused": [], "dead": [], "open": 0}
    with progress(quiet) as bar:
        sending = bar.add_task("landing", total=len(files))
        for file, key in files:
            try:
                answer = api.call(
                    "POST", "/v1/documents", content=file.read_bytes(), **_request(file, key)
                )
            except Refused as error:
                result["refused"].append(
                    {"file": str(file), "reason": str(error), "remedy": error.remedy}
                )
            else:
                for event in answer["events"]:
                    result["known"] += event["duplicate"]
                    result["landed"].append(event["id"])
            bar.advance(sending)
        if wait and result["landed"]:
            states = follow(api, result["landed"], bar, timeout=timeout)
            result["dead"] = [id for id, state in states.items() if state == "dead"]
            result["parked"] = [id for id, state in states.items() if state == "parked"]
            result["open"] = sum(state in OPEN for state in states.values())
    return result


def _request(file: Path, key: str) -> dict[str, Any]:
    kind = (
        TYPES.get(file.suffix.lower())
        or mimetypes.guess_type(file.name)[0]
        or "application/octet-stream"
    )
    changed = datetime.fromtimestamp(file.stat().st_mtime, UTC).isoformat()
    return {
        "headers": {"Content-Type": kind},
        "params": {"name": file.name, "key": key, "occurred_at": changed},
    }


def progress(quiet: bool) -> Progress:
    """A bar on stderr: what, how far, how long."""
    return Progress(
        TextColumn("{task.description:>11}"),
        BarColumn(bar_width=40),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=console(stderr=True),
        disable=quiet,
    )


def follow(api: Gateway, ids: Sequence[str], bar: Progress, *, timeout: float) -> dict[str, str]:
    """Watch events until each is at an end or parked, or time is up; answers state by id."""
    task = bar.add_task("searchable", total=len(ids))
    states: dict[str, str] = dict.fromkeys(ids, "received")
    deadline = monotonic() + timeout
    while True:
        waiting = [id for id, state in states.items() if state in OPEN]
        for first in range(0, len(waiting), STATES_AT_ONCE):
            some = waiting[first : first + STATES_AT_ONCE]
            states |= api.call("POST", "/v1/events/states", json={"ids": some})["states"]
        finished = sum(state not in OPEN for state in states.values())
        bar.update(task, completed=finished)
        if finished == len(states) or monotonic() > deadline:
            return states
        sleep(0.1)


def _say(result: dict[str, Any]) -> None:
    new = len(result["landed"]) - result["known"]
    console().print(
        f"{new} new, {result['known']} known already, {len(result['refused'])} refused."
    )
    show_table(
        "Refused",
        ("file", "why", "what to do"),
        [(r["file"], r["reason"], r["remedy"]) for r in result["refused"]],
        empty="",
    )
    if result["dead"]:
        console().print(
            f"[red]{len(result['dead'])} could not be read[/]: `apex dead-letters list` says why."
        )
    if result.get("parked"):
        console().print(
            f"[yellow]{len(result['parked'])} wait for a store[/]: `apex status` says which."
        )
    if result["open"]:
        console().print(
            f"[yellow]{result['open']} are still under way[/]: `apex events` shows them."
        )
