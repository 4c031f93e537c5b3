"""`python -m apex_memory.flows [realtime|bulk]`: a worker process. Without an argument it serves both task queues."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import signal
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from prometheus_client import make_wsgi_app, start_http_server
from temporalio.runtime import PrometheusConfig

from apex_memory.app import App, open_app
from apex_memory.config import Settings, load_settings
from apex_memory.engines.base import HOST, free_port, write_private
from apex_memory.errors import ApexError
from apex_memory.flows.temporal.client import quiet_runtime
from apex_memory.flows.temporal.deployment import build_id
from apex_memory.flows.temporal.queues import ROLES
from apex_memory.flows.worker import serve
from apex_memory.gc_tuning import collect_garbage_seldom
from apex_memory.host_names import host_name, is_loopback
from apex_memory.machine_load import LoadMeter
from apex_memory.name_resolution import NameResolvingLoop
from apex_memory.telemetry import DELAY, configure_logging, logger

if TYPE_CHECKING:
    from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment


async def run(settings: Settings, role: str = "all") -> None:
    """Open everything and work until SIGTERM or SIGINT. Raises what `open_app` raises."""
    queues, name = ROLES[role], "bulk" if role == "bulk" else "worker"
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    # The library would log each failed step with its trace; `temporal.errors` logs one line.
    logging.getLogger("temporalio.activity").setLevel(logging.ERROR)
    build, temporal_port = build_id(), free_port()
    runtime = quiet_runtime(PrometheusConfig(bind_address=f"{HOST}:{temporal_port}"))
    server, _ = start_http_server(0, HOST)
    server.set_app(for_this_machine(make_wsgi_app()))
    card = {
        "pid": os.getpid(),
        "build": build,
        "metrics": f"http://{HOST}:{server.server_port}/metrics",
        "temporal_metrics": f"http://{HOST}:{temporal_port}/metrics",
    }
    with registered(settings.data_dir / "run" / f"{name}.json", card):
        logger(component="worker").info("worker starting", **card)
        async with open_app(settings) as app:
            if name == "worker":
                await app.recovery.prepare()
            collect_garbage_seldom()
            background = [
                asyncio.create_task(app.credentials.keep_fresh(), name="secrets"),
                asyncio.create_task(LoadMeter(DELAY.set).watch(), name="load"),
            ]
            if name == "worker":
                background.append(asyncio.create_task(_check_stores(app), name="check stores"))
                background.append(asyncio.create_task(app.direct.watch(), name="stalls"))
            try:
                await serve(app, build=build, stop=stop, runtime=runtime, queues=queues)
            finally:
                for task in background:
                    task.cancel()
    logger(component="worker").info("worker stopped")


def for_this_machine(metrics: WSGIApplication) -> WSGIApplication:
    """Return the application, with 421 for requests whose Host is not a name of this machine (see `host_names`)."""

    def application(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        if is_loopback(host_name(environ.get("HTTP_HOST", ""))):
            return metrics(environ, start_response)
        start_response("421 Misdirected Request", [("Content-Type", "text/plain")])
        return [b"the metrics of a worker are for this machine\n"]

    return application


async def _check_stores(app: App) -> None:
    """Check stores that restarted, in the background: with much data it takes a minute, and until then searches report them as degraded."""
    try:
        await app.recovery.check_restarted_stores()
    except ApexError as error:  # the next sweep checks again
        logger(component="worker").error(
            "check of restarted stores failed", reason=str(error), remedy=error.remedy
        )


@contextlib.contextmanager
def registered(path: Path, card: dict[str, object]) -> Iterator[None]:
    """Keep a file with this process's addresses while it runs."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    write_private(path, json.dumps(card))
    try:
        yield
    finally:
        path.unlink(missing_ok=True)


def main() -> int:
    """Run until SIGTERM or SIGINT. Return the exit code: 0, 1 when the worker could not start, 2 for an unknown role."""
    role = sys.argv[1] if sys.argv[1:] else "all"
    if role not in ROLES:
        print(f"{role}: no such role; use one of {', '.join(ROLES)}", file=sys.stderr)
        return 2
    try:
        settings = load_settings()
        configure_logging(settings.log_level, settings.log_format)
        with asyncio.Runner(loop_factory=NameResolvingLoop) as runner:
            runner.run(run(settings, role))
    except ApexError as error:
        logger(component="worker").error(str(error), remedy=error.remedy)
        return 1
    return 0


if __name__ == "__main__":
    code = main()
    with contextlib.suppress(OSError):  # the disk of the log may be full
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code)  # the Temporal library's threads can crash an interpreter that is shutting down
