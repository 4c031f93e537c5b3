"""The maintenance steps as Temporal runs them: each calls `app` and returns counts."""

from __future__ import annotations

from typing import TYPE_CHECKING

from temporalio import activity

from apex_memory.errors import ApexError
from apex_memory.flows.drain.control import Drains
from apex_memory.flows.fetch.control import Pulling
from apex_memory.flows.maintenance.messages import (
    ReconcileReport,
    SmokeTestReport,
    StoreInput,
    SweepReport,
)
from apex_memory.flows.temporal.heartbeat import heartbeating
from apex_memory.telemetry import logger

if TYPE_CHECKING:  # the workflows name the activities, and must not load every engine for that
    from apex_memory.app import App


class MaintenanceActivities:
    """Sweep, collect, reconcile and the smoke test, around one opened `App`."""

    def __init__(self, app: App, drains: Drains, pulling: Pulling, *, build: str) -> None:
        self._app = app
        self._drains = drains
        self._pulling = pulling
        self._build = build

    @activity.defn
    async def sweep(self) -> SweepReport:
        """Put right what was left behind, then wake the drain of every source that has something ready."""
        async with heartbeating():
            swept = await self._app.upkeep.sweep()
            ready = await self._app.inbox.ready()
            woken = {source: n for source, n in ready.items() if source in self._app.sources}
            if len(woken) < len(ready):
                logger(component="flows").warning(
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
            return await self._app.upkeep.collect()

    @activity.defn
    async def reconcile(self, order: StoreInput) -> ReconcileReport:
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
    async def smoke_test(self) -> SmokeTestReport:
        """Ask every store for its version. One that is away is an answer too."""
        stores, away = {}, {}
        for store in self._app.stores:
            try:
                await store.ping()
                stores[store.name] = await store.version()
            except ApexError as error:
                away[store.name] = str(error)
        return SmokeTestReport(self._build, stores, away)
