"""The activities of maintenance: each calls `app` and returns counts."""

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

if TYPE_CHECKING:  # the workflows import this module, and must not load every engine
    from apex_memory.app import App


class MaintenanceActivities:
    """Sweep, collect, reconcile and the smoke test, over one opened `App`."""

    def __init__(self, app: App, drains: Drains, pulling: Pulling, *, build: str) -> None:
        self._app = app
        self._drains = drains
        self._pulling = pulling
        self._build = build

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
