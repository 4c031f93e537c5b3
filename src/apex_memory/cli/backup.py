"""`apex backup` and `apex restore`: copy PostgreSQL to a folder, and load one into an empty installation."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from time import monotonic
from typing import Annotated, Any

import typer
from rich.progress import BarColumn, Progress, TextColumn

from apex_memory.backup import Backup, RestoreResult, back_up, verify_backup
from apex_memory.backup import Progress as OnProgress
from apex_memory.backup import restore as restore_backup
from apex_memory.cli.documents import documents
from apex_memory.cli.output import (
    Json,
    console,
    duration,
    is_terminal,
    minute,
    say,
    show_json,
    size,
)
from apex_memory.client.location import key_file
from apex_memory.config import EMBEDDED, Settings, load_settings

Folder = Annotated[Path, typer.Argument(help="The folder of the backup.")]


def backup(path: Folder, json: Json = False) -> None:
    """Copy all that Apex knows to a new folder, while it works. Restore it with `apex restore`.

    PostgreSQL holds everything, vectors included, so its tables as they are at one moment are the backup: events that
    are received and not finished are among them. Secrets stay sealed. Their key is not in the backup: keep it elsewhere.

    Example: apex backup /backup/apex-2026-03-01
    """
    settings = load_settings()
    began = monotonic()
    with _progress("Copying", quiet=json) as progress:
        written = asyncio.run(_back_up(settings, path, progress))
    seconds = monotonic() - began
    if json:
        show_json({**_summary(written), "path": str(path), "seconds": round(seconds, 3)})
        return
    say(
        ("Backup written", "green"),
        f" to {path}: {written.rows:,} rows in {len(written.tables)} tables, {size(written.bytes)}, in {duration(seconds)}.",
    )
    if written.secret_keys:
        say(
            ("Not in it", "yellow"),
            f": the key of the secrets ({', '.join(written.secret_keys)}). Keep {_key_place(settings)} elsewhere.",
        )


def restore(
    path: Folder,
    check: Annotated[
        bool,
        typer.Option("--check", help="Only read the whole backup and verify its checksums."),
    ] = False,
    json: Json = False,
) -> None:
    """Load a backup into an empty installation: a new data folder, or a new database. Nothing may run on it.

    All of it is loaded, or nothing. Then start Apex: it fills graph and vectors from PostgreSQL without embedding
    anything again. Searches report them as degraded until then, and events that were not finished go on.

    Example: apex restore /backup/apex-2026-03-01
    """
    if check:
        _check(path, json)
        return
    settings = load_settings()
    began = monotonic()
    with _progress("Loading", quiet=json) as progress:
        result = asyncio.run(_restore(settings, path, progress))
    seconds = monotonic() - began
    if json:
        show_json(
            {
                **_summary(result.backup),
                "path": str(path),
                "seconds": round(seconds, 3),
                "migrated": list(result.migrated),
                "open_events": result.open_events,
            }
        )
        return
    _report(settings, result, seconds)


async def _back_up(settings: Settings, path: Path, progress: OnProgress) -> Backup:
    async with documents(settings) as url:
        return await back_up(url, path, progress)


async def _restore(settings: Settings, path: Path, progress: OnProgress) -> RestoreResult:
    # Before anything is started: a wrong path must not create a data folder.
    await asyncio.to_thread(verify_backup, path)
    async with documents(settings, stopped=True, create=True) as url:
        return await restore_backup(url, path, progress)


def _check(path: Path, json: bool) -> None:
    verified = verify_backup(path)
    if json:
        show_json({**_summary(verified), "path": str(path)})
        return
    say(
        ("The backup is whole", "green"),
        f": {verified.rows:,} rows in {len(verified.tables)} tables, {size(verified.bytes)}, "
        f"of {minute(verified.created_at)} by Apex {verified.version}.",
    )


def _report(settings: Settings, result: RestoreResult, seconds: float) -> None:
    rows = result.rows
    say(
        ("Restored", "green"),
        f" the backup of {minute(result.backup.created_at)}: {rows['documents']:,} documents and "
        f"{rows['inbox']:,} events, {result.open_events:,} of them unfinished, in {duration(seconds)}.",
    )
    if result.migrated:
        say(f"Its schema was brought up to date: {', '.join(result.migrated)}.")
    if keys := result.backup.secret_keys:
        say(
            ("Before the start", "yellow"),
            f": put the key that the secrets are sealed with ({', '.join(keys)}) into {_key_place(settings)}.",
        )
    if settings.documents != EMBEDDED or key_file(settings).exists():
        say("API keys of the backup are valid again, beside those of this installation.")
    else:
        say("API keys of the backup are valid again. The first `apex up` adds an admin key.")
    say(
        "Start it now. Graph and vectors are filled from PostgreSQL; `apex status` shows them as recovering until then."
    )


def _summary(backup: Backup) -> dict[str, Any]:
    return {
        "created_at": backup.created_at.isoformat(),
        "version": backup.version,
        "build": backup.build,
        "installation": str(backup.installation),
        "embedder": backup.embedder,
        "migrations": backup.migrations,
        "rows": backup.rows,
        "bytes": backup.bytes,
        "tables": {table.name: table.rows for table in backup.tables},
        "secret_keys": backup.secret_keys,
    }


def _key_place(settings: Settings) -> str:
    if settings.secret_key.get_secret_value():
        return "APEX_SECRET_KEY"
    if settings.secret_key_command:
        return "what secret_key_command prints"
    return str(settings.secret_key_file or settings.data_dir / "secret.key")


@contextmanager
def _progress(verb: str, *, quiet: bool) -> Iterator[OnProgress]:
    """Show on a terminal which table is under way, and nothing in a pipe or with `quiet`."""
    if quiet or not is_terminal(stderr=True):
        yield lambda *_: None
        return
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TextColumn("{task.fields[read]}", markup=False),
    )
    with Progress(*columns, console=console(stderr=True), transient=True) as bar:
        task = bar.add_task(verb, read="")

        def show(table: str, number: int, of: int, count: int) -> None:
            bar.update(
                task,
                description=f"{verb} {table}",
                completed=number,
                total=of,
                read=size(count),
            )

        yield show
