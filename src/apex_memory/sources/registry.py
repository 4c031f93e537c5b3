"""The list of all sources, and their configuration: the packages here, and those in the folder `source_path`."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import pkgutil
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, get_args

from pydantic import BaseModel, SecretStr, ValidationError

from apex_memory import sources
from apex_memory.config import did_you_mean
from apex_memory.errors import Misconfigured
from apex_memory.sources.base import Source, SourceSettings


def _modules(extra: Path | None) -> Iterator[ModuleType]:
    for info in pkgutil.iter_modules(sources.__path__):
        if info.ispkg:
            yield importlib.import_module(f"{sources.__name__}.{info.name}.source")
    if extra is None:
        return
    for file in sorted(extra.glob("*.py")):
        yield _load(f"apex_source_{file.stem}", file)
    for file in sorted(extra.glob("*/source.py")):
        package = f"apex_source_{file.parent.name}"
        _load(package, file.parent / "__init__.py")
        yield _load(f"{package}.source", file)


def _load(name: str, file: Path) -> ModuleType:
    """Load a module of `source_path` under a name that no installed package has. Raises `Misconfigured`."""
    spec = importlib.util.spec_from_file_location(name, file)
    if spec is None or spec.loader is None or not file.exists():
        raise Misconfigured(
            f"source_path: {file} is not a Python module",
            remedy="a source is a file NAME.py, or a folder with __init__.py and source.py",
        )
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # a user's file may raise anything: the error names the file
        raise Misconfigured(
            f"source_path: {file} cannot be loaded ({type(error).__name__}: {error})",
            remedy="correct the file, or remove it from source_path",
        ) from error
    return module


def classes(extra: Path | None = None) -> list[type[Source]]:
    """Return every source class, sorted by name. Raises `Misconfigured` when two have the same name."""
    by_name: dict[str, type[Source]] = {}
    for module in _modules(extra):
        for item in vars(module).values():
            if not _is_source(item, module.__name__):
                continue
            if item.name in by_name:
                raise Misconfigured(
                    f"source_path: {module.__name__} defines {item.name}, which exists already",
                    remedy="give the source another name",
                )
            by_name[item.name] = item
    return [by_name[name] for name in sorted(by_name)]


def _is_source(item: Any, module: str) -> bool:
    """Return whether it is a source class of this module with a name. A class without one is a base for others."""
    return (
        isinstance(item, type)
        and issubclass(item, Source)
        and item.__module__ == module
        and hasattr(item, "name")
        and not inspect.isabstract(item)
    )


def load(settings: Mapping[str, Mapping[str, Any]], extra: Path | None = None) -> dict[str, Source]:
    """Return all sources by name, configured from the `[sources.NAME]` tables.

    Raises `Misconfigured` for unknown names and wrong values.
    """
    kinds = {item.name: item for item in classes(extra)}
    unknown = set(settings) - set(kinds)
    if unknown:
        raise Misconfigured(
            f"sources.{min(unknown)}: unknown source", remedy=f"known sources: {', '.join(kinds)}"
        )
    return {name: kind(settings_of(kind, settings.get(name, {}))) for name, kind in kinds.items()}


def settings_of(kind: type[Source], given: Mapping[str, Any]) -> SourceSettings:
    """Return the validated settings of a source. Raises `Misconfigured`, which names the first wrong one."""
    try:
        settings = kind.Settings.model_validate(given)
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        place = ".".join(["sources", kind.name, *map(str, first["loc"])])
        if first["type"] == "extra_forbidden":
            similar = did_you_mean(str(first["loc"][-1]), kind.Settings.model_fields)
            raise Misconfigured(
                f"{place}: unknown setting",
                remedy=f"{similar}see docs/reference/sources.md#{kind.name}",
            ) from None
        raise Misconfigured(
            f"{place}: {first['msg']}", remedy=f"see docs/reference/sources.md#{kind.name}"
        ) from None
    if kind.path and settings.mirror_url:
        # Its requests carry a key of this gateway, which nobody else may see.
        raise Misconfigured(
            f"sources.{kind.name}.mirror_url: only webhooks can be mirrored",
            remedy="remove it; whoever sends to this source can send to the other system too",
        )
    return settings


def secret_settings(kind: type[Source]) -> list[str]:
    """Return the settings of a source that hold secrets: those that may be set over the API.

    All others, such as base URLs and folders, come from the settings file: whoever could change them over the API
    could send a secret to another server, or read files of this one.
    """
    fields = kind.Settings.model_fields.items()
    return [name for name, field in fields if _holds_secret(field.annotation)]


def _holds_secret(annotation: Any) -> bool:
    """Return whether a type is `SecretStr`, or a list, union or model that contains it and nothing that is an address."""
    if annotation is SecretStr:
        return True
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        fields = annotation.model_fields.values()
        return any(_holds_secret(field.annotation) for field in fields)
    return any(_holds_secret(argument) for argument in get_args(annotation))


SECRETS = "source/"
"""Prefix of the vault paths of sources' secrets: `source/NAME/SETTING`."""


def secrets_of(kind: type[Source], kept: Mapping[str, Any]) -> dict[str, Any]:
    """Return the secrets of one source by setting, out of all `kept` ones by vault path.

    Values of other settings, which earlier versions could store, are left out.
    """
    paths = {setting: f"{SECRETS}{kind.name}/{setting}" for setting in secret_settings(kind)}
    return {setting: kept[path] for setting, path in paths.items() if path in kept}
