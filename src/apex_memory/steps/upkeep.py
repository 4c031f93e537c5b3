"""Upkeep: what runs every few seconds by the clock. Both steps are safe to repeat and to run side by side."""

from __future__ import annotations

import asyncio
from typing import Any

from apex_memory.fetching.windows import Readings
from apex_memory.inbox.payload_store import PayloadStore
from apex_memory.mirror import Mirror
from apex_memory.saga.collector import Collector
from apex_memory.saga.recovery import Recovery
from apex_memory.saga.sweeper import Sweeper, SweepResult
from apex_memory.telemetry import logger
from apex_memory.telemetry.logs import unforeseen

CHECK_SECONDS = 2.0  # for which a sweep waits for the check of restarted stores; it ends at once unless one restarted


class Upkeep:
    def __init__(
        self,
        recovery: Recovery,
        sweeper: Sweeper,
        collector: Collector,
        readings: Readings,
        mirror: Mirror,
        payloads: PayloadStore,
    ) -> None:
        self._recovery = recovery
        self._sweeper = sweeper
        self._collector = collector
        self._readings = readings
        self._mirror = mirror
        self._payloads = payloads
        self._check: asyncio.Task[Any] | None = None
        self._log = logger(component="upkeep")

    async def sweep(self) -> SweepResult:
        """Check stores that restarted, abort and remove expired stages, unpark events whose store answers.

        A check that takes longer goes on in the background: what waits for another store need not wait for it.
        """
        await self._check_stores()
        return await self._sweeper.sweep()

    async def close(self) -> None:
        """Stop the check of stores, which the next process begins anew."""
        if self._check:
            self._check.cancel()
            await asyncio.wait({self._check})

    async def _check_stores(self) -> None:
        check = self._check = self._check or asyncio.create_task(
            self._recovery.check_restarted_stores(), name="check stores"
        )
        done, _ = await asyncio.wait({check}, timeout=CHECK_SECONDS)
        if not done:
            return
        self._check = None
        error = None if check.cancelled() else check.exception()
        if isinstance(error, Exception):
            self._log.error("check of restarted stores failed", **unforeseen(error))

    async def collect(self) -> int:
        """Remove superseded stages past their grace and rows past their retention, and objects without an event; return the number of stages.

        Corrects deadlines of windows that a clock set back has put far ahead.
        """
        if late := await self._readings.correct_deadlines():
            self._log.warning("deadlines were far ahead: was the clock set back?", windows=late)
        dropped = await self._readings.forget()
        if dropped:
            self._log.info("old readings removed", partitions=dropped)
        await self._mirror.forget()
        stages = await self._collector.collect()
        await (
            self._payloads.sweep()
        )  # after the collector, which removes payloads past their retention
        return stages
