"""Statements that run every few seconds, or for anybody who asks, read a part of a large inbox, and give what the plain ones gave.

Measured as the rows that PostgreSQL reads. The plain statements of before read the whole inbox, or the whole backlog, at the
numbers of rows here.
"""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import datetime, timedelta
from types import SimpleNamespace
from typing import Any, cast
from uuid import UUID

import psycopg
import pytest
import pytest_asyncio

from apex_memory.config import Settings
from apex_memory.fetching import backfills as backfills_module
from apex_memory.fetching.backfills import CHUNK, WALK, Backfills
from apex_memory.fetching.source_states import _CURRENT_COLUMNS, _CURRENT_TABLES
from apex_memory.gateway.dependencies import Gateway, require_known_sources
from apex_memory.gateway.facts import GAPS, FactGauges
from apex_memory.gateway.read_models import events as read_model
from apex_memory.gateway.read_models.events import Events
from apex_memory.inbox import queries, transitions
from apex_memory.inbox.payload_store import PayloadStore
from apex_memory.inbox.routing import BUCKET_SQL, BUCKETS
from apex_memory.inbox.transitions import UNPARK_AMONG
from apex_memory.model import now
from apex_memory.stores.postgres import Postgres
from tests.databases import Databases

FINAL = 60_000
OPEN = 5_000
PARKED = 5_000

# The final events were received in the past 400 days, one after the other; then came a backlog of `plaid`, and one that is parked.
FILL = f"""
INSERT INTO inbox (id, source, event_id, doc_id, doc_key, priority, version, occurred_at, received_at, content_type, state, next_at)
  SELECT md5('final' || n)::uuid, (ARRAY['frontapp', 'turvo', 'samsara', 'edi'])[1 + n % 4], 'final' || n,
         md5('document' || n)::uuid, 'd' || n, n % 3, n, at, at, 'application/json', 'done', at
  FROM generate_series(1, {FINAL}) n, LATERAL (SELECT now() - interval '400 days' + n * interval '9 minutes') t (at);
INSERT INTO inbox (id, source, event_id, doc_id, doc_key, priority, version, occurred_at, content_type)
  SELECT md5('open' || n)::uuid, 'plaid', 'open' || n, md5('open document' || n)::uuid, 'o' || n, n % 3, n, now(), 'application/json'
  FROM generate_series(1, {OPEN}) n;
INSERT INTO inbox (id, source, event_id, doc_id, doc_key, priority, version, occurred_at, content_type, state, park_store, parks)
  SELECT md5('parked' || n)::uuid, 'plaid', 'parked' || n, md5('parked document' || n)::uuid, 'p' || n, n % 3, n, now(),
         'application/json', 'parked', 'graph', 1
  FROM generate_series(1, {PARKED}) n;
INSERT INTO payloads (inbox_id, body) SELECT id, 'x' FROM inbox WHERE source = 'turvo';
"""


@asynccontextmanager
async def single(databases: Databases, fill: str) -> AsyncIterator[Postgres]:
    """A filled database, and one connection that does all, so that its counts are known."""
    async with databases.database() as url:
        async with await psycopg.AsyncConnection.connect(url, autocommit=True) as connection:
            await connection.execute(fill.encode())
            await connection.execute("VACUUM ANALYZE")
        db = Postgres(url, size=1)
        await db.open()
        yield db
        await db.close()


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def large(databases: Databases) -> AsyncIterator[Postgres]:
    async with single(databases, FILL) as db:
        yield db


async def rows_read(db: Postgres, work: Callable[[], Awaitable[object]]) -> int:
    """Return how many rows of the inbox a piece of work reads, whether or not it keeps them."""

    async def counted() -> int:
        await db.fetch("SELECT pg_stat_force_next_flush()")
        [row] = await db.fetch(
            "SELECT (seq_tup_read + idx_tup_fetch)::integer AS rows FROM pg_stat_user_tables WHERE relname = 'inbox'"
        )
        return cast(int, row["rows"])

    before = await counted()
    await work()
    return await counted() - before


