"""The collector: removes superseded stages that no reader can see, and rows past their retention."""

from __future__ import annotations

import math
import secrets
from datetime import timedelta
from typing import LiteralString
from uuid import UUID

from apex_memory.config import Settings
from apex_memory.model import now
from apex_memory.saga.sweeper import mark_reaped, remove_stages
from apex_memory.stores.base import GraphStore, VectorStore
from apex_memory.stores.postgres import Postgres
from apex_memory.telemetry import STAGES_COLLECTED, logger

COLLECT_MAX = 500  # stages removed in one call to the stores
PART_ROWS = 5_000  # of a table that one pass looks through for rows past their retention
CYCLE = timedelta(days=1)  # in which the passes of one process look through all of a table


class Collector:
    def __init__(
        self, db: Postgres, graph: GraphStore, vectors: VectorStore, settings: Settings
    ) -> None:
        self._db = db
        self._graph = graph
        self._vectors = vectors
        # A flip takes its time inside its transaction, and readers may begin on the old stage until that ends.
        self._grace = settings.grace_seconds + settings.call_timeout_seconds
        self._tombstones = timedelta(days=settings.tombstone_days)
        self._history = timedelta(days=settings.payload_days)
        self._most_parts = max(1, round(CYCLE.total_seconds() / settings.collect_seconds))
        self._pass = secrets.randbelow(self._most_parts)  # each process begins elsewhere
        self._log = logger(component="collector")

    async def collect(self) -> int:
        """Remove what is due; return the number of stages. Stops early when a store is unavailable.

        Of rows past their retention, which is counted in days, those in the next part of each table: to look through the tables of
        years in each pass would read them from end to end every few minutes. The passes of a day look through everything.
        """
        total = 0
        while True:
            stages = await self._due()
            if not stages or not await remove_stages(self._db, stages, self._graph, self._vectors):
                break
            total += await mark_reaped(self._db, stages, "reaping")
            if len(stages) < COLLECT_MAX:
                break
        if total:
            STAGES_COLLECTED.inc(total)
            self._log.info("collected superseded stages", stages=total)
        await self._drop_expired()
        return total

    async def _drop_expired(self) -> None:
        self._pass += 1
        await self._drop_tombstones()
        await self._drop_history()

    async def _due(self) -> list[UUID]:
        """Mark stages `reaping` that are superseded for longer than the grace and than the oldest open snapshot.

        Returns them, with those that an earlier pass left `reaping`.
        """
        rows = await self._db.fetch(
            """WITH due AS (
                 SELECT stage_id FROM stages
                 WHERE state = 'reaping' OR state = 'superseded'
                   AND ended_at < clock_timestamp() - make_interval(secs => %s)
                   AND ended_at < coalesce((SELECT min(xact_start) FROM pg_stat_activity
                                            WHERE backend_xmin IS NOT NULL AND application_name LIKE 'apex-%%'
                                              AND pid <> pg_backend_pid()), clock_timestamp())
                 LIMIT %s FOR UPDATE SKIP LOCKED)
               UPDATE stages SET state = 'reaping' FROM due WHERE stages.stage_id = due.stage_id RETURNING stages.stage_id""",
            (self._grace, COLLECT_MAX),
        )
        return [row["stage_id"] for row in rows]

    async def _drop_tombstones(self) -> None:
        """Remove tombstones that are older than every source's replay horizon; their stages follow."""
        first, last = await self._part_of("documents")
        await self._db.execute(
            """WITH due AS (SELECT doc_id FROM documents
                            WHERE deleted AND committed_at < %s AND doc_id BETWEEN %s AND %s FOR UPDATE SKIP LOCKED),
                    old AS (DELETE FROM documents USING due WHERE documents.doc_id = due.doc_id RETURNING stage_id)
               UPDATE stages SET state = 'superseded', ended_at = clock_timestamp() FROM old WHERE stages.stage_id = old.stage_id""",
            (now() - self._tombstones, first, last),
        )

    async def _drop_history(self) -> None:
        """Remove raw payloads and manifests past their retention that nothing refers to.

        An event that is not final keeps its manifest, however long its source was paused or its store away, and an open
        dead letter its payload: it may be sent through the pipeline again.
        """
        before = now() - self._history
        first, last = await self._part_of("manifests")
        await self._db.execute(
            """DELETE FROM manifests m WHERE created_at < %s AND m.id BETWEEN %s AND %s
               AND NOT EXISTS (SELECT FROM documents d WHERE d.manifest_id = m.id)
               AND NOT EXISTS (SELECT FROM stages s WHERE s.doc_id = m.doc_id AND s.manifest_id = m.id AND s.state <> 'reaped')
               AND NOT EXISTS (SELECT FROM inbox i WHERE i.id = m.inbox_id AND (i.open OR i.state = 'parked'))""",
            (before, first, last),
        )
        first, last = await self._part_of("payloads")
        await self._db.execute(
            """DELETE FROM payloads p USING inbox i WHERE i.id = p.inbox_id AND p.inbox_id BETWEEN %s AND %s
               AND i.received_at < %s AND (i.state IN ('done', 'superseded') OR i.state = 'dead' AND NOT EXISTS (
                 SELECT FROM dead_letters l WHERE l.inbox_id = i.id AND l.status IN ('open', 'retrying')))""",
            (first, last, before),
        )

    async def _part_of(self, table: LiteralString) -> tuple[UUID, UUID]:
        """Return the first and the last id of this pass's part of a table. Ids are hashes, and so are spread evenly."""
        row = await self._db.fetch_one(
            "SELECT reltuples::float8 AS rows FROM pg_class WHERE oid = %s::regclass", (table,)
        )
        parts = min(self._most_parts, max(1, math.ceil((row["rows"] if row else 0) / PART_ROWS)))
        part = self._pass % parts
        return UUID(int=(part << 128) // parts), UUID(int=((part + 1 << 128) // parts) - 1)
