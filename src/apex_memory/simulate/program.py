"""Every simulator there is."""

from __future__ import annotations

import importlib
import inspect
import pkgutil

from apex_memory import simulate
from apex_memory.simulate.vendor import Simulator


def classes() -> list[type[Simulator]]:
    """Return every simulator class, by the name of its source: one a package of this folder."""
    found: dict[str, type[Simulator]] = {}
    for info in pkgutil.iter_modules(simulate.__path__):
        if not info.ispkg:
            continue
        module = importlib.import_module(f"{simulate.__name__}.{info.name}.simulator")
        for item in vars(module).values():
            if not isinstance(item, type) or not issubclass(item, Simulator):
                continue
            if item.__module__ == module.__name__ and not inspect.isabstract(item):
                found[item.name] = item
    return [found[name] for name in sorted(found)]
