"""Recovery of PostgreSQL to a time, by the commands of docs/howto/backup.md: the other stores follow it, and nothing later is answered."""

from __future__ import annotations

import os
import re
import subprocess
import tempfile
import uuid
from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

from apex_memory.app import App, open_app
from apex_memory.config import Settings
from apex_memory.engines.base import HOST, free_port
from apex_memory.engines.edge import Edge
from tests.conftest import PASSWORD, running
from tests.e2e.conftest import HASHING_DIMENSION, MakeSettings, delete_event, land, live, text_event
from tests.e2e.test_backup import check_stores
from tests.postgres_servers import Server, running_server, shared_folder, statement
from tests.waiting import until

PAGE = Path(__file__).parents[2] / "docs" / "howto" / "backup.md"
TIME = "2026-03-01 09:59:30+00"  # the example on the page
BASE = "base-2026-03-01"  # on the page


@dataclass(frozen=True, slots=True)
class Page:
    """The blocks of the section, with the folders of this test for those on the page."""

    settings: Mapping[str, str]
    base_backup: str
    restore: str
    after: str


def page(archive: Path, backup: Path) -> Page:
    text = PAGE.read_text(encoding="utf-8")
    section = text.partition("## Point-in-time recovery")[2].partition("\n## ")[0]
    section = section.replace("/archive", str(archive)).replace("/backup", str(backup))
    ini, base_backup, restore, after = re.findall(r"```(?:ini|sh)\n(.*?)```", section, re.DOTALL)
    lines = [line.partition("=") for line in ini.splitlines() if "=" in line]
    settings = {name.strip(): value.strip().strip("'") for name, _, value in lines}
    return Page(settings, base_backup, restore, after)


