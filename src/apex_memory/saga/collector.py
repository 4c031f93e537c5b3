"""The collector: removes superseded stages that no reader can see, and rows past their retention."""

from __future__ import annotations

import secrets
from datetime import timedelta
from typing import LiteralString
from uuid import UUID

from apex_memory.config import Settings
from apex_memory.saga.sweeper import mark_reaped, remove_stages
from apex_memory.stores.base import GraphStore, VectorStore
from apex_memory.stores.postgres import Postgres
from apex_memory.telemetry import STAGES_COLLECTED, logger

COLLECT_MAX = 500  # stages removed in one call to the stores
FILES_MAX = 100  # files whose content one pass removes; each may have tens of megabytes
SMALL_TABLE = 5_000  # rows that one pass looks through at once
CYCLE = timedelta(days=1)  # in which the passes of one process look through all of a larger table


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
        self._passes = max(1, round(CYCLE.total_seconds() / settings.collect_seconds))
        self._pass = secrets.randbelow(self._passes)  # each process begins elsewhere
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
        await self._drop_file_contents()

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
        due = await self._db.fetch(
            """SELECT doc_id FROM documents
               WHERE deleted AND committed_at < clock_timestamp() - %s AND doc_id BETWEEN %s AND %s""",
            (self._tombstones, first, last),
        )
        if not due:
            return  # a DELETE of no rows fires the trigger `memory_changed` too, which ends the kept answers of all gateways
        await self._db.execute(
            """WITH due AS (SELECT doc_id FROM documents
                            WHERE deleted AND committed_at < clock_timestamp() - %s AND doc_id = ANY(%s)
                            FOR UPDATE SKIP LOCKED),
                    old AS (DELETE FROM documents USING due WHERE documents.doc_id = due.doc_id RETURNING stage_id)
               UPDATE stages SET state = 'superseded', ended_at = clock_timestamp() FROM old WHERE stages.stage_id = old.stage_id""",
            (self._tombstones, [row["doc_id"] for row in due]),
        )

    async def _drop_history(self) -> None:
        """Remove raw payloads and manifests past their retention that nothing refers to.

        An event that is not final keeps its manifest, however long its source was paused or its store away, and an open
        dead letter its payload: it may be sent through the pipeline again. The age is by the clock of PostgreSQL, which
        also wrote the times: that of a process may be far ahead.
        """
        first, last = await self._part_of("manifests")
        await self._db.execute(
            """DELETE FROM manifests m WHERE created_at < clock_timestamp() - %s AND m.id BETWEEN %s AND %s
               AND NOT EXISTS (SELECT FROM documents d WHERE d.manifest_id = m.id)
               AND NOT EXISTS (SELECT FROM stages s WHERE s.doc_id = m.doc_id AND s.manifest_id = m.id AND s.state <> 'reaped')
               AND NOT EXISTS (SELECT FROM inbox i WHERE i.id = m.inbox_id AND (i.open OR i.state = 'parked'))""",
            (self._history, first, last),
        )
        first, last = await self._part_of("payloads")
        await self._db.execute(
            """DELETE FROM payloads p USING inbox i WHERE i.id = p.inbox_id AND p.inbox_id BETWEEN %s AND %s
               AND i.received_at < clock_timestamp() - %s AND (i.state IN ('done', 'superseded') OR i.state = 'dead' AND NOT EXISTS (
                 SELECT FROM dead_letters l WHERE l.inbox_id = i.id AND l.status IN ('open', 'retrying')))""",
            (first, last, self._history),
        )

    async def _drop_file_contents(self) -> None:
        """Remove the content of files that were finished before the retention of raw payloads, `FILES_MAX` at a time.

        The row stays: with it the same file is recognised when it comes again, and its record is still listed.
        """
        await self._db.execute(
            """UPDATE files SET removed_bytes = length(body), body = ''
               FROM (SELECT id FROM files WHERE removed_bytes IS NULL AND ended_at < clock_timestamp() - %s
                     ORDER BY ended_at LIMIT %s FOR UPDATE SKIP LOCKED) due
               WHERE files.id = due.id""",
            (self._history, FILES_MAX),
        )

    async def _part_of(self, table: LiteralString) -> tuple[UUID, UUID]:
        """Return the first and the last id of this pass's part of a table. Ids are hashes, and so are spread evenly.

        A table that is not small has as many parts as a cycle has passes, whatever its size. With parts of a fixed size the
        cycle through a million rows took 100 minutes, which read them 14 times a day.
        """
        row = await self._db.fetch_one(
            "SELECT reltuples::float8 AS rows FROM pg_class WHERE oid = %s::regclass", (table,)
        )
        parts = self._passes if row and row["rows"] > SMALL_TABLE else 1
        part = self._pass % parts
        return UUID(int=(part << 128) // parts), UUID(int=((part + 1 << 128) // parts) - 1)
