"""The steps as Temporal runs them: each calls `app`, and answers with ids and counts."""

from __future__ import annotations

from typing import TYPE_CHECKING
from uuid import UUID

from temporalio import activity

from apex_memory.errors import ApexError
from apex_memory.flows.burst import GRAVITY
from apex_memory.flows.drains import Drains
from apex_memory.flows.heartbeat import heartbeating
from apex_memory.flows.orders import (
    SHOWN,
    BatchOrder,
    ClaimedBatch,
    ClaimOrder,
    EventName,
    GivenUp,
    Greeting,
    ReconcileReport,
    StepReport,
    StoreOrder,
    SweepReport,
)
from apex_memory.flows.pulls import Pulling
from apex_memory.inbox import Run
from apex_memory.telemetry import logger

if TYPE_CHECKING:  # `workflows` names the activities, and must not load every engine for that
    from apex_memory.app import App
    from apex_memory.saga.publication import Report


class Activities:
    """All activities of a worker, around one opened `App`."""

    def __init__(self, app: App, drains: Drains, pulling: Pulling, *, build: str) -> None:
        self._app = app
        self._drains = drains
        self._pulling = pulling
        self._build = build

    @activity.defn
    async def claim(self, order: ClaimOrder) -> ClaimedBatch:
        info = activity.info()
        run = Run(info.workflow_id or "", info.workflow_run_id or "")
        batch = await self._app.claim(order.source, batch=UUID(order.batch), run=run)
        return ClaimedBatch(
            str(batch.id),
            len(batch.events),
            batch.more,
            [EventName(str(event.id), event.event_id) for event in batch.events[:SHOWN]],
        )

    @activity.defn
    async def prepare(self, order: BatchOrder) -> StepReport:
        async with heartbeating():
            return _report(await self._app.prepare(order.source, UUID(order.batch)))

    @activity.defn
    async def publish(self, order: BatchOrder) -> StepReport:
        async with heartbeating():
            behind = UUID(order.behind) if order.behind else None
            return _report(await self._app.publish(UUID(order.batch), behind=behind))

    @activity.defn
    async def give_up(self, order: GivenUp) -> None:
        """Take back a batch that a step failed on."""
        await self._app.give_up(order.source, UUID(order.batch), order.step, order.reason)

    @activity.defn
    async def sweep(self) -> SweepReport:
        """Put right what was left behind, then wake the drain of every source that has something ready."""
        async with heartbeating():
            swept = await self._app.sweep()
            ready = await self._app.inbox.ready()
            woken = {source: n for source, n in ready.items() if source in self._app.sources}
            if len(woken) < len(ready):
                logger(room="flows").warning(
                    "events of sources that are not loaded wait",
                    sources=sorted(set(ready) - set(woken)),
                )
            for source in woken:
                await self._drains.wake(source)
            for source, id in await self._app.backfills.running():
                if (
                    source in self._app.sources
                ):  # ordered while Temporal was away, or its run is lost
                    await self._pulling.backfill(source, id)
            return SweepReport(swept.expired, swept.removed, swept.unparked, woken)

    @activity.defn
    async def collect(self) -> int:
        async with heartbeating():
            return await self._app.collect()

    @activity.defn
    async def reconcile(self, order: StoreOrder) -> ReconcileReport:
        async with heartbeating():
            checked = await self._app.recovery.reconcile(order.store)
            return ReconcileReport(
                checked.store,
                checked.stages,
                checked.repaired,
                checked.removed,
                checked.left,
                len(checked.errors),
            )

    @activity.defn
    async def greet(self) -> Greeting:
        """Ask every store for its version. One that is away is an answer too."""
        stores, away = {}, {}
        for store in self._app.stores:
            try:
                await store.ping()
                stores[store.name] = await store.version()
            except ApexError as error:
                away[store.name] = str(error)
        return Greeting(self._build, stores, away)


def _report(report: Report) -> StepReport:
    """Counts of all, and the first few ids, the gravest outcomes first."""
    by_outcome = {outcome: ids for outcome in GRAVITY if (ids := getattr(report, outcome))}
    named = [(str(id), outcome) for outcome, ids in by_outcome.items() for id in ids]
    return StepReport(
        {outcome: len(ids) for outcome, ids in by_outcome.items()},
        dict(named[:SHOWN]),
        report.landed,
    )
