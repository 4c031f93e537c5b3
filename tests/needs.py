"""Which tests need an engine: read from the code of tests, fixtures and helpers, so that nobody keeps a list.

A test needs an engine when its own code, the code of a fixture it depends on, or the code of a helper in
`tests` that these call names something that starts a process or opens a model.
"""

from __future__ import annotations

import asyncio
import inspect
import os
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from types import CodeType, FunctionType
from typing import Any

import pytest

from apex_memory.engines.process import Process
from apex_memory.engines.supervisor import Supervisor
from apex_memory.pipeline import open_embedder
from apex_memory.pipeline.reader import FileReader

TESTS = str(Path(__file__).parent) + os.sep
STARTERS = (
    Process,
    Supervisor,
    FileReader,  # reads files in processes
    open_embedder,  # opens a model, which takes as long as an engine
    asyncio.create_subprocess_exec,
    subprocess.Popen,
    subprocess.run,
)
START_ATTRIBUTES = frozenset({"create_subprocess_exec", "Popen"})
"""Names that start a process on whatever module they are looked up."""
SHARED = ("class", "module", "package")
DYNAMIC = "getfixturevalue"
"""A fixture that chooses others while it runs can choose an engine: it counts as one."""


def needs_engine(item: pytest.Item) -> bool:
    """Return whether this test or one of its fixtures starts a process."""
    if not isinstance(item, pytest.Function):
        return False
    functions = [item.obj]
    for definitions in item._fixtureinfo.name2fixturedefs.values():
        functions += [definition.func for definition in definitions]
    return any(starts_process(function) for function in functions)


@cache
def starts_process(function: Any) -> bool:
    """Return whether a function, or what it calls within `tests`, starts a process."""
    return any(_names_starter(part) for part in _reachable(_plain(function)))


def _reachable(function: Any) -> Iterator[FunctionType]:
    """Yield the function and everything within `tests` that it can call, each once."""
    waiting, seen = [function], set()
    while waiting:
        current = waiting.pop()
        if id(current) in seen:
            continue
        seen.add(id(current))
        if inspect.isclass(current):
            members = [*vars(current).values(), *current.__bases__]
            waiting += [_plain(member) for member in members if _is_ours(_plain(member))]
        elif isinstance(current, FunctionType):
            yield current
            waiting += [value for value in _named(current) if _is_ours(value)]


@cache
def _names_starter(function: FunctionType) -> bool:
    names = _names(function.__code__)
    if DYNAMIC in names or not START_ATTRIBUTES.isdisjoint(names):
        return True
    named = list(_named(function))
    if subprocess in named:
        return True
    return any(value is starter for value in named for starter in STARTERS)


def _named(function: FunctionType) -> Iterator[Any]:
    """Yield what the names in a function's code stand for, as far as they are global or closed over."""
    for name in _names(function.__code__):
        if name in function.__globals__:
            yield _plain(function.__globals__[name])
    for cell in function.__closure__ or ():
        try:
            yield _plain(cell.cell_contents)
        except ValueError:  # not filled yet
            continue


def _names(code: CodeType) -> set[str]:
    """Return the names that code uses, its inner functions' included."""
    names = set(code.co_names)
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            names |= _names(constant)
    return names


def _plain(value: Any) -> Any:
    """Return the function below decorators, a bound method, a property or a hypothesis test."""
    if isinstance(value, property):
        value = value.fget
    if isinstance(value, staticmethod | classmethod):
        value = value.__func__
    if inspect.ismethod(value):
        value = value.__func__
    inner = getattr(getattr(value, "hypothesis", None), "inner_test", None)
    if inner is not None:
        value = inner
    if isinstance(value, FunctionType):
        return inspect.unwrap(value)
    return value


def _is_ours(value: Any) -> bool:
    if not (inspect.isclass(value) or isinstance(value, FunctionType)):
        return False
    module = sys.modules.get(value.__module__ or "")
    return (getattr(module, "__file__", None) or "").startswith(TESTS)


def shares_engine_in_module(item: pytest.Item) -> bool:
    """Return whether the test uses an engine that its whole module shares."""
    if not isinstance(item, pytest.Function):
        return False
    for definitions in item._fixtureinfo.name2fixturedefs.values():
        for definition in definitions:
            if definition.scope in SHARED and starts_process(definition.func):
                return True
    return False
