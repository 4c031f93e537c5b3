"""Where PostgreSQL lives and as whom, when Apex is root in a folder closed to others; and other engines' files."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from apex_memory.engines import unprivileged
from apex_memory.engines.falkordb import FalkorDB
from apex_memory.engines.postgres import PostgreSQL
from apex_memory.engines.temporal import DYNAMIC_CONFIG, dynamic_config_file
from apex_memory.engines.unprivileged import claim_folder, reachable, runnable
from apex_memory.engines.valkey import Valkey
from apex_memory.errors import Misconfigured

NOBODY = 65534

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="concerns root alone")


@pytest.fixture
def outside(engine_data: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A place for root's outside folders that goes with the tests."""
    place = engine_data / tmp_path.name
    monkeypatch.setattr(unprivileged, "OUTSIDE", place)
    return place


@as_root
def test_an_open_folder_is_used_itself(engine_data: Path, tmp_path: Path) -> None:
    folder = engine_data / tmp_path.name / "postgres"
    folder.parent.mkdir()
    assert claim_folder(folder) == folder
    assert not folder.is_symlink()


@as_root
def test_a_closed_folder_points_outside_and_is_found_again(outside: Path, tmp_path: Path) -> None:
    tmp_path.chmod(0o700)
    place = claim_folder(tmp_path / "postgres")
    assert place.is_relative_to(outside)
    assert reachable(place.parent)
    (place / "data").touch()
    assert claim_folder(tmp_path / "postgres") == place
    assert (tmp_path / "postgres/data").exists()


@as_root
def test_data_of_a_deleted_folder_is_put_aside_not_reused(outside: Path, tmp_path: Path) -> None:
    tmp_path.chmod(0o700)
    place = claim_folder(tmp_path / "postgres")
    (place / "data").touch()
    (tmp_path / "postgres").unlink()
    assert claim_folder(tmp_path / "postgres") == place
    assert not (place / "data").exists()
    assert (place.with_name("postgres.old") / "data").exists()


@as_root
def test_a_link_to_nowhere_is_refused(outside: Path, tmp_path: Path) -> None:
    tmp_path.chmod(0o700)
    shutil.rmtree(claim_folder(tmp_path / "postgres"))
    with pytest.raises(Misconfigured, match="which does not exist"):
        claim_folder(tmp_path / "postgres")


@as_root
def test_a_folder_closed_since_is_refused(engine_data: Path, tmp_path: Path) -> None:
    folder = engine_data / tmp_path.name / "postgres"
    folder.parent.mkdir()
    claim_folder(folder)
    folder.parent.chmod(0o700)
    with pytest.raises(Misconfigured, match="can no longer reach"):
        claim_folder(folder)


@as_root
def test_programs_out_of_reach_are_copied_once(outside: Path, tmp_path: Path) -> None:
    tmp_path.chmod(0o700)
    package = tmp_path / "package"
    binaries = package / "pginstall/bin"
    binaries.mkdir(parents=True)
    (binaries / "postgres").write_text("#!/bin/sh\necho postgres 1\n")
    (binaries / "postgres").chmod(0o755)
    package.chmod(0o755)

    copied = runnable(binaries, NOBODY, "1.2")
    assert copied == outside / "postgres-1.2/package/pginstall/bin"
    made = (copied / "postgres").stat().st_ino
    assert runnable(binaries, NOBODY, "1.2") == copied
    assert (copied / "postgres").stat().st_ino == made
    assert [path.name for path in outside.iterdir()] == ["postgres-1.2"]


def test_a_lock_file_with_a_reused_process_id_is_removed(engine_data: Path, tmp_path: Path) -> None:
    folder = engine_data / tmp_path.name
    cluster = folder / "postgres/data"
    cluster.mkdir(parents=True)
    (cluster / "PG_VERSION").write_text("18\n")
    lock = cluster / "postmaster.pid"
    lock.write_text(f"{os.getpid()}\n{cluster}\n")
    PostgreSQL(folder, 1, "pw").prepare()
    assert not lock.exists()


def test_a_lock_file_of_a_dead_process_is_left_to_postgresql(
    engine_data: Path, tmp_path: Path
) -> None:
    folder = engine_data / tmp_path.name
    cluster = folder / "postgres/data"
    cluster.mkdir(parents=True)
    (cluster / "PG_VERSION").write_text("18\n")
    lock = cluster / "postmaster.pid"
    lock.write_text("4194304\n")  # above the largest process id
    PostgreSQL(folder, 1, "pw").prepare()
    assert lock.exists()


def test_data_of_another_major_version_is_refused(engine_data: Path, tmp_path: Path) -> None:
    folder = engine_data / tmp_path.name
    (folder / "postgres/data").mkdir(parents=True)
    (folder / "postgres/data/PG_VERSION").write_text("12\n")
    with pytest.raises(Misconfigured, match="holds data of PostgreSQL 12"):
        PostgreSQL(folder, 1, "pw").prepare()


@pytest.mark.parametrize("make", [FalkorDB, Valkey])
def test_passwords_stand_in_private_files_alone(
    make: type[FalkorDB | Valkey], tmp_path: Path
) -> None:
    engine = make(tmp_path, 7, "hush-hush")
    engine.prepare()
    (file,) = engine.directory.iterdir()
    assert "requirepass hush-hush" in file.read_text()
    assert file.stat().st_mode & 0o777 == 0o600
    assert "hush-hush" not in " ".join(engine.command())
    assert "hush-hush" not in " ".join(engine.environment().values())


def test_dynamic_settings_for_a_server_of_ones_own() -> None:
    shared, single = dynamic_config_file(), dynamic_config_file(single_node=True)
    assert "history.transferProcessorMaxPollRPS:\n  - value: 200\n" in shared
    assert 'history.timerProcessorMaxTimeShift:\n  - value: "10ms"\n' in single
    assert "timerProcessorMaxTimeShift" not in shared
    assert single.count("- value:") == len(DYNAMIC_CONFIG)
