"""`apex up` with one difference: its worker is `tests.faults.worker`, which can be killed at a step, and whose stores lie behind proxies."""

from __future__ import annotations

import importlib
import sys
from dataclasses import replace
from typing import Any

from apex_memory.cli import main

up = importlib.import_module(
    "apex_memory.cli.up"
)  # the module: the package has a function of that name
ordinary = up._child


def child(name: str, *given: Any) -> Any:
    made = ordinary(name, *given)
    if name != "worker":
        return made
    return replace(made, command=[sys.executable, "-m", "tests.faults.worker"])


up._child = child
main()
