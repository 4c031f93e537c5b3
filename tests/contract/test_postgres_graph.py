"""What only the graph in PostgreSQL has to prove: its transactions, its tables, and plans that hold for tables of any size."""

from __future__ import annotations

import asyncio
import random
import select
import time
from collections.abc import AsyncIterator
from contextlib import suppress
from urllib.parse import urlsplit
from uuid import uuid4

import psycopg
import pytest
import pytest_asyncio

from apex_memory.errors import RetryLater, Unavailable
from apex_memory.stores import postgres_graph
from apex_memory.stores.postgres_graph import PostgresGraph
from tests.contract.test_graph import CARRIER, SHIPMENT, Version, freezing_way, written


@pytest.fixture
def url(postgres_url: str) -> str:
    return f"{postgres_url}?schema=t{uuid4().hex}"


@pytest_asyncio.fixture
async def graph(url: str) -> AsyncIterator[PostgresGraph]:
    store = PostgresGraph(url, timeout=60)
    await store.prepare()
    yield store
    await store.close()


async def query(url: str, statement: str) -> list[tuple[object, ...]]:
    """Run a statement in the schema of the graph, as somebody else."""
    address, _, schema = url.partition("?schema=")
    async with await psycopg.AsyncConnection.connect(address, autocommit=True) as connection:
        await connection.execute(f"SET search_path = {schema}".encode())
        cursor = await connection.execute(statement.encode())
        return await cursor.fetchall() if cursor.description else []


async def test_many_processes_prepare_at_once(url: str) -> None:
    stores = [PostgresGraph(url, timeout=60) for _ in range(8)]
    await asyncio.gather(*(store.prepare() for store in stores))
    assert await query(url, "SELECT * FROM versions") == [(postgres_graph.VERSION,)]
    for store in stores:
        await store.close()


async def test_tables_that_vanished_are_created_again(graph: PostgresGraph, url: str) -> None:
    mail = Version().mentions(SHIPMENT)
    await written(graph, mail)
    incarnations = [await graph.incarnation()]
    await query(url, f"DROP SCHEMA {url.partition('=')[2]} CASCADE")
    assert await graph.tally([mail.stage]) == {}
    incarnations.append(await graph.incarnation())
    with pytest.raises(RetryLater, match="missing"):
        await written(graph, mail)
    await written(graph, mail)
    assert await graph.tally([mail.stage]) == {mail.stage: mail.tally}
    incarnations.append(await graph.incarnation())
    assert len(set(incarnations)) == 3, "what is empty now is checked against the manifests"


async def test_a_caller_that_gives_up_waits_no_longer_for_a_server_that_hangs(url: str) -> None:
    target = urlsplit(url).port
    assert target is not None
    async with freezing_way(target) as (port, freeze):
        graph = PostgresGraph(url.replace(f":{target}/", f":{port}/"), timeout=20)
        await graph.prepare()
        freeze()
        began = time.monotonic()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.2):
                await graph.known([SHIPMENT])
        assert time.monotonic() - began < 3
        assert await graph.known([SHIPMENT]) == {}
        await graph.close()


async def test_a_server_that_is_silent_is_passed_over(url: str) -> None:
    """As after the machine of the primary vanished: its address accepts, or drops, and says nothing."""
    target = urlsplit(url).port

    async def be_silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    async with await asyncio.start_server(be_silent, "127.0.0.1", 0) as server:
        silent = server.sockets[0].getsockname()[1]
        two = url.replace(f"127.0.0.1:{target}", f"127.0.0.1:{silent},127.0.0.1:{target}")
        graph = PostgresGraph(two, timeout=8)
        await graph.ping()
        await graph.close()


