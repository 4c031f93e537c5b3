"""Rows past their retention are removed part by part, without reading the tables of years from end to end."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any, cast

import psycopg
import pytest
import pytest_asyncio

from apex_memory.config import Settings
from apex_memory.saga import collector
from apex_memory.saga.collector import Collector
from apex_memory.stores.postgres import Postgres
from tests.databases import Databases
from tests.unit.test_search_sql import FILL

DOCUMENTS = 20_000
FORMER = 200
PASSES = 30  # more than a cycle has here

# Former versions of the first documents: their manifests, and what was sent.
AGED = f"""
INSERT INTO inbox (id, source, event_id, doc_id, doc_key, priority, version, occurred_at, content_type, state)
  SELECT md5('former' || n)::uuid, 'turvo', 'former' || n, doc, 'd' || n, 0, 0, at, 'application/json', 'superseded'
  FROM made WHERE n <= {FORMER};
INSERT INTO manifests (id, inbox_id, doc_id, source, doc_key, pipeline, kind, title, text, occurred_at, metadata,
                       deleted, chunks, vectors, assertions, entities, hash)
  SELECT md5('old' || n)::uuid, md5('former' || n)::uuid, doc, 'turvo', 'd' || n, 'p', 'shipment', 't', 'x', at, '{{}}', false,
         '\\x9192c2c2', '', '\\x90', '{{}}', '' FROM made WHERE n <= {FORMER};
INSERT INTO payloads (inbox_id, body) SELECT id, '' FROM inbox;
UPDATE inbox SET received_at = now() - interval '1 year'; UPDATE manifests SET created_at = now() - interval '1 year';
UPDATE documents SET deleted = true, committed_at = now() - interval '1 year' WHERE doc_key IN ('d1', 'd2', 'd3');
"""


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def aged(databases: Databases) -> AsyncIterator[Postgres]:
    """A database whose rows are all a year old. One connection does all, so that its counts are known."""
    async with databases.database() as url:
        async with await psycopg.AsyncConnection.connect(url, autocommit=True) as connection:
            await connection.execute(FILL.format(n=DOCUMENTS, at=datetime.now(UTC).isoformat()))
            await connection.execute(AGED)
            await connection.execute("VACUUM ANALYZE")
        db = Postgres(url, size=1)
        await db.open()
        yield db
        await db.close()


async def read_to_the_end(db: Postgres) -> int:
    """Return how often the large tables were read from end to end."""
    await db.fetch("SELECT pg_stat_force_next_flush()")
    [row] = await db.fetch(
        """SELECT sum(seq_scan)::integer AS scans FROM pg_stat_user_tables
           WHERE relname IN ('documents', 'manifests', 'stages', 'inbox', 'payloads')"""
    )
    return cast(int, row["scans"])


@pytest.mark.parametrize(("rows", "parts"), [(-1, 1), (5_000, 1), (20_000, 2_880), (1e9, 2_880)])
async def test_a_cycle_takes_a_day_whatever_the_size_of_a_table(rows: float, parts: int) -> None:
    async def fetch_one(query: str, values: object) -> dict[str, float]:
        return {"rows": rows}

    nothing = cast(Any, None)
    collecting = Collector(
        cast(Any, SimpleNamespace(fetch_one=fetch_one)), nothing, nothing, Settings()
    )
    first, last = await collecting._part_of("documents")
    assert round(2**128 / (last.int - first.int)) == parts


async def test_a_pass_that_removes_nothing_ends_no_kept_answers(aged: Postgres) -> None:
    """They hold for one state of memory, which a trigger of `documents` changes, also for a statement without rows."""
    collecting = Collector(aged, cast(Any, None), cast(Any, None), Settings(tombstone_days=3_650))
    before = await aged.fetch("SELECT version FROM memory_versions ORDER BY slot")
    for _ in range(3):
        await collecting._drop_tombstones()
    assert await aged.fetch("SELECT version FROM memory_versions ORDER BY slot") == before


async def test_what_is_past_its_retention_goes_part_by_part(
    aged: Postgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = Settings()
    monkeypatch.setattr(
        collector, "CYCLE", timedelta(seconds=settings.collect_seconds * (PASSES - 5))
    )
    nothing = cast(Any, None)
    collecting = Collector(aged, nothing, nothing, settings)
    before = await read_to_the_end(aged)
    for _ in range(PASSES):
        await collecting._drop_expired()
    # At this size a few plans still read a table, which is cheaper than the index at first: of three statements a pass.
    assert await read_to_the_end(aged) - before < PASSES
    [left] = await aged.fetch(
        """SELECT (SELECT count(*) FROM manifests) AS manifests, (SELECT count(*) FROM payloads) AS payloads,
                  (SELECT count(*) FROM documents) AS documents, (SELECT count(*) FROM inbox) AS inbox"""
    )
    assert left == {
        "manifests": DOCUMENTS,
        "payloads": 0,
        "documents": DOCUMENTS - 3,
        "inbox": DOCUMENTS + FORMER,
    }
