"""The steps of a batch, from inbox to memory: claim → prepare → publish, or give_up."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from time import monotonic
from uuid import UUID

from apex_memory.config import Settings
from apex_memory.errors import RetryLater
from apex_memory.inbox import Batch, Inbox, Run
from apex_memory.pipeline import Pipeline
from apex_memory.pipeline.batch_sizer import BatchSizer
from apex_memory.saga.failures import Failure, unfinished
from apex_memory.saga.groups import next_group
from apex_memory.saga.publication import BatchResult, Publication
from apex_memory.sources.base import Source
from apex_memory.telemetry import BATCH_EVENTS, STEP_SECONDS, logger


class BatchSteps:
    """The steps of a batch. Each is safe to run again, in any process; a batch is named by its id alone."""

    def __init__(
        self,
        inbox: Inbox,
        pipeline: Pipeline,
        publication: Publication,
        sources: Mapping[str, Source],
        settings: Settings,
    ) -> None:
        self._inbox = inbox
        self._pipeline = pipeline
        self._publication = publication
        self._sources = sources
        self._lease = settings.lease_seconds
        self._max_attempts = settings.max_attempts
        self._prepare_seconds = settings.prepare_seconds
        self._sizer = BatchSizer(most=settings.batch_max, seconds=settings.batch_seconds)
        self._log = logger(component="steps")

    async def claim(
        self, source: str, *, batch: UUID | None = None, run: Run | None = None
    ) -> Batch:
        """Lease what is ready of a source, up to `batch_max` events. The same `batch` again gets the same events.

        An empty batch means that nothing is ready.
        """
        batch = batch or uuid.uuid4()
        limit = self._sizer.limit(source)
        claim = await self._inbox.claim(
            source, batch=batch, limit=limit, lease=self._lease, run=run
        )
        if claim.events:
            BATCH_EVENTS.labels(source).observe(len(claim.events))
        return Batch(batch, source, claim.events, more=claim.more)

    async def prepare(self, source: str, batch: UUID) -> BatchResult:
        """Parse, extract and embed the events of a batch that have no manifest yet, and store the manifests.

        Each group of events is stored before the next one begins. An event whose attempts timed out or ended
        the worker `max_attempts` times becomes a dead letter.
        """
        result = BatchResult()
        began = monotonic()
        async with self.keep_lease(batch):
            with STEP_SECONDS.labels("prepare").time():
                while starts := await self._inbox.unprepared(batch):
                    group = next_group(starts)
                    if starts[group[0]] >= self._max_attempts:
                        await self._abandon(batch, group, result)
                    else:
                        await self._prepare_group(source, batch, group, result)
        if result.prepared:
            self._sizer.record(source, len(result.prepared), monotonic() - began)
        return result

    async def _prepare_group(
        self, source: str, batch: UUID, ids: Sequence[UUID], result: BatchResult
    ) -> None:
        events = await self._inbox.start(batch, ids)
        document = self._sources[source].document
        try:
            async with asyncio.timeout(self._prepare_seconds):
                outcomes = await self._pipeline.prepare([(event, document) for event in events])
        except TimeoutError:
            self._log.warning("preparing timed out", source=source, events=len(events))
            if len(events) == 1:
                error = RetryLater(f"preparing it took longer than {self._prepare_seconds:g} s")
                failure = Failure(events[0].id, error)
                result.add(await self._publication.failures.handle(batch, "prepare", [failure]))
            return  # several events stay started: the loop works on them in smaller groups
        result.merge(
            await self._publication.store_manifests(batch, list(zip(events, outcomes, strict=True)))
        )

    async def _abandon(self, batch: UUID, ids: Sequence[UUID], result: BatchResult) -> None:
        failures = [Failure(id, unfinished("preparing", self._max_attempts)) for id in ids]
        result.add(await self._publication.failures.handle(batch, "prepare", failures))

    async def publish(self, batch: UUID, *, behind: UUID | None = None) -> BatchResult:
        """Stage, verify and flip the prepared events of a batch.

        Keeps the lease of the batch that waits behind it, too.
        """
        batches = [batch, behind] if behind else [batch]
        async with self.keep_lease(*batches):
            return await self._publication.publish(batch)

    async def give_up(self, source: str, batch: UUID, step: str, reason: str) -> None:
        """Take back a batch whose step failed with an unforeseen error.

        A single event has failed an attempt, and becomes a dead letter in the end. Among several, any may be
        the cause: they are ready again at once and are claimed one at a time, so that it fails alone.
        """
        events = await self._inbox.owned(batch)
        self._log.error("batch given up", source=source, step=step, events=len(events))
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
