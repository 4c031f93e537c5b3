"""`apex up`: start and supervise the whole stack on loopback."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from time import monotonic
from typing import Annotated

import httpx2
import typer
from rich.table import Table

from apex_memory import __version__
from apex_memory.cli.client import key_file
from apex_memory.cli.output import console
from apex_memory.config import EMBEDDED, Settings, load_settings, settings_file
from apex_memory.credentials.vault import new_key as new_secret_key
from apex_memory.engines.base import free_port, write_private
from apex_memory.engines.process import Child
from apex_memory.engines.selection import embedded_engines, environment_for
from apex_memory.engines.state import read_stack
from apex_memory.engines.supervisor import Report, Supervisor
from apex_memory.stores.postgres import Postgres, migrate

# Responses come first: work that starts a moment later only lengthens the backlog.
NICENESS = {"worker": 3, "bulk": 10}

SLOW_TO_START = ("graph", "vectors")  # they read all their data at start, and landing needs neither

WORDS = {
    "ready": "[green]ready[/]",
    "died": "[red]died[/]",
    "restarted": "[green]restarted[/]",
    "failed": "[red]did not start[/]",
    "starting": "[yellow]still starting[/]",
    "leftover": "[yellow]left over[/]",
}


@dataclass(frozen=True, slots=True)
class Running:
    """A running stack."""

    url: str
    temporal_ui: str
    new_key: str | None
    """The first admin key, if this start created it."""
    seconds: float
    supervisor: Supervisor


def up(
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="Print what each process does.")
    ] = False,
) -> None:
    """Start everything and keep it running: engines, gateway, workers. Ctrl-C stops all.

    Events can land as soon as PostgreSQL is ready, also while a large graph is still loading.

    Example: apex up
    """
    asyncio.run(_up(load_settings(), verbose=verbose))


async def _up(settings: Settings, *, verbose: bool) -> None:
    quiet_until_up = not verbose
    running_now = False
    landing = ""

    def report(name: str, what: str, detail: str) -> None:
        nonlocal landing
        if (name, what) == ("gateway", "ready"):
            landing = f"; {detail} accepts events meanwhile"
        elif what == "starting":
            detail += landing
        if what == "stopped" or (quiet_until_up and not running_now and what == "ready"):
            return
        console().print(f"  {name:>10}  {WORDS.get(what, what)}  [dim]{detail}[/]", highlight=False)

    async with running(settings, report) as stack:
        running_now = True
        show_stack(settings, stack)
        await stack.supervisor.wait()
        console().print("[dim]Stopping …[/]")
    console().print("[dim]All stopped.[/]")


@asynccontextmanager
async def running(settings: Settings, report: Report) -> AsyncIterator[Running]:
    """Start the stack, and stop it at the end of the block.

    The gateway does not wait for the graph and the vectors: events land while they load.
    """
    began = monotonic()
    dimension = await _dimension(settings)
    async with Supervisor(settings.data_dir, report) as supervisor:
        engines = await asyncio.to_thread(embedded_engines, settings, dimension)
        environment = environment_for(engines, settings)
        with _unwrapped_failure():
            async with asyncio.TaskGroup() as beside:
                slow = [engine for engine in engines if engine.role in SLOW_TO_START]
                loading = beside.create_task(supervisor.start(*slow))
                await supervisor.start(
                    *(engine for engine in engines if engine.role not in SLOW_TO_START)
                )
                documents = environment.get("APEX_DOCUMENTS", settings.documents)
                await migrate(documents)
                _secret_key(settings)
                new_key = await _first_key(settings, documents)
                gateway = _gateway(settings, environment, report)
                beside.create_task(supervisor.start(gateway))
                await loading
                await supervisor.start(
                    _child("worker", settings, environment, "", 0),
                    _child("bulk", settings, environment, "", 0),
                )
        url = gateway.url
        ui = environment.get("APEX_TEMPORAL_UI", settings.temporal_ui)
        yield Running(url, ui, new_key, monotonic() - began, supervisor)


@contextmanager
def _unwrapped_failure() -> Iterator[None]:
    """Raise the first failure of a task group itself: the other tasks were only cancelled because of it."""
    try:
        yield
    except BaseExceptionGroup as failures:
        raise failures.exceptions[0] from None


async def _dimension(settings: Settings) -> int:
    # Not at the top: it loads the libraries of models, which other commands do not need.
    from apex_memory.pipeline import open_embedder

    if settings.vectors != EMBEDDED:
        return 0
    embedder = await asyncio.to_thread(
        open_embedder,
        settings.embedder,
        model=settings.embedder_model,
        dimension=settings.embedder_dimension,
        key=settings.embedder_key.get_secret_value(),
    )
    await embedder.close()
    return embedder.dimension


async def _first_key(settings: Settings, documents: str) -> str | None:
    """Create the admin key of this data folder, once, in a file that only its owner can read. Return it, or None if there is one."""
    # Not at the top: the gateway's libraries would slow the start of every command.
    from apex_memory.credentials.api_keys import create_key

    file = key_file(settings)
    if file.exists():
        return None
    db = Postgres(documents, size=1)
    await db.open()
    try:
        key = await create_key(db, "apex up", ["admin"])
    finally:
        await db.close()
    write_private(file, key.key + "\n")
    return key.key


def _secret_key(settings: Settings) -> None:
    """Create the key that encrypts secrets, once per data folder, unless a setting names one."""
    file = settings.data_dir / "secret.key"
    set_already = settings.secret_key.get_secret_value() or settings.secret_key_file
    if not set_already and not file.exists():
        write_private(file, new_secret_key() + "\n")


def _gateway(settings: Settings, environment: dict[str, str], report: Report) -> Child:
    port = free_port(settings.port)
    if settings.port not in (0, port):
        report("gateway", "port taken", f"{settings.port} is in use; listening on {port} instead")
    own = {"APEX_PORT": str(port)}
    if not settings.embedder_threads:
        # It embeds single questions: two threads are a fifth faster, and take 30 % more of the
        # processors, which the stores need for the same search.
        own["APEX_EMBEDDER_THREADS"] = "1"
    url = f"http://{settings.host}:{port}"
    return _child("gateway", settings, {**environment, **own}, url, port)


def _child(
    name: str, settings: Settings, environment: dict[str, str], url: str, port: int
) -> Child:
    program = {
        "gateway": ["apex_memory.gateway"],
        "worker": ["apex_memory.flows", "realtime"],
        "bulk": ["apex_memory.flows", "bulk"],
    }[name]

    async def ready() -> None:
        async with httpx2.AsyncClient(timeout=2) as http:
            while True:
                try:
                    if (await http.get(f"{url}/healthz")).is_success:
                        return
                except httpx2.TransportError:
                    pass
                await asyncio.sleep(0.05)

    async def at_once() -> None:
        """The worker itself waits for what it needs."""

    async def version() -> str:
        return f"Apex {__version__}"

    return Child(
        name=name,
        command=[sys.executable, "-m", *program],
        ready=ready if url else at_once,
        directory=settings.data_dir.resolve(),
        environment={
            **environment,
            "APEX_SETTINGS_FILE": environment.get("APEX_SETTINGS_FILE", _settings_file()),
        },
        niceness=NICENESS.get(name, 0),
        url=url,
        port=port,
        version=version,
    )


def _settings_file() -> str:
    return str(settings_file().absolute())


def show_stack(settings: Settings, stack: Running) -> None:
    """Print a table of processes with addresses and versions, and the first API key."""
    out = console()
    state = read_stack(settings.data_dir)
    table = Table(box=None, header_style="dim", pad_edge=False)
    for column in ("", "address", "version"):
        table.add_column(column)
    for child in state.children.values() if state else ():
        table.add_row(f"[green]✓[/] {child.name}", child.url or "[dim]no port[/]", child.version)
    out.print(
        f"[bold]Apex Memory {__version__}[/] is up after {stack.seconds:.1f} s, data in {settings.data_dir}",
        highlight=False,
    )
    out.print(table)
    out.print(f"API       {stack.url}/docs", highlight=False)
    if stack.temporal_ui:
        out.print(f"Temporal  {stack.temporal_ui}/namespaces/apex/workflows", highlight=False)
    if stack.new_key:
        out.print(
            f"API key   [bold]{stack.new_key}[/]  [dim](admin, shown once; the command line uses it automatically)[/]",
            highlight=False,
            soft_wrap=True,
        )
    out.print("[dim]Ctrl-C stops all.[/]")
