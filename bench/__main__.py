"""`make bench`: measure every row, print a table and write `bench/latest.json`.

`python -m bench GROUP …` measures single groups; `python -m bench profile` prints the CPU time of a document by step.
"""

from __future__ import annotations

import asyncio
import importlib
import json
import sys
import time
import traceback
from collections.abc import Awaitable, Callable
from pathlib import Path

import uvloop
from rich.console import Console
from rich.table import Table

from apex_memory.config import Settings
from apex_memory.telemetry import configure_logging
from bench import (
    day,
    direct,
    edi,
    engines,
    filled,
    graph,
    growth,
    mixed,
    profile,
    restore,
    rollback,
    shadow,
    standing,
    streams,
    tracing,
    workers,
    writing,
)
from bench.rows import SCALE, Row, row_of

LATEST = Path(__file__).parent / "latest.json"


async def memory() -> list[Row]:
    """Rows of `bench.memory`: retrieval on the project's questions."""
    measure = importlib.import_module("bench.memory").measure
    chunk_chars = Settings.model_fields["chunk_chars"].default
    async with engines.standalone(chunk_chars=chunk_chars) as app:
        return [row_of(row) for row in await measure(app)]


GROUPS: dict[str, Callable[[], Awaitable[list[Row]]]] = {
    "rates": writing.rates,
    "per-event": writing.per_event,
    "model": writing.with_model,
    "filled": filled.filled,
    "graph": graph.graph,
    "growth": growth.growth,
    "hooks": standing.hooks,
    "load": standing.load,
    "rollback": rollback.rollback,
    "restore": restore.restore,
    "direct": direct.direct,
    "mixed": mixed.mixed,
    "streams": streams.streams,
    "edi": edi.edi,
    "day": day.day,
    "shadow": shadow.cost,
    "memory": memory,
    "tracing": tracing.tracing,
    "workers": workers.workers,
}


BY_NAME = ("growth",)  # takes minutes at any scale, so `make bench` leaves it out
# Searches run in the gateway, which has a loop of its own kind.
ON_THE_GATEWAYS_LOOP = ("filled", "growth")


def run(names: list[str]) -> list[Row]:
    rows: list[Row] = []
    for name in names:
        began = time.monotonic()
        runs = uvloop.run if name in ON_THE_GATEWAYS_LOOP else asyncio.run
        try:
            group_rows = runs(_group(name))
        except Exception as error:  # noqa: BLE001 -- one broken group must not hide the others' rows
            traceback.print_exc()
            group_rows = [
                Row(name, 0, "", "measured", False, f"{type(error).__name__}: {error}"[:300])
            ]
        print(f"{name}: {time.monotonic() - began:.0f} s", file=sys.stderr)
        rows += group_rows
    return rows


async def _group(name: str) -> list[Row]:
    return await GROUPS[name]()


def show(rows: list[Row]) -> None:
    table = Table(show_lines=True)
    for column in ("name", "value", "target", "", "how"):
        table.add_column(column)
    for row in rows:
        mark = {True: "[green]ok[/]", False: "[red]MISSED[/]", None: ""}[row.ok]
        table.add_row(row.name, f"{row.value:g} {row.unit}", row.target, mark, row.note)
    Console(width=160).print(table)


def save(rows: list[Row]) -> None:
    """Write `latest.json`. Rows of groups that were not measured this time stay."""
    known = {row["name"]: row for row in json.loads(LATEST.read_text())} if LATEST.exists() else {}
    known = {
        name: row for name, row in known.items() if name not in GROUPS
    }  # failures of earlier runs
    known |= {row.name: row.as_json() for row in rows}
    LATEST.write_text(json.dumps(list(known.values()), indent=1, ensure_ascii=False) + "\n")


def main() -> int:
    engines.scrub_environment()
    configure_logging("error", "console")
    names = sys.argv[1:] or [name for name in GROUPS if name not in BY_NAME]
    if names == ["profile"]:
        print(asyncio.run(profile.table()))
        return 0
    if unknown := set(names) - GROUPS.keys():
        print(
            f"unknown groups: {', '.join(unknown)}. Groups: {', '.join(GROUPS)}, or `profile` alone"
        )
        return 2
    print(f"scale {SCALE:g} of the long rows (SCALE=1 is full size)", file=sys.stderr)
    if not sys.argv[1:]:
        LATEST.unlink(missing_ok=True)
    rows = run(names)
    save(rows)
    show(rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
