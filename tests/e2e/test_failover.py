"""The primary of PostgreSQL is killed in mid-load and its standby promoted: two real servers with streaming replication."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator
from contextlib import aclosing, suppress
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from apex_memory.errors import ApexError, Unavailable
from apex_memory.inbox.notices import listen, notify
from apex_memory.steps.direct_loop import DirectLoop
from apex_memory.stores.lease import acquire, leased
from apex_memory.stores.postgres import Postgres
from tests.e2e.conftest import MakeSettings
from tests.e2e.test_api import TEXT, Api, running_api
from tests.postgres_servers import Pair, Server, replicated, statement
from tests.waiting import seconds_until, until

WRITERS = 4
SECONDS = 20.0  # until work goes on after the promotion


@pytest.fixture
async def pair(engine_data: Path) -> AsyncIterator[Pair]:
    async with replicated(engine_data / uuid.uuid4().hex[:8], synchronous=True) as pair:
        yield pair


async def test_nothing_acknowledged_is_lost_and_work_goes_on(
    pair: Pair, make_settings: MakeSettings
) -> None:
    settings = make_settings(documents=pair.url("read-write"), temporal="127.0.0.1:1/apex")
    async with running_api(settings) as api:
        stop = asyncio.Event()
        loop = DirectLoop(
            api.app.direct,
            api.app.inbox,
            {"documents": 0},
            documents=settings.session_documents,
            stalled=api.app.stalled,
        )
        acknowledged: dict[str, str] = {}
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(loop.run(stop))
            for number in range(WRITERS):
                tasks.create_task(write(api, number, acknowledged, stop))
            await until(lambda: len(acknowledged) >= 40, "events land", seconds=30)
            await pair.kill_primary()
            before = dict(acknowledged)
            await pair.promote()
            after = await seconds_until(
                lambda: len(acknowledged) >= len(before) + 20, "events land again", seconds=SECONDS
            )
            print(f"{len(before)} acknowledged before; 20 more {after:.1f} s after the promotion")
            await asyncio.sleep(1)
            stop.set()

        rows = await api.app.db.fetch("SELECT id FROM inbox")
        assert {str(row["id"]) for row in rows} >= set(acknowledged.values())
        await api.app.direct.drain("documents")
        await until(lambda: all_done(api, list(acknowledged.values())), "all done", seconds=90)
        await api.app.recovery.check_restarted_stores()  # the graph is in the server that took over
        result = await search(api, "note-0-0")
        assert result["hits"] and not result["degraded"]


async def write(api: Api, number: int, acknowledged: dict[str, str], stop: asyncio.Event) -> None:
    """Post documents one after the other, each until it is acknowledged, as a client does."""
    n = 0
    while not stop.is_set():
        key = f"note-{number}-{n}"
        body = {"key": key, "text": f"Note {key} about SHP-{100_000 + n}.", "version": 1}
        answer = await api.post("/v1/documents", json=body, headers={"idempotency-key": key})
        if answer.status_code == 202:
            acknowledged[key] = answer.json()["events"][0]["id"]
            n += 1
        else:
            assert answer.status_code == 503, answer.text
            await asyncio.sleep(0.1)


async def all_done(api: Api, ids: list[str]) -> bool:
    await api.app.sweeper.sweep()  # stages whose batch went under with the primary
    rows = await api.app.db.fetch(
        "SELECT count(*) AS n FROM inbox WHERE id = ANY(%s) AND state = 'done'",
        ([UUID(id) for id in ids],),
    )
    if rows[0]["n"] < len(ids):
        await api.app.stalled.look(seconds=1)
    return bool(rows[0]["n"] == len(ids))


async def search(api: Api, query: str) -> Any:
    return (await api.post("/v1/search", json={"query": query})).json()


async def test_leases_and_notices_move_to_the_new_primary(
    pair: Pair, make_settings: MakeSettings
) -> None:
    url = make_settings(documents=pair.url("read-write")).session_documents
    await statement(
        pair.primary, "CREATE TABLE leases (name text PRIMARY KEY, owner uuid, until timestamptz)"
    )
    db = Postgres(url, timeout=5)
    await db.open()
    heard: list[str] = []
    listening = asyncio.create_task(hear(url, heard))
    try:
        await until(lambda: is_heard(db, heard, "before"), "a notice is heard")
        async with leased(db, "mirror:turvo", seconds=3):
            [[owner]] = await statement(pair.primary, "SELECT owner FROM leases")
            await pair.kill_primary()
            await pair.promote()
            await statement(pair.standby, "UPDATE leases SET until = clock_timestamp()")
            await until(lambda: is_heard(db, heard, "after"), "a notice is heard", seconds=SECONDS)
            await until(lambda: is_held(pair.standby), "the holder renewed it", seconds=SECONDS)
            assert not await acquire(db, "mirror:turvo", uuid.uuid4(), 3)
            assert await statement(pair.standby, "SELECT owner FROM leases") == [(owner,)]
        assert await acquire(db, "mirror:turvo", uuid.uuid4(), 3)
    finally:
        listening.cancel()
        with suppress(asyncio.CancelledError):
            await listening
        await db.close()


async def is_held(server: Server) -> bool:
    held = await statement(
        server, "SELECT 1 FROM leases WHERE until > clock_timestamp() + interval '1 second'"
    )
    return bool(held)


async def hear(url: str, heard: list[str]) -> None:
    """Listen as the direct path does: again after a connection broke."""
    while True:
        with suppress(ApexError):
            async with aclosing(listen(url)) as notices:
                async for notice in notices:
                    heard += [notice]
        await asyncio.sleep(0.1)


async def is_heard(db: Postgres, heard: list[str], word: str) -> bool:
    with suppress(ApexError):
        async with db.connection() as connection:
            await notify(connection, [word])
    return word in heard


async def test_a_standby_is_no_primary(pair: Pair) -> None:
    """Without `target_session_attrs` a client may reach the standby: what it writes is refused as an outage, not as a fault."""
    db = Postgres(pair.standby.url, timeout=5)
    await db.open()
    try:
        with pytest.raises(Unavailable, match="standby") as refused:
            await db.execute("CREATE TABLE t (n integer)")
        assert "target_session_attrs=read-write" in refused.value.remedy
        await pair.kill_primary()
        alone = Postgres(pair.url("read-write"), timeout=5)
        with pytest.raises(Unavailable):
            await alone.open()
        await alone.close()
        await pair.promote()
        await db.execute("CREATE TABLE t (n integer)")
    finally:
        await db.close()


async def test_what_asynchronous_replication_loses_lands_again(
    engine_data: Path, make_settings: MakeSettings
) -> None:
    """What the standby had not received when the primary died is gone, and its next delivery is no repetition."""
    async with replicated(engine_data / uuid.uuid4().hex[:8], synchronous=False) as pair:
        settings = make_settings(documents=pair.url("read-write"), temporal="127.0.0.1:1/apex")
        async with running_api(settings) as api:
            kept = await api.land("kept")
            await until(lambda: has_event(pair.standby, kept["id"]), "the standby has it")
            await pair.disconnect()
            lost = await api.land("lost", version=1)
            await pair.kill_primary()
            await pair.promote()
            assert await has_event(pair.standby, kept["id"])
            assert not await has_event(pair.standby, lost["id"])

            async def lands_again() -> bool:
                body = {"key": "lost", "text": TEXT, "version": 1}
                return (await api.post("/v1/documents", json=body)).status_code == 202

            await until(lands_again, "the gateway goes on", seconds=SECONDS)
            await api.app.direct.drain("documents")
            assert await api.app.db.fetch("SELECT doc_key FROM documents ORDER BY doc_key") == [
                {"doc_key": "kept"},
                {"doc_key": "lost"},
            ]


async def has_event(server: Server, id: str) -> bool:
    return bool(await statement(server, f"SELECT 1 FROM inbox WHERE id = '{id}'"))
