"""The README's first command, as a newcomer runs it."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from apex_memory.engines.state import leftovers, read_stack
from apex_memory.sources.registry import classes

ROOT = Path(__file__).parents[2]


@pytest.mark.long
@pytest.mark.timeout(900)
def test_make_demo_lands_searches_and_leaves_nothing_running() -> None:
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith("APEX_")
    }
    ran = subprocess.run(
        ["make", "demo"],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=880,  # the demo waits as long as there is progress
    )
    assert ran.returncode == 0, ran.stdout[-3000:] + ran.stderr[-2000:]
    output = ran.stdout
    for part in (
        "all done",
        "Where is SHP-100045",
        "One shipment in all sources",
        "One event, step by step",
        "Temporal processes all documents after",
        "Held at 10 % and rolled back by itself",
        "nothing is lost",
        "Temporal UI",
        "All stopped.",
    ):
        assert part in output, part
    for kind in ("docx", "eml", "html", "md", "pdf", "xlsx"):
        assert kind in output
    met = output.partition("One shipment in all sources")[2].partition("One event, step by step")[0]
    for source in classes():
        assert source.name in met, f"{source.name} never speaks of the shipment"
    assert "some hits may be missing" not in output and "Nothing found" not in output
    folder = ROOT / ".apex-demo"
    assert read_stack(folder) is None and leftovers(folder) == []
