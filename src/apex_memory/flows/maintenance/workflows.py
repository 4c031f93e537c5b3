"""The maintenance workflows. All state is in PostgreSQL, so any run may be terminated at any time."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import timedelta

from temporalio import workflow
from temporalio.exceptions import ApplicationError

with workflow.unsafe.imports_passed_through():
    from apex_memory.flows.maintenance.activities import MaintenanceActivities
    from apex_memory.flows.maintenance.messages import (
        ReconcileInput,
        ReconcileReport,
        RolloutGateInput,
        RolloutGateReport,
        RoundsInput,
        SmokeTestReport,
        StoreInput,
        SweepReport,
    )
    from apex_memory.flows.temporal.options import LONG, SHORT


@workflow.defn
class Sweep:
    """Sweeps in rounds until its time is over; the schedule starts the next run at once. Returns summed counts.

    A run for every sweep would cost the server 90 ms of CPU and an entry in the list of runs every few seconds; a
    round costs 37 ms and no entry.
    """

    @workflow.run
    async def run(self, input: RoundsInput) -> dict[str, int]:
        return await _rounds(input, self._sweep)

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
    """Removes superseded stages, in rounds as `Sweep` does."""

    @workflow.run
    async def run(self, input: RoundsInput) -> dict[str, int]:
        return await _rounds(input, self._collect)

    async def _collect(self) -> dict[str, int]:
        return {
            "stages": await workflow.execute_activity_method(MaintenanceActivities.collect, **LONG)
        }


async def _rounds(
    input: RoundsInput, work: Callable[[], Awaitable[dict[str, int]]]
) -> dict[str, int]:
    """Work in rounds until the run's time is over. Return the summed counts of all rounds."""
    every = timedelta(seconds=input.every_seconds)
    end = workflow.info().start_time + timedelta(seconds=input.run_seconds)
    total = {"rounds": 0}
    while True:
        counts = await work()
        for name, count in {**counts, "rounds": 1}.items():
            total[name] = total.get(name, 0) + count
        summary = ", ".join(f"{count} {name}" for name, count in total.items())
        workflow.set_current_details(f"So far: {summary}")
        if workflow.now() + every >= end:
            return total
        await workflow.sleep(every)


@workflow.defn
class Reconcile:
    """Compares stores with PostgreSQL, one after the other, and repairs them."""

    @workflow.run
    async def run(self, input: ReconcileInput) -> list[ReconcileReport]:
        options = {**LONG, "start_to_close_timeout": timedelta(hours=12)}
        return [
            await workflow.execute_activity_method(
                MaintenanceActivities.reconcile, StoreInput(store), summary=store, **options
            )
            for store in input.stores
        ]


@workflow.defn
class Hello:
    """The smoke test: one round trip through a worker to every store. Stores nothing."""

    @workflow.run
    async def run(self) -> SmokeTestReport:
        return await workflow.execute_activity_method(MaintenanceActivities.smoke_test, **SHORT)


@workflow.defn
class RolloutGate:
    """Checks whether a build may process documents: stores respond, models work, and recent runs can go on with it.

    Fails otherwise. The Kubernetes worker controller starts it on a new build before the build gets any work, and
    `apex builds check` does so too.
    """

    @workflow.run
    async def run(self, input: RolloutGateInput | None = None) -> RolloutGateReport:
        report: RolloutGateReport = await workflow.execute_activity_method(
            MaintenanceActivities.rollout_gate,
            input or RolloutGateInput(),
            **{**LONG, "start_to_close_timeout": timedelta(minutes=10)},
        )
        if report.failures:
            raise ApplicationError(
                "; ".join(report.failures), type="RolloutGateFailed", non_retryable=True
            )
        return report


MAINTENANCE_WORKFLOWS = (Sweep, Collect, Reconcile, Hello, RolloutGate)
