"""The file that names the shards of the corpus. A start removes every shard that it does not name."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO

from apex_memory.durable_files import sync
from apex_memory.errors import CHANGED_EMBEDDER, Misconfigured

FORMAT = 1
SHARD_LIST = "corpus.json"


@dataclass(frozen=True, slots=True)
class Entry:
    """A shard in the list. The last one is the active shard, which takes writes."""

    name: str
    sealed: bool = False
    built: bool = False


def read_shard_list(folder: Path, dimension: int) -> list[Entry]:
    """Return the shards in the folder, none if it is new. Raises `Misconfigured` for another format or dimension."""
    try:
        stored = json.loads((folder / SHARD_LIST).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return []
    if stored["format"] != FORMAT:
        raise Misconfigured(
            f"{folder} was written in format {stored['format']}, this version reads {FORMAT}",
            remedy="start the version that wrote it, or move the folder away and run `apex reconcile vectors`",
        )
    check_dimension(stored["dimension"], dimension, str(folder))
    return [Entry(**entry) for entry in stored["shards"]]


def write_shard_list(folder: Path, dimension: int, entries: Sequence[Entry]) -> None:
    """Replace the list of shards durably and atomically: a crash leaves the old list or the new one.

    Raises `OSError` while the old list is valid. When it is unknown which list is valid, the process ends:
    the next start reads one of them, and both are correct.
    """
    stored = {"format": FORMAT, "dimension": dimension, "shards": [asdict(e) for e in entries]}
    draft = folder / f"{SHARD_LIST}.new"
    draft.write_text(json.dumps(stored, indent=1), encoding="utf-8")
    sync(draft)
    try:
        draft.replace(folder / SHARD_LIST)
        sync(folder)
    except OSError as error:
        raise SystemExit(f"{folder / SHARD_LIST} could not be replaced ({error})") from error


def check_dimension(held: int, wanted: int, where: str) -> None:
    if held != wanted:
        raise Misconfigured(
            f"{where} holds vectors of {held} dimensions, the embedder makes {wanted}",
            remedy=CHANGED_EMBEDDER,
        )


def lock_folder(folder: Path) -> IO[str]:
    """Lock the folder for this process until the returned file is closed. Raises `Misconfigured` if another process holds it."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    lock = (folder / "owner").open("a+", encoding="utf-8")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.seek(0)
        owner = lock.read().strip()
        lock.close()
        raise Misconfigured(
            f"{folder} is in use by another vector server (process {owner})",
            remedy="use that server, or stop it first",
        ) from None
    lock.truncate(0)
    lock.write(str(os.getpid()))
    lock.flush()
    return lock
