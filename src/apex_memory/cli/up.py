"""`apex up`: start and supervise the whole stack on loopback."""

from __future__ import annotations

import asyncio
import os
import signal
import ssl
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from time import monotonic, sleep
from typing import Annotated

import httpx2
import typer

from apex_memory import __version__
from apex_memory.build import build_id
from apex_memory.cli import STARTING
from apex_memory.cli.output import Json, duration, say, show_json, show_table
from apex_memory.client.location import key_file
from apex_memory.config import EMBEDDED, IN_DOCUMENTS, Settings, load_settings, settings_file
from apex_memory.credentials.key_sources import KEY_FILE, names_a_key
from apex_memory.durable_files import write_private
from apex_memory.engines.base import free_port
from apex_memory.engines.process import ChildProcess
from apex_memory.engines.selection import embedded_engines, environment_for
from apex_memory.engines.state import Stack, last_ports, read_stack
from apex_memory.engines.supervisor import Report, Supervisor
from apex_memory.errors import Conflict, Misconfigured
from apex_memory.pipeline.embedders.probe import probe_embedder
from apex_memory.rollout import builds
from apex_memory.sealing import new_key as new_secret_key
from apex_memory.stores.postgres import Postgres, check_embedder
from apex_memory.stores.schema import migrate
from apex_memory.telemetry import BUILD_INFO
from apex_memory.telemetry.export import check_tracing
from apex_memory.telemetry.exposition import Address, exposed

# Responses come first: work that starts a moment later only lengthens the backlog.
NICENESS = {"worker": 3, "bulk": 10}

SLOW_TO_START = ("graph", "vectors")  # they read all their data at start, and landing needs neither

WORDS = {
    "ready": ("ready", "green"),
    "died": ("died", "red"),
    "restarted": ("restarted", "green"),
    "failed": ("did not start", "red"),
    "starting": ("still starting", "yellow"),
    "leftover": ("left over", "yellow"),
    "disk low": ("disk nearly full, writes are refused", "red"),
    "disk free": ("accepts writes again", "green"),
    "build promoted": ("new build", "green"),
    "moved": ("moved", "yellow"),
}
HOW_TO_STOP = "Ctrl-C stops all."
DETACHED_LOG = "up.log"
DETACHED = "_APEX_DETACHED"  # in the environment of an `apex up` that runs in the background
READY_SECONDS = 900  # on a machine slowed to a tenth a gateway takes 80 s, or some minutes
# More than a gateway or a worker takes at its end (`flows.worker`, `credentials.vault`).
CHILD_STOP_SECONDS = 40
STOP_SECONDS = (
    180  # longest that `apex stop` waits: one child after the other ends, the last started first
)
POLL_SECONDS = 0.1


@dataclass(frozen=True, slots=True)
class Running:
    """A running stack."""

    url: str
    temporal_ui: str
    """Its address; empty when it does not run."""
    new_key: str | None
    """The first admin key, if this start created it."""
    seconds: float
    supervisor: Supervisor
    environment: Mapping[str, str]
    """What its workers find in their environment beside that of this process."""


def up(
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="Print what each process does.")
    ] = False,
    detach: Annotated[
        bool,
        typer.Option(
            "--detach",
            "-d",
            help="Return once all is up, and leave it running: `apex stop` ends it.",
        ),
    ] = False,
    ui: Annotated[
        bool,
        typer.Option(
            "--ui",
            help="Also start the UI of the embedded Temporal. It has no sign-in: every user of this machine can end workflows there.",
        ),
    ] = False,
) -> None:
    """Start everything and keep it running: engines, gateway, workers. Ctrl-C stops all.

    Events can land as soon as PostgreSQL is ready, also while a large graph is still loading.

    Example: apex up --detach
    """
    settings = load_settings(temporal_ui=EMBEDDED) if ui else load_settings()
    if detach:
        options = [*(["--verbose"] if verbose else []), *(["--ui"] if ui else [])]
        _up_detached(settings, options)
    else:
        asyncio.run(_up(settings, verbose=verbose))


