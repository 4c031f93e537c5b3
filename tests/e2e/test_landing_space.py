"""While the disk of the embedded PostgreSQL is nearly full nothing lands, by whichever way, and nothing is written for it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from datetime import timedelta
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import pytest_asyncio

from apex_memory.app import App
from apex_memory.disk_space import DiskSpace
from apex_memory.engines import postgres_space
from apex_memory.engines.base import free_port
from apex_memory.engines.state import ChildState, Stack, ownership, write_stack
from apex_memory.errors import NoWrites
from apex_memory.fetching.backfills import ReplayedChunk
from apex_memory.gateway.ingest import store_change_hints
from apex_memory.model import now
from apex_memory.sources.base import PulledSettings
from apex_memory.sources.pages import ChangeHint, InboundFile, Reading
from tests.bucket import BucketServer
from tests.e2e.conftest import MakeSettings, text_event
from tests.e2e.front import message
from tests.e2e.test_api import Api, running_api
from tests.unit.test_files import Lined
from tests.unit.test_readings import Toy

LONG = "Shipment SHP-100045 left Columbus, OH for Northwind Trucking. " * 100
TOTAL = 100_000_000_000

SetFree = Callable[[int], None]


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def bucket() -> AsyncIterator[BucketServer]:
    server = BucketServer()
    await server.start()
    yield server
    await server.kill()


@pytest.fixture
def set_free(monkeypatch: pytest.MonkeyPatch) -> SetFree:
    """Sets the free bytes of every volume."""
    monkeypatch.setattr(postgres_space, "LOOK_SECONDS", 0.0)

    def set_to(free: int) -> None:
        monkeypatch.setattr(postgres_space, "disk_space", lambda folder: DiskSpace(TOTAL, free))

    set_to(TOTAL)
    return set_to


@pytest.fixture
def stack(tmp_path: Path, database_url: str) -> Iterator[None]:
    """A stack whose PostgreSQL is the one of the tests, so that its volume is watched."""
    port = urlsplit(database_url).port or 0
    with ownership(tmp_path):
        postgres = ChildState(name="postgres", pid=1, port=port, ready=True)
        write_stack(tmp_path, Stack(pid=1, since=now(), children={"postgres": postgres}))
        yield


@pytest.fixture
async def api(
    make_settings: MakeSettings, bucket: BucketServer, stack: None, set_free: SetFree
) -> AsyncIterator[Api]:
    settings = make_settings(temporal=f"127.0.0.1:{free_port()}/apex", **bucket.settings())
    async with running_api(settings) as api:
        yield api


async def test_a_refused_request_leaves_nothing_behind(
    api: Api, bucket: BucketServer, set_free: SetFree
) -> None:
    async def post() -> int:
        return (await api.post("/v1/documents", json={"key": "long", "text": LONG})).status_code

    set_free(0)
    assert await post() == 503
    assert (await api.hook(message("msg_1", "cnv_1", at=10))).status_code == 503
    assert await bucket.names() == []
    for table in ("inbox", "payload_objects", "mirror_copies", "change_hints"):
        assert await api.app.db.fetch(f"SELECT FROM {table}") == [], table
    set_free(TOTAL)
    assert await post() == 202
    assert (await api.hook(message("msg_1", "cnv_1", at=10))).status_code == 202
    assert len(await bucket.names()) == 1


async def test_a_change_hint_is_refused_too(api: Api, set_free: SetFree) -> None:
    hints = [ChangeHint("shipment:1", now())]
    set_free(0)
    with pytest.raises(NoWrites):
        await store_change_hints(api.gateway, "turvo", hints)
    assert await api.app.db.fetch("SELECT FROM change_hints") == []
    set_free(TOTAL)
    await store_change_hints(api.gateway, "turvo", hints)
    assert len(await api.app.db.fetch("SELECT FROM change_hints")) == 1


async def test_a_replay_goes_on_with_the_space(api: Api, set_free: SetFree) -> None:
    app = api.app
    await app.inbox.land([text_event(app, "one", "Door 4 is open.", version=1)])
    replay = await app.backfills.create(
        "documents", "replay", now() - timedelta(days=1), now() + timedelta(days=1), actor="test"
    )
    set_free(0)
    with pytest.raises(NoWrites):
        await app.backfills.replay_chunk(replay)
    assert await events(app) == 1
    set_free(TOTAL)
    assert await app.backfills.replay_chunk(replay) == ReplayedChunk(1, 1, more=True)


async def test_a_file_goes_on_with_the_space(api: Api, set_free: SetFree) -> None:
    source, files = Lined(), api.app.fetcher.files
    async with api.app.db.transaction() as connection:
        [id] = await files.insert(connection, source.name, [InboundFile("a.txt", b"1#a 2#a")])
    set_free(0)
    with pytest.raises(NoWrites):
        await files.land_chunk(source, id)
    assert await events(api.app) == 0
    set_free(TOTAL)
    assert (await files.land_chunk(source, id)).landed == 2


async def test_windows_go_on_with_the_space(api: Api, set_free: SetFree) -> None:
    toy, readings = Toy(PulledSettings()), api.app.fetcher.readings
    async with api.app.db.transaction() as connection:
        reading = Reading(series="a", kind="n", at=now() - timedelta(hours=1), value=1)
        await readings.insert(connection, toy, [reading])
    set_free(0)
    with pytest.raises(NoWrites):
        await readings.aggregate(toy, everything=True)
    assert await events(api.app) == 0
    set_free(TOTAL)
    assert await readings.aggregate(toy, everything=True) == 1
    assert await events(api.app) == 1


async def events(app: App) -> int:
    return len(await app.db.fetch("SELECT FROM inbox"))