async def on(db: Postgres, query: Callable[..., Awaitable[Any]], *values: Any, **named: Any) -> Any:
    async with db.connection() as connection:
        return await query(connection, *values, **named)


async def test_the_newest_event_of_each_source(large: Postgres) -> None:
    """Also of one that never sent any. What is counted is the backlog alone."""
    names = ["frontapp", "never", "turvo"]

    async def states() -> None:
        rows = await large.fetch(f"SELECT {_CURRENT_COLUMNS} FROM {_CURRENT_TABLES}", (names,))
        assert {row["name"] for row in rows if row["last_event_at"] is None} == {"never"}

    assert await rows_read(large, states) <= OPEN + PARKED + 10


async def test_the_facts_of_each_source(large: Postgres) -> None:
    sources = {name: SimpleNamespace(name=name) for name in ("frontapp", "never")}
    facts = FactGauges(cast(Any, SimpleNamespace(db=large, sources=sources)), seconds=1)
    assert await rows_read(large, facts._read_sources) <= GAPS + 10
    assert facts._rhythms == {"frontapp": pytest.approx(4 * 9 * 60)}


async def test_an_unknown_source(large: Postgres) -> None:
    gateway = cast(Gateway, SimpleNamespace(app=SimpleNamespace(db=large, sources={})))

    async def look() -> None:
        await require_known_sources(gateway, ["turvo"])
        with pytest.raises(Exception, match="no such source"):
            await require_known_sources(gateway, ["never"])

    assert await rows_read(large, look) <= 10


async def test_the_sources_with_work(large: Postgres) -> None:
    """Of ten sources, nine have none: each asked for its own read the whole inbox."""
    names = ["frontapp", "turvo", "plaid", *(f"source {n}" for n in range(7))]

    async def poll() -> None:
        assert await on(large, queries.ready_for_direct, names, everything=True) == ["plaid"]

    async def sweep() -> None:
        assert await on(large, queries.ready) == {"plaid": queries.COUNTED_MOST}

    async def look() -> None:
        assert list(await on(large, queries.stalled, seconds=0)) == ["plaid"]

    assert await rows_read(large, poll) <= 10
    assert await rows_read(large, sweep) <= queries.COUNTED_MOST + 10
    assert await rows_read(large, look) <= queries.COUNTED_MOST + 10


@pytest.mark.parametrize("limit", [1, 100])
async def test_events_are_let_out_of_parking_by_an_index(large: Postgres, limit: int) -> None:
    async def unpark() -> None:
        async with large.connection() as connection, connection.transaction(force_rollback=True):
            assert await transitions.unpark(connection, "graph", limit=limit) == limit

    assert await rows_read(large, unpark) <= 2 * UNPARK_AMONG + 4 * limit


async def test_a_replay_reads_each_event_once(large: Postgres) -> None:
    backfills = Backfills(large, PayloadStore(large))
    id = await backfills.create("turvo", "replay", now() - timedelta(days=500), now(), actor="test")

    async def chunk() -> None:
        assert (await backfills.replay_chunk(id)).read == CHUNK

    await chunk()
    # Those that it walks, those that it reads again with their payloads, and those that it lands: with what a landing looks for.
    assert await rows_read(large, chunk) <= WALK + 10 * CHUNK
    await backfills.end(id, "cancelled")
    await large.execute("DELETE FROM inbox WHERE strpos(event_id, '#replay:') > 0")


