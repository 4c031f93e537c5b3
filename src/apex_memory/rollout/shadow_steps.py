"""The steps of a batch of copies: claim → prepare → publish, where publishing stages, verifies, compares and removes.

A copy never touches its event, its document or the breakers of the live path. It is processed by the other path (Temporal
calls these steps, as it calls those of live batches) or by the worker of a candidate build (`process`). One batch is under
way in a process, and while events wait, copies take a small share of the time.
"""

from __future__ import annotations

import asyncio
import uuid
from collections import OrderedDict
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from time import monotonic
from uuid import UUID

import numpy as np

from apex_memory.config import Settings
from apex_memory.errors import ApexError, Misconfigured, RetryLater, Unavailable
from apex_memory.inbox.payload_store import PayloadStore
from apex_memory.model import Event, Manifest, now
from apex_memory.pipeline import Pipeline
from apex_memory.rollout import shadow_queue as queue
from apex_memory.rollout.comparison import Difference, ProcessedEvent, compare
from apex_memory.rollout.shadow_live import LiveEvent, live_events
from apex_memory.rollout.shadow_queue import ShadowCopy
from apex_memory.rollout.shadow_results import ComparisonResult, record
from apex_memory.rollout.subjects import source_subject
from apex_memory.saga.failures import fingerprint, unfinished
from apex_memory.saga.publication import Publication
from apex_memory.saga.stage import Stage
from apex_memory.saga.sweeper import mark_reaped, remove_stages
from apex_memory.sources.base import Source
from apex_memory.stores.base import GraphStore, VectorStore
from apex_memory.stores.postgres import Postgres
from apex_memory.telemetry import logger

# Claims in a row without an outcome, before the copy counts as one that ends its worker.
MOST_ATTEMPTS = 3
MOST_TRIES = 5  # transient failures of a copy, before it counts as failed
WAIT_SECONDS = 15.0  # until a copy is tried again whose store is away
WARM_BATCHES = 8  # prepared batches kept in memory; one that is lost is prepared again
UNREMOVED_MAX = 200  # shadow stages that a store still holds, before no more are opened
REST_SECONDS = 30.0  # longest pause between two batches while events wait
CHECK_SECONDS = 0.5

LIVE_POISON = (
    fingerprint("prepare", unfinished("preparing", 1)),
    fingerprint("stage", unfinished("publishing", 1)),
)
"""Dead letters of events that timed out or ended the worker: their copies would do the same."""


@dataclass(slots=True)
class CopyResult:
    """What became of a batch of copies."""

    equal: int = 0
    different: int = 0
    failed: int = 0
    """Copies that were given up: transient failures, too often."""
    waiting: int = 0
    """Copies that are tried again later."""
    dropped: int = 0


@dataclass(slots=True)
class _PreparedCopy:
    copy: ShadowCopy
    outcome: Manifest | ApexError


@dataclass(slots=True)
class _Work:
    """A batch in this process. Seconds are of the monotonic clock."""

    began: float = field(default_factory=monotonic)
    paused: float = 0.0
    """Seconds that it waited for its turn: these are not the path's."""
    prepare_seconds: float = 0.0
    prepared: list[_PreparedCopy] | None = None
    result: CopyResult = field(default_factory=CopyResult)


@dataclass(frozen=True, slots=True)
class _CopiedSubject:
    subject: str
    shadow: bool | None
    """None for a subject with copies that wait."""


