"""PostgreSQL behind PgBouncer in transaction mode: `documents` is the pooler, `documents_direct` PostgreSQL itself."""

from __future__ import annotations

import asyncio
import os
import shutil
from asyncio.subprocess import DEVNULL
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from urllib.parse import urlsplit

import psycopg
import pytest

from apex_memory.app import App, open_app
from apex_memory.engines.base import free_port
from apex_memory.inbox.notices import listen
from apex_memory.stores.postgres import Postgres
from tests.e2e.conftest import (  # noqa: F401 -- fixtures
    MakeSettings,
    hashing_vectors_url,
    land,
    live,
    make_settings,
    state,
    text_event,
)
from tests.waiting import until

pytestmark = pytest.mark.server("pgbouncer", seconds=120)

SESSIONS = 3  # fewer than the connections of one process, so that transactions share them
NOBODY = "nobody"  # PgBouncer refuses to run as root


@asynccontextmanager
async def pgbouncer(folder: Path, url: str) -> AsyncIterator[str]:
    """Run PgBouncer before the server of a URL, and yield the URL through it."""
    target, port = urlsplit(url), free_port()
    config = folder / "pgbouncer.ini"
    config.write_text(
        f"""[databases]
* = host={target.hostname} port={target.port} user={target.username} password={target.password}
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {port}
unix_socket_dir =
auth_type = any
pool_mode = transaction
default_pool_size = {SESSIONS}
server_lifetime = 60
"""
    )
    config.chmod(0o644)
    program = shutil.which("pgbouncer")
    assert program is not None
    command = [program, *(["-u", NOBODY] if os.geteuid() == 0 else []), str(config)]
    process = await asyncio.create_subprocess_exec(*command, stdout=DEVNULL, stderr=DEVNULL)
    pooled = f"postgresql://{target.username}@127.0.0.1:{port}{target.path}"

    async def responds() -> bool:
        try:
            await (await psycopg.AsyncConnection.connect(pooled, connect_timeout=1)).close()
        except psycopg.OperationalError:
            assert process.returncode is None, f"it ended with {process.returncode}"
            return False
        return True

    try:
        await until(responds, "PgBouncer responds")
        yield pooled
    finally:
        process.kill()
        await process.wait()


@pytest.fixture
async def pooled_url(database_url: str, engine_data: Path) -> AsyncIterator[str]:
    folder = engine_data / urlsplit(database_url).path.strip("/")
    folder.mkdir(mode=0o755)
    async with pgbouncer(folder, database_url) as url:
        yield url


@pytest.fixture
async def app(
    make_settings: MakeSettings,  # noqa: F811
    database_url: str,
    pooled_url: str,
) -> AsyncIterator[App]:
    async with open_app(make_settings(documents=pooled_url, documents_direct=database_url)) as app:
        await app.recovery.check_restarted_stores()
        yield app


async def test_events_of_many_tasks_become_documents(app: App) -> None:
    """Each statement runs more often than psycopg needs to prepare it, on sessions that others had before."""
    events = [text_event(app, f"d{n}", f"Shipment SHP-{n} left.", version=1) for n in range(40)]
    landed = await asyncio.gather(*(land(app, event) for event in events))
    await app.direct.drain("documents")
    assert {await state(app, result) for [result] in landed} == {"done"}
    documents = await asyncio.gather(*(live(app, f"d{n}") for n in range(40)))
    assert all(documents)
    await app.upkeep.sweep()
    await app.upkeep.collect()


async def test_a_snapshot_stays_as_it_was(app: App) -> None:
    async with app.db.snapshot() as connection:
        count = "SELECT count(*) AS n FROM inbox"
        before = await (await connection.execute(count)).fetchall()
        await land(app, text_event(app, "later", "Door 4."))
        assert await (await connection.execute(count)).fetchall() == before
        with pytest.raises(psycopg.errors.ReadOnlySqlTransaction):
            await connection.execute("DELETE FROM inbox")


async def test_what_needs_a_session_goes_to_postgresql_itself(app: App, database_url: str) -> None:
    async with aclosing(listen(app.settings.session_documents)) as notices:
        first = asyncio.ensure_future(anext(notices))

        async def heard() -> bool:
            await app.inbox.notify(["documents"])
            await asyncio.sleep(0.05)
            return first.done()

        await until(heard, "a notice is heard")
        assert await first == "documents"
    locks = "SELECT count(*) AS n FROM pg_locks WHERE locktype = 'advisory'"
    assert await app.db.fetch(locks) == [{"n": 0}]


async def test_without_the_setting_a_pooler_is_refused(pooled_url: str) -> None:
    """Settings of a session would be lost, and with them the snapshots: PgBouncer does not accept them."""
    db = Postgres(pooled_url)
    with pytest.raises(Exception, match="PostgreSQL does not respond"):
        await db.open()
    await db.close()
