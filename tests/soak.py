"""`python -m tests.soak --minutes 10`: the tests that draw inputs and faults from a seed, with a fresh seed each round.

A round that fails ends the soak. Its seed is printed, and `--seed` runs that round again.
"""

from __future__ import annotations

import argparse
import secrets
import subprocess
import sys
import time
from collections.abc import Sequence

ROUND_TIMEOUT = (
    1800  # seconds for one test; the state machine takes ten times the examples of the gate
)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=__doc__)
    parser.add_argument(
        "--minutes", type=float, default=10, help="start no round later (default: %(default)s)"
    )
    parser.add_argument("--seed", type=int, help="run one round, with this seed")
    arguments, others = parser.parse_known_args()
    if arguments.seed is not None:
        return run_round(arguments.seed, others)
    end = time.monotonic() + 60 * arguments.minutes
    rounds = 0
    while rounds == 0 or time.monotonic() < end:
        rounds += 1
        seed = secrets.randbelow(2**32)
        print(f"round {rounds}, seed {seed}; again: make soak SEED={seed}", flush=True)
        if run_round(seed, others):
            print(f"round {rounds} failed; again: make soak SEED={seed}", flush=True)
            return 1
    print(f"{rounds} rounds passed")
    return 0


def run_round(seed: int, others: Sequence[str]) -> int:
    """Run pytest on the marked tests; its exit code. The order of tests comes from the seed, too."""
    command = [sys.executable, "-m", "pytest", "-m", "soak", "--servers", "--tb", "short", "-q"]
    command += [f"--soak={seed}", f"--hypothesis-seed={seed}", "-p", "no:cacheprovider"]
    command += [f"--randomly-seed={seed}"]
    command += ["--timeout", str(ROUND_TIMEOUT), *others]
    return subprocess.run(command, stdin=subprocess.DEVNULL, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