class ShadowSteps:
    """The steps of copies. `publication` has stores with breakers of their own."""

    def __init__(
        self,
        db: Postgres,
        graph: GraphStore,
        vectors: VectorStore,
        publication: Publication,
        payloads: PayloadStore,
        pipeline: Pipeline,
        sources: Mapping[str, Source],
        settings: Settings,
    ) -> None:
        self._db = db
        self._graph = graph
        self._vectors = vectors
        self._publication = publication
        self._payloads = payloads
        self._pipeline = pipeline
        self._sources = sources
        self._lease = settings.lease_seconds
        self._prepare_seconds = settings.prepare_seconds
        self._busy_share = settings.shadow_busy_share
        self._work: OrderedDict[UUID, _Work] = OrderedDict()
        self._turns = asyncio.Lock()
        self._rest_until = 0.0
        self._log = logger(component="shadow")

    async def claim(self, subject: str, build: str = "", *, batch: UUID) -> list[int]:
        """Lease waiting copies to a batch; return their ids. The same batch again gets the same copies."""
        async with self._db.connection() as connection:
            ids = await queue.claim(connection, subject, build, batch=batch, lease=self._lease)
        if ids:
            self._remember(batch)
        return ids

    async def drained_sources(self, sources: Iterable[str]) -> dict[str, bool]:
        """Return for each source whether Temporal drains its copies now. A source that neither has a shadow nor copies is False.

        One with a shadow and without waiting copies is left out: its drain waits by itself.
        """
        subjects = await self._db.fetch_rows(
            _CopiedSubject,
            """SELECT r.subject, r.shadow FROM rollouts r WHERE starts_with(r.subject, 'source:') AND r.shadow
               UNION ALL
               SELECT subject, NULL FROM shadows WHERE state = 'waiting' AND build = '' AND next_at <= clock_timestamp()
               GROUP BY subject""",
        )
        waiting = {copied.subject for copied in subjects if copied.shadow is None}
        shadowed = {copied.subject for copied in subjects if copied.shadow}
        drained: dict[str, bool] = {}
        for source in sources:
            subject = source_subject(source)
            if subject in waiting:
                drained[source] = True
            elif subject not in shadowed:
                drained[source] = False
        return drained

    async def process(self, subject: str, build: str = "") -> CopyResult | None:
        """Process the next batch of copies here, without Temporal; return what that came to, None if none is ready."""
        batch = uuid.uuid4()
        if not await self.claim(subject, build, batch=batch):
            return None
        try:
            await self.prepare(batch)
            return await self.publish(batch)
        except Unavailable:
            raise
        except ApexError as error:
            await self.give_up(batch, str(error))
            return CopyResult()

    async def prepare(self, batch: UUID) -> int:
        """Parse, extract and embed the events of a batch; return how many copies go on."""
        work = self._remember(batch)
        async with self._keep_lease(batch), self._turn(work):
            work.prepared = await self._prepare(batch, work, work.result)
        return len(work.prepared)

    async def publish(self, batch: UUID, *, behind: UUID | None = None) -> CopyResult:
        """Stage, verify, compare and remove the copies of a batch; record and return the results.

        Keeps the lease of the batch that waits behind it, too.
        """
        work = self._remember(batch)
        result = work.result
        batches = [batch, behind] if behind else [batch]
        async with self._keep_lease(*batches), self._turn(work):
            if work.prepared is None:  # it was prepared in another process, or before a crash
                work.prepared = await self._prepare(batch, work, result)
            try:
                if work.prepared:
                    await self._publish(batch, work, work.prepared, result)
            finally:
                self._work.pop(batch, None)
        return result

    async def give_up(self, batch: UUID, reason: str) -> None:
        """Return a batch whose step failed with an unforeseen error; each copy is claimed alone from then on."""
        self._work.pop(batch, None)
        async with self._db.connection() as connection:
            copies = await queue.isolate(connection, batch)
        self._log.error("copies given up", batch=str(batch), copies=copies, reason=reason[:300])

    def _remember(self, batch: UUID) -> _Work:
        work = self._work.setdefault(batch, _Work())
        self._work.move_to_end(batch)
        while len(self._work) > WARM_BATCHES:
            self._work.popitem(last=False)
        return work

    async def _prepare(self, batch: UUID, work: _Work, result: CopyResult) -> list[_PreparedCopy]:
        copies = await self._carriable(batch, result)
        began = monotonic()
        try:
            async with asyncio.timeout(self._prepare_seconds):
                loaded = await self._payloads.load(
                    [copy.event for copy in copies if copy.event is not None]
                )
                pairs = list(zip(copies, loaded, strict=True))
                readable = [
                    (item, self._sources[copy.source].document)
                    for copy, item in pairs
                    if isinstance(item, Event)
                ]
                outcomes = iter(await self._pipeline.prepare(readable, reuse=False))
        except TimeoutError:
            await self.give_up(batch, f"preparing took longer than {self._prepare_seconds:g} s")
            result.waiting += len(copies)
            return []
        work.prepare_seconds = monotonic() - began
        return [
            _PreparedCopy(copy, next(outcomes) if isinstance(item, Event) else item)
            for copy, item in pairs
        ]

    async def _carriable(self, batch: UUID, result: CopyResult) -> list[ShadowCopy]:
        """Return the copies of a batch that can be processed now; drop, postpone or fail the others."""
        async with self._db.connection() as connection:
            copies = await queue.load(connection, batch, LIVE_POISON)
            carriable = []
            for copy in copies:
                reason = self._why_not(copy)
                if reason:
                    result.dropped += await queue.drop(connection, batch, [copy.id], reason)
                elif copy.state not in ("done", "superseded", "dead"):
                    # It was redriven: its next end queues it again.
                    await queue.release(connection, batch, [copy.id], seconds=WAIT_SECONDS)
                    result.waiting += 1
                else:
                    carriable.append(copy)
        ending = [copy for copy in carriable if copy.attempts > MOST_ATTEMPTS]
        if ending:
            await self._record_unfinished(batch, ending, result)
        return [copy for copy in carriable if copy.attempts <= MOST_ATTEMPTS]

    def _why_not(self, copy: ShadowCopy) -> str:
        """Return the reason why a copy cannot be processed at all; empty if it can."""
        if copy.event is None:
            return "payload gone"
        if copy.unfinished:
            return "its event ends workers"
        if copy.source not in self._sources:
            return "source unknown"
        return ""

    async def _record_unfinished(
        self, batch: UUID, copies: Sequence[ShadowCopy], result: CopyResult
    ) -> None:
        error = unfinished("a copy of", MOST_ATTEMPTS)
        prepared = [_PreparedCopy(copy, error) for copy in copies]
        await self._compare(batch, _Work(), prepared, _Staged(), result)

    async def _publish(
        self, batch: UUID, work: _Work, prepared: Sequence[_PreparedCopy], result: CopyResult
    ) -> None:
        """Stage and verify what has a manifest, and compare everything. Removes the stages whatever happens."""
        if await self._unremoved() > UNREMOVED_MAX:
            await self._postpone(batch, prepared, result)
            return
        staged = _Staged()
        for item in prepared:
            if isinstance(item.outcome, Manifest):
                assert item.copy.event is not None  # it was prepared
                event = item.copy.event
                manifest = self._storable(item.outcome)
                staged.stages[item.copy.id] = Stage(
                    uuid.uuid4(), manifest, event.version, event.event_id
                )
        stages = list(staged.stages.values())
        if stages:
            async with self._db.transaction() as connection:
                await self._publication.journal.insert(connection, batch, stages, shadow=True)
        try:
            if stages:
                await self._stage(stages, staged)
            await self._compare(batch, work, prepared, staged, result)
        finally:
            await self._remove(batch, stages)

    async def _stage(self, stages: Sequence[Stage], staged: _Staged) -> None:
        began = monotonic()
        written = await self._publication.write(stages)
        staged.stage_seconds = monotonic() - began
        staged.errors = dict(written.errors)
        began = monotonic()
        good = [stage for stage in stages if stage.id not in staged.errors]
        staged.errors |= await self._publication.verify(good)
        staged.verify_seconds = monotonic() - began

    def _storable(self, manifest: Manifest) -> Manifest:
        """Return the manifest without passages if its vectors have another dimension than the store's."""
        if not manifest.chunks or manifest.vectors.shape[1] == self._vectors.dimension:
            return manifest
        return replace(
            manifest, chunks=(), vectors=np.zeros((0, self._vectors.dimension), np.float32)
        )

    async def _remove(self, batch: UUID, stages: Sequence[Stage]) -> None:
        """Abort stages and remove them from the stores. The sweeper removes what is left after a failure."""
        if not stages:
            return
        await self._publication.journal.abort(batch, stages, "shadow")
        ids = [stage.id for stage in stages]
        if await remove_stages(self._db, ids, self._graph, self._vectors):
            await mark_reaped(self._db, ids, "aborted")

    async def _unremoved(self) -> int:
        row = await self._db.fetch_one(
            "SELECT count(*) AS stages FROM stages WHERE shadow AND state IN ('staging', 'aborted')"
        )
        return int(row["stages"]) if row else 0

    async def _compare(
        self,
        batch: UUID,
        work: _Work,
        prepared: Sequence[_PreparedCopy],
        staged: _Staged,
        result: CopyResult,
    ) -> None:
        """Compare copies with what the live path made of their events, and record the results of those that ended."""
        parents = [
            item.outcome.parent_id if isinstance(item.outcome, Manifest) else None
            for item in prepared
        ]
        async with self._db.connection() as connection:
            live = await live_events(connection, [item.copy.inbox_id for item in prepared], parents)
        results: list[ComparisonResult] = []
        later: list[_PreparedCopy] = []
        tried: list[_PreparedCopy] = []
        for item in prepared:
            error = staged.error_of(item)
            event = live.get(item.copy.inbox_id)
            if event is None or isinstance(error, Unavailable | Misconfigured):
                later.append(item)
            elif isinstance(error, RetryLater) and item.copy.tries + 1 < MOST_TRIES:
                tried.append(item)
            elif isinstance(error, RetryLater):
                results.append(ComparisonResult.of_failed(item.copy.id, error))
            else:
                results.append(await self._result(item, event, error, staged, work))
        await self._postpone(batch, later, result)
        await self._postpone(batch, tried, result, tried=True)
        async with self._db.connection() as connection:
            recorded = await record(connection, batch, results)
        result.equal += recorded.equal
        result.different += recorded.different
        result.failed += recorded.failed

    async def _result(
        self,
        item: _PreparedCopy,
        live: LiveEvent,
        error: ApexError | None,
        staged: _Staged,
        work: _Work,
    ) -> ComparisonResult:
        shadow = _processed(item, live, error, staged.stages.get(item.copy.id), self._vectors)
        differences = await asyncio.to_thread(compare, live.processed, shadow)
        waited = (now() - item.copy.queued_at).total_seconds()
        total = monotonic() - work.began - work.paused
        seconds = {
            "wait": max(0.0, waited - total),
            "prepare": work.prepare_seconds,
            "stage": staged.stage_seconds,
            "verify": staged.verify_seconds,
            "total": total,
        }
        return ComparisonResult.of_compared(
            item.copy.id,
            live=live,
            shadow=shadow,
            differences=_with_reason(differences, error),
            seconds={step: round(value, 6) for step, value in seconds.items()},
            error=error,
        )

    async def _postpone(
        self,
        batch: UUID,
        items: Sequence[_PreparedCopy],
        result: CopyResult,
        *,
        tried: bool = False,
    ) -> None:
        if not items:
            return
        async with self._db.connection() as connection:
            await queue.release(
                connection,
                batch,
                [item.copy.id for item in items],
                seconds=1.0 if tried else WAIT_SECONDS,
                tried=tried,
            )
        result.waiting += len(items)

    @asynccontextmanager
    async def _turn(self, work: _Work) -> AsyncIterator[None]:
        """Run the block alone in this process; while events wait, pause in proportion to what the last block took."""
        waiting_since = monotonic()
        async with self._turns:
            await self._rest()
            began = monotonic()
            work.paused += began - waiting_since
            try:
                yield
            finally:
                busy = monotonic() - began
                rest = busy * (1 / self._busy_share - 1)
                self._rest_until = monotonic() + min(rest, REST_SECONDS)

    async def _rest(self) -> None:
        """Pause until the rest after the last block is over, or no event waits."""
        while True:
            left = self._rest_until - monotonic()
            if left <= 0 or not await self._live_events_wait():
                return
            await asyncio.sleep(min(left, CHECK_SECONDS))

    async def _live_events_wait(self) -> bool:
        row = await self._db.fetch_one(
            """SELECT EXISTS (SELECT FROM inbox WHERE open AND next_at <= clock_timestamp()
                              AND source NOT IN (SELECT name FROM sources WHERE paused)) AS waiting"""
        )
        return bool(row and row["waiting"])

    @asynccontextmanager
    async def _keep_lease(self, *batches: UUID) -> AsyncIterator[None]:
        """Renew the leases of batches inside the block."""
        task = asyncio.create_task(self._renew(batches))
        try:
            yield
        finally:
            task.cancel()

    async def _renew(self, batches: Sequence[UUID]) -> None:
        while True:
            await asyncio.sleep(self._lease / 3)
            try:
                async with self._db.connection() as connection:
                    await queue.renew(connection, batches, lease=self._lease)
            except ApexError as error:
                self._log.warning("lease not renewed", batch=str(batches[0]), reason=str(error))


