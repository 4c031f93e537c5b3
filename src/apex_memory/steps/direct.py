"""The direct path: the steps of a batch in a plain loop, without Temporal."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from uuid import UUID

from apex_memory.errors import ApexError, RetryLater, Unavailable
from apex_memory.inbox import WorkflowRun
from apex_memory.saga.publication import BatchResult
from apex_memory.steps.batches import BatchSteps
from apex_memory.telemetry import logger, traces
from apex_memory.telemetry.logs import unforeseen
from apex_memory.telemetry.traces import BatchSpan

ATTEMPTS = 5  # of a step that PostgreSQL's absence ends; then its lease runs out
WAIT_SECONDS = 0.5  # before the second attempt; it doubles each time: 7.5 s in all
RELEASE_SECONDS = 2.0  # for returning a batch whose drain is cancelled


def _never() -> bool:
    return False


class DirectPath:
    def __init__(self, steps: BatchSteps) -> None:
        self._steps = steps
        self._log = logger(component="direct")

    async def drain(
        self,
        source: str,
        *,
        everything: bool = True,
        run: WorkflowRun | None = None,
        pause: Callable[[], bool] = _never,
    ) -> int:
        """Work through a source's events until none is ready, or until `pause` is true; return the number of events.

        `everything` takes the documents of both paths; without it, the share of the source decides.

        While a full batch is published the next is prepared, never more than that one: batches of a source are
        published in the order in which they were claimed. A step that fails permanently gives its batch up, which
        counts as a failed attempt. Raises `Unavailable` and `RetryLater` after several attempts of a step.
        """
        with traces.untraced():
            return await self._drain(source, everything, run, pause)

    async def _drain(
        self, source: str, everything: bool, run: WorkflowRun | None, pause: Callable[[], bool]
    ) -> int:
        events = 0
        owned: list[UUID] = []
        publishing: asyncio.Task[None] | None = None
        try:
            while not pause():
                batch = await self._steps.claim(source, everything=everything, run=run)
                events += len(batch.events)
                span = BatchSpan(source, str(batch.id), len(batch.events), batch.trace_parents)
                if batch.events:
                    owned.append(batch.id)
                    with span.current():
                        await self._prepare(source, batch.id)
                elif publishing is None:
                    return events
                if publishing:
                    await self._wait_for(publishing, behind=batch.id)
                    publishing = None
                    owned = owned[-1:]
                if batch.events:
                    publishing = asyncio.create_task(self._publish_in(span, source, batch.id))
                if publishing and not batch.more:
                    await publishing
                    publishing = None
                    owned.clear()
            return events
        except asyncio.CancelledError:
            if publishing:
                publishing.cancel()
                await asyncio.wait([publishing])
                publishing = None
            await self._return_to_queue(owned)
            raise
        finally:
            if publishing:
                await publishing

    async def process(self, source: str, ids: Sequence[UUID]) -> list[UUID]:
        """Process these events of a source from inbox to memory now, whatever the shares; return those that were ready.

        The others are final, or another worker has them.
        """
        batch = uuid.uuid4()
        claimed = await self._steps.claim_events(source, ids, batch=batch)
        if claimed:
            try:
                await self._prepare(source, batch)
                await self._publish(source, batch)
            except asyncio.CancelledError:
                await self._return_to_queue([batch])
                raise
        return claimed

    async def _prepare(self, source: str, batch: UUID) -> None:
        await self._step(source, batch, "prepare", lambda: self._steps.prepare(source, batch))

    async def _publish_in(self, span: BatchSpan, source: str, batch: UUID) -> None:
        try:
            with span.current():
                await self._publish(source, batch)
        finally:
            span.end()

    async def _publish(self, source: str, batch: UUID) -> None:
        await self._step(source, batch, "publish", lambda: self._steps.publish(batch))

    async def _step(
        self, source: str, batch: UUID, step: str, work: Callable[[], Awaitable[BatchResult]]
    ) -> None:
        """Run a step of a batch, again while PostgreSQL is away for a moment. Give the batch up when it fails permanently."""
        wait = WAIT_SECONDS
        for attempt in range(1, ATTEMPTS + 1):
            try:
                await work()
                return
            except (Unavailable, RetryLater) as error:
                if attempt == ATTEMPTS:
                    raise
                self._log.warning(
                    "step failed", step=step, source=source, attempt=attempt, reason=str(error)
                )
                await asyncio.sleep(wait)
                wait *= 2
            except ApexError as error:
                await self._steps.give_up(source, batch, step, str(error))
                return
            except Exception as error:  # noqa: BLE001 (the outermost frame of a step, whose message may quote data)
                self._log.error(
                    "step failed unexpectedly",
                    step=step,
                    source=source,
                    **unforeseen(error),
                )
                reason = f"{type(error).__name__} in {step}: see the worker's log"
                await self._steps.give_up(source, batch, step, reason)
                return

    async def _wait_for(self, publishing: asyncio.Task[None], *, behind: UUID) -> None:
        """Wait until a batch is published. If that fails, release the batch behind it for others."""
        async with self._steps.keep_lease(behind):
            await asyncio.wait([publishing])
        if publishing.exception():
            await self._steps.release(behind)
        await publishing

    async def _return_to_queue(self, batches: Sequence[UUID]) -> None:
        """Make the events of batches ready for others, so that a stop costs them no lease. Not worth waiting for."""
        with suppress(ApexError, TimeoutError):
            async with asyncio.timeout(RELEASE_SECONDS):
                for batch in batches:
                    await self._steps.release(batch)
