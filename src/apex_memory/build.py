"""The build of Apex that this process runs."""

from __future__ import annotations

import hashlib
from importlib import resources
from importlib.metadata import version
from importlib.resources.abc import Traversable


def build_id() -> str:
    """Return the version and a hash of the package's source files: any change of code is another build."""
    digest = hashlib.sha256()
    for file in _sources(resources.files("apex_memory")):
        digest.update(file.name.encode() + b"\x00" + file.read_bytes() + b"\x00")
    return f"{version('apex-memory')}-{digest.hexdigest()[:10]}"


def _sources(folder: Traversable) -> list[Traversable]:
    files: list[Traversable] = []
    for item in sorted(folder.iterdir(), key=lambda item: item.name):
        if item.is_dir():
            files += _sources(item)
        elif item.name.endswith(".py"):
            files.append(item)
    return files