async def test_a_replay_walks_over_what_is_out_of_its_range_and_ends(
    large: Postgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        backfills_module, "_WALK", backfills_module._WALK.replace(f"{WALK}", "1000")
    )
    backfills = Backfills(large, PayloadStore(large))
    [first] = await large.fetch(
        "SELECT received_at AS at FROM inbox WHERE source = 'turvo' ORDER BY seq OFFSET 3500 LIMIT 1"
    )
    until = first["at"] + timedelta(hours=3)
    id = await backfills.create("turvo", "replay", first["at"], until, actor="test")
    chunks = []
    while (chunk := await backfills.replay_chunk(id)).more:
        chunks.append((chunk.read, chunk.landed))
    # Then come those that it landed itself.
    assert chunks == [(0, 0)] * 3 + [(5, 5)] + [(0, 0)] * 12
    assert not (await backfills.replay_chunk(id)).more
    row = await backfills.get(id)
    assert (row.seen, row.landed) == (5, 5)
    await backfills.end(id, "done")
    await large.execute("DELETE FROM inbox WHERE strpos(event_id, '#replay:') > 0")


@pytest.mark.parametrize(
    ("filters", "most"),
    [
        ({"source": "never"}, 10),
        # All of the backlog was received within the margin.
        ({"since": -1}, 22_000),
        ({"source": "turvo", "since": -1}, 210),
        ({"state": "dead"}, 210),
        ({"state": "parked", "source": "never"}, 200 + PARKED),
        ({"state": "superseded"}, 22_000),
    ],
)
async def test_a_list_of_events_without_any(
    large: Postgres, monkeypatch: pytest.MonkeyPatch, filters: dict[str, Any], most: int
) -> None:
    monkeypatch.setattr(read_model, "FIRST_WALK", 200)
    monkeypatch.setattr(read_model, "MOST_WALKED", 20_000)
    if "since" in filters:
        filters = {**filters, "since": now() + timedelta(minutes=1)}

    async def find() -> None:
        found, position = await Events(large, Settings()).find(**filters)
        assert found == []
        if filters == {"state": "superseded"}:
            assert position is not None
        else:
            assert position is None

    assert await rows_read(large, find) <= most


# Small and mixed: three documents of ten a source, states, stores, leases and versions at random.
MIXED = """
INSERT INTO inbox (id, source, event_id, doc_id, doc_key, priority, version, occurred_at, received_at, content_type, state, park_store,
                   parks, batch, next_at)
  SELECT md5('event' || n)::uuid, 'source ' || n % 4, 'e' || n, md5('document' || n % 97)::uuid, 'd', floor(random() * 3), n, now(),
         now() - interval '2 hours' + n * interval '20 s', 'application/json', state,
         CASE WHEN state = 'parked' THEN (ARRAY['graph', 'vectors'])[ceil(random() * 2)] END, floor(random() * 3),
         CASE WHEN random() < 0.05 THEN md5('batch')::uuid END, now() + (random() - 0.5) * interval '10 minutes'
  FROM generate_series(1, 400) n, LATERAL (SELECT (ARRAY['received', 'prepared', 'done', 'superseded', 'parked', 'dead'])
                                                  [1 + (n * 7919 + n / 3) % 6] AS state) t;
UPDATE inbox SET state = 'done' WHERE source = 'source 3' AND batch IS NOT NULL;
INSERT INTO dead_letters (inbox_id, source, doc_id, version, event_id, step, error_class, fingerprint, message, attempts, first_at,
                          pipeline)
  SELECT id, source, doc_id, version, event_id, 'prepare', 'Rejected', '', '', 1, now(), 'p' FROM inbox WHERE state = 'dead';
INSERT INTO sources (name, paused) VALUES ('source 0', true);
INSERT INTO rollouts (subject, share) VALUES ('source:source 1', 50), ('source:source 2', 0);
"""


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def mixed(databases: Databases) -> AsyncIterator[Postgres]:
    async with single(databases, MIXED) as db:
        yield db


