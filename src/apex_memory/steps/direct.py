"""The direct path: the steps of a batch in a plain loop, without Temporal."""

from __future__ import annotations

import asyncio
from uuid import UUID

from apex_memory.inbox import Run
from apex_memory.saga.publication import BatchResult
from apex_memory.steps.batches import BatchSteps


class DirectPath:
    def __init__(self, steps: BatchSteps) -> None:
        self._steps = steps

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

    async def _wait_for(self, publishing: asyncio.Task[BatchResult], *, behind: UUID) -> None:
        """Wait until a batch is published. If that fails, release the batch behind it for others."""
        async with self._steps.keep_lease(behind):
            await asyncio.wait([publishing])
        if publishing.exception():
            await self._steps.release(behind)
        await publishing
