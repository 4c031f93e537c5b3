"""Images, the Compose project and the Helm chart: checked as files in the gate, and run by `make test-deploy`."""

from __future__ import annotations

import importlib.util
import shutil
import sys
import sysconfig
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
COMPOSE = DEPLOY / "compose"
DOCKERFILE = DEPLOY / "docker" / "Dockerfile"


def tool(name: str) -> str:
    """Return the path of a program that a Python package brings, beside this interpreter or on the path."""
    beside = Path(sysconfig.get_path("scripts")) / name
    path = str(beside) if beside.exists() else shutil.which(name)
    assert path, f"{name} is missing: run `make quick` once, which installs the tools of the gate"
    return path


@cache
def role() -> ModuleType:
    """Return the entry point of the image as a module."""
    spec = importlib.util.spec_from_file_location("image_role", DEPLOY / "docker" / "role.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules["image_role"] = module
    spec.loader.exec_module(module)
    return module


@cache
def compose() -> dict[str, Any]:
    """Return the Compose file, with its anchors and merges resolved and its variables as they are written."""
    project: dict[str, Any] = yaml.safe_load((COMPOSE / "compose.yaml").read_text(encoding="utf-8"))
    return project
