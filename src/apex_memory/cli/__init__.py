"""The command line.

Everything but `up`, `stop`, `logs`, `doctor`, `backup`, `restore`, `upgrade`, `demo` and `reference` talks to the gateway
over HTTP.
"""

from __future__ import annotations

import asyncio
import sys

from apex_memory.errors import ApexError

__all__ = ["main"]

STARTING = "Starting Apex Memory …"


def main() -> None:
    """Run a command. An error is printed as one line with the reason and one line with the remedy."""
    if sys.argv[1:2] == ["up"] and not {"-h", "--help"} & set(sys.argv):
        # Before the imports, which take seconds on a slow machine.
        print(STARTING, flush=True)
    from apex_memory.cli.commands import tree
    from apex_memory.cli.output import say

    try:
        tree(sys.argv[1] if sys.argv[1:] else "")()
    except ApexError as error:
        say(("error:", "bold red"), f" {error}", stderr=True)
        if error.remedy:
            say((f"→ {error.remedy}", "dim"), stderr=True)
        sys.exit(1)
    except (KeyboardInterrupt, asyncio.CancelledError):  # interrupted while starting
        sys.exit(130)
