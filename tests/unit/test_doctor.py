"""What `apex doctor` finds without a stack: volumes that are nearly full, a worker that hangs, the fallback."""

from __future__ import annotations

import os
import shutil
import socket
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from apex_memory.cli import doctor
from apex_memory.config import Settings
from apex_memory.engines.cards import ProcessCard, registered
from apex_memory.model import now


def test_a_full_volume_of_an_engine_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The folder of the vectors lies on a volume of its own here, which is full; the others have room."""
    for name in ("postgres", "vectors"):
        (tmp_path / name).mkdir()
    real = Path.stat

    def stat(path: Path, **more: Any) -> Any:
        result = real(path, **more)
        if path.name != "vectors":
            return result
        return os.stat_result((*result[:2], result.st_dev + 1, *result[3:10]))

    def usage(path: Path) -> Any:
        return SimpleNamespace(total=10**12, free=10**6 if path.name == "vectors" else 10**11)

    monkeypatch.setattr(Path, "stat", stat)
    monkeypatch.setattr(shutil, "disk_usage", usage)
    findings = {item.what: item for item in doctor._disk(Settings(data_dir=tmp_path))}
    assert findings["disk"].state == "good"
    assert findings["disk of vectors"].state == "bad"
    assert str(tmp_path / "vectors") in findings["disk of vectors"].detail
    assert "free space" in findings["disk of vectors"].remedy


def test_a_worker_that_hangs_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its process is there, and accepts connections, but says nothing: `kill -STOP` does that."""
    monkeypatch.setattr(doctor, "METRICS_SECONDS", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/metrics"
        with registered(tmp_path, ProcessCard(process="bulk", pid=os.getpid(), metrics=url)):
            [finding] = doctor._workers(Settings(data_dir=tmp_path))
    assert (finding.what, finding.state) == ("worker bulk", "bad")
    assert "hangs" in finding.detail and f"kill -9 {os.getpid()}" in finding.remedy


def test_secrets_that_no_key_opens_are_named() -> None:
    """As after a restore without `secret.key`: webhooks get 401, which says nothing of the cause."""
    rows = [
        {"name": "sources.plaid.secret", "readable": True},
        {"name": "sources.frontapp.signing_keys", "readable": False},
    ]
    assert not list(doctor._secrets(rows[:1]))
    [finding] = doctor._secrets(rows)
    assert (finding.what, finding.state) == ("secrets", "bad")
    assert "sources.frontapp.signing_keys" in finding.detail and "plaid" not in finding.detail


def test_the_fallback_is_named() -> None:
    temporal = {
        "reachable": False,
        "address": "127.0.0.1:7233",
        "failing": [],
        "fallback_since": (now() - timedelta(minutes=3)).isoformat(),
    }
    report: dict[str, Any] = {"stores": [], "temporal": temporal}
    findings: dict[str, Any] = {}
    with suppress(KeyError):  # the rest of the report
        for item in doctor._stores_and_events(report):
            findings[item.what] = item
    assert "in force for 3 min" in findings["fallback"].detail
