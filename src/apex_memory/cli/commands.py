"""The tree of all commands."""

from __future__ import annotations

import shutil
from importlib import import_module
from typing import Annotated

import typer

from apex_memory import __version__
from apex_memory.build import build_id

FRAMED = 72  # columns of a terminal; in less the frames and tables of the help would cut words

COMMANDS = {
    "up": "up.up",
    "stop": "up.stop",
    "status": "operate.status",
    "doctor": "doctor.doctor",
    "logs": "logs.logs",
    "hello": "operate.hello",
    "ingest": "ingest.ingest",
    "search": "ask.search",
    "document": "ask.document",
    "entity": "ask.entity",
    "documents": "ask.documents",
    "delete": "ask.delete",
    "events": "events.events",
    "event": "events.event",
    "payload": "events.payload",
    "unresolved": "unresolved.unresolved",
    "sources": "sources.app",
    "rollout": "rollout.app",
    "builds": "builds.app",
    "secrets": "secrets.app",
    "dead-letters": "dead_letters.app",
    "mirror": "mirror.app",
    "keys": "keys.app",
    "mcp": "mcp.mcp",
    "migrate": "migrate.migrate",
    "reconcile": "operate.reconcile",
    "rebuild": "operate.rebuild",
    "backup": "backup.backup",
    "restore": "backup.restore",
    "upgrade": "upgrade.upgrade",
    "simulate": "simulate.simulate",
    "demo": "demo.demo",
    "reference": "reference.reference",
}
"""The module and the function of each command, or the `Typer` of a group of them."""
_HIDDEN = frozenset({"reference"})


def _print_version(requested: bool) -> None:
    if requested:
        typer.echo(f"apex {__version__} (build {build_id()})")
        raise typer.Exit


def _root(
    version: Annotated[
        bool,
        typer.Option(
            "--version",
            callback=_print_version,
            is_eager=True,
            help="Print the version and the build id.",
        ),
    ] = False,
) -> None:
    """Options before the command."""


def tree(only: str = "") -> typer.Typer:
    """Return the tree of commands; with the name of a command, or an option, the part that it needs.

    All commands together take three times as long to import as those that ask the gateway.
    """
    app = typer.Typer(
        help="Apex Memory: every event of your tools, in one memory that agents can search.",
        no_args_is_help=True,
        rich_markup_mode="rich" if shutil.get_terminal_size().columns >= FRAMED else None,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback()(_root)
    if only == "--version":
        return app
    for name in [only] if only in COMMANDS else COMMANDS:
        module, _, attribute = COMMANDS[name].partition(".")
        command = getattr(import_module(f"apex_memory.cli.{module}"), attribute)
        if isinstance(command, typer.Typer):
            app.add_typer(command, name=name)
        else:
            app.command(name, hidden=name in _HIDDEN)(command)
    return app
