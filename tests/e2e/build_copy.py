"""Another build of Apex: a copy of the package under another path, with a changed file, and its worker process."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

import apex_memory
from apex_memory.engines.process import command_and_environment

PACKAGE = Path(apex_memory.__file__).parent
OWN = ("APEX_DATA_DIR", "APEX_WORKER_METRICS", "APEX_BULK_METRICS")
"""Settings that each stack or worker has for itself."""


def copy_package(folder: Path, changes: Mapping[str, tuple[str, str]]) -> Path:
    """Copy the package below `folder`, and replace a text in files of it. Return what goes on PYTHONPATH."""
    copy = folder / "apex_memory"
    shutil.copytree(PACKAGE, copy, ignore=shutil.ignore_patterns("__pycache__"))
    for name, (before, after) in changes.items():
        file = copy / name
        text = file.read_text(encoding="utf-8")
        assert before in text, f"{name} has no {before!r}"
        file.write_text(text.replace(before, after), encoding="utf-8")
    return folder


def settings_of(pid: int) -> dict[str, str]:
    """Return the settings that a process of a stack was started with, without those that are its own."""
    lines = command_and_environment(pid).splitlines()
    pairs = [line.partition("=") for line in lines if line.startswith("APEX_")]
    return {name: value for name, _, value in pairs if name not in OWN}


@asynccontextmanager
async def worker_process(
    path: Path, settings: Mapping[str, str], folder: Path, *, log: Path
) -> AsyncIterator[asyncio.subprocess.Process]:
    """Run the worker of the package at `path` with these settings, and a data folder of its own."""
    folder.mkdir(parents=True, exist_ok=True)
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith("APEX_")
    }
    environment |= {**settings, "PYTHONPATH": str(path), "APEX_DATA_DIR": str(folder)}
    with log.open("ab") as output:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "apex_memory.flows"),
            env=environment,
            cwd=folder,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=output,
            stderr=output,
        )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.send_signal(signal.SIGTERM)
            try:
                async with asyncio.timeout(30):
                    await process.wait()
            except TimeoutError:
                process.kill()
                await process.wait()
