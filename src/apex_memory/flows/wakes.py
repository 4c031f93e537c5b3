"""Wakes from the landing side: cheap, coalesced, and never in the way of landing.

A wake says only "look": many become one. When Temporal is away wakes are lost, counted, and made up for by the sweeper,
and by the next pull that the clock starts.
"""

from __future__ import annotations

import asyncio

from apex_memory.errors import ApexError, Conflict, Unavailable
from apex_memory.flows.drain.control import Drains
from apex_memory.flows.fetch.control import Pulling
from apex_memory.telemetry import WAKES_FAILED, logger

LEAST_SECONDS = 0.02  # between two wakes of a source
# The same under load, for P0, P1, P2: a steady trickle would else be a batch an event, at 60 to 90 ms of CPU each.
SUSTAINED_SECONDS = (0.1, 0.5, 1.0)
PULL_SECONDS = (
    2.0  # between two pulls that change hints ask for: one fetches all that were hinted at
)
CREDIT = 25  # wakes at the short distance before the long one holds
FAULT_SECONDS = 1.0
LOG_SECONDS = 30.0


class Waker:
    """Holds a flag and at most one task a source, however many wakes come and however long Temporal is away."""

    def __init__(self, drains: Drains, pulling: Pulling) -> None:
        self._drains = drains
        self._pulling = pulling
        self._wanted: set[tuple[str, str]] = set()
        self._tasks: dict[tuple[str, str], asyncio.Task[None]] = {}
        self._earned: dict[str, float] = {}
        self._failed = 0
        self._logged_at = float("-inf")
        self._log = logger(component="wakes")

    def wake(self, source: str) -> None:
        """Ask for a look at the source's inbox, soon. Returns at once and never raises."""
        if (
            source in self._drains.priorities
        ):  # else no drain carries it: the sweeper reports such events
            self._ask("drain", source)

    def pull(self, source: str) -> None:
        """Ask for a pull of the source, soon: a vendor says that something changed."""
        self._ask("pull", source)

    def _ask(self, what: str, source: str) -> None:
        self._wanted.add((what, source))
        if (what, source) not in self._tasks:
            self._tasks[what, source] = asyncio.create_task(
                self._send(what, source), name=f"{what} {source}"
            )

    async def close(self) -> None:
        """Drop what is not sent; the sweeper makes up for it."""
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _send(self, what: str, source: str) -> None:
        try:
            while (what, source) in self._wanted:
                self._wanted.discard((what, source))
                try:
                    if what == "pull":
                        await self._pulling.trigger(source)
                        wait = PULL_SECONDS
                    else:
                        await self._drains.wake(source)
                        wait = self._distance(source)
                except (Unavailable, Conflict) as error:
                    self._count_failure(source, error)
                    wait = FAULT_SECONDS
                await asyncio.sleep(wait)
        finally:
            del self._tasks[what, source]

    def _distance(self, source: str) -> float:
        """Seconds until the next wake: short while the source has credit, earned at the long distance."""
        now = asyncio.get_running_loop().time()
        sustained = SUSTAINED_SECONDS[self._drains.priorities[source]]
        spent = max(self._earned.get(source, 0), now - CREDIT * sustained)
        self._earned[source] = spent + sustained
        return LEAST_SECONDS if spent < now else sustained

    def _count_failure(self, source: str, error: ApexError) -> None:
        WAKES_FAILED.inc()
        self._failed += 1
        now = asyncio.get_running_loop().time()
        if now - self._logged_at >= LOG_SECONDS:
            self._log.warning(
                "wakes fail; what came is safe in PostgreSQL and waits for the sweeper or the next pull",
                source=source,
                failed=self._failed,
                reason=str(error),
            )
            self._logged_at = now
