"""The steps of a batch, from inbox to memory: claim → prepare → publish, or give_up."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from itertools import chain
from time import monotonic
from uuid import UUID

from apex_memory.config import Settings
from apex_memory.engines.postgres_space import PostgresSpace
from apex_memory.errors import ApexError, RetryLater
from apex_memory.inbox import Batch, ClaimedEvent, Consumer, Inbox, WorkflowRun
from apex_memory.inbox.payload_store import PayloadStore
from apex_memory.inbox.routing import Path
from apex_memory.model import Event
from apex_memory.pipeline import Pipeline
from apex_memory.pipeline.batch_sizer import BatchSizer
from apex_memory.pipeline.document_files import NotBegun
from apex_memory.saga.failures import Failure, unfinished
from apex_memory.saga.groups import next_group
from apex_memory.saga.publication import BatchResult, Publication
from apex_memory.sources.base import Source
from apex_memory.telemetry import BATCH_EVENTS, CLAIMED, STEP_SECONDS, logger, logs, traces
from apex_memory.telemetry.exemplars import observe, timed
from apex_memory.telemetry.traces import TracedEvent

OUTCOMES = ("done", "superseded", "parked", "dead", "retry")
"""The outcomes of a batch's events, as its line in the log names them."""


class BatchSteps:
    """The steps of a batch. Each is safe to run again, in any process; a batch is named by its id alone."""

    def __init__(
        self,
        inbox: Inbox,
        payloads: PayloadStore,
        pipeline: Pipeline,
        publication: Publication,
        sources: Mapping[str, Source],
        settings: Settings,
        *,
        space: PostgresSpace,
        build: str,
    ) -> None:
        self.build = build
        """The build of Apex that runs the steps."""
        self._inbox = inbox
        self._space = space
        self._payloads = payloads
        self._pipeline = pipeline
        self._publication = publication
        self._sources = sources
        self._lease = settings.lease_seconds
        self._max_attempts = settings.max_attempts
        self._prepare_seconds = settings.prepare_seconds
        self._sizer = BatchSizer(most=settings.batch_max, seconds=settings.batch_seconds)
        self._log = logger(component="steps")

    async def claim(
        self,
        source: str,
        *,
        path: Path = "direct",
        everything: bool = True,
        batch: UUID | None = None,
        run: WorkflowRun | None = None,
    ) -> Batch:
        """Lease what is ready of a source, up to `batch_max` events. The same `batch` again gets the same events.

        `everything` also claims the documents of the other path; the shares decide what it leaves out without it.
        An empty batch means that nothing is ready, or that PostgreSQL has no room for what processing writes.
        """
        if refusal := self._space.refusal():
            self._log.warning("nothing is processed for now", source=source, reason=refusal)
            return Batch(batch or uuid.uuid4(), source, [], more=False)
        consumer = Consumer(path, self.build, everything=everything)
        batch = batch or uuid.uuid4()
        limit = self._sizer.limit(source)
        with traces.following() as followed:
            with traces.step("claim", source=source):
                claim = await self._inbox.claim(
                    source, batch=batch, limit=limit, lease=self._lease, consumer=consumer, run=run
                )
            if traces.enabled():
                followed.events = _traced(source, claim.events)
        if claim.events:
            observe(BATCH_EVENTS.labels(source), len(claim.events))
            CLAIMED.labels(source, path, self.build).inc(len(claim.events))
        return Batch(batch, source, claim.events, more=claim.more)

    async def claim_events(self, source: str, ids: Sequence[UUID], *, batch: UUID) -> list[UUID]:
        """Lease these events of a source to a batch of the direct path; return those that were ready."""
        consumer = Consumer("direct", self.build, everything=True)
        claimed = await self._inbox.claim_events(
            ids, batch=batch, lease=self._lease, consumer=consumer
        )
        CLAIMED.labels(source, "direct", self.build).inc(len(claimed))
        return claimed

    async def prepare(self, source: str, batch: UUID) -> BatchResult:
        """Parse, extract and embed the events of a batch that have no manifest yet, and store the manifests.

        Each group of events is stored before the next one begins. An event whose attempts timed out or ended
        the worker `max_attempts` times becomes a dead letter. Where the files of a group take longer than those of one
        event may, the events whose files were not begun leave the batch, and are ready again at once.
        """
        traced = await self._inbox.traced(batch)
        with logs.bound(source=source, batch=str(batch)), traces.following(traced) as followed:
            result = await self._prepare(source, batch)
            followed.outcomes = result.outcomes()
        return result

    async def _prepare(self, source: str, batch: UUID) -> BatchResult:
        result = BatchResult()
        began = monotonic()
        async with self.keep_lease(batch):
            with timed(STEP_SECONDS.labels("prepare")), traces.step("prepare", source=source):
                while starts := await self._inbox.unprepared(batch):
                    group = next_group(starts)
                    if starts[group[0]] >= self._max_attempts:
                        await self._abandon(batch, group, result)
                    else:
                        await self._prepare_group(source, batch, group, result)
        if result.prepared and not result.retry:
            self._sizer.record(source, len(result.prepared), monotonic() - began)
        return result

    async def _prepare_group(
        self, source: str, batch: UUID, ids: Sequence[UUID], result: BatchResult
    ) -> None:
        events = await self._load(batch, await self._inbox.start(batch, ids), result)
        if not events:
            return
        document = self._sources[source].document
        try:
            async with asyncio.timeout(self._prepare_seconds):
                outcomes = await self._pipeline.prepare([(event, document) for event in events])
        except TimeoutError:
            self._log.warning(
                "preparing timed out",
                source=source,
                count=len(events),
                events=logs.event_ids(event.id for event in events),
            )
            if len(events) == 1:
                error = RetryLater(f"preparing it took longer than {self._prepare_seconds:g} s")
                failure = Failure(events[0].id, error)
                result.add(await self._publication.failures.handle(batch, "prepare", [failure]))
            return  # several events stay started: the loop works on them in smaller groups
        pairs = list(zip(events, outcomes, strict=True))
        begun = [(event, item) for event, item in pairs if not isinstance(item, NotBegun)]
        result.merge(await self._publication.store_manifests(batch, begun))
        await self._postpone(
            batch, [event.id for event, item in pairs if isinstance(item, NotBegun)], result
        )

    async def _load(self, batch: UUID, events: Sequence[Event], result: BatchResult) -> list[Event]:
        """Return the events with their payloads. One whose payload cannot be read now leaves the batch, with the reason."""
        loaded: list[Event] = []
        failures = []
        for event, item in zip(events, await self._payloads.load(events), strict=True):
            if isinstance(item, ApexError):
                failures.append(Failure(event.id, item))
            else:
                loaded.append(item)
        result.add(await self._publication.failures.handle(batch, "prepare", failures))
        return loaded

    async def _postpone(self, batch: UUID, ids: Sequence[UUID], result: BatchResult) -> None:
        """Return to the queue the events whose files were not begun. Consumes no attempt."""
        if not ids:
            return
        self._log.info("files of a batch take long; the rest is prepared later", events=len(ids))
        await self._inbox.release(batch, ids, seconds=0)
        result.retry += ids

    async def _abandon(self, batch: UUID, ids: Sequence[UUID], result: BatchResult) -> None:
        failures = [Failure(id, unfinished("preparing", self._max_attempts)) for id in ids]
        result.add(await self._publication.failures.handle(batch, "prepare", failures))

    async def publish(self, batch: UUID, *, behind: UUID | None = None) -> BatchResult:
        """Stage, verify and flip the prepared events of a batch.

        Keeps the lease of the batch that waits behind it, too.
        """
        batches = [batch, behind] if behind else [batch]
        with logs.bound(batch=str(batch)):
            with traces.following(await self._inbox.traced(batch)) as followed:
                async with self.keep_lease(*batches):
                    result = await self._publication.publish(batch)
                followed.outcomes = result.outcomes()
            self._log_batch(result)
        return result

    def _log_batch(self, result: BatchResult) -> None:
        """Log one line for a batch, with the ids of its first events, so that the log of an event leads to its batch."""
        outcomes = {name: getattr(result, name) for name in OUTCOMES}
        ids = list(chain.from_iterable(outcomes.values()))
        if ids:
            counts = {name: len(ended) for name, ended in outcomes.items() if ended}
            self._log.info("batch published", **counts, events=logs.event_ids(ids))

    async def give_up(self, source: str, batch: UUID, step: str, reason: str) -> None:
        """Take back a batch whose step failed with an unforeseen error.

        A single event has failed an attempt, and becomes a dead letter in the end. Among several, any may be
        the cause: they are ready again at once and are claimed one at a time, so that it fails alone.
        """
        events = await self._inbox.owned(batch)
        self._log.error(
            "batch given up",
            source=source,
            batch=str(batch),
            step=step,
            count=len(events),
            events=logs.event_ids(events),
        )
        if len(events) == 1:
            error = RetryLater(reason, remedy="the worker's log says where")
            await self._publication.failures.handle(batch, step, [Failure(events[0], error)])
        else:
            self._sizer.isolate(source, len(events))
            await self._inbox.release(batch, events, seconds=0)

    async def release(self, batch: UUID) -> None:
        """Return every event of a batch to the queue, ready at once. Consumes no attempt."""
        await self._inbox.release(batch, await self._inbox.owned(batch), seconds=0)

    def keep_lease(self, *batches: UUID) -> AbstractAsyncContextManager[None]:
        """Renew the leases of batches inside the block."""
        return self._inbox.keeping(*batches, lease=self._lease)


def _traced(source: str, events: Sequence[ClaimedEvent]) -> list[TracedEvent]:
    """Return those of the claimed events whose trace is recorded."""
    return [
        TracedEvent(event.id, source, event.trace_parent)
        for event in events
        if event.trace_parent and traces.sampled_context(event.trace_parent)
    ]
