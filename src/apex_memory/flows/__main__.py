"""`python -m apex_memory.flows [realtime|bulk|shadow]`: a worker process. Without an argument it serves both task queues.

`shadow` processes only copies, for a candidate build: what readers see stays as it is, and it needs no Temporal.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import sys
from contextlib import AsyncExitStack
from functools import partial
from importlib.metadata import version

from apex_memory.app import App, open_app
from apex_memory.build import build_id
from apex_memory.config import Settings, load_settings
from apex_memory.engines.cards import ProcessCard, registered
from apex_memory.errors import ApexError
from apex_memory.flows.temporal.metrics import measured_runtime
from apex_memory.flows.temporal.queues import ROLES
from apex_memory.flows.temporal.tracing import replay_safe_provider
from apex_memory.flows.worker import serve_paths, until_set, until_stuck
from apex_memory.gc_tuning import collect_garbage_seldom
from apex_memory.machine_load import LoadMeter
from apex_memory.name_resolution import NameResolvingLoop
from apex_memory.rollout.flags import follow_flags
from apex_memory.rollout.shadow_loop import ShadowLoop
from apex_memory.tasks import Background, run_together
from apex_memory.telemetry import BUILD_INFO, DELAY, configure_logging, logger, touch_metrics
from apex_memory.telemetry.export import exporting
from apex_memory.telemetry.exposition import Address, exposed
from apex_memory.telemetry.logs import unforeseen

SHADOW = "shadow"


async def run(settings: Settings, role: str = "all") -> None:
    """Open everything and work until SIGTERM or SIGINT. Raises what `open_app`, `serve_paths` and `Background` raise."""
    queues, name = ROLES[role], "bulk" if role == "bulk" else "worker"
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    # The library would log each failed step with its trace; `temporal.errors` logs one line.
    logging.getLogger("temporalio.activity").setLevel(logging.ERROR)
    build = settings.build_id or build_id()
    BUILD_INFO.labels(version("apex-memory"), build).set(1)
    runtime = measured_runtime()
    address = Address.parse(settings.bulk_metrics if name == "bulk" else settings.worker_metrics)
    with exposed(address, process=name) as exposed_at:
        card = ProcessCard(process=name, pid=os.getpid(), build=build, metrics=exposed_at.url)
        logger(component="worker").info("worker starting", **card.model_dump())
        async with AsyncExitStack() as stack:
            stack.enter_context(registered(settings.data_dir, card))
            app = await stack.enter_async_context(open_app(settings, build=build))
            touch_metrics(app.sources)
            if name == "worker":
                await app.recovery.prepare()
            collect_garbage_seldom()
            background = await stack.enter_async_context(Background(stop.set))
            background.run(app.credentials.keep_fresh, name="secrets")
            background.run(LoadMeter(DELAY.set).watch, name="load")
            background.run(app.breaker_probes.run, name="breaker probes")
            if name == "worker":
                background.run(partial(_check_stores, app), name="check stores")
                background.run(app.mirror.forwarder.run, name="mirror")
                background.run(app.rollouts.watch, name="rollouts")
                background.run(partial(_follow_flags, app), name="flags")
                background.run(_copies(app).run, name="copies")
            await serve_paths(app, stop=stop, runtime=runtime, queues=queues, process=name)
    logger(component="worker").info("worker stopped")


async def run_shadow(settings: Settings) -> None:
    """Process copies for this build until SIGTERM or SIGINT, and nothing else. Raises what `open_app` and `Background` raise."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    build = settings.build_id or build_id()
    BUILD_INFO.labels(version("apex-memory"), build).set(1)
    with exposed(Address.parse(settings.shadow_metrics), process=SHADOW) as exposed_at:
        card = ProcessCard(process=SHADOW, pid=os.getpid(), build=build, metrics=exposed_at.url)
        with registered(settings.data_dir, card):
            async with open_app(settings, build=build, any_embedder=True) as app:
                collect_garbage_seldom()
                logger(component="shadow").info("processing copies", **card.model_dump())
                async with Background(stop.set) as background:
                    background.run(_copies(app).run, name="copies")
                    await run_together(until_stuck(app), until_set(stop))


def _copies(app: App) -> ShadowLoop:
    return ShadowLoop(app.db, app.shadow, app.settings, build=app.build)


async def _check_stores(app: App) -> None:
    """Check stores that restarted, in the background: with much data it takes a minute, and until then searches report them as degraded."""
    try:
        await app.recovery.check_restarted_stores()
    except ApexError as error:  # the next sweep checks again
        logger(component="worker").error(
            "check of restarted stores failed", reason=str(error), remedy=error.remedy
        )


async def _follow_flags(app: App) -> None:
    await follow_flags(
        app.shares, app.sources, app.settings.rollout, elected=lambda: app.rollouts.elected
    )


def main() -> int:
    """Run until SIGTERM or SIGINT. Return the exit code: 0, 1 when the worker could not start or a part of it failed, 2 for an unknown role."""
    role = sys.argv[1] if sys.argv[1:] else "all"
    if role not in (*ROLES, SHADOW):
        print(f"{role}: no such role; use one of {', '.join((*ROLES, SHADOW))}", file=sys.stderr)
        return 2
    try:
        settings = load_settings()
        configure_logging(settings.log_level, settings.log_format)
        process = {"bulk": "bulk", SHADOW: SHADOW}.get(role, "worker")
        with (
            exporting(process, replay_safe_provider),
            asyncio.Runner(loop_factory=NameResolvingLoop) as runner,
        ):
            runner.run(run_shadow(settings) if role == SHADOW else run(settings, role))
    except ApexError as error:
        logger(component="worker").error(str(error), remedy=error.remedy)
        return 1
    except Exception as error:  # noqa: BLE001 (the outermost frame of the process; the message may quote data)
        logger(component="worker").error("worker failed unexpectedly", **unforeseen(error))
        return 1
    return 0


if __name__ == "__main__":
    code = main()
    with contextlib.suppress(OSError):  # the disk of the log may be full
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code)  # the Temporal library's threads can crash an interpreter that is shutting down
