"""`apex simulate`: the vendors of all sources, on loopback, over one logistics world."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import signal
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import httpx2
import typer

from apex_memory.cli.output import console, say, show_table, styled
from apex_memory.client.location import api_key, gateway_url
from apex_memory.config import load_settings
from apex_memory.errors import ApexError, Conflict, Misconfigured, Rejected, require_extra
from apex_memory.simulate.day import DayPlayback, end_of, yesterday
from apex_memory.simulate.delivery import Delivery
from apex_memory.simulate.registry import simulator_classes
from apex_memory.simulate.server import PortUnavailable, SimulatorServer, serve_simulators
from apex_memory.simulate.vendor import Chaos, Simulator
from apex_memory.simulate.world import Clock, World

TICK_SECONDS = 0.25
GATEWAY_POLL_SECONDS = 1.0
MARKER = "# Written by `apex simulate`, sha256 "
"""Begins the first line of a settings file; the digest of the other lines follows."""


def simulate(
    speed: Annotated[float, typer.Option(min=1, help="World seconds in a second.")] = 600,
    shipments: Annotated[int, typer.Option(min=1, max=10_000, help="Size of the world.")] = 12,
    seed: Annotated[int, typer.Option(help="The same seed, the same day.")] = 1,
    trouble: Annotated[
        float,
        typer.Option(min=0, max=0.5, help="Share of calls and webhooks that go wrong."),
    ] = 0.0,
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port of the vendors' APIs.")] = 8470,
    host: Annotated[
        str,
        typer.Option(
            help="Host name of the vendors' APIs, which listen on its address; for example the name of a container."
        ),
    ] = "127.0.0.1",
    only: Annotated[
        list[str] | None, typer.Option("--only", help="Only this vendor; may be repeated.")
    ] = None,
    settings_file: Annotated[
        Path | None,
        typer.Option(
            "--settings",
            help="Write the settings that point Apex here into this file. A file that is not from this command is left alone.",
        ),
    ] = None,
) -> None:
    """Run the vendors of all sources, on loopback unless --host says otherwise: their APIs, and signed webhooks to the gateway, as a day goes by.

    Example: apex simulate --settings simulated.toml, then `APEX_SETTINGS_FILE=simulated.toml apex up` in another terminal
    """
    require_extra("asyncssh", extra="sftp", feature="apex simulate")
    names = [kind.name for kind in simulator_classes()]
    if unknown := set(only or ()) - set(names):
        raise Rejected(f"no simulator for {min(unknown)}", remedy=f"there are {', '.join(names)}")
    if host != "127.0.0.1" and "edi" in (only or names):
        raise Rejected(
            "edi serves SFTP and folders on this machine alone",
            remedy="with --host name the other vendors, each by --only",
        )
    if settings_file:
        check_replaceable(settings_file)
    world = World.make(seed, shipments=shipments, start=yesterday())
    clock = Clock(world.start)
    simulators = [
        kind(world, clock, _chaos(trouble, seed + n))
        for n, kind in enumerate(simulator_classes())
        if not only or kind.name in only
    ]
    try:
        asyncio.run(_simulate(simulators, speed, host, port, settings_file))
    except PortUnavailable as error:
        raise Conflict(
            f"port {port} is not available ({error})",
            remedy="name another one by --port, or --port 0 for any free one",
        ) from None


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
    simulators: Sequence[Simulator],
    speed: float,
    host: str,
    port: int,
    settings_file: Path | None,
) -> None:
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    verify = load_settings().connections_tls.verify()
    async with (
        serve_simulators(simulators, host=host, port=port) as server,
        httpx2.AsyncClient(timeout=30, verify=verify) as http,
    ):
        _show_vendors(server)
        if settings_file:
            write_settings(settings_file, server.settings())
            say(f"Settings are in {settings_file}.")
        delivery = await _wait_for_gateway(http, stop)
        if delivery is None:
            return
        clock = simulators[0].clock
        clock.run(speed)
        playback = DayPlayback(simulators, delivery, clock)
        say(f"Sending to {delivery.url}. Ctrl-C stops.")
        await _play(playback, stop)


async def _play(playback: DayPlayback, stop: asyncio.Event) -> None:
    """Send what falls due, with a line of progress, until `stop`."""
    out, end = console(), end_of(playback.simulators[0].world)
    with out.status("") as progress:
        while not stop.is_set():
            await playback.send_due()
            counts = [f"{count} {name}" for name, count in playback.delivery.sent.items()]
            over = " (the day is over; the APIs stay up)" if playback.until > end else ""
            sent = ", ".join(counts) or "nothing yet"
            progress.update(styled(f"{playback.until:%a %H:%M}{over}  sent: {sent}"))
            for refused in playback.delivery.refused:
                out.print(styled(("refused", "red"), f" {refused}"), overflow="ignore", crop=False)
            playback.delivery.refused.clear()
            await _sleep(stop, TICK_SECONDS)


async def _wait_for_gateway(http: httpx2.AsyncClient, stop: asyncio.Event) -> Delivery | None:
    """Return a delivery to the gateway once it is ready; None if `stop` comes first."""
    announced = False
    while not stop.is_set():
        settings = load_settings()
        try:
            url = gateway_url(settings)
            if (await http.get(f"{url}/readyz")).is_success:
                return Delivery(url, api_key(settings), http)
        except (ApexError, httpx2.TransportError):
            pass
        if not announced:
            say("Waiting for the gateway: run `apex up` with these settings …")
            announced = True
        await _sleep(stop, GATEWAY_POLL_SECONDS)
    return None


async def _sleep(stop: asyncio.Event, seconds: float) -> None:
    """Wait so long, or until `stop`."""
    try:
        async with asyncio.timeout(seconds):
            await stop.wait()
    except TimeoutError:
        return


def _show_vendors(server: SimulatorServer) -> None:
    rows = [(simulator.name, f"{server.url}/{simulator.name}") for simulator in server.simulators]
    show_table("Vendors", ("source", "API"), rows, empty="")


def check_replaceable(file: Path) -> None:
    """Raise `Conflict` if `file` exists and is not, unchanged, what `write_settings` wrote."""
    try:
        text = file.read_text(encoding="utf-8")
    except FileNotFoundError:
        return
    except (OSError, UnicodeDecodeError):
        text = ""
    first, _, rest = text.partition("\n")
    if first != MARKER + _digest(rest):
        raise Conflict(
            f"{file} exists, and was written or changed by somebody else: it is left as it is",
            remedy="name a new file, such as --settings simulated.toml, and set APEX_SETTINGS_FILE to it for `apex up`",
        )


def write_settings(file: Path, tables: dict[str, dict[str, Any]]) -> None:
    """Write `[sources.NAME]` tables, readable by this user only.

    A file from an earlier run is replaced. Raises `Conflict` for any other file, `Misconfigured` if the folder cannot
    be written.
    """
    rest = settings_toml(tables)
    try:
        descriptor, name = tempfile.mkstemp(prefix=f".{file.name}.", dir=file.parent)  # mode 600
        unfinished = Path(name)
        try:
            with os.fdopen(descriptor, "w", encoding="utf-8") as output:
                output.write(f"{MARKER}{_digest(rest)}\n{rest}")
            check_replaceable(file)
            unfinished.replace(file)
        except BaseException:  # also when interrupted: the unfinished file holds secrets
            unfinished.unlink()
            raise
    except OSError as error:
        raise Misconfigured(
            f"--settings {file}: {error.strerror}", remedy="name a file in a folder you may write"
        ) from None


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def settings_toml(tables: dict[str, dict[str, Any]]) -> str:
    """Return `[sources.NAME]` tables as TOML."""
    lines = ["# Points Apex at `apex simulate`. Secrets in it are the simulators'.", ""]
    for name, values in tables.items():
        lines.append(f"[sources.{name}]")
        lines += [f"{key} = {_toml_value(value)}" for key, value in values.items()]
        lines.append("")
    return "\n".join(lines)


def _toml_value(value: Any) -> str:
    if isinstance(value, dict):
        items = (f"{json.dumps(key)} = {_toml_value(item)}" for key, item in value.items())
        return f"{{ {', '.join(items)} }}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_toml_value, value))}]"
    return json.dumps(str(value) if isinstance(value, Path) else value, ensure_ascii=False)