def _up_detached(settings: Settings, options: Sequence[str]) -> None:
    """Start `apex up` in a session of its own, show what it prints until all is up, and leave it running."""
    if stack := read_stack(settings.data_dir):
        raise Conflict(
            f"{settings.data_dir}: Apex already runs here (process {stack.pid})",
            remedy="see `apex status`, or end it with `apex stop`",
        )
    folder = settings.data_dir / "log"
    settings.data_dir.mkdir(mode=0o711, parents=True, exist_ok=True)
    folder.mkdir(mode=0o700, exist_ok=True)
    log = folder / DETACHED_LOG
    had_key = key_file(settings).exists()
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "apex_memory.cli", "up", *options],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, "PYTHONUNBUFFERED": "1", DETACHED: "1"},
            start_new_session=True,
        )
    with log.open(encoding="utf-8", errors="replace") as lines:
        while not is_up(read_stack(settings.data_dir), process.pid):
            if process.poll() is not None:
                _relay(lines.read(), stderr=True)
                raise typer.Exit(process.returncode or 1)
            _relay(lines.read())
            sleep(POLL_SECONDS)
        sleep(POLL_SECONDS)  # for its last lines
        _relay(lines.read())
    if not had_key and key_file(settings).exists():
        _show_key(settings, key_file(settings).read_text(encoding="utf-8").strip())
    say(
        f"It runs in the background (process {process.pid}). `apex stop` ends it; its messages are in {log}."
    )


def _relay(output: str, *, stderr: bool = False) -> None:
    """Print what `apex up` printed, without the lines that are untrue here or printed already."""
    for line in output.splitlines():
        if line not in (STARTING, HOW_TO_STOP):
            say(line, stderr=stderr)


def is_up(stack: Stack | None, pid: int) -> bool:
    """Return whether the `apex up` of process `pid` has started everything."""
    if stack is None or stack.pid != pid:
        return False
    names = ("gateway", "worker", "bulk")
    return all(name in stack.children and stack.children[name].ready for name in names)


def stop(json: Json = False) -> None:
    """Stop the stack of this data folder, wherever it was started. The data stays.

    Example: apex stop
    """
    settings = load_settings()
    stack = read_stack(settings.data_dir)
    if stack is None:
        if json:
            show_json({"stopped": False, "pid": None})
        else:
            say(f"No stack runs from {settings.data_dir}.")
        return
    try:
        os.kill(stack.pid, signal.SIGTERM)
    except ProcessLookupError:
        pass  # it ended meanwhile
    except PermissionError:
        raise Misconfigured(
            f"process {stack.pid} belongs to another user",
            remedy="run `apex stop` as the user who runs `apex up`",
        ) from None
    deadline = monotonic() + STOP_SECONDS
    while (running_stack := read_stack(settings.data_dir)) and running_stack.pid == stack.pid:
        if monotonic() > deadline:
            raise Conflict(
                f"process {stack.pid} still stops after {STOP_SECONDS} s",
                remedy=f"see {settings.data_dir / 'log'}, or run `apex stop` again: a second signal ends it at once",
            )
        sleep(POLL_SECONDS)
    if json:
        show_json({"stopped": True, "pid": stack.pid})
    else:
        say("All stopped.")


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
        with suppress(OSError):  # its disk may be full, or its terminal closed: the stack goes on
            say(f"  {name:>10}  ", WORDS.get(what, what), (f"  {detail}", "dim"))

    async with running(settings, report) as stack:
        running_now = True
        show_stack(settings, stack)
        say((HOW_TO_STOP, "dim"))
        await stack.supervisor.wait()
        say(("Stopping …", "dim"))
    say(("All stopped.", "dim"))