@dataclass(slots=True)
class _Staged:
    """The stages of a batch by copy id, and the errors by stage id."""

    stages: dict[int, Stage] = field(default_factory=dict)
    errors: dict[UUID, ApexError] = field(default_factory=dict)
    stage_seconds: float = 0.0
    verify_seconds: float = 0.0

    def error_of(self, item: _PreparedCopy) -> ApexError | None:
        if isinstance(item.outcome, ApexError):
            return item.outcome
        stage = self.stages.get(item.copy.id)
        return self.errors.get(stage.id) if stage else None


def _processed(
    item: _PreparedCopy,
    live: LiveEvent,
    error: ApexError | None,
    stage: Stage | None,
    vectors: VectorStore,
) -> ProcessedEvent:
    """Return what the copy came to. A copy that both stores hold would have ended as the order of versions decides."""
    if error is not None:
        return ProcessedEvent(outcome="dead", error=type(error).__name__)
    assert isinstance(item.outcome, Manifest) and stage is not None
    whole = len(stage.manifest.chunks) == len(item.outcome.chunks)
    return ProcessedEvent(
        outcome="superseded" if live.outranked else "done",
        manifest=item.outcome,
        graph=stage.edges_tally,  # verified: the stores hold exactly this
        vectors=stage.chunks_tally if whole else None,
    )


def _with_reason(differences: list[Difference], error: ApexError | None) -> list[Difference]:
    """Return the differences, with the message of a dead copy in that of the outcomes."""
    if error is None:
        return differences
    message = str(error)[:200]
    return [
        replace(item, shadow=f"{item.shadow}: {message}") if item.field == "outcome" else item
        for item in differences
    ]
