"""`apex secrets reseal` calls the route and names what it could not read."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from typer.testing import CliRunner

from apex_memory.cli import secrets


class Api:
    def __init__(self, calls: list[tuple[str, str]]) -> None:
        self._calls = calls

    def call(self, method: str, path: str) -> dict[str, Any]:
        self._calls.append((method, path))
        return {"resealed": 3, "data_keys": 2, "unreadable": ["source/plaid/secret"], "objects": 4}


def test_reseal_prints_what_was_done(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[str, str]] = []

    @contextmanager
    def gateway() -> Iterator[Api]:
        yield Api(calls)

    monkeypatch.setattr(secrets, "gateway", gateway)
    shown = CliRunner().invoke(secrets.app, ["reseal"])
    assert shown.exit_code == 0
    assert (
        "3 secrets" in shown.output
        and "2 data keys" in shown.output
        and "source/plaid/secret" in shown.output
        and "Keep the older keys: 4 large payloads" in shown.output
    )
    raw = CliRunner().invoke(secrets.app, ["reseal", "--json"])
    assert json.loads(raw.output) == {
        "resealed": 3,
        "data_keys": 2,
        "unreadable": ["source/plaid/secret"],
        "objects": 4,
    }
    assert calls == [("POST", "/v1/secrets/reseal")] * 2
