"""The file that says which shards are the corpus. What it does not list is no data, and is removed at start."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO

from apex_memory.edge.shard import sync
from apex_memory.errors import Misconfigured

FORMAT = 1
MANIFEST = "corpus.json"


@dataclass(frozen=True, slots=True)
class Entry:
    """A shard as the manifest lists it. The last one is the active one, which takes writes."""

    name: str
    sealed: bool = False
    built: bool = False


def read_manifest(folder: Path, dimension: int) -> list[Entry]:
    """The shards in the folder; none if it is new. Raises `Misconfigured` when it was made otherwise."""
    try:
        stored = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return []
    if stored["format"] != FORMAT:
        raise Misconfigured(
            f"{folder} was written in format {stored['format']}, this version reads {FORMAT}",
            remedy="start the version that wrote it, or move the folder away and run `apex reconcile vectors`",
        )
    check_dimension(stored["dimension"], dimension, str(folder))
    return [Entry(**entry) for entry in stored["shards"]]


def write_manifest(folder: Path, dimension: int, entries: Sequence[Entry]) -> None:
    """Replace the list of shards, durably and at once: a crash leaves the old one or the new.

    Raises `OSError` while the old one holds. When it is not known which holds, the process ends:
    whichever a new one reads is right.
    """
    stored = {"format": FORMAT, "dimension": dimension, "shards": [asdict(e) for e in entries]}
    draft = folder / f"{MANIFEST}.new"
    draft.write_text(json.dumps(stored, indent=1), encoding="utf-8")
    sync(draft)
    try:
        draft.replace(folder / MANIFEST)
        sync(folder)
    except OSError as error:
        raise SystemExit(f"{folder / MANIFEST} could not be replaced ({error})") from error


def check_dimension(held: int, wanted: int, where: str) -> None:
    if held != wanted:
        raise Misconfigured(
            f"{where} holds vectors of {held} dimensions, the embedder makes {wanted}",
            remedy="go back to the former embedder, or move the vectors away and run `apex reconcile vectors`",
        )


def own(folder: Path) -> IO[str]:
    """Take the folder for this process, until the returned file is closed. Raises `Misconfigured` if another has it."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    lock = (folder / "owner").open("a+", encoding="utf-8")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.seek(0)
        owner = lock.read().strip()
        lock.close()
        raise Misconfigured(
            f"{folder} belongs to another vector process that runs (process {owner})",
            remedy="use that one, or end it first",
        ) from None
    lock.truncate(0)
    lock.write(str(os.getpid()))
    lock.flush()
    return lock
