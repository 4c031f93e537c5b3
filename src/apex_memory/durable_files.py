"""Files that survive a power loss: written whole under another name, on the disk before they get their own."""

from __future__ import annotations

import os
from pathlib import Path


def write_private(path: Path, text: str) -> None:
    """Write a file that only its owner can read, atomically and durably: a crash leaves the old file or the new one.

    Blocks; raises `OSError`. Where this is raised, the old file may have been replaced.
    """
    draft = path.with_name(f".{path.name}.new")
    draft.unlink(missing_ok=True)
    draft.touch(mode=0o600)
    draft.write_text(text, encoding="utf-8")
    sync(draft)  # before the new name: else a power loss may leave an empty file under it
    draft.replace(path)
    sync(path.parent)


def sync(path: Path) -> None:
    """Sync one file or folder to the disk. Blocks; raises `OSError`."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
