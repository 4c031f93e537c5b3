"""The loop of copies in a worker process: bounds their backlog, and processes those of this build."""

from __future__ import annotations

import asyncio

from apex_memory.config import Settings
from apex_memory.errors import ApexError
from apex_memory.rollout import shadow_queue as queue
from apex_memory.rollout.shadow_queue import WaitingCopies
from apex_memory.rollout.shadow_steps import WAIT_SECONDS, ShadowSteps
from apex_memory.rollout.subjects import BUILD
from apex_memory.stores.postgres import Postgres
from apex_memory.tasks import run_together
from apex_memory.telemetry import SHADOW_DROPPED, logger

TIDY_SECONDS = 2.0
IDLE_SECONDS = 1.0
OLD_EVERY = 300  # rounds between two removals of old results: ten minutes


class ShadowLoop:
    """`build` is the build that runs here: it processes the copies that were queued for it, of live events or of a replay."""

    def __init__(self, db: Postgres, steps: ShadowSteps, settings: Settings, *, build: str) -> None:
        self._db = db
        self._steps = steps
        self._backlog = settings.shadow_backlog
        self._days = settings.shadow_days
        self._furthest = 2 * max(settings.lease_seconds, WAIT_SECONDS)
        self._build = build
        self._rounds = 0
        self._log = logger(component="shadow")

    async def run(self) -> None:
        """Run for ever. Waits while PostgreSQL or a store is unavailable."""
        await run_together(self._keep_tidy(), self._process())

    async def _keep_tidy(self) -> None:
        while True:
            try:
                await self.tidy()
            except ApexError as error:
                self._log.warning("backlog of copies not bounded yet", reason=str(error))
            await asyncio.sleep(TIDY_SECONDS)

    async def tidy(self) -> list[WaitingCopies]:
        """Drop copies that nobody wants any more, beyond the backlog or too old; return those that wait."""
        async with self._db.connection() as connection:
            late = await queue.correct_deadlines(connection, furthest=self._furthest)
            stopped = await queue.drop_stopped(connection)
            waiting = await queue.waiting(connection)
            for copies in waiting:
                if copies.copies > self._backlog:
                    dropped = await queue.trim(
                        connection,
                        copies.subject,
                        copies.build,
                        surplus=copies.copies - self._backlog,
                    )
                    SHADOW_DROPPED.labels(copies.subject).inc(dropped)
            if self._rounds % OLD_EVERY == 0:
                await queue.drop_old(connection, days=self._days)
            self._rounds += 1
        if late:
            self._log.warning("deadlines were far ahead: was the clock set back?", copies=late)
        if stopped:
            self._log.info("copies dropped: their shadow is off", copies=stopped)
        return waiting

    async def _process(self) -> None:
        while True:
            try:
                result = await self._steps.process(BUILD, self._build)
            except ApexError as error:
                self._log.warning("copies not processed yet", reason=str(error))
                result = None
            if result is None:
                await asyncio.sleep(IDLE_SECONDS)