async def test_sessions_are_used_again_where_the_kernel_cannot_be_asked(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(select, "POLLRDHUP")
    graph = PostgresGraph(url, timeout=20)
    pids = set()
    for _ in range(3):
        async with graph._sessions.session() as session:
            pids.add(session.info.backend_pid)
    assert len(pids) == 1
    await graph.close()


async def test_a_lost_entity_shows_in_the_tally(graph: PostgresGraph, url: str) -> None:
    mail = Version().mentions(SHIPMENT, CARRIER)
    await written(graph, mail)
    await query(url, f"DELETE FROM entities WHERE ref = '{CARRIER}'")
    tally = (await graph.tally([mail.stage]))[mail.stage]
    assert tally.count == mail.tally.count - 1
    assert [item.tally async for item in graph.walk()] == [tally]


async def test_removing_a_stage_that_is_being_written_leaves_nothing_without_it(
    graph: PostgresGraph, url: str
) -> None:
    """A writer that lost its lease meets the sweeper: either is first, and no assertion stays without its stage."""
    for _ in range(15):
        mail = Version().mentions(*(f"load:{n}" for n in range(40)))
        await graph.upsert(mail.assertions[:20])

        async def write(mail: Version = mail) -> None:
            with suppress(RetryLater):
                await written(graph, mail)

        await asyncio.gather(write(), graph.delete_stages([mail.stage]), write())
        await graph.delete_stages([mail.stage])
    assert await query(url, "SELECT count(*) FROM assertions") == [(0,)]
    assert await query(url, "SELECT count(*) FROM stages") == [(0,)]


async def test_forgetting_an_entity_that_is_being_named_again_keeps_it(
    graph: PostgresGraph,
) -> None:
    refs = [f"person:p-{n}" for n in range(10)]
    for _ in range(15):
        mail = Version().mentions(*refs)
        await asyncio.gather(written(graph, mail), graph.forget_entities(refs))
        assert await graph.tally([mail.stage]) == {mail.stage: mail.tally}
        assert await graph.known(refs) == dict.fromkeys(refs, 1)
        await graph.delete_stages([mail.stage])


async def test_no_statement_reads_a_whole_table_or_hub(
    graph: PostgresGraph, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sessions that planned everything on empty tables go on with these plans when the tables are large."""
    monkeypatch.setattr(postgres_graph, "CONNECTIONS", 1)
    early = PostgresGraph(url, timeout=60)
    await use(early)
    mails = [Version().mentions(SHIPMENT, f"load:{n}") for n in range(4_000)]
    for first in range(0, len(mails), 500):
        await written(graph, *mails[first : first + 500])
    await graph.delete_stages([mail.stage for mail in random.sample(mails, 1_000)])
    before = await rows_read(url)
    await use(early)
    assert await rows_read(url) - before < 3_000, "of 3,000 stages and 6,000 assertions"
    await early.close()


async def use(graph: PostgresGraph) -> None:
    """Use every operation once on few keys."""
    mail = Version().mentions(CARRIER).says("carried_by", "load:1", CARRIER)
    await written(graph, mail)
    await graph.tally([mail.stage])
    for exclude in ([], [uuid4()]):
        await graph.linked([SHIPMENT, CARRIER], limit=5, exclude=exclude)
        await graph.facts(SHIPMENT, limit=5, exclude=exclude)
    await graph.known(["load:2"])
    await graph.forget_entities(["load:none"])
    await anext(graph.walk())
    await graph.delete_stages([mail.stage])


async def rows_read(url: str) -> int:
    """Return the rows and index entries that were read in the schema, once all sessions have reported them."""
    schema = url.partition("=")[2]
    await asyncio.sleep(1.2)  # the sessions' own interval: a report is made at most once a second
    ((tables,),) = await query(
        url,
        f"SELECT sum(seq_tup_read + coalesce(idx_tup_fetch, 0))::bigint FROM pg_stat_user_tables WHERE schemaname = '{schema}'",
    )
    ((indexes,),) = await query(
        url,
        f"SELECT sum(idx_tup_read)::bigint FROM pg_stat_user_indexes WHERE schemaname = '{schema}'",
    )
    assert isinstance(tables, int) and isinstance(indexes, int)
    return tables + indexes


async def test_writes_are_on_disk_whatever_the_server_s_default(graph: PostgresGraph) -> None:
    async with graph._sessions.session() as session:
        cursor = await session.execute("SELECT current_setting('synchronous_commit')")
        assert await cursor.fetchall() == [("on",)]


async def test_a_role_without_rights_is_named(postgres_url: str) -> None:
    role = f"r{uuid4().hex}"
    async with await psycopg.AsyncConnection.connect(postgres_url, autocommit=True) as admin:
        await admin.execute(f"CREATE ROLE {role} LOGIN PASSWORD 'its-own'".encode())
        url = postgres_url.replace("//apex:pw@", f"//{role}:its-own@") + f"?schema=t{uuid4().hex}"
        store = PostgresGraph(url, timeout=20)
        with pytest.raises(Unavailable) as refused:
            await store.prepare()
        assert "rights" in refused.value.remedy and "its-own" not in str(refused.value)
        await store.close()
        await admin.execute(f"DROP ROLE {role}".encode())
