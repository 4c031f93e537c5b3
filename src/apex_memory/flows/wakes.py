"""Wakes from the landing side: cheap, coalesced, and never in the way of landing.

A wake says only "look": many become one. When Temporal is away wakes are lost, counted, and made up for by the sweeper.
"""

from __future__ import annotations

import asyncio

from apex_memory.errors import Unavailable
from apex_memory.flows.drains import Drains
from apex_memory.telemetry import WAKES_FAILED, logger

LEAST_SECONDS = 0.02  # between two wakes of a source
# The same under load, for P0, P1, P2: a steady trickle would else be a batch an event, at 60 to 90 ms of CPU each.
SUSTAINED_SECONDS = (0.1, 0.5, 1.0)
CREDIT = 25  # wakes at the short distance before the long one holds
FAULT_SECONDS = 1.0
LOG_SECONDS = 30.0


class Waker:
    """Holds a flag and at most one task a source, however many wakes come and however long Temporal is away."""

    def __init__(self, drains: Drains) -> None:
        self._drains = drains
        self._wanted: set[str] = set()
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._earned: dict[str, float] = {}
        self._failed = 0
        self._logged_at = float("-inf")
        self._log = logger(room="wakes")

    def wake(self, source: str) -> None:
        """Ask for a look at the source's inbox, soon. Returns at once and never raises."""
        if source not in self._drains.priorities:
            return  # no drain carries it: the sweeper reports such events
        self._wanted.add(source)
        if source not in self._tasks:
            self._tasks[source] = asyncio.create_task(self._send(source), name=f"wake {source}")

    async def close(self) -> None:
        """Drop what is not sent; the sweeper makes up for it."""
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _send(self, source: str) -> None:
        try:
            while source in self._wanted:
                self._wanted.discard(source)
                try:
                    await self._drains.wake(source)
                    wait = self._distance(source)
                except Unavailable as error:
                    self._count_failure(source, error)
                    wait = FAULT_SECONDS
                await asyncio.sleep(wait)
        finally:
            del self._tasks[source]

    def _distance(self, source: str) -> float:
        """Seconds until the next wake: short while the source has credit, earned at the long distance."""
        now = asyncio.get_running_loop().time()
        sustained = SUSTAINED_SECONDS[self._drains.priorities[source]]
        spent = max(self._earned.get(source, 0), now - CREDIT * sustained)
        self._earned[source] = spent + sustained
        return LEAST_SECONDS if spent < now else sustained

    def _count_failure(self, source: str, error: Unavailable) -> None:
        WAKES_FAILED.inc()
        self._failed += 1
        now = asyncio.get_running_loop().time()
        if now - self._logged_at >= LOG_SECONDS:
            self._log.warning(
                "wakes fail; events are safe in the inbox and wait for the sweeper",
                source=source,
                failed=self._failed,
                reason=str(error),
            )
            self._logged_at = now
