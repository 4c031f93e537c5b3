"""The maintenance workflows: what runs when. Any run may be ended at any time; all state is in PostgreSQL."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import timedelta

from temporalio import workflow

with workflow.unsafe.imports_passed_through():
    from apex_memory.flows.maintenance.activities import MaintenanceActivities
    from apex_memory.flows.maintenance.messages import (
        ReconcileInput,
        ReconcileReport,
        RoundsInput,
        SmokeTestReport,
        StoreInput,
        SweepReport,
    )
    from apex_memory.flows.temporal.options import LONG, SHORT


@workflow.defn
class Sweep:
    """Sweeps again and again until its time is over; the schedule begins the next one at once.

    A run a pass would cost the server 90 ms of CPU and a row in the list of runs every few seconds; a
    round costs 37 ms and no row. Answers what the rounds did, summed.
    """

    @workflow.run
    async def run(self, order: RoundsInput) -> dict[str, int]:
        return await _rounds(order, self._sweep)

    async def _sweep(self) -> dict[str, int]:
        report: SweepReport = await workflow.execute_activity_method(
            MaintenanceActivities.sweep, **LONG
        )
        unparked, woken = sum(report.unparked.values()), len(report.woken)
        return {
            "expired": report.expired,
            "removed": report.removed,
            "unparked": unparked,
            "woken": woken,
        }


@workflow.defn
class Collect:
    """Collects superseded stages, in rounds as `Sweep` does."""

    @workflow.run
    async def run(self, order: RoundsInput) -> dict[str, int]:
        return await _rounds(order, self._collect)

    async def _collect(self) -> dict[str, int]:
        return {
            "stages": await workflow.execute_activity_method(MaintenanceActivities.collect, **LONG)
        }


async def _rounds(
    order: RoundsInput, work: Callable[[], Awaitable[dict[str, int]]]
) -> dict[str, int]:
    """Work, rest, work again, until the run's time is over; the sums of what the rounds answered."""
    every, end = (
        timedelta(seconds=order.every_seconds),
        workflow.info().start_time + timedelta(seconds=order.run_seconds),
    )
    total = {"rounds": 0}
    while True:
        done = await work()
        for name, count in {**done, "rounds": 1}.items():
            total[name] = total.get(name, 0) + count
        text = ", ".join(f"{count} {name}" for name, count in total.items())
        workflow.set_current_details(f"So far: {text}")
        if workflow.now() + every >= end:
            return total
        await workflow.sleep(every)


@workflow.defn
class Reconcile:
    """Compares stores with PostgreSQL, one after the other, and repairs them."""

    @workflow.run
    async def run(self, order: ReconcileInput) -> list[ReconcileReport]:
        options = {**LONG, "start_to_close_timeout": timedelta(hours=12)}
        return [
            await workflow.execute_activity_method(
                MaintenanceActivities.reconcile, StoreInput(store), summary=store, **options
            )
            for store in order.stores
        ]


@workflow.defn
class Hello:
    """The smoke test: one round trip through the worker to every store. Lands nothing."""

    @workflow.run
    async def run(self) -> SmokeTestReport:
        return await workflow.execute_activity_method(MaintenanceActivities.smoke_test, **SHORT)


MAINTENANCE_WORKFLOWS = (Sweep, Collect, Reconcile, Hello)
