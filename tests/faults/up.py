"""`apex up` with two differences: its workers are `tests.faults.worker`, which can be killed at a step, and whose stores lie behind
proxies; and there may be several gateways and workers, as FAULTS_GATEWAYS and FAULTS_WORKERS say.
"""

from __future__ import annotations

import importlib
import os
from dataclasses import replace
from typing import Any
from unittest.mock import patch

from apex_memory.cli import main
from apex_memory.engines.base import HOST, Engine, free_port
from apex_memory.engines.process import ChildProcess
from apex_memory.engines.supervisor import Supervisor

up = importlib.import_module(
    "apex_memory.cli.up"
)  # the module: the package has a function of that name
ordinary = up._child
COUNTS = {
    "gateway": int(os.environ.get("FAULTS_GATEWAYS", "1")),
    "worker": int(os.environ.get("FAULTS_WORKERS", "1")),
}
made_of: dict[str, tuple[Any, ...]] = {}
"""Name of a process → what it was made of: settings, environment, URL, port, metrics."""


def child(name: str, *given: Any) -> ChildProcess:
    made_of[name] = given
    made: ChildProcess = ordinary(name, *given)
    if name not in ("worker", "bulk"):
        return made
    command = [
        "tests.faults.worker" if part == "apex_memory.flows" else part for part in made.command
    ]
    assert command != made.command
    return replace(made, command=command)


def another(name: str, number: int) -> ChildProcess:
    """Another gateway or worker beside the first: with ports of its own, and all else the same."""
    settings, environment, *_ = made_of[name]
    port = free_port()
    if name == "gateway":
        url = f"http://{HOST}:{port}"
        own = {"APEX_PORT": str(port)}
        made = child(name, settings, environment | own, url, port, f"{url}/metrics")
    else:
        own = {"APEX_WORKER_METRICS": f"{HOST}:{port}"}
        made = child(name, settings, environment | own, "", 0, f"http://{HOST}:{port}/metrics")
    return replace(made, name=f"{name}-{number}")


class Several(Supervisor):
    async def start(self, *parts: Engine | ChildProcess) -> None:
        others = [
            another(part.name, number)
            for part in parts
            for number in range(2, COUNTS.get(part.name, 1) + 1)
        ]
        await super().start(*parts, *others)


with patch.object(up, "_child", child), patch.object(up, "Supervisor", Several):
    main()
