"""A log that cannot be written, on a full disk say, loses lines and ends no work."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

FULL = Path("/dev/full")  # a device on which every write fails as on a full disk
PROGRAM = """
import logging
from apex_memory.telemetry import LOG_WRITES_LOST, configure_logging, logger
configure_logging("info", "{style}")
for n in range(300):
    logger(component="test").info("a line", n=n)
    logging.getLogger("library").warning("a line %s", n)
print("worked", LOG_WRITES_LOST._value.get() > 0, flush=True)
"""


@pytest.mark.skipif(not FULL.exists(), reason="needs /dev/full: a full log was not tested")
@pytest.mark.parametrize("style", ["console", "json"])
def test_a_log_without_space_loses_lines_and_ends_no_work(style: str) -> None:
    with FULL.open("w") as log:
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM.format(style=style)],
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            timeout=60,
            check=False,
        )
    assert done.stdout == "worked True\n"
