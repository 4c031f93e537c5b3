"""`python -m tests.faults --faults 20 --seed 7`: the crash loop against the whole stack."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import secrets
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from tests.faults.loop import Result, run

REPORT = Path("faults/latest.json")
SHOWN = 20


def report(result: Result) -> dict[str, Any]:
    """What is kept of a run. Seconds are seconds."""
    findings = result.findings
    return {
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "seed": result.seed,
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} processors",
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
        "controls": result.controls.told if result.controls else [],
        "violations": result.violations[:SHOWN],
    }


def _percentiles(seconds: Sequence[float]) -> dict[str, float]:
    p50, p99 = np.percentile(seconds, [50, 99])
    return {"p50": round(float(p50), 2), "p99": round(float(p99), 2), "n": len(seconds)}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.add_argument("--faults", type=int, default=20, help="how many faults (default: 20)")
    parser.add_argument("--seed", default="", help="replay the plan of a run (default: a new one)")
    parser.add_argument("--seconds", type=float, help="start no fault after this many seconds")
    parser.add_argument("--report", type=Path, default=REPORT, help=f"default: {REPORT}")
    given = parser.parse_args()
    for name in [name for name in os.environ if name.startswith("APEX_")]:
        del os.environ[name]
    os.environ["APEX_SETTINGS_FILE"] = os.devnull
    seed = given.seed or secrets.token_hex(4)
    print(
        f"seed {seed}: `python -m tests.faults --faults {given.faults} --seed {seed}` plans the same"
    )
    result = asyncio.run(run(seed, given.faults, seconds=given.seconds, say=_say))
    given.report.parent.mkdir(parents=True, exist_ok=True)
    given.report.write_text(json.dumps(report(result), indent=2) + "\n")
    print(f"{result.faults.total()} faults, {result.accepted} events, {result.reads.total()} reads")
    if not result.violations:
        print(f"nothing lost, nothing doubled, nothing half-seen; see {given.report}")
        return 0
    print(f"seed {seed}: THE PROMISE WAS BROKEN, {len(result.violations)} times. First:")
    for what in result.violations[:SHOWN]:
        print(f"  {what}")
    return 1


def _say(line: str) -> None:
    print(line, flush=True)


if __name__ == "__main__":
    sys.exit(main())
