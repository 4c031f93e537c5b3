"""The rules of deploy/prometheus: read, checked against the product's metrics, and scaled in time for a short run."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

DEPLOY = Path(__file__).parents[2] / "deploy" / "prometheus"
RUNBOOKS = Path(__file__).parents[2] / "docs" / "runbooks"
LEAST_SECONDS = 6  # a window, or a wait, has to hold several scrapes, two seconds apart
LEAST_THRESHOLD = 20  # so that one slow moment of a loaded machine is no fault

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}
_WINDOW = re.compile(r"\[(\d+)([smhd])\]")
_FOR = re.compile(r"^(\s+for: )(\d+)([smhd])$", re.MULTILINE)
_MINUTES = re.compile(r"\((\d+) \* 60\)")
_QUOTED = re.compile(r'"[^"]*"')
_METRIC = re.compile(r"\b(?:apex_\w+|up)\b")


def rule_files() -> list[Path]:
    return sorted((DEPLOY / "rules").glob("*.yml"))


def rules() -> Iterator[dict[str, Any]]:
    """Yield every rule, recording and alerting."""
    for file in rule_files():
        for group in yaml.safe_load(file.read_text(encoding="utf-8"))["groups"]:
            yield from group["rules"]


def alerts() -> list[str]:
    """Return the names of all alerts, in the order of the files."""
    return [rule["alert"] for rule in rules() if "alert" in rule]


def metrics_of(expression: str) -> set[str]:
    """Return the names of the metrics in an expression; those of recording rules are `apex:…` and left out."""
    plain = _QUOTED.sub("", expression)
    return set(_METRIC.findall(re.sub(r"apex:\w+:\w+", "", plain)))


def scaled(text: str, factor: float) -> str:
    """Return rules whose windows, waits and thresholds in minutes are `factor` times shorter; names keep their windows.

    No window or wait gets shorter than `LEAST_SECONDS`, no threshold than `LEAST_THRESHOLD`.
    """

    def window(match: re.Match[str]) -> str:
        seconds = int(match[1]) * _UNITS[match[2]] / factor
        return f"[{max(round(seconds), LEAST_SECONDS)}s]"

    def wait(match: re.Match[str]) -> str:
        seconds = int(match[2]) * _UNITS[match[3]] / factor
        return f"{match[1]}{max(round(seconds), LEAST_SECONDS) if seconds else 0}s"

    def minutes(match: re.Match[str]) -> str:
        return f"({max(round(int(match[1]) * 60 / factor), LEAST_THRESHOLD)})"

    return _MINUTES.sub(minutes, _FOR.sub(wait, _WINDOW.sub(window, text)))
