"""`apex ingest`: send files and folders to the memory, with a progress bar."""

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
        list[Path], typer.Argument(help="Files and folders. Hidden files are skipped.")
    ],
    wait: Annotated[
        bool, typer.Option("--wait/--no-wait", help="Wait until all files are searchable.")
    ] = True,
    timeout: Annotated[float, typer.Option(help="Longest wait in seconds.")] = 600,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Send documents to the memory. Unchanged files are recognised; changed files become new versions.

    Example: apex ingest ./contracts rate-confirmation.pdf
    """
    files = list(_files(paths))
    if not files:
        raise Rejected("no files found", remedy="name files, or folders that contain files")
    with gateway() as api:
        result = send_files(api, files, wait=wait, timeout=timeout, quiet=json)
    if json:
        show_json(result)
    else:
        _show_result(result)
    if result["refused"] or result["dead"]:
        raise typer.Exit(1)


def _files(paths: Sequence[Path]) -> Iterator[tuple[Path, str]]:
    """Yield (file, key). The key is the path below the named folder, so that the same folder gives the same documents."""
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
    """Send files. Return their event ids, the number of duplicates, refused files, and the states that the events reached."""
    result: dict[str, Any] = {"landed": [], "known": 0, "refused": [], "dead": [], "open": 0}
    with progress(quiet) as bar:
        sending = bar.add_task("landing", total=len(files))
        for file, key in files:
            try:
                answer = api.call(
                    "POST", "/v1/documents", content=file.read_bytes(), **_request_for(file, key)
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


def _request_for(file: Path, key: str) -> dict[str, Any]:
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
    """Return a progress bar on stderr: task, count, elapsed time."""
    return Progress(
        TextColumn("{task.description:>11}"),
        BarColumn(bar_width=40),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=console(stderr=True),
        disable=quiet,
    )


def follow(api: Gateway, ids: Sequence[str], bar: Progress, *, timeout: float) -> dict[str, str]:
    """Poll events until each has finished or is parked, or `timeout` seconds have passed. Return the state by id."""
    task = bar.add_task("searchable", total=len(ids))
    states: dict[str, str] = dict.fromkeys(ids, "received")
    deadline = monotonic() + timeout
    while True:
        waiting = [id for id, state in states.items() if state in OPEN]
        for first in range(0, len(waiting), STATES_AT_ONCE):
            chunk = waiting[first : first + STATES_AT_ONCE]
            states |= api.call("POST", "/v1/events/states", json={"ids": chunk})["states"]
        finished = sum(state not in OPEN for state in states.values())
        bar.update(task, completed=finished)
        if finished == len(states) or monotonic() > deadline:
            return states
        sleep(0.1)


def _show_result(result: dict[str, Any]) -> None:
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
            f"[red]{len(result['dead'])} could not be read[/]: see `apex dead-letters list` for the reasons."
        )
    if result.get("parked"):
        console().print(f"[yellow]{len(result['parked'])} wait for a store[/]: see `apex status`.")
    if result["open"]:
        console().print(f"[yellow]{result['open']} are still in progress[/]: see `apex events`.")