def run(server: Server, script: str, **variables: str) -> str:
    """Run a script as the user of a server, with PostgreSQL's programs on its path."""
    where = {"PGHOST": HOST, "PGPORT": str(server.port), "PGUSER": "apex", "PGPASSWORD": PASSWORD}
    path = f"{server.binaries}{os.pathsep}{os.defpath}"
    done = subprocess.run(
        ["/bin/sh", "-euc", script],
        user=server.user,
        group=server.user,
        extra_groups=None if server.user is None else [],
        cwd="/",
        env={"PATH": path, "HOME": "/", "PGDATABASE": "apex", **where, **variables},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"{script}\n{done.stdout}{done.stderr}"
    return done.stdout


@pytest.fixture
async def own_vectors(engine_data: Path) -> AsyncIterator[str]:
    folder = Path(tempfile.mkdtemp(dir=engine_data))
    async with running(Edge(folder, free_port(), PASSWORD, HASHING_DIMENSION)) as engine:
        yield engine.url


@pytest.fixture
def folder(engine_data: Path) -> Iterator[Path]:
    folder = engine_data / uuid.uuid4().hex[:8]
    folder.mkdir(mode=0o711)
    folder.chmod(0o711)
    yield folder


async def process(app: App) -> None:
    await app.direct.drain("documents")


async def fill_before(app: App) -> None:
    texts = {f"d{n}": f"SHP-{300_000 + n} waits at door {n}." for n in range(20)}
    await land(app, *(text_event(app, key, text, version=1) for key, text in texts.items()))
    await process(app)


async def fill_between(app: App) -> None:
    await land(
        app,
        text_event(app, "d1", "SHP-300001 waits at ramp eleven.", version=2),
        text_event(app, "between", "SHP-310000 was announced.", version=1),
    )
    await process(app)


async def fill_later(app: App) -> None:
    """Another version, a deletion and new documents, until the stores have forgotten what they replace."""
    former = text_event(app, "d2", "SHP-300002 waits at door 2.", version=1)
    later = [text_event(app, f"later{n}", f"SHP-{320_000 + n} came.", version=1) for n in range(9)]
    changed = text_event(app, "d1", "SHP-300001 has left for good.", version=3)
    await land(app, changed, delete_event(former, version=2), *later)
    await process(app)
    await app.db.execute("UPDATE stages SET ended_at = ended_at - interval '1 hour'")
    assert await app.upkeep.collect() >= 3


async def texts_of(app: App, query: str) -> list[str]:
    return [hit.snippet for hit in (await app.search.search(query)).hits]


async def check_nothing_is_later(app: App) -> None:
    """Searches, documents and entities show the time that PostgreSQL went back to."""
    for query in ("SHP-320000 came", "has left for good", "SHP-300001", "came"):
        texts = await texts_of(app, query)
        assert not any("came." in text or "for good" in text for text in texts), query
    assert "SHP-300001 waits at ramp eleven." in await texts_of(app, "SHP-300001 ramp eleven")
    assert "SHP-310000 was announced." in await texts_of(app, "SHP-310000")
    for key, text in (("d1", "SHP-300001 waits at ramp eleven."), ("d2", None)):
        document = await live(app, key)
        assert document and document["text"] == (text or "SHP-300002 waits at door 2.")
    view = await app.search.document((await live(app, "d1") or {})["doc_id"])
    assert view.text == "SHP-300001 waits at ramp eleven."
    assert await live(app, "later0") is None


async def unknown_stages(app: App, store: str) -> int:
    known = {row["stage_id"] for row in await app.db.fetch("SELECT stage_id FROM stages")}
    return sum([item.stage not in known async for item in getattr(app, store).walk()])


async def test_all_stores_go_back_to_a_time(
    make_settings: MakeSettings, own_vectors: str, falkordb_url: str, folder: Path
) -> None:
    """The graph has a server of its own, which stays ahead of PostgreSQL as the vectors do."""
    archive, backup = shared_folder(folder / "archive"), shared_folder(folder / "backup")
    commands = page(archive, backup)
    server = Server(folder / "former", free_port(), PASSWORD, options=commands.settings)
    falkordb = falkordb_url.rpartition("/")[0] + f"/t{uuid.uuid4().hex[:8]}"
    settings = make_settings(graph=falkordb, vectors=own_vectors, documents=server.url)
    async with running_server(server):
        async with open_app(settings) as app:
            await app.recovery.check_restarted_stores()
            await fill_before(app)
            run(server, commands.base_backup)
            await fill_between(app)
            [[at]] = await statement(server, "SELECT clock_timestamp()::text")
            await fill_later(app)
            await view_everything(app)  # the cache knows what is later, too
        await statement(server, "SELECT pg_switch_wal()")
        await until(lambda: is_archived(server), "the log is archived", seconds=60)
    recovered = Server(folder / "recovered", free_port(), PASSWORD)
    prepare_folder(server, recovered)
    [base] = backup.glob("base-*")
    script = commands.restore.replace(TIME, str(at)).replace(BASE, base.name)
    run(server, script, PGDATA=str(recovered.cluster))
    async with running_server(recovered):
        await until(lambda: is_recovered(recovered), "the recovery has ended", seconds=60)
        url = recovered.url
        run(recovered, commands.after, APEX_DOCUMENTS=url)
        await check_recovered(settings.model_copy(update={"documents": url}))


async def check_recovered(settings: Settings) -> None:
    async with open_app(settings) as app:
        await check_nothing_is_later(app)  # at once: the stores are ahead of PostgreSQL
        assert (await app.search.search("SHP-300002")).degraded == ["graph", "vectors"]
        results = await app.recovery.check_restarted_stores()  # as each worker does at its start
        assert {result.store: result.repaired for result in results} == {"graph": 2, "vectors": 0}
        assert (await app.search.search("SHP-300002")).degraded == []
        assert await check_stores(app) == 21
        await check_nothing_is_later(app)
        for store in ("graph", "vectors"):
            assert await unknown_stages(app, store) >= 10
            result = await app.recovery.reconcile(store, prune_unknown=True)
            assert (result.repaired, result.errors) == (0, [])
            assert await unknown_stages(app, store) == 0
        await app.rebuild.run("cache")
        # Life goes on from there: what came later comes again, as another version or the same.
        await fill_later(app)
        assert "SHP-320000 came." in await texts_of(app, "SHP-320000")
        assert await texts_of(app, "SHP-300002 door 2") != ["SHP-300002 waits at door 2."]


async def view_everything(app: App) -> None:
    for row in await app.db.fetch("SELECT doc_id FROM documents WHERE NOT deleted"):
        await app.search.document(row["doc_id"])


async def is_archived(server: Server) -> bool:
    rows = await statement(
        server,
        "SELECT last_archived_wal >= pg_walfile_name(pg_current_wal_lsn() - 1) FROM pg_stat_archiver",
    )
    return rows == [(True,)]


async def is_recovered(server: Server) -> bool:
    return await statement(server, "SELECT pg_is_in_recovery()") == [(False,)]


def prepare_folder(former: Server, recovered: Server) -> None:
    """Make the empty folder of a new cluster, which belongs to the user of the former one."""
    recovered.data_dir.mkdir(mode=0o711)
    recovered.data_dir.chmod(0o711)
    recovered.directory.mkdir(mode=0o755)
    recovered.cluster.mkdir(mode=0o700)
    if former.user is not None:
        os.chown(recovered.cluster, former.user, former.user)
