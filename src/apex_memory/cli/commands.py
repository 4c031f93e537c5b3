"""The tree of all commands."""

from __future__ import annotations

import shutil
from typing import Annotated

import typer

from apex_memory import __version__
from apex_memory.cli import (
    ask,
    backup,
    builds,
    dead_letters,
    demo,
    doctor,
    events,
    ingest,
    keys,
    logs,
    mcp,
    migrate,
    mirror,
    operate,
    reference,
    rollout,
    secrets,
    simulate,
    sources,
    unresolved,
    up,
    upgrade,
)

FRAMED = 72  # columns of a terminal; in less the frames and tables of the help would cut words

app = typer.Typer(
    help="Apex Memory: every event of your tools, in one memory that agents can search.",
    no_args_is_help=True,
    rich_markup_mode="rich" if shutil.get_terminal_size().columns >= FRAMED else None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(requested: bool) -> None:
    if requested:
        # Not at the top: it imports Temporal's client, which other commands do not need.
        from apex_memory.build import build_id

        typer.echo(f"apex {__version__} (build {build_id()})")
        raise typer.Exit


@app.callback()
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


app.command("up")(up.up)
app.command("stop")(up.stop)
app.command("status")(operate.status)
app.command("doctor")(doctor.doctor)
app.command("logs")(logs.logs)
app.command("hello")(operate.hello)
app.command("ingest")(ingest.ingest)
app.command("search")(ask.search)
app.command("document")(ask.document)
app.command("entity")(ask.entity)
app.command("documents")(ask.documents)
app.command("delete")(ask.delete)
app.command("events")(events.events)
app.command("event")(events.event)
app.command("payload")(events.payload)
app.command("unresolved")(unresolved.unresolved)
app.add_typer(sources.app, name="sources")
app.add_typer(rollout.app, name="rollout")
app.add_typer(builds.app, name="builds")
app.add_typer(secrets.app, name="secrets")
app.add_typer(dead_letters.app, name="dead-letters")
app.add_typer(mirror.app, name="mirror")
app.add_typer(keys.app, name="keys")
app.command("mcp")(mcp.mcp)
app.command("migrate")(migrate.migrate)
app.command("reconcile")(operate.reconcile)
app.command("rebuild")(operate.rebuild)
app.command("backup")(backup.backup)
app.command("restore")(backup.restore)
app.command("upgrade")(upgrade.upgrade)
app.command("simulate")(simulate.simulate)
app.command("demo")(demo.demo)
app.command("reference", hidden=True)(reference.reference)
