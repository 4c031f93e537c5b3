"""`apex ingest`: send files and folders to the memory, with a progress bar."""

from __future__ import annotations

import hashlib
import mimetypes
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from time import monotonic, sleep
from typing import Annotated, Any, Literal

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from apex_memory.cli.client import Gateway, gateway
from apex_memory.cli.output import Json, console, say, show_json, show_table, size
from apex_memory.client import Busy, Forbidden, Refused
from apex_memory.errors import Rejected, Unavailable
from apex_memory.model import micros, now

OPEN = ("received", "prepared", "staged")
STATES_AT_ONCE = 500
KEYS_AT_ONCE = 500
PATIENCE_SECONDS = 120.0  # longest that one file is repeated while the gateway is busy or away
BUSY_SECONDS = 60.0  # longest that a query about files is repeated while the gateway is busy
RETRY_SECONDS = 1.0  # pause after a request that got no response
MAX_EVENT_ID = 700  # characters; the gateway adds the name of the API key
TYPES = {".eml": "message/rfc822", ".msg": "application/vnd.ms-outlook", ".md": "text/markdown"}

Outcome = Literal["new", "unchanged", "refused", "unconfirmed", "not sent"]

NO_READ = (
    "The key has no scope read: files are sent again although they are unchanged, as new versions, and what becomes of them is not"
    " shown here. `apex keys create NAME --scope ingest --scope read` makes one that sees both."
)


@dataclass(slots=True)
class SentFile:
    """A file, and what became of it.

    `key` identifies its document. `outcome` is empty until the file is handled. `unconfirmed` means that the gateway
    did not respond: it may have stored the file, and sending it again does not store it twice.
    """

    path: Path
    key: str
    outcome: Outcome | Literal[""] = ""
    reason: str = ""
    remedy: str = ""
    events: Sequence[str] = ()
    state: str = ""

    def as_json(self) -> dict[str, Any]:
        return {
            "file": str(self.path),
            "key": self.key,
            "outcome": self.outcome,
            "reason": self.reason,
            "remedy": self.remedy,
            "events": list(self.events),
            "state": self.state,
        }


def ingest(
    paths: Annotated[
        list[Path],
        typer.Argument(
            help="Files and folders. In folders, hidden files are skipped, and links that lead elsewhere."
        ),
    ],
    wait: Annotated[
        bool, typer.Option("--wait/--no-wait", help="Wait until all files are searchable.")
    ] = True,
    timeout: Annotated[float, typer.Option(help="Longest wait in seconds.")] = 600,
    root: Annotated[
        Path | None,
        typer.Option(
            help="Name documents by their path below this folder. Without it, by their absolute path."
        ),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only show what would be sent.")
    ] = False,
    json: Json = False,
) -> None:
    """Send documents to the memory. Unchanged files are recognised; changed files become new versions.

    The exit code is 1 unless every file is in memory (with --no-wait, or a key without the scope read: stored).

    Example: apex ingest ./contracts rate-confirmation.pdf
    """
    links: list[Path] = []
    sees_states = True
    files = list(find_files(paths, root, links))
    if not files:
        others = f" ({skipped_links(links)})" if links else ""
        raise Rejected(
            f"no files found{others}", remedy="name files, or folders that contain files"
        )
    with gateway() as api:
        if dry_run:
            _plan(api, files)
        else:
            sees_states = send_files(api, files, wait=wait, timeout=timeout, quiet=json)
    if json:
        show_json(
            {"files": [file.as_json() for file in files], "skipped_links": list(map(str, links))}
        )
    elif dry_run:
        _show_plan(files)
    else:
        _show_result(files)
    if links and not json:
        say(f"{skipped_links(links)}. Name such a file itself to send it.")
    if not sees_states:
        say((NO_READ, "yellow"), stderr=True)
    complete = all(file.outcome in ("new", "unchanged") for file in files)
    if wait and sees_states and not dry_run:
        complete = complete and all(file.state in ("done", "superseded") for file in files)
    if not complete:
        raise typer.Exit(1)


def skipped_links(links: Sequence[Path]) -> str:
    names = ", ".join(map(str, links[:3])) + (", …" if len(links) > 3 else "")
    return (
        f"{len(links)} {'link' if len(links) == 1 else 'links'} out of the folder skipped: {names}"
    )


def find_files(
    paths: Sequence[Path], root: Path | None = None, links: list[Path] | None = None
) -> Iterator[SentFile]:
    """Yield each file once, with the key of its document: its path, absolute or below `root`.

    Links in a folder that lead out of it are left out, and added to `links`. So a file has the same key whether it is named itself or found in a folder, and from whichever working folder.
    """
    seen: set[str] = set()
    for path in paths:
        for file in _files_of(path, [] if links is None else links):
            key = _key(file, root)
            if key not in seen:
                seen.add(key)
                yield SentFile(file, key)


