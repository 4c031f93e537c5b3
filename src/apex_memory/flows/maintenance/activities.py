"""The activities of maintenance: each calls `app` and returns counts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from temporalio import activity

from apex_memory.errors import ApexError
from apex_memory.flows.drain.control import Drains
from apex_memory.flows.fetch.control import Pulling
from apex_memory.flows.maintenance.messages import (
    ReconcileReport,
    RolloutGateInput,
    RolloutGateReport,
    SmokeTestReport,
    StoreInput,
    SweepReport,
)
from apex_memory.flows.maintenance.replay import MOST_FAILURES, replay_recent
from apex_memory.flows.temporal.deployment import Deployment
from apex_memory.flows.temporal.heartbeat import heartbeating
from apex_memory.model import Document, Event, now
from apex_memory.rollout import builds
from apex_memory.telemetry import logger

if TYPE_CHECKING:  # the workflows import this module, and must not load every engine
    from apex_memory.app import App


class MaintenanceActivities:
    """Sweep, collect, reconcile and the smoke test, over one opened `App`."""

    def __init__(
        self,
        app: App,
        drains: Drains,
        pulling: Pulling,
        *,
        deployment: Deployment,
        workflows: Sequence[type],
    ) -> None:
        self._app = app
        self._drains = drains
        self._pulling = pulling
        self._deployment = deployment
        self._build = deployment.build
        self._workflows = workflows

    @activity.defn
    async def sweep(self) -> SweepReport:
        """Repair what interrupted work left behind, then wake the drain of every source that has events ready."""
        async with heartbeating():
            swept = await self._app.upkeep.sweep()
            ready = await self._app.inbox.ready()
            woken = {source: n for source, n in ready.items() if source in self._app.sources}
            if len(woken) < len(ready):
                logger(component="flows").warning(
                    "events of unknown sources wait",
                    sources=sorted(set(ready) - set(woken)),
                )
            for source in woken:
                await self._drains.wake(source)
            for source, id in await self._app.backfills.running():
                # Its workflow does not run when it was created without Temporal, or its run was lost.
                if source in self._app.sources:
                    await self._pulling.backfill(source, id)
            return SweepReport(swept.expired, swept.removed, swept.unparked, woken)

    @activity.defn
    async def collect(self) -> int:
        """Remove superseded stages and expired data. Return the number of stages removed."""
        async with heartbeating():
            return await self._app.upkeep.collect()

    @activity.defn
    async def reconcile(self, input: StoreInput) -> ReconcileReport:
        """Compare a store with PostgreSQL and repair both ways."""
        async with heartbeating():
            result = await self._app.recovery.reconcile(input.store)
            return ReconcileReport(
                result.store,
                result.stages,
                result.repaired,
                result.removed,
                result.left,
                len(result.errors),
            )

    @activity.defn
    async def rollout_gate(self, input: RolloutGateInput) -> RolloutGateReport:
        """Check whether this build may process documents, and record the result in the table `builds`."""
        async with heartbeating():
            checked = await self.smoke_test()
            failures = [f"{store}: {reason}" for store, reason in checked.away.items()]
            failures += await self._failures_of_models()
            replay = await replay_recent(
                self._deployment.client,
                self._workflows,
                deployment=self._deployment.name,
                each=input.histories,
            )
            failures += replay.failures
            report = RolloutGateReport(
                self._build,
                checked.stores,
                replay.replayed,
                failures[:MOST_FAILURES],
                replay.complete,
            )
            detail = "; ".join(report.failures) or f"{replay.total} histories replayed"
            await builds.record_check(self._app.db, self._build, passed=not failures, detail=detail)
            return report

    async def _failures_of_models(self) -> list[str]:
        """Prepare a document as a batch does, and store nothing. Return why it failed, if it did."""
        event = Event(
            source="rollout-gate",
            event_id="rollout-gate",
            doc_key="rollout-gate",
            version=1,
            occurred_at=now(),
            payload=b"",
        )
        [outcome] = await self._app.pipeline.prepare([(event, _sample_document)], reuse=False)
        return [f"models: {outcome}"] if isinstance(outcome, ApexError) else []

    @activity.defn
    async def smoke_test(self) -> SmokeTestReport:
        """Return the version of every store, or the reason why it is unavailable."""
        stores: dict[str, str] = {}
        away: dict[str, str] = {}
        for store in self._app.stores:
            try:
                await store.ping()
                stores[store.name] = await store.version()
            except ApexError as error:
                away[store.name] = str(error)
        return SmokeTestReport(self._build, stores, away)


def _sample_document(event: Event) -> Document:
    return Document(
        kind="note",
        title="Check of a build",
        occurred_at=event.occurred_at,
        text="Shipment SHP-100045 left Columbus, OH on 2 March 2026.",
    )
