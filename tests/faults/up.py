"""`apex up` with one difference: its workers are `tests.faults.worker`, which can be killed at a step, and whose stores lie behind proxies."""

from __future__ import annotations

import importlib
from dataclasses import replace
from typing import Any
from unittest.mock import patch

from apex_memory.cli import main

up = importlib.import_module(
    "apex_memory.cli.up"
)  # the module: the package has a function of that name
ordinary = up._child


def child(name: str, *given: Any) -> Any:
    made = ordinary(name, *given)
    if name not in ("worker", "bulk"):
        return made
    command = [
        "tests.faults.worker" if part == "apex_memory.flows" else part for part in made.command
    ]
    assert command != made.command
    return replace(made, command=command)


with patch.object(up, "_child", child):
    main()
