"""The direct path: the steps of a batch in a plain loop, without Temporal."""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from uuid import UUID

from apex_memory.errors import ApexError
from apex_memory.inbox import Inbox, Run
from apex_memory.saga.publication import BatchResult
from apex_memory.steps.batches import BatchSteps
from apex_memory.telemetry import STALLS, logger

STALLED_SECONDS = (
    60.0  # after that long without a live lease, ready events are worked on by the direct path
)
CHECK_SECONDS = 10.0
SOURCES_AT_ONCE = 3  # so that a source with a long backlog does not keep the others waiting


class DirectPath:
    def __init__(self, steps: BatchSteps, inbox: Inbox, sources: Collection[str]) -> None:
        self._steps = steps
        self._inbox = inbox
        self._sources = sources
        self._log = logger(component="direct")

    async def drain(self, source: str, *, run: Run | None = None) -> int:
        """Work through a source's events until none is ready; return the number of events.

        While a full batch is published the next is prepared, never more than that one: batches of a source are
        published in the order in which they were claimed.
        """
        events = 0
        publishing: asyncio.Task[BatchResult] | None = None
        try:
            while True:
                batch = await self._steps.claim(source, run=run)
                events += len(batch.events)
                if batch.events:
                    await self._steps.prepare(source, batch.id)
                elif publishing is None:
                    return events
                if publishing:
                    await self._wait_for(publishing, behind=batch.id)
                    publishing = None
                if batch.events:
                    publishing = asyncio.create_task(self._steps.publish(batch.id))
                if publishing and not batch.more:
                    await publishing
                    publishing = None
        except asyncio.CancelledError:
            if publishing:
                publishing.cancel()
            raise
        finally:
            if publishing:
                await publishing

    async def drain_stalled(self, *, seconds: float = STALLED_SECONDS) -> dict[str, int]:
        """Drain the sources whose ready events nobody works on for over `seconds`; return the events by source.

        Whatever sequences the steps otherwise may be down or stuck; events are claimed by lease, so it does no
        harm when it recovers meanwhile. A source that fails does not keep the others from their turn.
        """
        stalled = await self._inbox.stalled(seconds=seconds)
        drained: dict[str, int] = {}
        turns = asyncio.Semaphore(SOURCES_AT_ONCE)

        async def drain(source: str, waiting: float) -> None:
            async with turns:
                self._log.warning(
                    "a source is stalled; the direct path drains it",
                    source=source,
                    seconds=round(waiting),
                )
                STALLS.labels(source).inc()
                try:
                    drained[source] = await self.drain(source)
                except ApexError as error:
                    self._log.error(
                        "draining failed", source=source, reason=str(error), remedy=error.remedy
                    )

        async with asyncio.TaskGroup() as group:
            for source, waiting in stalled.items():
                if source in self._sources:
                    group.create_task(drain(source, waiting))
        return drained

    async def watch(self) -> None:
        """Run for ever: drain what stalls."""
        while True:
            await asyncio.sleep(CHECK_SECONDS)
            try:
                await self.drain_stalled()
            except ApexError as error:
                self._log.warning("stalled sources not checked", reason=str(error))

    async def _wait_for(self, publishing: asyncio.Task[BatchResult], *, behind: UUID) -> None:
        """Wait until a batch is published. If that fails, release the batch behind it for others."""
        async with self._steps.keep_lease(behind):
            await asyncio.wait([publishing])
        if publishing.exception():
            await self._steps.release(behind)
        await publishing