@asynccontextmanager
async def running(settings: Settings, report: Report) -> AsyncIterator[Running]:
    """Start the stack, and stop it at the end of the block.

    The gateway does not wait for the graph and the vectors: events land while they load.
    """
    began = monotonic()
    check_tracing()
    check_sources(settings)
    embedder, dimension = await probe_embedder(
        settings.embedder, model=settings.embedder_model, dimension=settings.embedder_dimension
    )
    ports = last_ports(settings.data_dir)
    own_metrics = _metrics_address("supervisor", settings.supervisor_metrics, ports)
    BUILD_INFO.labels(__version__, "").set(1)
    with exposed(own_metrics, process="supervisor") as exposed_at:
        async with Supervisor(settings.data_dir, report, metrics=exposed_at.url) as supervisor:
            engines = await asyncio.to_thread(embedded_engines, settings, dimension)
            environment = environment_for(engines, settings)
            with _unwrapped_failure():
                async with asyncio.TaskGroup() as beside:
                    slow = [engine for engine in engines if engine.role in SLOW_TO_START]
                    loading = beside.create_task(supervisor.start(*slow))
                    await supervisor.start(
                        *(engine for engine in engines if engine.role not in SLOW_TO_START)
                    )
                    documents = environment.get("APEX_DOCUMENTS", settings.session_documents)
                    await migrate(documents)
                    await _check_embedder(documents, embedder, dimension)
                    await _promote_build(settings, documents, report)
                    _secret_key(settings, environment)
                    _report_former_graph(settings, report)
                    new_key = await _first_key(settings, documents)
                    gateway = _gateway(settings, environment, report)
                    beside.create_task(supervisor.start(gateway))
                    await loading
                    await supervisor.start(
                        _worker("worker", settings.worker_metrics, settings, environment, ports),
                        _worker("bulk", settings.bulk_metrics, settings, environment, ports),
                    )
            url = gateway.url
            ui = environment.get("APEX_TEMPORAL_UI", settings.temporal_ui)
            yield Running(url, ui, new_key, monotonic() - began, supervisor, environment)


@contextmanager
def _unwrapped_failure() -> Iterator[None]:
    """Raise the first failure of a task group itself: the other tasks were only cancelled because of it."""
    try:
        yield
    except BaseExceptionGroup as failures:
        raise failures.exceptions[0] from None


def check_sources(settings: Settings) -> None:
    """Raise `Misconfigured` for wrong settings of a source: now, not in a child when all engines run."""
    # Not at the top: it loads the packages of all sources, which other commands do not need.
    from apex_memory.sources import registry

    registry.load(settings.sources, settings.source_path)


async def _check_embedder(documents: str, embedder: str, dimension: int) -> None:
    """Raise `Misconfigured` if the memory was embedded with another embedder: now, not in every child."""
    db = Postgres(documents, size=1)
    await db.open()
    try:
        await check_embedder(db, embedder=embedder, dimension=dimension)
    finally:
        await db.close()


async def _promote_build(settings: Settings, documents: str, report: Report) -> None:
    """Make this build current where this stack is the whole installation: no other build can run beside it.

    Once, at the start: a worker that restarts later changes nothing. Elsewhere a build waits for `apex builds`.
    """
    alone = settings.documents == EMBEDDED and settings.temporal == EMBEDDED
    if not alone or settings.routing == "external":
        return
    db = Postgres(documents, size=1)
    await db.open()
    try:
        build = settings.build_id or build_id()
        before = (await builds.routing(db)).current
        await builds.promote(db, build, actor="apex up", reason="its stack is alone", alone=True)
    finally:
        await db.close()
    if before not in ("", build):
        report("stack", "build promoted", f"{build} is current now, it was {before}")


def _report_former_graph(settings: Settings, report: Report) -> None:
    """Report that the data of a FalkorDB is not used any more. In 0.2.0 it was the graph by default."""
    former = settings.data_dir / "falkordb"
    if settings.graph == IN_DOCUMENTS and former.is_dir():
        report(
            "graph",
            "moved",
            f"to PostgreSQL, filled from the documents; {former} is not used any more. APEX_GRAPH={EMBEDDED} goes back",
        )


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


def _secret_key(settings: Settings, environment: dict[str, str]) -> None:
    """Create the key that encrypts secrets and histories, once per data folder, unless a setting names one.

    The processes of this stack get its place, so that a worker with a data folder of its own has the same key.
    """
    if names_a_key(settings):
        return
    file = (settings.data_dir / KEY_FILE).resolve()
    if not file.exists():
        write_private(file, new_secret_key() + "\n")
    environment["APEX_SECRET_KEY_FILE"] = str(file)


