"""A company's day beside a stack: `apex simulate`, in a process of its own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from tests.waiting import until


@asynccontextmanager
async def simulated_vendors(
    folder: Path, settings: Path, data_dir: Path, *, speed: float, trouble: float
) -> AsyncIterator[None]:
    """The vendors' APIs and webhooks, `speed` times as fast as a day, until the end of the block.

    `trouble` is the share of what goes wrong. The settings of a stack that uses these vendors are in the file `settings`.
    """
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "apex_memory.cli", "simulate", "--port", "0"),
            *("--settings", str(settings), "--shipments", "4", "--speed", f"{speed:g}"),
            *("--trouble", f"{trouble:g}"),
        ],
        env=os.environ | {"APEX_DATA_DIR": str(data_dir), "APEX_SETTINGS_FILE": os.devnull},
        cwd=folder,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        await until(settings.exists, "the simulators write their settings", seconds=120, every=0.2)
        yield
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(60)
