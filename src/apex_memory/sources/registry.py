"""Which sources exist, and their configuration: every package here, and the files in `source_path`."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import pkgutil
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from apex_memory import sources
from apex_memory.errors import Misconfigured
from apex_memory.sources.base import Source, SourceSettings


def _modules(extra: Path | None) -> Iterator[Any]:
    for info in pkgutil.iter_modules(sources.__path__):
        if info.ispkg:
            yield importlib.import_module(f"{sources.__name__}.{info.name}.source")
    for file in sorted(extra.glob("*.py")) if extra else ():
        spec = importlib.util.spec_from_file_location(f"apex_source_{file.stem}", file)
        if spec is None or spec.loader is None:
            raise Misconfigured(f"source_path: {file} is not a Python module")
        module = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = module
        try:
            spec.loader.exec_module(module)
        except Exception as error:  # somebody else's file may raise anything: it is said which one
            raise Misconfigured(
                f"source_path: {file} cannot be loaded ({type(error).__name__}: {error})",
                remedy="correct the file, or take it out of source_path",
            ) from error
        yield module


def classes(extra: Path | None = None) -> list[type[Source]]:
    """Every source class there is, by name."""
    found: dict[str, type[Source]] = {}
    for module in _modules(extra):
        for item in vars(module).values():
            if not _is_source(item, module.__name__):
                continue
            if item.name in found:
                raise Misconfigured(
                    f"source_path: {module.__name__} defines {item.name}, which there is already",
                    remedy="give the source another name",
                )
            found[item.name] = item
    return [found[name] for name in sorted(found)]


def _is_source(item: Any, module: str) -> bool:
    """A class of this module that says its name; one without is a base for others."""
    return (
        isinstance(item, type)
        and issubclass(item, Source)
        and item.__module__ == module
        and hasattr(item, "name")
        and not inspect.isabstract(item)
    )


def load(settings: Mapping[str, Mapping[str, Any]], extra: Path | None = None) -> dict[str, Source]:
    """All sources, configured from the `[sources.NAME]` tables. Refuses unknown names and wrong values."""
    kinds = {item.name: item for item in classes(extra)}
    unknown = set(settings) - set(kinds)
    if unknown:
        raise Misconfigured(
            f"sources.{min(unknown)}: no such source", remedy=f"known sources: {', '.join(kinds)}"
        )
    return {name: kind(settings_of(kind, settings.get(name, {}))) for name, kind in kinds.items()}


def settings_of(kind: type[Source], given: Mapping[str, Any]) -> SourceSettings:
    """The settings of a source. Raises `Misconfigured` with the first wrong one's name."""
    try:
        return kind.Settings.model_validate(given)
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        place = ".".join(["sources", kind.name, *map(str, first["loc"])])
        raise Misconfigured(
            f"{place}: {first['msg']}", remedy="see docs/reference/settings.md"
        ) from None


SECRETS = "source/"
"""Secrets of sources are kept under `source/NAME/SETTING`."""


def secrets_of(name: str, kept: Mapping[str, Any]) -> dict[str, Any]:
    """Of the kept secrets those of one source, by setting."""
    prefix = f"{SECRETS}{name}/"
    return {
        path.removeprefix(prefix): value for path, value in kept.items() if path.startswith(prefix)
    }