async def test_the_sources_with_work_are_those_of_the_plain_statements(mixed: Postgres) -> None:
    ready = await mixed.fetch(
        """SELECT source, count(*) AS events FROM inbox
           WHERE open AND next_at <= clock_timestamp() AND source NOT IN (SELECT name FROM sources WHERE paused)
           GROUP BY source"""
    )
    assert await on(mixed, queries.ready) == {row["source"]: row["events"] for row in ready}
    for seconds in (0, 100, 250, 290, 1_000):
        stalled = await mixed.fetch(
            """SELECT source, extract(epoch FROM clock_timestamp() - min(next_at))::float AS waiting FROM inbox
               WHERE open AND source NOT IN (SELECT name FROM sources WHERE paused)
               GROUP BY source
               HAVING min(next_at) < clock_timestamp() - make_interval(secs => %s)
                  AND NOT coalesce(bool_or(batch IS NOT NULL AND next_at > clock_timestamp()), false)""",
            (seconds,),
        )
        expected = {row["source"]: pytest.approx(row["waiting"], abs=5) for row in stalled}
        assert await on(mixed, queries.stalled, seconds=seconds) == expected, seconds
    names = [f"source {n}" for n in range(6)]
    for everything in (False, True):
        plain = await mixed.fetch(
            f"""WITH shares AS MATERIALIZED (
                  SELECT name, CASE WHEN %(everything)s THEN 0 ELSE
                           coalesce((SELECT share FROM rollouts WHERE subject = 'source:' || name), {BUCKETS}) END AS share
                  FROM unnest(%(sources)s::text[]) AS t (name)
                )
                SELECT name FROM shares
                WHERE share < {BUCKETS} AND name NOT IN (SELECT name FROM sources WHERE paused)
                  AND EXISTS (SELECT FROM inbox WHERE open AND source = name AND next_at <= clock_timestamp()
                                AND CASE WHEN share = 0 THEN true ELSE {BUCKET_SQL} >= share END)""",
            {"sources": names, "everything": everything},
        )
        known = await on(mixed, queries.ready_for_direct, names, everything=everything)
        assert sorted(known) == sorted(row["name"] for row in plain) and known


async def test_those_let_out_of_parking_are_those_of_the_plain_statement(mixed: Postgres) -> None:
    for limit in (1, 10, 100):
        plain = await mixed.fetch(
            """WITH newest AS (
                 SELECT DISTINCT ON (doc_id) id, parks, priority, seq FROM inbox WHERE state = 'parked' AND park_store = 'graph'
                 ORDER BY doc_id, version DESC, event_id DESC)
               SELECT id FROM newest ORDER BY parks, priority, seq LIMIT %s""",
            (limit,),
        )
        async with mixed.connection() as connection, connection.transaction(force_rollback=True):
            unparked = await transitions.unpark(connection, "graph", limit=limit)
            cursor = await connection.execute(
                "SELECT id FROM inbox WHERE id = ANY(%s) AND state IN ('received', 'prepared')",
                ([row["id"] for row in plain],),
            )
            assert len(await cursor.fetchall()) == unparked == len(plain) > 0


async def test_every_list_of_events_is_reached_page_by_page(
    mixed: Postgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(read_model, "FIRST_WALK", 7)
    monkeypatch.setattr(read_model, "NEXT_WALK", 11)
    monkeypatch.setattr(read_model, "MOST_WALKED", 40)
    events = Events(mixed, Settings())
    states = ["received", "prepared", "staged", "done", "superseded", "parked", "dead", None]
    times: list[datetime | None] = [None, now() - timedelta(minutes=70), now() + timedelta(1)]
    for state in states:
        for source in (None, "source 2", "never"):
            for since in times:
                rows = await mixed.fetch(
                    """SELECT id FROM inbox WHERE state = coalesce(%(state)s, state) AND source = coalesce(%(source)s, source)
                       AND received_at >= coalesce(%(since)s, received_at) ORDER BY seq DESC""",
                    {"state": state, "source": source, "since": since},
                )
                limit = random.choice((3, 10, 50))
                seen: list[UUID] = []
                after: int | None = None
                while True:
                    page, after = await events.find(
                        source=source, state=state, since=since, after=after, limit=limit
                    )
                    assert len(page) <= limit
                    seen += [event["id"] for event in page]
                    if after is None:
                        break
                assert seen == [row["id"] for row in rows], (state, source, since, limit)