def _gateway(settings: Settings, environment: dict[str, str], report: Report) -> ChildProcess:
    port = free_port(settings.port)
    if settings.port not in (0, port):
        report("gateway", "port taken", f"{settings.port} is in use; listening on {port} instead")
    own = {"APEX_PORT": str(port)}
    if not settings.embedder_threads:
        # It embeds single questions: two threads are a fifth faster, and take 30 % more of the
        # processors, which the stores need for the same search.
        own["APEX_EMBEDDER_THREADS"] = "1"
    url = f"{settings.scheme}://{settings.host}:{port}"
    metrics = f"{url}/metrics"
    if settings.gateway_metrics:
        metrics = Address.parse(settings.gateway_metrics).url
    return _child("gateway", settings, {**environment, **own}, url, port, metrics)


def _worker(
    name: str,
    metrics: str,
    settings: Settings,
    environment: dict[str, str],
    ports: Mapping[str, int],
) -> ChildProcess:
    """Return how to run a worker, with the address of its metrics."""
    address = _metrics_address(name, metrics, ports)
    own = {f"APEX_{name.upper()}_METRICS": str(address)}
    return _child(name, settings, {**environment, **own}, "", 0, address.url)


def _metrics_address(name: str, setting: str, ports: Mapping[str, int]) -> Address:
    """Return the address of a setting. Port 0 becomes that of the last run, so that noted addresses stay valid, or a free one."""
    address = Address.parse(setting)
    if address.port:
        return address
    own = f"{name} metrics"
    others = [port for other, port in ports.items() if other != own]
    return Address(address.host, free_port(ports.get(own), taken=others))


async def _until_tls(host: str, port: int) -> None:
    """Return when a server on this machine completes a handshake. The gateway listens only once it has opened its stores.

    Whether its certificate is valid for this address is for callers to verify: nothing is sent here, and with
    `tls_client_ca_file` a request would need a certificate of its own.
    """
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    while True:
        try:
            _, writer = await asyncio.open_connection(host, port, ssl=context)
        except OSError:
            await asyncio.sleep(0.05)
        else:
            writer.transport.abort()
            return


def _child(
    name: str,
    settings: Settings,
    environment: dict[str, str],
    url: str,
    port: int,
    metrics: str,
) -> ChildProcess:
    program = {
        "gateway": ["apex_memory.gateway"],
        "worker": ["apex_memory.flows", "realtime"],
        "bulk": ["apex_memory.flows", "bulk"],
    }[name]

    async def ready() -> None:
        if url.startswith("https:"):
            await _until_tls(settings.host.strip("[]"), port)
            return
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

    return ChildProcess(
        name=name,
        command=[sys.executable, "-m", *program],
        ready=ready if url else at_once,
        directory=settings.data_dir.resolve(),
        environment={
            **environment,
            "APEX_SETTINGS_FILE": environment.get("APEX_SETTINGS_FILE", _settings_file()),
        },
        niceness=NICENESS.get(name, 0),
        ready_seconds=READY_SECONDS,
        stop_seconds=CHILD_STOP_SECONDS,
        url=url,
        port=port,
        metrics=metrics,
        version=version,
    )


def _settings_file() -> str:
    file = settings_file().absolute()
    return str(file) if file.exists() else os.devnull


def show_stack(settings: Settings, stack: Running) -> None:
    """Print a table of processes with addresses and versions, and the first API key."""
    state = read_stack(settings.data_dir)
    say(
        (f"Apex Memory {__version__}", "bold"),
        f" is up after {duration(stack.seconds)}, data in {settings.data_dir}",
    )
    show_table(
        "",
        ("process", "address", "version"),
        [
            (child.name, child.url or "no port", child.version)
            for child in (state.children.values() if state else ())
        ],
        empty="",
        free=("version",),
    )
    say(f"API       {stack.url}/docs")
    if stack.temporal_ui:
        say(f"Temporal  {stack.temporal_ui}/namespaces/apex/workflows")
    elif settings.temporal == EMBEDDED:
        say("Temporal  ", ("its UI has no sign-in and is off; `apex up --ui` starts it", "dim"))
    # In the background standard output is a log, which `apex logs` shows and people pass on.
    if stack.new_key and DETACHED not in os.environ:
        _show_key(settings, stack.new_key)


def _show_key(settings: Settings, key: str) -> None:
    """Print the first API key, and where it is kept."""
    say("API key   ", (key, "bold"))
    say((f"          for admins, in {key_file(settings)}; the command line uses it", "dim"))
