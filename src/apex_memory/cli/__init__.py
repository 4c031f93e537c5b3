"""The command line. Everything but `up`, `doctor`, `demo` and `reference` talks to the gateway over HTTP."""

from __future__ import annotations

import asyncio
import sys

from rich.markup import escape

from apex_memory.cli.commands import app
from apex_memory.cli.output import console
from apex_memory.errors import ApexError

__all__ = ["app", "main"]


def main() -> None:
    """Run a command. An error is printed as one line with the reason and one line with the remedy."""
    try:
        app()
    except ApexError as error:
        # Escaped, because `[neo4j]` in a message is an extra and not markup.
        out = console(stderr=True)
        out.print(f"[bold red]error:[/] {escape(str(error))}", highlight=False, soft_wrap=True)
        if error.remedy:
            out.print(f"[dim]→ {escape(error.remedy)}[/]", highlight=False, soft_wrap=True)
        sys.exit(1)
    except (KeyboardInterrupt, asyncio.CancelledError):  # interrupted while starting
        sys.exit(130)
