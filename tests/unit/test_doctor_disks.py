"""`apex doctor` names each volume that is nearly full."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from apex_memory.cli import doctor
from apex_memory.config import Settings


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
