"""The simulators, one a vendor, found by their packages."""

from __future__ import annotations

import importlib
import inspect
import pkgutil

from apex_memory import simulate
from apex_memory.simulate.vendor import Simulator


def simulator_classes() -> list[type[Simulator]]:
    """Return every simulator class, ordered by the name of its source: one a package of this folder."""
    by_name: dict[str, type[Simulator]] = {}
    for info in pkgutil.iter_modules(simulate.__path__):
        if not info.ispkg:
            continue
        module = importlib.import_module(f"{simulate.__name__}.{info.name}.simulator")
        for item in vars(module).values():
            if not isinstance(item, type) or not issubclass(item, Simulator):
                continue
            if item.__module__ == module.__name__ and not inspect.isabstract(item):
                by_name[item.name] = item
    return [by_name[name] for name in sorted(by_name)]
