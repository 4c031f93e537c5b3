"""The command line.

Everything but `up`, `stop`, `logs`, `doctor`, `backup`, `restore`, `upgrade`, `demo` and `reference` talks to the gateway
over HTTP.
"""

from __future__ import annotations

import asyncio
import sys
from typing import NoReturn

from apex_memory.errors import ApexError

__all__ = ["main"]

STARTING = "Starting Apex Memory …"


def main() -> None:
    """Run a command. An error is printed as one line with the reason and one line with the remedy."""
    if sys.argv[1:2] == ["up"] and not {"-h", "--help"} & set(sys.argv):
        # Before the imports, which take seconds on a slow machine.
        print(STARTING, flush=True)
    from apex_memory.cli.commands import tree

    try:
        tree(sys.argv[1] if sys.argv[1:] else "")()
    except ApexError as error:
        _fail(str(error), error.remedy)
    except OSError as error:
        if error.filename is None:
            raise
        _fail(
            f"{error.filename}: {error.strerror}",
            "check that the path is right, and its owner and mode",
        )
    except (KeyboardInterrupt, asyncio.CancelledError):  # interrupted while starting
        sys.exit(130)


def _fail(reason: str, remedy: str) -> NoReturn:
    from apex_memory.cli.output import say

    say(("error:", "bold red"), f" {reason}", stderr=True)
    if remedy:
        say((f"→ {remedy}", "dim"), stderr=True)
    sys.exit(1)
