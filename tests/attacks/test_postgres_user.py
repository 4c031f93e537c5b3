"""What other processes reach of the embedded PostgreSQL when root runs Apex: its user id belongs to nobody else."""

from __future__ import annotations

import os
import pwd
import subprocess
from pathlib import Path
from types import SimpleNamespace

import psycopg
import pytest

from apex_memory.engines import unprivileged
from apex_memory.engines.base import free_port
from apex_memory.engines.postgres import PostgreSQL
from apex_memory.engines.unprivileged import UIDS, claim_user, give_folder
from apex_memory.errors import Misconfigured
from tests.conftest import running

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="concerns root alone")

NOBODY = 65534


@pytest.fixture
def folder(engine_data: Path, tmp_path: Path) -> Path:
    """A data folder of its own, which every user can pass through."""
    made = engine_data / tmp_path.name
    made.mkdir(mode=0o711)
    return made


def owners(folder: Path) -> set[int]:
    """Return the user ids of a folder and everything in it."""
    return {path.lstat().st_uid for path in [folder, *folder.rglob("*")]}


def server_pid(folder: Path) -> int:
    lines = (folder / "postgres/data/postmaster.pid").read_text().splitlines()
    return int(lines[0])


def as_nobody(*command: str) -> int:
    """Exit code of a command that runs as `nobody`."""
    done = subprocess.run(
        command,
        user=NOBODY,
        group=NOBODY,
        extra_groups=[],
        cwd="/",
        capture_output=True,
        check=False,
    )
    return done.returncode


async def test_w9_the_server_has_a_user_id_that_no_account_and_no_other_process_has(
    folder: Path,
) -> None:
    async with running(PostgreSQL(folder, free_port(), "pw")) as engine:
        user = engine.user
        assert user is not None and user in UIDS
        with pytest.raises(KeyError):
            pwd.getpwuid(user)
        process = Path(f"/proc/{server_pid(folder)}")
        status = dict(
            line.split(":\t", 1) for line in (process / "status").read_text().splitlines()
        )
        assert status["Uid"].split() == [str(user)] * 4
        assert status["Gid"].split() == [str(user)] * 4
        assert not status["Groups"].strip()
        assert owners(folder / "postgres/data") == {user}

        place = (folder / "postgres").stat()
        assert (place.st_uid, place.st_gid, place.st_mode & 0o777) == (0, user, 0o710)
        assert as_nobody("true") == 0
        assert as_nobody("ls", str(folder / "postgres")) != 0
        assert as_nobody("ls", str(folder / "postgres/data")) != 0
        assert as_nobody("/bin/sh", "-c", f"kill -0 {server_pid(folder)}") != 0

    async with running(PostgreSQL(folder, free_port(), "pw")) as engine:
        assert engine.user == user, "the user id changes from start to start"


async def test_w9_a_cluster_of_nobody_gets_a_user_id_of_its_own_and_keeps_its_data(
    folder: Path,
) -> None:
    async with (
        running(PostgreSQL(folder, free_port(), "pw")) as engine,
        await psycopg.AsyncConnection.connect(engine.url) as connection,
    ):
        await connection.execute("CREATE TABLE kept AS SELECT 7 AS n")
    place, cluster = folder / "postgres", folder / "postgres/data"
    for path in [place, cluster, *cluster.rglob("*")]:
        os.chown(path, NOBODY, NOBODY)
    place.chmod(0o700)
    # What another process of `nobody` may have put there: links to files that are not PostgreSQL's.
    foreign, roots = folder / "foreign", folder / "roots"
    for file in (foreign, roots):
        file.write_text("x")
    os.chown(foreign, NOBODY, NOBODY)
    (cluster / "link").symlink_to(foreign)
    os.chown(cluster / "link", NOBODY, NOBODY, follow_symlinks=False)
    (cluster / "hard").hardlink_to(roots)

    async with running(PostgreSQL(folder, free_port(), "pw")) as engine:
        assert engine.user in UIDS
        async with await psycopg.AsyncConnection.connect(engine.url) as connection:
            rows = await (await connection.execute("SELECT n FROM kept")).fetchall()
        assert rows == [(7,)]
        assert place.stat().st_uid == 0
        assert foreign.stat().st_uid == NOBODY, "followed a link out of the cluster"
        assert roots.stat().st_uid == 0, "gave a file of root away by its hard link"
        (cluster / "hard").unlink()
        assert owners(cluster) == {engine.user}


def small_cluster(place: Path, owner: int) -> Path:
    """A folder with the shape of a cluster."""
    cluster = place / "data"
    (cluster / "base/1").mkdir(parents=True)
    (cluster / "base/1/1259").touch()
    (cluster / "PG_VERSION").write_text("18\n")
    for path in [cluster, *cluster.rglob("*")]:
        os.chown(path, owner, owner)
    return cluster


def test_w9_an_interrupted_change_of_owner_is_completed(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster = small_cluster(folder, NOBODY)
    with monkeypatch.context() as patch:
        patch.setattr(unprivileged, "_give_content", lambda *a, **k: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            give_folder(cluster, UIDS[0])
    assert cluster.stat().st_uid == 0
    user = claim_user(folder)
    assert owners(cluster) == {user} and user in UIDS


def test_w9_a_cluster_that_was_restored_as_root_works(folder: Path) -> None:
    cluster = small_cluster(folder, 0)
    user = claim_user(folder)
    assert owners(cluster) == {user}


def test_w9_a_user_id_that_an_account_has_meanwhile_is_replaced(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster = small_cluster(folder, NOBODY)
    first = claim_user(folder)
    assert claim_user(folder) == first
    known = pwd.getpwuid

    def with_new_account(user: int) -> object:
        return SimpleNamespace(pw_uid=user) if user == first else known(user)

    monkeypatch.setattr(pwd, "getpwuid", with_new_account)
    second = claim_user(folder)
    assert second != first and second in UIDS
    assert owners(cluster) == {second}


def test_w9_a_link_in_the_place_of_the_cluster_is_refused(folder: Path) -> None:
    elsewhere = folder / "elsewhere"
    elsewhere.mkdir()
    place = folder / "postgres"
    place.mkdir()
    (place / "data").symlink_to(elsewhere)
    with pytest.raises(Misconfigured, match="is not a folder"):
        claim_user(place)
    assert elsewhere.stat().st_uid == 0


def test_w9_folders_without_end_are_refused(folder: Path) -> None:
    cluster = small_cluster(folder, NOBODY)
    deep = cluster.joinpath(*["x"] * 20)
    deep.mkdir(parents=True)
    with pytest.raises(Misconfigured, match="levels of folders"):
        claim_user(folder)


def test_w9_without_a_free_user_id_the_remedy_is_an_ordinary_user(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(unprivileged, "_running_users", lambda: set(UIDS))
    with pytest.raises(Misconfigured, match="every user id") as caught:
        claim_user(folder)
    assert "ordinary user" in caught.value.remedy
