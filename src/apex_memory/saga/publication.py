"""Publishing a batch: begin → stage → verify → commit → after.

A batch shares calls, never a fate: each document commits or fails alone. One that a store refuses is
found by bisection; when many are refused alike, the store is the problem, and all wait for it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from uuid import UUID

import numpy as np

from apex_memory.config import Settings
from apex_memory.errors import ApexError, Rejected, RetryLater, Unavailable
from apex_memory.model import Event, Manifest, Tally, Vectors, now
from apex_memory.saga.failures import Disposition, Failure, FailureHandler
from apex_memory.saga.journal import Committed, Ended, Journal
from apex_memory.saga.manifests import Manifests
from apex_memory.saga.retries import ResilientStore
from apex_memory.saga.stage import Stage
from apex_memory.stores.base import GraphStore, VectorStore
from apex_memory.stores.cache import Cache
from apex_memory.stores.postgres import Postgres
from apex_memory.telemetry import ENDED, SEARCHABLE_SECONDS, STEP_SECONDS, logger

SYSTEMIC_SHARE = (
    0.2  # of a batch of at least SYSTEMIC_LEAST, refused alike: the store is at fault, not the data
)
SYSTEMIC_LEAST = 5


@dataclass(slots=True)
class Report:
    """What became of a batch: inbox ids by outcome."""

    prepared: list[UUID] = field(default_factory=list)
    done: list[UUID] = field(default_factory=list)
    superseded: list[UUID] = field(default_factory=list)
    parked: list[UUID] = field(default_factory=list)
    dead: list[UUID] = field(default_factory=list)
    retry: list[UUID] = field(default_factory=list)
    landed: int = 0
    """Events landed by deletions and restorations: more work is ready."""

    def add(self, fates: dict[UUID, Disposition]) -> None:
        for inbox_id, fate in fates.items():
            getattr(self, fate).append(inbox_id)


class Publication:
    def __init__(
        self,
        db: Postgres,
        graph: GraphStore,
        vectors: VectorStore,
        cache: Cache,
        *,
        settings: Settings,
        pipeline: str,
        resilient_stores: dict[str, ResilientStore],
    ) -> None:
        self._db = db
        self._graph = graph
        self._vectors = vectors
        self._cache = cache
        self._guards = resilient_stores
        self._lease = settings.lease_seconds
        self._dimension = vectors.dimension
        self.manifests = Manifests(db)
        self.journal = Journal(db, self.manifests, lease=settings.lease_seconds)
        self.failures = FailureHandler(db, max_attempts=settings.max_attempts, pipeline=pipeline)
        self._log = logger(component="saga")

    async def store_manifests(
        self, batch: UUID, prepared: Sequence[tuple[Event, Manifest | ApexError]]
    ) -> Report:
        """Keep what the pipeline made, before anything is staged; settle what it refused."""
        report = Report()
        manifests = [result for _, result in prepared if isinstance(result, Manifest)]
        async with self._db.transaction() as connection:
            await self.manifests.insert(connection, manifests)
            cursor = await connection.execute(
                """UPDATE inbox SET state = 'prepared', prepared_at = clock_timestamp()
                   FROM (SELECT id FROM inbox WHERE id = ANY(%s) AND open AND batch = %s
                         ORDER BY id FOR NO KEY UPDATE) mine
                   WHERE inbox.id = mine.id RETURNING inbox.id""",
                ([manifest.inbox_id for manifest in manifests], batch),
            )
            report.prepared = [row["id"] for row in await cursor.fetchall()]
        failures = [
            Failure(event.id, result)
            for event, result in prepared
            if not isinstance(result, Manifest)
        ]
        report.add(await self.failures.settle(batch, "prepare", failures))
        return report

    async def publish(self, batch: UUID) -> Report:
        """Bring every prepared event of the batch to an outcome. Safe to run again after any crash."""
        report = Report()
        while True:
            with STEP_SECONDS.labels("begin").time():
                begun = await self.journal.begin(batch)
            report.superseded.extend(begun.superseded)
            _count(begun.ended)
            if not begun.stages:
                return report
            await self._publish_stages(batch, begun.stages, report)

    async def _publish_stages(self, batch: UUID, stages: list[Stage], report: Report) -> None:
        granted = await self._cache.lock(
            [stage.manifest.doc_id for stage in stages], batch, self._lease
        )
        held = [stage for stage in stages if stage.manifest.doc_id in granted]
        busy = [stage for stage in stages if stage.manifest.doc_id not in granted]
        if busy:  # a hint that another worker is at it: leave it to that one, look again soon
            await self.journal.abort(batch, busy, "another worker has the document")
            await self.release(batch, [stage.manifest.inbox_id for stage in busy], seconds=0.5)
        try:
            failed, graph_at, vectors_at = await self._stage_and_verify(held)
            await self._settle(batch, held, failed, report)
            good = [stage for stage in held if stage.id not in failed]
            with STEP_SECONDS.labels("commit").time():
                committed = await self.journal.commit(
                    batch, good, graph_at=graph_at, vectors_at=vectors_at
                )
            await self._after(committed, report)
        finally:
            await self._cache.unlock([stage.manifest.doc_id for stage in held], batch)
            self.manifests.forget(stage.manifest.id for stage in stages)

    async def _settle(
        self, batch: UUID, stages: Sequence[Stage], failed: dict[UUID, ApexError], report: Report
    ) -> None:
        bad = [stage for stage in stages if stage.id in failed]
        if bad:
            await self.journal.abort(batch, bad, str(next(iter(failed.values())))[:300])
            failures = [Failure(stage.manifest.inbox_id, failed[stage.id]) for stage in bad]
            report.add(await self.failures.settle(batch, "stage", failures))

    async def release(self, batch: UUID, ids: Sequence[UUID], *, seconds: float) -> None:
        """Give events of the batch back, ready again in `seconds`; no attempt is consumed."""
        await self._db.execute(
            """UPDATE inbox SET batch = NULL, next_at = clock_timestamp() + make_interval(secs => %s)
               FROM (SELECT id FROM inbox WHERE id = ANY(%s) AND open AND batch = %s
                     ORDER BY id FOR NO KEY UPDATE) mine
               WHERE inbox.id = mine.id""",
            (seconds, list(ids), batch),
        )

    async def _stage_and_verify(
        self, stages: Sequence[Stage]
    ) -> tuple[dict[UUID, ApexError], datetime, datetime]:
        """Errors by stage id, and when the graph and the vectors held the rest durably."""
        with STEP_SECONDS.labels("stage").time():
            (graph_errors, graph_at), (vector_errors, vectors_at) = await asyncio.gather(
                self._write("graph", stages, self._write_graph),
                self._write("vectors", stages, self._write_vectors),
            )
        errors = vector_errors | graph_errors
        with STEP_SECONDS.labels("verify").time():
            errors |= await self.verify([stage for stage in stages if stage.id not in errors])
        return errors, graph_at, vectors_at

    async def stage_and_verify(self, stages: Sequence[Stage]) -> dict[UUID, ApexError]:
        """As for a batch, for stages that repair opens: errors by stage id."""
        errors, _, _ = await self._stage_and_verify(stages)
        return errors

    async def _write(
        self,
        store: str,
        stages: Sequence[Stage],
        write: Callable[[Sequence[Stage]], Awaitable[None]],
    ) -> tuple[dict[UUID, ApexError], datetime]:
        errors = await self._bisect(self._guards[store], stages, write)
        refused = [error for error in errors.values() if isinstance(error, Rejected)]
        if len(stages) >= SYSTEMIC_LEAST and len(refused) > SYSTEMIC_SHARE * len(stages):
            self._log.error(
                "a store refuses much of a batch: parked, not buried",
                store=store,
                refused=len(refused),
                of=len(stages),
            )
            systemic = Unavailable(
                store, f"refuses {len(refused)} of {len(stages)} documents alike ({refused[0]})"
            )
            errors = {
                id: systemic if isinstance(error, Rejected) else error
                for id, error in errors.items()
            }
        return errors, now()

    async def _bisect(
        self,
        guard: ResilientStore,
        stages: Sequence[Stage],
        write: Callable[[Sequence[Stage]], Awaitable[None]],
    ) -> dict[UUID, ApexError]:
        if not stages:
            return {}
        try:
            await guard.call(lambda: write(stages))
        except Rejected as error:
            if len(stages) == 1:
                return {stages[0].id: error}
            middle = len(stages) // 2
            return await self._bisect(guard, stages[:middle], write) | await self._bisect(
                guard, stages[middle:], write
            )
        except (Unavailable, RetryLater) as error:
            return dict.fromkeys((stage.id for stage in stages), error)
        return {}

    async def _write_graph(self, stages: Sequence[Stage]) -> None:
        assertions = [assertion for stage in stages for assertion in stage.assertions()]
        if assertions:
            await self._graph.upsert(assertions)

    async def _write_vectors(self, stages: Sequence[Stage]) -> None:
        points = [point for stage in stages for point in stage.points()]
        if points:
            await self._vectors.upsert(points, self._rows(stages))
            await self._vectors.flush()

    def _rows(self, stages: Sequence[Stage]) -> Vectors:
        rows = [stage.manifest.vectors for stage in stages if len(stage.manifest.chunks)]
        return np.concatenate(rows) if rows else np.zeros((0, self._dimension), np.float32)

    async def verify(self, stages: Sequence[Stage]) -> dict[UUID, ApexError]:
        """Ask both stores what they hold of the stages; errors by stage id where that is not the manifest."""
        if not stages:
            return {}
        ids = [stage.id for stage in stages]
        try:
            in_graph, in_vectors = await asyncio.gather(
                self._guards["graph"].call(lambda: self._graph.tally(ids)),
                self._guards["vectors"].call(lambda: self._vectors.tally(ids)),
            )
        except (Unavailable, RetryLater) as error:
            return dict.fromkeys(ids, error)
        errors: dict[UUID, ApexError] = {}
        for stage in stages:
            for store, found, wanted in (
                ("graph", in_graph.get(stage.id, Tally()), stage.edges_tally),
                ("vectors", in_vectors.get(stage.id, Tally()), stage.chunks_tally),
            ):
                if found != wanted:
                    errors[stage.id] = RetryLater(
                        f"{store}: holds {found.count} of {wanted.count} items of stage {stage.id}, or other content"
                    )
        return errors

    async def _after(self, committed: Committed, report: Report) -> None:
        report.landed += committed.landed
        report.done.extend(committed.done)
        report.superseded.extend(committed.superseded)
        _count(committed.ended)
        if committed.lost:
            self._log.warning(
                "stages lost to another worker",
                events=[str(id) for id in committed.lost[:5]],
                count=len(committed.lost),
            )
        if committed.dropped_stages:
            await self._cache.drop([f"document:{stage}" for stage in committed.dropped_stages])


def _count(ended: Sequence[Ended]) -> None:
    for event in ended:
        ENDED.labels(event.source, event.state).inc()
        if event.state == "done":
            SEARCHABLE_SECONDS.labels(event.source).observe(event.seconds)
