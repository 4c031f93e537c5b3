"""Small volumes for the data of each engine, and what fills them."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

BLOCK = 1 << 20


def can_mount() -> bool:
    """Return whether this process may mount volumes."""
    with TemporaryDirectory() as folder:
        is_mounted = _mount(Path(folder), 1)
        if is_mounted:
            _unmount(Path(folder))
        return is_mounted


def _mount(folder: Path, megabytes: int) -> bool:
    options = f"size={megabytes}m,mode=711"
    command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
    if os.geteuid():
        return False
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def _unmount(folder: Path) -> None:
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


@contextmanager
def small_volume(folder: Path, megabytes: int) -> Iterator[Path]:
    """A file system of that size, in memory. Skips the test where mounting is not allowed."""
    folder.mkdir(parents=True, exist_ok=True)
    if not _mount(folder, megabytes):
        pytest.skip(f"mounting a small volume needs root: a full disk at {folder} was not tested")
    try:
        yield folder
    finally:
        _unmount(folder)


@contextmanager
def small_disk(folder: Path, megabytes: int) -> Iterator[Path]:
    """An ext4 file system of that size in a file: a mapped hole takes no space there, as on a disk, but does in memory.

    Skips the test where it cannot be mounted.
    """
    image = folder.with_suffix(".img")
    folder.mkdir(parents=True, exist_ok=True)
    with image.open("wb") as file:
        file.truncate(megabytes * BLOCK)
    commands = (
        ["mkfs.ext4", "-q", "-m", "0", str(image)],
        ["mount", "-o", "loop", str(image), str(folder)],
    )
    try:
        for command in commands:
            subprocess.run(command, capture_output=True, check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"no file system could be mounted from a file, so this was not tested: {error}")
    try:
        yield folder
    finally:
        _unmount(folder)
        image.unlink()


@contextmanager
def small_volumes(data_dir: Path, megabytes: Mapping[str, int]) -> Iterator[None]:
    """A volume for each folder, by its path below `data_dir`; `.` is the data folder itself, and comes first."""
    with ExitStack() as mounted:
        for name, size in megabytes.items():
            mounted.enter_context(small_volume(data_dir / name, size))
        yield


@contextmanager
def filled(folder: Path, *, left: int = 0) -> Iterator[None]:
    """Fill a volume but for `left` bytes inside the block, then make room again."""
    ballast = folder / "ballast"
    try:
        with contextlib.suppress(OSError), ballast.open("wb", buffering=0) as file:
            while file.write(bytes(BLOCK)):
                pass
        os.truncate(ballast, max(0, ballast.stat().st_size - left))
        yield
    finally:
        ballast.unlink(missing_ok=True)
