"""Files that must survive a power loss: the content is on the disk before the name, and the name before the return."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from apex_memory.cli.up import _secret_key
from apex_memory.config import Settings
from apex_memory.credentials.key_sources import KEY_FILE
from apex_memory.engines.state import secret


class Disk:
    """What a power loss would leave: the content of each file when it was last synced, under the names synced with its folder."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.kept: dict[str, str] = {}
        self._folder = folder
        self._contents: dict[int, str] = {}
        self._fsync = os.fsync
        monkeypatch.setattr(os, "fsync", self._record)

    def _record(self, handle: int) -> None:
        self._fsync(handle)
        synced = Path(f"/proc/self/fd/{handle}").readlink()
        if synced == self._folder:
            files = [file for file in self._folder.iterdir() if file.is_file()]
            self.kept = {file.name: self._contents.get(file.stat().st_ino, "") for file in files}
        elif synced.parent == self._folder:
            self._contents[synced.stat().st_ino] = synced.read_text()


def test_the_key_of_an_installation_survives_a_power_loss(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = Disk(tmp_path, monkeypatch)
    _secret_key(Settings(data_dir=tmp_path), {})
    assert disk.kept == {KEY_FILE: (tmp_path / KEY_FILE).read_text()}
    assert (tmp_path / KEY_FILE).stat().st_mode & 0o777 == 0o600


def test_the_passwords_of_the_engines_survive_a_power_loss(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = Disk(tmp_path, monkeypatch)
    for name in ("postgres", "valkey"):
        password = secret(tmp_path, name)
        assert password in disk.kept["secrets.json"]
