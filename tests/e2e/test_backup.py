"""Backup and restore: everything that was acknowledged comes back, in every store, and nothing is half restored."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest
import pytest_asyncio

from apex_memory.app import App, open_app
from apex_memory.backup import back_up, read_backup, restore, verify_backup
from apex_memory.backup.folder import MANIFEST, Backup
from apex_memory.config import Settings
from apex_memory.engines.base import free_port
from apex_memory.engines.edge import Edge
from apex_memory.errors import Conflict, Misconfigured, NotFound, NoWrites, Rejected
from apex_memory.model import Tally, now
from apex_memory.sealing import new_key
from apex_memory.stores.schema import (
    apply,
    migrate,
    migrations,
    prepare_migrations,
    read_state,
    tables_after,
)
from tests.conftest import PASSWORD, running
from tests.e2e.conftest import (
    HASHING_DIMENSION,
    MakeSettings,
    delete_event,
    land,
    live,
    text_event,
)
from tests.faults.volumes import small_volume
from tests.waiting import until

KEY = new_key()
RELEASE_0_2_0 = Path(__file__).parent / "release_0_2_0"
KEY_0_2_0 = base64.b64encode(hashlib.sha256(b"fixture of 0.2.0").digest()).decode()
# Loads a backup, reports the first block of each table on its standard output, and waits there for ever.
HELD_RESTORE = """
import asyncio, sys, time
from pathlib import Path
from apex_memory.backup import restore

def hold(table, number, of, count):
    print(table, flush=True)
    if table == sys.argv[3]:
        time.sleep(600)

