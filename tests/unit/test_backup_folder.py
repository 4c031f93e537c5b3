"""The folder of a backup: one writer at a time, and never the half of another one."""

from __future__ import annotations

import fcntl
from pathlib import Path
from typing import BinaryIO

import pytest

from apex_memory.backup import folder
from apex_memory.errors import Conflict


def test_a_second_writer_of_a_path_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "nightly"
    refused = pytest.raises(Conflict, match=r"another process writes .*nightly\.partial")
    with folder.new_folder(path), refused:
        folder.new_folder(path).__enter__()
    assert [path.name for path in tmp_path.iterdir()] == ["nightly"]


def test_a_lock_whose_file_its_holder_removed_excludes_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first writer fails between the moments when the second one opens the lock file and when it locks it."""
    path = tmp_path / "nightly"
    first = folder.new_folder(path)
    first.__enter__()
    lock = fcntl.flock

    def lock_after_the_first_has_failed(handle: int | BinaryIO, kind: int) -> None:
        monkeypatch.setattr(fcntl, "flock", lock)
        first.__exit__(RuntimeError, RuntimeError("no space"), None)
        lock(handle, kind)

    monkeypatch.setattr(fcntl, "flock", lock_after_the_first_has_failed)
    with folder.new_folder(path) as draft:
        (draft / "table").write_text("whole")
        with pytest.raises(Conflict):
            folder.new_folder(path).__enter__()
    assert [(file.name, file.read_text()) for file in path.iterdir()] == [("table", "whole")]
    assert [file.name for file in tmp_path.iterdir()] == ["nightly"]
