"""`python -m tests.gate`: all tests in parallel, then what failed once more by itself.

Many tests measure or limit time on machines that others work on. One that fails beside the others and passes alone
says something about the test, which the end of the run names; one that fails twice is a fault. Where more than
`AGAIN_MAX` fail, nothing is repeated.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

AGAIN_MAX = 8
TESTS_FAILED = 1  # the exit code of pytest; others are errors of the run itself
FAILED = Path(".pytest_cache/v/cache/lastfailed")
SAME = ("--servers", "--randomly-seed=1")
SLOWEST = "--durations=30"  # the list of what to look at when the gate becomes slow


def run(arguments: Sequence[str], *, again: Sequence[str] = SAME) -> int:
    """Run pytest with `arguments`, and what fails once more with `again`. Return the exit code of the last run."""
    code = _pytest(["--cache-clear", *arguments])
    failed = sorted(json.loads(FAILED.read_text())) if FAILED.exists() else []
    if code != TESTS_FAILED or not 0 < len(failed) <= AGAIN_MAX:
        return code
    print(f"\n{len(failed)} failed. Once more, by themselves:", flush=True)
    code = _pytest([*again, *failed])
    if code == 0:
        print("\nFLAKY: these failed beside other tests, and passed by themselves. Mend them:")
        print(*(f"  {test}" for test in failed), sep="\n", flush=True)
    return code


def _pytest(arguments: Sequence[str]) -> int:
    return subprocess.run([sys.executable, "-m", "pytest", *arguments], check=False).returncode


if __name__ == "__main__":
    sys.exit(run([*SAME, SLOWEST, *sys.argv[1:]]))
