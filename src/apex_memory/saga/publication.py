"""Publishing a batch: begin → stage → verify → commit → after.

Documents of a batch share calls, not outcomes: each commits or fails alone. A document that a store refuses
is isolated by bisection; when a store refuses many alike, the store is the problem, and all wait for it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from uuid import UUID

import numpy as np

from apex_memory.config import Settings
from apex_memory.errors import ApexError, Rejected, RetryLater, Unavailable
from apex_memory.inbox import leases, transitions
from apex_memory.inbox.transitions import EndedEvent
from apex_memory.model import Event, GraphAssertion, Manifest, Tally, VectorPoint, Vectors, now
from apex_memory.saga.failures import Disposition, Failure, FailureHandler, unfinished
from apex_memory.saga.journal import CommitResult, Journal
from apex_memory.saga.manifests import Manifests
from apex_memory.saga.retries import ResilientStore
from apex_memory.saga.stage import Stage
from apex_memory.stores.base import GraphStore, VectorStore
from apex_memory.stores.cache import Cache
from apex_memory.stores.postgres import Postgres
from apex_memory.telemetry import ENDED, SEARCHABLE_SECONDS, STEP_SECONDS, logger, traces
from apex_memory.telemetry.exemplars import observe, timed

# A store that refuses more than this share of a batch (of at least so many documents) is itself at fault.
SYSTEMIC_SHARE = 0.2
SYSTEMIC_LEAST = 5
BUSY_SECONDS = 0.5  # until a document that another worker publishes is tried again

# Most items of one call to a store. The size of a call is bounded, so that a call that exceeds its time limit says
# something about the store, which is what its breaker counts, and nothing about the size of a document.
POINTS_PER_CALL = 500
ASSERTIONS_PER_CALL = 2_000

WriteStages = Callable[[Sequence[Stage]], Awaitable[None]]


@dataclass(slots=True)
class BatchResult:
    """What became of a batch: inbox ids by outcome."""

    prepared: list[UUID] = field(default_factory=list)
    done: list[UUID] = field(default_factory=list)
    superseded: list[UUID] = field(default_factory=list)
    parked: list[UUID] = field(default_factory=list)
    dead: list[UUID] = field(default_factory=list)
    retry: list[UUID] = field(default_factory=list)
    landed: int = 0
    """Events landed by deletions and restorations, so that more work is ready."""

    def merge(self, other: BatchResult) -> None:
        """Add the outcomes of a part of the batch."""
        self.prepared += other.prepared
        self.done += other.done
        self.superseded += other.superseded
        self.parked += other.parked
        self.dead += other.dead
        self.retry += other.retry
        self.landed += other.landed

    def outcomes(self) -> dict[UUID, str]:
        """Return the outcome of each event that has ended: done, superseded or dead."""
        return (
            dict.fromkeys(self.done, "done")
            | dict.fromkeys(self.superseded, "superseded")
            | dict.fromkeys(self.dead, "dead")
        )

    def add(self, dispositions: Mapping[UUID, Disposition]) -> None:
        """Add what was decided about failed events."""
        for inbox_id, disposition in dispositions.items():
            getattr(self, disposition).append(inbox_id)


@dataclass(frozen=True, slots=True)
class StagedBatch:
    """What staging came to: errors by stage id, and when each store held the other stages durably."""

    errors: dict[UUID, ApexError]
    graph_at: datetime
    vectors_at: datetime


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
        resilient_stores: Mapping[str, ResilientStore],
        step_prefix: str = "",
    ) -> None:
        """`step_prefix` begins the names of the steps in the metrics, so that copies do not count as live batches."""
        self._db = db
        self._step_prefix = step_prefix
        self._graph = graph
        self._vectors = vectors
        self._cache = cache
        self._resilient_stores = resilient_stores
        self.lease = settings.lease_seconds
        self._dimension = vectors.dimension
        self.manifests = Manifests()
        self._max_attempts = settings.max_attempts
        self.journal = Journal(
            db,
            self.manifests,
            lease=settings.lease_seconds,
            pipeline=pipeline,
            max_starts=settings.max_attempts,
        )
        self.failures = FailureHandler(db, max_attempts=settings.max_attempts, pipeline=pipeline)
        self._log = logger(component="saga")

    async def store_manifests(
        self, batch: UUID, prepared: Sequence[tuple[Event, Manifest | ApexError]]
    ) -> BatchResult:
        """Store what the pipeline made of each event, before anything is staged; return the outcomes.

        Handles what the pipeline refused.
        """
        result = BatchResult()
        manifests: list[Manifest] = []
        failures: list[Failure] = []
        for event, outcome in prepared:
            if isinstance(outcome, Manifest):
                manifests.append(outcome)
            else:
                failures.append(Failure(event.id, outcome))
        async with self._db.transaction() as connection:
            await self.manifests.insert(connection, manifests)
            result.prepared = await transitions.mark_prepared(
                connection, batch, [manifest.inbox_id for manifest in manifests]
            )
        result.add(await self.failures.handle(batch, "prepare", failures))
        return result

    async def publish(self, batch: UUID) -> BatchResult:
        """Bring every prepared event of the batch to an outcome; return the outcomes. Safe to run again after any crash."""
        result = BatchResult()
        while True:
            with timed(STEP_SECONDS.labels("begin")), traces.step("begin"):
                begun = await self.journal.begin(batch)
            result.superseded.extend(begun.superseded)
            _count(begun.ended)
            if begun.exhausted:
                error = unfinished("publishing", self._max_attempts)
                failures = [Failure(id, error) for id in begun.exhausted]
                result.add(await self.failures.handle(batch, "stage", failures))
            if begun.stages:
                await self._publish_stages(batch, begun.stages, result)
            elif not begun.exhausted:
                return result

    async def _publish_stages(
        self, batch: UUID, stages: Sequence[Stage], result: BatchResult
    ) -> None:
        locked = await self._cache.lock(
            [stage.manifest.doc_id for stage in stages], batch, self.lease
        )
        held = [stage for stage in stages if stage.manifest.doc_id in locked]
        busy = [stage for stage in stages if stage.manifest.doc_id not in locked]
        if busy:  # the lock hints that another worker publishes the document: leave it to that one
            await self.journal.abort(batch, busy, "another worker has the document")
            ids = [stage.manifest.inbox_id for stage in busy]
            async with self._db.connection() as connection:
                await leases.release(connection, batch, ids, seconds=BUSY_SECONDS)
        try:
            staged = await self._stage_and_verify(held)
            await self._handle_failures(batch, held, staged.errors, result)
            good = [stage for stage in held if stage.id not in staged.errors]
            with timed(STEP_SECONDS.labels("commit")), traces.step("flip", stages=len(good)):
                committed = await self.journal.commit(
                    batch, good, graph_at=staged.graph_at, vectors_at=staged.vectors_at
                )
            await self._after(committed, result)
        finally:
            await self._cache.unlock([stage.manifest.doc_id for stage in held], batch)
            self.manifests.forget(stage.manifest.id for stage in stages)

    async def _handle_failures(
        self,
        batch: UUID,
        stages: Sequence[Stage],
        errors: Mapping[UUID, ApexError],
        result: BatchResult,
    ) -> None:
        failed = [stage for stage in stages if stage.id in errors]
        if not failed:
            return
        await self.journal.abort(batch, failed, str(errors[failed[0].id])[:300])
        failures = [Failure(stage.manifest.inbox_id, errors[stage.id]) for stage in failed]
        result.add(await self.failures.handle(batch, "stage", failures))

    async def stage_and_verify(self, stages: Sequence[Stage]) -> dict[UUID, ApexError]:
        """Write stages that a repair opened to both stores and verify them; return errors by stage id."""
        return (await self._stage_and_verify(stages)).errors

    async def _stage_and_verify(self, stages: Sequence[Stage]) -> StagedBatch:
        staged = await self.write(stages)
        errors = staged.errors
        with timed(STEP_SECONDS.labels(f"{self._step_prefix}verify")), traces.step("verify"):
            errors |= await self.verify([stage for stage in stages if stage.id not in errors])
        return staged

    async def write(self, stages: Sequence[Stage]) -> StagedBatch:
        """Write stages to both stores, durably, without verifying them; return what staging came to."""
        with timed(STEP_SECONDS.labels(f"{self._step_prefix}stage")):
            (graph_errors, graph_at), (vector_errors, vectors_at) = await asyncio.gather(
                self._write("graph", stages, self._write_graph),
                self._write("vectors", stages, self._write_vectors),
            )
        return StagedBatch(vector_errors | graph_errors, graph_at, vectors_at)

    async def write_again(self, store: str, stages: Sequence[Stage]) -> dict[UUID, ApexError]:
        """Write committed stages to one store again, durably; return errors by stage id."""
        write = self._write_graph if store == "graph" else self._write_vectors
        errors, _ = await self._write(store, stages, write)
        return errors

    async def _write(
        self, store: str, stages: Sequence[Stage], write: WriteStages
    ) -> tuple[dict[UUID, ApexError], datetime]:
        """Write stages to one store; return errors by stage id, and when the rest was durable."""
        with traces.step(f"stage {store}", stages=len(stages)):
            errors = await self._bisect(stages, write)
        rejections = [error for error in errors.values() if isinstance(error, Rejected)]
        if len(stages) >= SYSTEMIC_LEAST and len(rejections) > SYSTEMIC_SHARE * len(stages):
            self._log.error(
                "a store refuses much of a batch: its events are parked, not dead letters",
                store=store,
                refused=len(rejections),
                of=len(stages),
            )
            systemic = Unavailable(
                store, f"refuses {len(rejections)} of {len(stages)} documents ({rejections[0]})"
            )
            for stage_id, error in errors.items():
                if isinstance(error, Rejected):
                    errors[stage_id] = systemic
        return errors, now()

    async def _bisect(self, stages: Sequence[Stage], write: WriteStages) -> dict[UUID, ApexError]:
        """Write stages together; halve them while the store refuses them. Return errors by stage id."""
        if not stages:
            return {}
        try:
            await write(stages)
        except Rejected as error:
            if len(stages) == 1:
                return {stages[0].id: error}
            middle = len(stages) // 2
            first_half = await self._bisect(stages[:middle], write)
            second_half = await self._bisect(stages[middle:], write)
            return first_half | second_half
        except (Unavailable, RetryLater) as error:
            return dict.fromkeys((stage.id for stage in stages), error)
        return {}

    async def _write_graph(self, stages: Sequence[Stage]) -> None:
        assertions: list[GraphAssertion] = []
        for stage in stages:
            assertions.extend(stage.assertions())
        for first in range(0, len(assertions), ASSERTIONS_PER_CALL):
            part = assertions[first : first + ASSERTIONS_PER_CALL]
            await self._resilient_stores["graph"].call(partial(self._graph.upsert, part))

    async def _write_vectors(self, stages: Sequence[Stage]) -> None:
        points: list[VectorPoint] = []
        for stage in stages:
            points.extend(stage.points())
        if not points:
            return
        rows = self._rows(stages)
        store = self._resilient_stores["vectors"]
        for first in range(0, len(points), POINTS_PER_CALL):
            part = slice(first, first + POINTS_PER_CALL)
            await store.call(partial(self._vectors.upsert, points[part], rows[part]))
        await store.call(self._vectors.flush)

    def _rows(self, stages: Sequence[Stage]) -> Vectors:
        """Return the vectors of all stages, shape (chunks, dimension)."""
        rows = [stage.manifest.vectors for stage in stages if len(stage.manifest.chunks)]
        return np.concatenate(rows) if rows else np.zeros((0, self._dimension), np.float32)

    async def verify(self, stages: Sequence[Stage]) -> dict[UUID, ApexError]:
        """Compare the tallies of both stores with the manifests; return errors by stage id where they differ."""
        if not stages:
            return {}
        ids = [stage.id for stage in stages]
        try:
            in_graph, in_vectors = await asyncio.gather(
                self._resilient_stores["graph"].call(lambda: self._graph.tally(ids)),
                self._resilient_stores["vectors"].call(lambda: self._vectors.tally(ids)),
            )
        except (Unavailable, RetryLater) as error:
            return dict.fromkeys(ids, error)
        errors: dict[UUID, ApexError] = {}
        for stage in stages:
            for store, held, expected in (
                ("graph", in_graph.get(stage.id, Tally()), stage.edges_tally),
                ("vectors", in_vectors.get(stage.id, Tally()), stage.chunks_tally),
            ):
                if held != expected:
                    errors[stage.id] = RetryLater(
                        f"{store}: holds {held.count} of {expected.count} items of stage {stage.id}, or other content"
                    )
        return errors

    async def _after(self, committed: CommitResult, result: BatchResult) -> None:
        """Count, log, and drop what the cache holds of the stages that readers no longer see."""
        result.landed += committed.landed
        result.done.extend(committed.done)
        result.superseded.extend(committed.superseded)
        _count(committed.ended)
        if committed.lost:
            self._log.warning(
                "stages lost to another worker",
                events=[str(id) for id in committed.lost[:5]],
                count=len(committed.lost),
            )
        if committed.dropped_stages:
            await self._cache.drop([f"document:{stage}" for stage in committed.dropped_stages])


def _count(ended: Sequence[EndedEvent]) -> None:
    for event in ended:
        ENDED.labels(event.source, event.state).inc()
        if event.state == "done":
            observe(SEARCHABLE_SECONDS.labels(event.source), event.seconds)
