"""Every simulator there is."""

from __future__ import annotations

import importlib
import inspect
import pkgutil

from apex_memory import simulate
from apex_memory.simulate.vendor import Simulator


def classes() -> list[type[Simulator]]:
    """Every simulator class, by the name of its source."""
    modules = [
        importlib.import_module(f"{simulate.__name__}.{info.name}")
        for info in pkgutil.iter_modules(simulate.__path__)
    ]
    found = {
        item.name: item
        for module in modules
        for item in vars(module).values()
        if isinstance(item, type)
        and issubclass(item, Simulator)
        and item.__module__ == module.__name__
        and not inspect.isabstract(item)
    }
    return [found[name] for name in sorted(found)]