asyncio.run(restore(sys.argv[1], Path(sys.argv[2]), hold))
"""


@pytest_asyncio.fixture
async def other_url(postgres_url: str) -> AsyncIterator[str]:
    """An empty database, without a table."""
    name = f"restored_{uuid4().hex[:8]}"
    async with await psycopg.AsyncConnection.connect(postgres_url, autocommit=True) as admin:
        await admin.execute(f"CREATE DATABASE {name}")
        yield postgres_url.removesuffix("/postgres") + f"/{name}"
        await admin.execute(f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture
def sealed_settings(make_settings: MakeSettings) -> Settings:
    return make_settings(secret_key=KEY)


@asynccontextmanager
async def opened_elsewhere(
    make_settings: MakeSettings, engine_data: Path, url: str, key: str = ""
) -> AsyncIterator[App]:
    """The restored installation: its stores beside PostgreSQL are new and empty."""
    folder = Path(tempfile.mkdtemp(dir=engine_data))
    async with running(Edge(folder, free_port(), PASSWORD, HASHING_DIMENSION)) as vectors:
        settings = make_settings(documents=url, vectors=vectors.url, secret_key=key or KEY)
        async with open_app(settings) as app:
            yield app


async def fill(app: App, count: int = 30) -> None:
    """Documents with versions, a deletion, a secret, readings of two days, and what is unfinished or dead."""
    texts = [
        text_event(app, f"d{n}", f"SHP-{100_000 + n} waits at door {n}.", version=1)
        for n in range(count)
    ]
    await land(app, *texts)
    await app.direct.drain("documents")
    await land(
        app,
        text_event(app, "d0", "SHP-100000 has left.", version=2),
        delete_event(texts[1], version=5),
    )
    await app.direct.drain("documents")
    await app.vault.put("sources.plaid.secret", "open sesame", actor="test")
    day = now() - timedelta(days=1)
    async with app.db.transaction() as connection:
        await app.fetcher.readings._make_partitions(connection, {day.date(), now().date()})
        await connection.execute(
            """INSERT INTO readings (source, series, kind, at, value)
               VALUES ('samsara', 'v1', 'speed', %s, '{"mph": 61}'), ('samsara', 'v1', 'speed', %s, '{"mph": 62}')""",
            (day, now()),
        )


async def content(url: str) -> dict[str, list[str]]:
    """Every row of every table as text, sorted."""
    async with await psycopg.AsyncConnection.connect(url) as connection:
        rows: dict[str, list[str]] = {}
        for table in sorted(tables_after(name for name, _ in migrations())):
            cursor = await connection.execute(f"SELECT t::text FROM {table} AS t".encode())
            rows[table] = sorted(row[0] for row in await cursor.fetchall())
        return rows


async def check_stores(app: App) -> int:
    """Each live document is whole in graph and vectors; return their number."""
    rows = await app.db.fetch(
        """SELECT d.doc_key, s.* FROM documents d JOIN stages s ON s.stage_id = d.stage_id
           JOIN manifests m ON m.id = d.manifest_id WHERE s.state = 'committed'"""
    )
    [all_rows] = await app.db.fetch("SELECT count(*) FROM documents")
    assert len(rows) == all_rows["count"], "a document without its stage or its manifest"
    ids = [row["stage_id"] for row in rows]
    graph, vectors = await app.graph.tally(ids), await app.vectors.tally(ids)
    for row in rows:
        id: UUID = row["stage_id"]
        assert graph.get(id, Tally()) == Tally(row["edges"], row["edges_sum"]), row["doc_key"]
        assert vectors.get(id, Tally()) == Tally(row["chunks"], row["chunks_sum"]), row["doc_key"]
    return len(rows)


async def test_a_restored_database_has_every_row_of_the_backup(
    sealed_settings: Settings, other_url: str, tmp_path: Path
) -> None:
    async with open_app(sealed_settings) as app:
        await app.recovery.check_restarted_stores()
        await fill(app)
        await land(app, text_event(app, "late", "SHP-100777 is not worked on yet.", version=1))
        written = await back_up(sealed_settings.documents, tmp_path / "backup")
        before = await content(sealed_settings.documents)
    result = await restore(other_url, tmp_path / "backup")
    after = await content(other_url)
    for table in ("audit", "leases", "memory_versions", "store_state"):  # written or emptied by it
        before.pop(table), after.pop(table)
    assert after == before
    assert result.rows["inbox"] == 33 and result.open_events == 1 and result.migrated == []
    assert written == read_backup(tmp_path / "backup") == verify_backup(tmp_path / "backup")
    assert len(written.partitions) == 2 and len(written.secret_keys) == 1


async def test_new_rows_get_numbers_that_no_restored_row_has(
    sealed_settings: Settings, other_url: str, tmp_path: Path
) -> None:
    async with open_app(sealed_settings) as app:
        await fill(app, 3)
        await back_up(sealed_settings.documents, tmp_path / "backup")
        [highest] = await app.db.fetch("SELECT max(seq) AS seq FROM inbox")
    await restore(other_url, tmp_path / "backup")
    async with await psycopg.AsyncConnection.connect(other_url) as connection:
        cursor = await connection.execute(
            "SELECT nextval(pg_get_serial_sequence('inbox', 'seq')), nextval(pg_get_serial_sequence('audit', 'id'))"
        )
        row = await cursor.fetchone()
    assert row and row[0] > highest["seq"]


async def test_a_backup_in_mid_load_restores_elsewhere_and_every_store_agrees(
    sealed_settings: Settings,
    make_settings: MakeSettings,
    engine_data: Path,
    other_url: str,
    tmp_path: Path,
) -> None:
    async with open_app(sealed_settings) as app:
        await app.recovery.check_restarted_stores()
        await fill(app)
        acknowledged: list[str] = []
        writing = asyncio.create_task(_write_for_ever(app, acknowledged))
        await until(lambda: len(acknowledged) > 40, seconds=60)
        before = list(acknowledged)
        await back_up(sealed_settings.documents, tmp_path / "backup")
        count = len(acknowledged)
        await until(lambda: len(acknowledged) > count, seconds=60)  # it goes on beside and after
        writing.cancel()
        with suppress(asyncio.CancelledError):
            await writing
    await restore(other_url, tmp_path / "backup")
    async with opened_elsewhere(make_settings, engine_data, other_url) as app:
        embedded = _count_embeddings(app)
        assert (await app.search.search("SHP-100002")).degraded == ["graph", "vectors"]
        await app.recovery.check_restarted_stores()
        assert embedded() == 0, "restored from manifests"
        assert (await app.search.search("SHP-100002")).degraded == []
        await app.db.execute("UPDATE inbox SET next_at = now() WHERE open")
        await app.db.execute("UPDATE stages SET lease_until = now() WHERE state = 'staging'")
        await app.upkeep.sweep()
        await app.direct.drain("documents")
        states = await app.db.fetch(
            "SELECT event_id, state FROM inbox WHERE event_id = ANY(%s)", (before,)
        )
        assert {row["event_id"] for row in states} == set(before), "acknowledged before, and lost"
        assert {row["state"] for row in states} <= {"done", "superseded"}
        assert await check_stores(app) >= 30
        moved = await live(app, "d0")
        assert moved and moved["text"] == "SHP-100000 has left."
        assert await live(app, "d1") is None, "deleted stays deleted"
        assert await app.vault.get("sources.plaid.secret") == "open sesame"
        for store in ("graph", "vectors"):
            result = await app.recovery.reconcile(store)
            assert (result.repaired, result.left) == (0, 0)


async def _write_for_ever(app: App, acknowledged: list[str]) -> None:
    """Land and publish small batches; note each event once it is acknowledged."""
    n = 0
    while True:
        events = [
            text_event(app, f"w{k % 50}", f"SHP-{200_000 + k} moves.", version=k + 1)
            for k in range(n, n + 7)
        ]
        await land(app, *events)
        acknowledged += [event.event_id for event in events]
        n += 7
        if n % 3:  # some stay unfinished for a while
            await app.direct.drain("documents")


def _count_embeddings(app: App) -> Callable[[], int]:
    """Count from now on what the pipeline prepares."""
    calls = 0
    prepare = app.pipeline.prepare

    async def counted(*arguments: Any, **more: Any) -> Any:
        nonlocal calls
        calls += 1
        return await prepare(*arguments, **more)

    app.pipeline.prepare = counted  # type: ignore[method-assign]
    return lambda: calls


@pytest_asyncio.fixture
async def small_backup(app: App, tmp_path: Path) -> Path:
    """A backup of a few documents."""
    await land(app, *(text_event(app, f"d{n}", f"SHP-{100_000 + n}", version=1) for n in range(5)))
    await app.direct.drain("documents")
    await back_up(app.settings.documents, tmp_path / "backup")
    return tmp_path / "backup"


def _cut(folder: Path) -> None:
    file = folder / "manifests.copy.gz"
    file.write_bytes(file.read_bytes()[:-20])


def _flip(folder: Path) -> None:
    file = folder / "manifests.copy.gz"
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


def _remove(folder: Path) -> None:
    (folder / "payloads.copy.gz").unlink()


def _cut_manifest(folder: Path) -> None:
    file = folder / MANIFEST
    file.write_text(file.read_text()[:-200])


def _forge_manifest(folder: Path) -> None:
    manifest = json.loads((folder / MANIFEST).read_text())
    manifest["tables"][0]["rows"] += 1
    (folder / MANIFEST).write_text(json.dumps(manifest))


def _empty_manifest(folder: Path) -> None:
    (folder / MANIFEST).write_bytes(b"\xff\x00")


@pytest.mark.parametrize(
    "damage, message",
    [
        (_cut, "manifests.copy.gz has"),
        (_flip, "checksum"),
        (_remove, "payloads.copy.gz is missing"),
        (_cut_manifest, "manifest.json is damaged"),
        (_forge_manifest, "checksum"),
        (_empty_manifest, "manifest.json is damaged"),
    ],
)
async def test_a_damaged_backup_is_refused_and_changes_nothing(
    small_backup: Path, other_url: str, damage: Callable[[Path], None], message: str
) -> None:
    damage(small_backup)
    with pytest.raises(Rejected, match=message) as refused:
        await restore(other_url, small_backup)
    assert "another backup" in refused.value.remedy
    assert await _tables(other_url) == []


async def test_a_folder_without_a_manifest_is_no_backup(other_url: str, tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "absent", Path(os.devnull)):
        with pytest.raises(NotFound, match="is not a backup"):
            await restore(other_url, path)


async def test_a_damaged_file_behind_a_right_checksum_leaves_nothing_behind(
    small_backup: Path, other_url: str
) -> None:
    """The negative of the checksums: even where they hold, PostgreSQL refuses, and all of it is undone."""
    backup = read_backup(small_backup)
    tables = [
        table.model_copy(update={"rows": table.rows + 1}) if table.name == "windows" else table
        for table in backup.tables
    ]
    _write_manifest(small_backup, backup.model_copy(update={"tables": tables}))
    with pytest.raises(Rejected, match="0 rows were loaded, and 1 were written"):
        await restore(other_url, small_backup)
    assert await _tables(other_url) == []


def _write_manifest(folder: Path, backup: Backup) -> None:
    (folder / MANIFEST).write_text(backup.sealed().model_dump_json())


async def _tables(url: str) -> list[str]:
    async with await psycopg.AsyncConnection.connect(url) as connection:
        cursor = await connection.execute(
            "SELECT tablename FROM pg_tables WHERE schemaname = 'public'"
        )
        return [row[0] for row in await cursor.fetchall()]


async def test_an_installation_that_is_not_empty_is_refused(
    small_backup: Path, app: App, make_settings: MakeSettings, other_url: str
) -> None:
    await restore(other_url, small_backup)
    before = await content(other_url)
    with pytest.raises(Conflict, match="this installation is not empty") as refused:
        await restore(other_url, small_backup)
    assert "new data folder" in refused.value.remedy
    assert await content(other_url) == before


async def test_an_installation_that_runs_is_refused(small_backup: Path, app: App) -> None:
    with pytest.raises(Conflict, match="processes of Apex use this database"):
        await restore(app.settings.documents, small_backup)


async def test_an_installation_that_was_started_and_not_used_is_empty_and_keeps_its_keys(
    small_backup: Path, make_settings: MakeSettings, other_url: str
) -> None:
    async with open_app(make_settings(documents=other_url)) as fresh:
        await fresh.recovery.check_restarted_stores()
        await fresh.db.execute(
            "INSERT INTO api_keys (id, name, digest, scopes) VALUES ('k', 'apex up', 'digest', '{admin}')"
        )
    await restore(other_url, small_backup)
    async with await psycopg.AsyncConnection.connect(other_url) as connection:
        cursor = await connection.execute("SELECT id FROM api_keys")
        assert await cursor.fetchall() == [("k",)]


async def test_a_restore_that_is_killed_leaves_nothing_and_can_be_repeated(
    small_backup: Path, other_url: str
) -> None:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", HELD_RESTORE, other_url, str(small_backup), "manifests"),
        stdout=asyncio.subprocess.PIPE,
    )
    assert process.stdout
    async with asyncio.timeout(60):
        while await process.stdout.readline() != b"manifests\n":
            assert process.returncode is None
    process.send_signal(signal.SIGKILL)
    await process.wait()
    assert await _tables(other_url) == [], "all of it or nothing"
    await until(lambda: _restored(other_url, small_backup), seconds=30)
    assert len((await content(other_url))["documents"]) == 5


async def _restored(url: str, folder: Path) -> bool:
    """Restore, unless PostgreSQL has not noticed yet that the killed process is gone."""
    try:
        await restore(url, folder)
    except Conflict:
        return False
    return True


async def test_a_backup_that_was_killed_is_no_backup_and_can_be_repeated(
    app: App, tmp_path: Path
) -> None:
    draft = tmp_path / "backup.partial"
    draft.mkdir()
    (draft / "inbox.copy.gz").write_bytes(b"of a killed process")
    await back_up(app.settings.documents, tmp_path / "backup")
    assert sorted(item.name for item in tmp_path.iterdir() if "backup" in item.name) == ["backup"]
    verify_backup(tmp_path / "backup")
    with pytest.raises(Conflict, match="exists already"):
        await back_up(app.settings.documents, tmp_path / "backup")
    assert {file.stat().st_mode & 0o077 for file in (tmp_path / "backup").iterdir()} == {0}


async def test_a_full_disk_ends_a_backup_with_a_remedy_and_leaves_nothing(
    app: App, tmp_path: Path
) -> None:
    await land(app, text_event(app, "d", secrets.token_hex(1_000_000), version=1))
    with small_volume(tmp_path / "small", 1) as folder:
        with pytest.raises(NoWrites, match="No space left") as refused:
            await back_up(app.settings.documents, folder / "backup")
        assert "free space" in refused.value.remedy
        assert list(folder.iterdir()) == []


async def test_a_backup_of_a_newer_schema_is_refused(small_backup: Path, other_url: str) -> None:
    backup = read_backup(small_backup)
    newer = backup.model_copy(
        update={"version": "9.0.0", "migrations": [*backup.migrations, "9999_newer.sql"]}
    )
    _write_manifest(small_backup, newer)
    with pytest.raises(Misconfigured, match="9999_newer") as refused:
        await restore(other_url, small_backup)
    assert "9.0.0" in refused.value.remedy
    _write_manifest(small_backup, backup)
    manifest = json.loads((small_backup / MANIFEST).read_text())
    (small_backup / MANIFEST).write_text(json.dumps({**manifest, "format": 2}))
    with pytest.raises(Rejected, match="format"):
        await restore(other_url, small_backup)


async def test_a_database_with_unknown_tables_is_not_backed_up_in_part(
    app: App, tmp_path: Path
) -> None:
    await app.db.execute(
        "INSERT INTO migrations (name, requires) VALUES ('9999_newer.sql', '0006')"
    )
    with pytest.raises(Misconfigured, match="whose tables this one does not know"):
        await back_up(app.settings.documents, tmp_path / "backup")
    await app.db.execute("DROP TABLE migrations")
    with pytest.raises(Misconfigured, match="nothing to back up"):
        await back_up(app.settings.documents, tmp_path / "backup")


async def test_a_database_of_release_0_2_0_starts_under_this_version(
    make_settings: MakeSettings, engine_data: Path, other_url: str
) -> None:
    """`release_0_2_0` was written from a database that 0.2.0 made and filled: its schema is two migrations."""
    result = await restore(other_url, RELEASE_0_2_0)
    assert result.backup.migrations == ["0001_memory.sql", "0002_sources.sql"]
    assert list(result.migrated) == [name for name, _ in migrations()][2:]
    assert result.open_events == 1
    async with opened_elsewhere(make_settings, engine_data, other_url, KEY_0_2_0) as app:
        await app.recovery.check_restarted_stores()
        assert await check_stores(app) == 12
        await app.direct.drain("documents")
        newest = await live(app, "late")
        assert newest and "SHP-100777" in newest["text"], "what 0.2.0 had not worked on goes on"
        moved = await live(app, "d0")
        assert moved and moved["text"] == "Shipment SHP-100000 has left Columbus, OH."
        assert await live(app, "d1") is None, "deleted stays deleted"
        answer = await app.search.search("where is SHP-100005?")
        assert answer.degraded == [] and "door 5" in answer.hits[0].snippet
        assert await app.vault.get("sources.plaid.secret") == "open sesame"
        rows = await app.db.fetch(
            "SELECT (SELECT count(*) FROM change_hints), (SELECT count(*) FROM readings), (SELECT position FROM cursors)"
        )
        assert list(rows[0].values()) and rows[0]["position"] == {"cursor": "abc"}
        [hints] = await app.db.fetch("SELECT source, key FROM change_hints")
        assert hints == {"source": "turvo", "key": "SHP-1"}, "the table had another name"


async def test_a_database_of_release_0_2_0_can_be_backed_up_and_checked_before_it_is_upgraded(
    other_url: str, tmp_path: Path
) -> None:
    """As the release left it: its table of migrations has no column for what they require."""
    former = migrations()[:2]
    async with await psycopg.AsyncConnection.connect(other_url, autocommit=True) as connection:
        await prepare_migrations(connection)
        for name, text in former:
            await apply(connection, name, text)
        await connection.execute("ALTER TABLE migrations DROP COLUMN requires")
        await connection.execute("INSERT INTO nudges (source, key) VALUES ('turvo', 'SHP-1')")
    state = await read_state(other_url)
    assert state.applied == [name for name, _ in former]
    assert len(state.missing) == len(migrations()) - 2
    written = await back_up(other_url, tmp_path / "backup")
    assert written.migrations == state.applied
    assert written.rows == 2, "the hint, and the installation"
    assert await migrate(other_url) == state.missing


async def test_a_backup_holds_no_table_while_it_copies_another(app: App, tmp_path: Path) -> None:
    """What needs a table for itself, such as the retention of readings, waits for that table's copy alone."""
    await app.db.execute(
        "INSERT INTO cursors (source, position) SELECT n::text, '{}' FROM generate_series(1, 10) n"
    )
    held: list[bool] = []

    def look(table: str, number: int, of: int, count: int) -> None:
        if table == "windows":  # the last one
            locks = subprocess.run(
                [sys.executable, "-c", LOCKS, app.settings.documents],
                capture_output=True,
                text=True,
                check=True,
            )
            held.append("readings" in locks.stdout.split())

    await back_up(app.settings.documents, tmp_path / "backup", look)
    assert held == [False]


LOCKS = """
import psycopg, sys
with psycopg.connect(sys.argv[1]) as connection:
    rows = connection.execute(
        "SELECT relation::regclass FROM pg_locks JOIN pg_stat_activity USING (pid)"
        " WHERE application_name = 'apex backup' AND locktype = 'relation'"
    )
    print(*(row[0] for row in rows))
"""


async def test_processes_start_while_a_backup_is_under_way(app: App, tmp_path: Path) -> None:
    """A start that has nothing to migrate does not wait for the backup, which keeps migrations away."""
    started: list[list[str]] = []

    def look(table: str, number: int, of: int, count: int) -> None:
        if number == of:
            code = f"import asyncio; from apex_memory.stores.schema import migrate; print(asyncio.run(migrate({app.settings.documents!r})))"
            process = subprocess.run(
                [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
            )
            started.append(json.loads(process.stdout))

    await back_up(app.settings.documents, tmp_path / "backup", look)
    assert started == [[]]
    assert await migrate(app.settings.documents) == []
    shutil.rmtree(tmp_path / "backup")
