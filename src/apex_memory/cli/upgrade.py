"""`apex upgrade`: bring the database to the schema of this version, or show what that would do."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Annotated

import typer

from apex_memory import __version__
from apex_memory.cli.documents import documents
from apex_memory.cli.output import Json, say, show_json
from apex_memory.config import Settings, load_settings
from apex_memory.stores.schema import (
    SchemaState,
    migrate,
    migrations,
    read_state,
    required_number,
)


@dataclass(frozen=True, slots=True)
class Plan:
    """What an upgrade does to a database. `beside` means that processes of the former version may run on meanwhile."""

    state: SchemaState
    stops: list[str]
    """Migrations on whose result the former version cannot work."""

    @property
    def beside(self) -> bool:
        return not self.stops


def upgrade(
    check: Annotated[
        bool, typer.Option("--check", help="Only show what would be done. Changes nothing.")
    ] = False,
    json: Json = False,
) -> None:
    """Apply the migrations that the database lacks, as a start does. For servers: run it before the new version starts.

    A migration waits for a table for seconds at most, and gives way to who uses it. The command fails when the
    database was changed by a newer version on whose schema this one cannot work.

    Example: apex upgrade --check
    """
    settings = load_settings()
    plan, applied = asyncio.run(_upgrade(settings, check=check))
    if json:
        show_json(
            {
                "version": __version__,
                "applied": plan.state.applied,
                "missing": plan.state.missing,
                "unknown": plan.state.unknown,
                "former_version_may_run": plan.beside,
                "migrated": applied,
            }
        )
        return
    _report(plan, applied, check=check)


async def _upgrade(settings: Settings, *, check: bool) -> tuple[Plan, list[str]]:
    async with documents(settings) as url:
        plan = plan_of(await read_state(url))
        if check:
            return plan, []
        return plan, await migrate(url)


def plan_of(state: SchemaState) -> Plan:
    """Return what applying the missing migrations means for a version that knows only the applied ones."""
    newest = max(state.applied, default="")[:4]
    stops = []
    for name, sql in migrations():
        if name not in state.missing or not state.applied:
            continue
        required = required_number(sql)
        if required is None or required > newest:
            stops.append(name)
    return Plan(state, stops)


def _report(plan: Plan, applied: list[str], *, check: bool) -> None:
    state = plan.state
    if not state.missing:
        say(("Up to date", "green"), f": the schema is that of Apex {__version__}.")
    elif check:
        say(f"{len(state.missing)} migrations would be applied: {', '.join(state.missing)}.")
    else:
        say(("Upgraded", "green"), f": {', '.join(applied) or 'another process did it meanwhile'}.")
    if state.unknown:
        say(f"A newer version applied {', '.join(state.unknown)}; this one works beside it.")
    if state.missing and state.applied and check:
        if plan.beside:
            say("Processes of the former version may run on meanwhile.")
        else:
            say(
                ("Stop the processes of the former version first", "yellow"),
                f": they cannot work after {plan.stops[0]}.",
            )
