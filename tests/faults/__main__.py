"""`python -m tests.faults --faults 20 --seed 7`: the crash loop against the whole stack, `--graph falkordb` or `neo4j` with that graph.
`--gateways 2 --workers 3` runs several of these processes, and kills each.

`python -m tests.faults overload` sends ten times more than can be taken, for a minute.
`python -m tests.faults slow` runs at a tenth of the machine: kills in mid-load, the demo, a day of all vendors; `--parts load
demo day` for some of them.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import re
import secrets
import shlex
import sys
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from tests.e2e.stack import running_stack
from tests.faults.kinds import DEFAULT_GRAPH, DISK_FULL, GRAPHS, kinds_of_many, long_kinds
from tests.faults.loop import Result, run
from tests.faults.overload import ROOM, overload
from tests.faults.slow import PARTS, SHARE, slow
from tests.faults.volumes import can_mount

FOLDER = Path("faults")
OVERLOAD_SECONDS = 60.0
SHOWN = 20
MACHINE = f"{platform.system()} {platform.machine()}, {os.cpu_count()} processors"


def report(result: Result) -> dict[str, Any]:
    """What is kept of a run. Seconds are seconds."""
    findings = result.findings
    return {
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "seed": result.seed,
        "graph": result.graph,
        "gateways": result.gateways,
        "workers": result.workers,
        "machine": MACHINE,
        "seconds": round(result.seconds, 1),
        "faults": result.faults.total(),
        "faults_by_kind": dict(sorted(result.faults.items())),
        "accepted": result.accepted,
        "duplicates": result.duplicates,
        "sent_again": result.sent_again,
        "ends": findings.ends,
        "lost": len(findings.lost),
        "doubled": len(findings.doubled),
        "wrong_version": len(findings.wrong),
        "partial": len(findings.partial),
        "partial_reads": len(result.partial_reads),
        "orphans": len(findings.orphans),
        "unfinished": len(findings.unfinished),
        "reads": result.reads.total() - result.reads["degraded"] - result.reads["seen whole"],
        "reads_by_kind": dict(sorted(result.reads.items())),
        "recovery_seconds": {
            kind: _percentiles(took) for kind, took in sorted(result.recovery.items())
        },
        "settled_seconds": round(result.settled_seconds, 1),
        "controls": result.controls.caught if result.controls else [],
        "violations": result.violations[:SHOWN],
    }


def _percentiles(seconds: Sequence[float]) -> dict[str, float]:
    p50, p99 = np.percentile(seconds, [50, 99])
    return {"p50": round(float(p50), 2), "p99": round(float(p99), 2), "n": len(seconds)}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.add_argument("what", nargs="?", choices=("loop", "overload", "slow"), default="loop")
    parser.add_argument("--faults", type=int, default=20, help="how many faults (default: 20)")
    parser.add_argument("--seed", default="", help="replay the plan of a run (default: a new one)")
    parser.add_argument("--seconds", type=float, help="start no fault after this many seconds")
    parser.add_argument(
        "--graph", choices=GRAPHS, default=DEFAULT_GRAPH, help="default: %(default)s"
    )
    parser.add_argument("--gateways", type=int, default=1, help="how many (default: 1)")
    parser.add_argument("--workers", type=int, default=1, help="how many (default: 1)")
    parser.add_argument(
        "--kinds", default="", help="only kinds whose name holds this regular expression"
    )
    parser.add_argument(
        "--parts", nargs="+", choices=PARTS, default=list(PARTS), help="of `slow` (default: all)"
    )
    parser.add_argument(
        "--report", type=Path, help="default: latest.json, or the graph's, in faults"
    )
    given = parser.parse_args()
    for name in [name for name in os.environ if name.startswith("APEX_")]:
        del os.environ[name]
    os.environ["APEX_SETTINGS_FILE"] = os.devnull
    if given.what == "overload":
        return asyncio.run(_overload(given.seconds or OVERLOAD_SECONDS, given.report))
    if given.what == "slow":
        return _slow(given.parts, given.report)
    return _loop(given)


def _loop(given: argparse.Namespace) -> int:
    seed = given.seed or secrets.token_hex(4)
    several = given.gateways > 1 or given.workers > 1
    every = long_kinds(given.graph)
    if several:
        every = kinds_of_many(given.graph, given.gateways, given.workers)
    if not can_mount():
        print("no volumes can be mounted here, so that no disk is filled")
        every = [kind for kind in every if not kind.name.startswith(DISK_FULL)]
    of = [kind for kind in every if re.search(given.kinds, kind.name)]
    if not of:
        print(f"no kind of fault is named like {given.kinds!r}")
        return 2
    chosen = f" --kinds {shlex.quote(given.kinds)}" if given.kinds else ""
    if several:
        chosen += f" --gateways {given.gateways} --workers {given.workers}"
    print(
        f"seed {seed}: `python -m tests.faults --faults {given.faults} --seed {seed} --graph {given.graph}{chosen}` "
        "plans the same"
    )
    result = asyncio.run(
        run(
            seed,
            given.faults,
            graph=given.graph,
            gateways=given.gateways,
            workers=given.workers,
            of=of,
            seconds=given.seconds,
            say=_say,
        )
    )
    name = "latest" if given.graph == DEFAULT_GRAPH else given.graph
    name = "several" if several else name
    file = given.report or FOLDER / f"{name}.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(report(result), indent=2) + "\n")
    print(f"{result.faults.total()} faults, {result.accepted} events, {result.reads.total()} reads")
    if not result.violations:
        print(f"nothing lost, nothing doubled, nothing half-seen; see {file}")
        return 0
    print(f"seed {seed}: THE PROMISE WAS BROKEN, {len(result.violations)} times. First:")
    for what in result.violations[:SHOWN]:
        print(f"  {what}")
    return 1


async def _overload(seconds: float, file: Path | None) -> int:
    async with running_stack(**ROOM) as stack:
        result = await overload(stack, seconds)
    report = {"at": datetime.now(UTC).isoformat(timespec="seconds"), **result.report()}
    text = json.dumps(report, indent=2) + "\n"
    (file or FOLDER / "overload.json").write_text(text)
    print(text)
    return 1 if result.wrong() else 0


def _slow(chosen: Sequence[str], file: Path | None) -> int:
    """Run parts at a tenth. The figures of parts that are not run stay in the file as they were."""
    file = file or FOLDER / "slow.json"
    kept = json.loads(file.read_text())["parts"] if file.exists() else {}
    parts = asyncio.run(slow(chosen, _say))
    known = {"at": datetime.now(UTC).isoformat(timespec="seconds"), "machine": MACHINE}
    kept |= {name: known | asdict(part) for name, part in parts.items()}
    report = {"share": SHARE, "parts": {name: kept[name] for name in PARTS if name in kept}}
    file.write_text(json.dumps(report, indent=2) + "\n")
    print(json.dumps({name: asdict(part) for name, part in parts.items()}, indent=2))
    wrong = [f"{name}: {line}" for name, part in parts.items() for line in part.wrong]
    for line in wrong:
        print(f"WRONG: {line}")
    if not wrong:
        print(f"{', '.join(parts)} ended well at a tenth; see {file}")
    return 1 if wrong else 0


def _say(line: str) -> None:
    print(line, flush=True)


if __name__ == "__main__":
    sys.exit(main())
