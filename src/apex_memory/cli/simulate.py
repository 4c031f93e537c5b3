"""`apex simulate`: the vendors of all sources, on loopback, over one logistics world."""

from __future__ import annotations

import asyncio
import json
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import httpx2
import typer
from rich.table import Table

from apex_memory.cli.client import admin_key, gateway_url
from apex_memory.cli.output import console
from apex_memory.config import load_settings
from apex_memory.errors import ApexError, Rejected, require_extra
from apex_memory.simulate.day import DayPlayback, end_of, yesterday
from apex_memory.simulate.delivery import Delivery
from apex_memory.simulate.registry import simulator_classes
from apex_memory.simulate.server import SimulatorServer, serve_simulators
from apex_memory.simulate.vendor import Chaos, Simulator
from apex_memory.simulate.world import Clock, World

TICK_SECONDS = 0.25
WAIT_SECONDS = 1.0  # between two looks for the gateway


def simulate(
    speed: Annotated[float, typer.Option(min=1, help="World seconds in a second.")] = 600,
    shipments: Annotated[int, typer.Option(min=1, max=10_000, help="Size of the world.")] = 12,
    seed: Annotated[int, typer.Option(help="The same seed, the same day.")] = 1,
    trouble: Annotated[
        float,
        typer.Option(min=0, max=0.5, help="Share of calls and webhooks that go wrong."),
    ] = 0.0,
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port of the vendors' APIs.")] = 8470,
    only: Annotated[
        list[str] | None, typer.Option("--only", help="Only this vendor; may be repeated.")
    ] = None,
    settings_file: Annotated[
        Path | None,
        typer.Option("--settings", help="Write the settings that point Apex here into this file."),
    ] = None,
) -> None:
    """Run the vendors of all sources on loopback: their APIs, and signed webhooks to the gateway, as a day goes by.

    Example: apex simulate --settings apex.toml, then `apex up` in another terminal
    """
    require_extra("asyncssh", extra="sftp", feature="apex simulate")
    names = [kind.name for kind in simulator_classes()]
    if unknown := set(only or ()) - set(names):
        raise Rejected(f"no simulator for {min(unknown)}", remedy=f"there are {', '.join(names)}")
    world = World.make(seed, shipments=shipments, start=yesterday())
    clock = Clock(world.start)
    simulators = [
        kind(world, clock, _chaos(trouble, seed + n))
        for n, kind in enumerate(simulator_classes())
        if not only or kind.name in only
    ]
    asyncio.run(_simulate(simulators, speed, port, settings_file))


def _chaos(share: float, seed: int) -> Chaos:
    return Chaos(
        seed=seed,
        errors=share,
        limits=share,
        expiries=share / 2,
        duplicates=share,
        disorder=share,
        lost=share / 2,
        mutations=share,
    )


async def _simulate(
    simulators: Sequence[Simulator], speed: float, port: int, file: Path | None
) -> None:
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    async with (
        serve_simulators(simulators, port=port) as served,
        httpx2.AsyncClient(timeout=30) as http,
    ):
        _show(served, file)
        delivery = await _gateway(http, stop)
        if delivery is None:
            return
        clock = simulators[0].clock
        clock.run(speed)
        playback = DayPlayback(simulators, delivery, clock)
        console().print(f"Sending to {delivery.url}. Ctrl-C stops.", highlight=False)
        await _tell(playback, stop)


async def _tell(playback: DayPlayback, stop: asyncio.Event) -> None:
    out, end = console(), end_of(playback.simulators[0].world)
    with out.status("") as line:
        while not stop.is_set():
            await playback.send_due()
            sent = ", ".join(f"{count} {name}" for name, count in playback.delivery.sent.items())
            over = " (the day is over; APIs go on answering)" if playback.until > end else ""
            line.update(f"{playback.until:%a %H:%M}{over}  sent: {sent or 'nothing yet'}")
            for refused in playback.delivery.refused:
                out.print(f"[red]refused[/] {refused}", highlight=False)
            playback.delivery.refused.clear()
            await _rest(stop, TICK_SECONDS)


async def _gateway(http: httpx2.AsyncClient, stop: asyncio.Event) -> Delivery | None:
    """The way to the gateway, as soon as there is one."""
    said = False
    while not stop.is_set():
        settings = load_settings()
        try:
            url = gateway_url(settings)
            if (await http.get(f"{url}/readyz")).is_success:
                return Delivery(url, admin_key(settings), http)
        except (ApexError, httpx2.TransportError):
            pass
        if not said:
            console().print("Waiting for the gateway: run `apex up` with these settings …")
            said = True
        await _rest(stop, WAIT_SECONDS)
    return None


async def _rest(stop: asyncio.Event, seconds: float) -> None:
    try:
        async with asyncio.timeout(seconds):
            await stop.wait()
    except TimeoutError:
        return


def _show(served: SimulatorServer, file: Path | None) -> None:
    table = Table(title="Vendors", title_justify="left")
    for column in ("source", "answers at"):
        table.add_column(column)
    for simulator in served.simulators:
        table.add_row(simulator.name, f"{served.url}/{simulator.name}")
    console().print(table)
    if file:
        file.write_text(settings_toml(served.settings()), encoding="utf-8")
        console().print(f"Settings are in {file}.", highlight=False)


def settings_toml(tables: dict[str, dict[str, Any]]) -> str:
    """`[sources.NAME]` tables as TOML."""
    lines = ["# Points Apex at `apex simulate`. Secrets in it are the simulators'.", ""]
    for name, values in tables.items():
        lines.append(f"[sources.{name}]")
        lines += [f"{key} = {_value(value)}" for key, value in values.items()]
        lines.append("")
    return "\n".join(lines)


def _value(value: Any) -> str:
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{json.dumps(k)} = {_value(v)}" for k, v in value.items()) + " }"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_value, value)) + "]"
    return json.dumps(str(value) if isinstance(value, Path) else value, ensure_ascii=False)