def _files_of(path: Path, links: list[Path]) -> Iterator[Path]:
    """Yield a file, or the files below a folder.

    A link in a folder, of an archive or of somebody else, could name any file of this machine, such as a key.
    """
    if path.is_file():
        yield path
    elif path.is_dir():
        folder = path.resolve()
        for file in sorted(path.rglob("*")):
            if _is_hidden(file.relative_to(path)) or not file.is_file():
                continue
            target = file.resolve()
            if not target.is_relative_to(folder):
                links.append(file)
            elif not _is_hidden(target.relative_to(folder)):
                yield file
    else:
        raise Rejected(f"{path}: no such file or folder", remedy="check the path")


def _is_hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)


def _key(file: Path, root: Path | None) -> str:
    absolute = file.resolve()
    if root is None:
        return _text(absolute.as_posix())
    try:
        return _text(absolute.relative_to(root.resolve()).as_posix())
    except ValueError:
        raise Rejected(
            f"{file} is not below {root}", remedy="name a --root that contains all files"
        ) from None


def _text(name: str) -> str:
    """Return a file name as valid text: bytes that are no UTF-8 become `\\xff`."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def send_files(
    api: Gateway, files: Sequence[SentFile], *, wait: bool, timeout: float, quiet: bool
) -> bool:
    """Send files, and record on each what became of it. With `wait` also the state that its events reached.

    Return False if the key may not see these states: it may only ingest.
    """
    with progress(quiet) as bar:
        task = bar.add_task("landing", total=len(files), detail="")
        known = _newest_events(api, files)
        limit = _upload_limit(api)
        for file in files:
            bar.update(task, detail=file.path.name)
            if any(previous.outcome == "unconfirmed" for previous in files):
                file.outcome, file.reason = "not sent", "the gateway does not respond"
            else:
                _send(api, file, known.get(file.key), limit)
            bar.advance(task)
        bar.update(task, detail="")
        if wait:
            try:
                follow(api, files, bar, timeout=timeout)
            except Forbidden:
                for file in files:
                    file.state = ""
                return False
    return True


def _send(api: Gateway, file: SentFile, newest: Mapping[str, Any] | None, limit: int) -> None:
    try:
        content = _read(file.path, limit)
    except Rejected as error:
        file.outcome, file.reason, file.remedy = "refused", str(error), error.remedy
        return
    digest = hashlib.sha256(content).hexdigest()
    if _holds(newest, digest):
        assert newest
        file.outcome, file.events, file.state = "unchanged", [newest["event"]], newest["state"]
        return
    request = _request_for(file, digest)
    deadline = monotonic() + PATIENCE_SECONDS
    while True:
        try:
            patience = max(0.0, deadline - monotonic())
            answer = api.call(
                "POST", "/v1/documents", content=content, patience=patience, **request
            )
            break
        except (Busy, Unavailable) as error:
            if isinstance(error, Busy) or monotonic() + RETRY_SECONDS > deadline:
                file.outcome, file.reason = "unconfirmed", str(error)
                file.remedy = "run the same command again: what is stored is not stored twice"
                return
            sleep(RETRY_SECONDS)
        except Refused as error:
            file.outcome, file.reason, file.remedy = "refused", str(error), error.remedy
            return
    file.events = [event["id"] for event in answer["events"]]
    duplicate = all(event["duplicate"] for event in answer["events"])
    file.outcome = "unchanged" if duplicate else "new"


def _read(path: Path, limit: int) -> bytes:
    """Return the content of a file. Raises `Rejected` if it cannot be read or is larger than `limit` bytes."""
    try:
        length = path.stat().st_size
        if length > limit:
            raise Rejected(
                f"{size(length)}, larger than {size(limit)}",
                remedy="send a part of it, or raise max_upload_bytes",
            )
        return path.read_bytes()
    except OSError as error:
        raise Rejected(
            f"cannot be read ({error.strerror})", remedy="check its permissions"
        ) from None


def _upload_limit(api: Gateway) -> int:
    """Return the largest upload in bytes that the gateway takes."""
    try:
        rows = api.call("GET", "/v1/sources")["sources"]
    except Refused:  # a key that may only ingest: the gateway refuses a large file itself
        return 1_000_000_000
    return next(int(row["max_body_bytes"]) for row in rows if row["name"] == "documents")


def _newest_events(api: Gateway, files: Sequence[SentFile]) -> dict[str, dict[str, Any]]:
    """Return the newest event of each document that the gateway knows, by key."""
    newest: dict[str, dict[str, Any]] = {}
    for first in range(0, len(files), KEYS_AT_ONCE):
        keys = [file.key for file in files[first : first + KEYS_AT_ONCE]]
        body = {"source": "documents", "keys": keys}
        try:
            answer = api.call("POST", "/v1/documents/newest", json=body, patience=BUSY_SECONDS)
        except Forbidden:  # a key that may only ingest: every file is sent
            return {}
        newest |= {row["key"]: row for row in answer["documents"]}
    return newest


def _holds(newest: Mapping[str, Any] | None, digest: str) -> bool:
    """Return whether the newest event of a document has this content.

    Older events do not count: a file that is changed and changed back is a new version.
    """
    return newest is not None and str(newest["event_id"]).endswith(f"#{digest}")


def _request_for(file: SentFile, digest: str) -> dict[str, Any]:
    """Return the headers and parameters of a file.

    The version is the time of sending: what is in the folder now is newer than what was sent before, whatever the
    time of its last change. The event's id makes a repetition of this request a duplicate.
    """
    kind = (
        TYPES.get(file.path.suffix.lower())
        or mimetypes.guess_type(file.path.name)[0]
        or "application/octet-stream"
    )
    changed = datetime.fromtimestamp(file.path.stat().st_mtime, UTC).isoformat()
    version = micros(now())
    event_id = f"{file.key}@{version}#{digest}"
    if len(event_id) > MAX_EVENT_ID or not event_id.isascii():  # it travels in a header
        short = hashlib.sha256(file.key.encode()).hexdigest()
        event_id = f"{short}@{version}#{digest}"
    return {
        "headers": {"Content-Type": kind, "Idempotency-Key": event_id},
        "params": {
            "name": _text(file.path.name),
            "key": file.key,
            "occurred_at": changed,
            "version": version,
        },
    }


def progress(quiet: bool) -> Progress:
    """Return a progress bar on stderr: task, count, elapsed time, and the detail that a task waits for."""
    return Progress(
        TextColumn("{task.description:>11}", markup=False),
        BarColumn(bar_width=20),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[detail]}", style="dim", markup=False),
        console=console(stderr=True),
        disable=quiet,
    )


def follow(api: Gateway, files: Sequence[SentFile], bar: Progress, *, timeout: float) -> None:
    """Poll the events of files until each has finished or is parked, or `timeout` seconds have passed."""
    stored = [file for file in files if file.events]
    task = bar.add_task("searchable", total=len(stored), detail="")
    for file in stored:
        file.state = file.state or "received"
    deadline = monotonic() + timeout
    while True:
        waiting = [file for file in stored if file.state in OPEN]
        ids: list[str] = []
        for file in waiting:
            ids += file.events
        states: dict[str, str] = {}
        for first in range(0, len(ids), STATES_AT_ONCE):
            body = {"ids": ids[first : first + STATES_AT_ONCE]}
            answer = api.call("POST", "/v1/events/states", json=body, patience=BUSY_SECONDS)
            states |= answer["states"]
        for file in waiting:
            file.state = _least_finished([states.get(id, "received") for id in file.events])
        waiting = [file for file in waiting if file.state in OPEN]
        detail = f"{waiting[0].path.name} is {waiting[0].state}" if waiting else ""
        bar.update(task, completed=len(stored) - len(waiting), detail=detail)
        if not waiting or monotonic() > deadline:
            return
        sleep(0.1)


def _least_finished(states: Sequence[str]) -> str:
    """Return the state of a file with several events: the one that a person should know about."""
    order = (*OPEN, "parked", "dead", "superseded", "done")
    return min(states, key=order.index)


def _show_result(files: Sequence[SentFile]) -> None:
    counts = {"new": 0, "unchanged": 0, "refused": 0, "unconfirmed": 0, "not sent": 0}
    for file in files:
        counts[file.outcome or "not sent"] += 1
    always = ("new", "unchanged")
    parts = [f"{count} {name}" for name, count in counts.items() if count or name in always]
    say(f"{', '.join(parts)}.")
    show_table(
        "Not stored",
        ("file", "outcome", "why", "what to do"),
        [
            (file.path, file.outcome, file.reason, file.remedy)
            for file in files
            if file.outcome in ("refused", "unconfirmed", "not sent")
        ],
        empty="",
        free=("file", "why", "what to do"),
    )
    _show_states(files, "dead", "Stored, but not readable: see `apex dead-letters list`", "red")
    _show_states(files, "parked", "Stored, waiting for a store: see `apex status`", "yellow")
    for state in OPEN:
        _show_states(files, state, f"Stored, still {state}: see `apex event ID`", "yellow")


def _show_states(files: Sequence[SentFile], state: str, heading: str, colour: str) -> None:
    rows = [(file.path, *file.events) for file in files if file.state == state]
    if rows:
        say((f"{heading}.", colour))
        show_table("", ("file", "event"), [row[:2] for row in rows], empty="", free=("file",))


def _plan(api: Gateway, files: Sequence[SentFile]) -> None:
    """Record on each file what sending it would do: `new`, `unchanged` or `refused`."""
    known = _newest_events(api, files)
    limit = _upload_limit(api)
    for file in files:
        try:
            digest = hashlib.sha256(_read(file.path, limit)).hexdigest()
        except Rejected as error:
            file.outcome, file.reason, file.remedy = "refused", str(error), error.remedy
            continue
        newest = known.get(file.key)
        file.outcome = "unchanged" if _holds(newest, digest) else "new"
        if file.outcome == "new" and newest:
            file.reason = "a new version of a known document"


def _show_plan(files: Sequence[SentFile]) -> None:
    show_table(
        "Nothing is sent. Without --dry-run:",
        ("file", "would be", "", "bytes"),
        [(file.path, file.outcome, file.reason, file.path.stat().st_size) for file in files],
        empty="",
        free=("file",),
    )
