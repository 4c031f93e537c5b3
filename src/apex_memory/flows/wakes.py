"""Wakes: signals to drains and pulls after events have landed. Cheap, coalesced, and never a delay for landing.

A wake carries no data, so many become one. Wakes that fail while Temporal is unavailable are counted; the sweeper and
the next scheduled pull make up for them.
"""

from __future__ import annotations

import asyncio

from apex_memory.errors import ApexError, Conflict, Unavailable
from apex_memory.flows.drain.control import Drains
from apex_memory.flows.fetch.control import Pulling
from apex_memory.telemetry import WAKES_FAILED, logger

LEAST_SECONDS = 0.02  # between two wakes of a source
# The same under sustained load, for P0, P1, P2: otherwise each event of a steady stream would be a batch of its own,
# at 60 to 90 ms of CPU each.
SUSTAINED_SECONDS = (0.1, 0.5, 1.0)
PULL_SECONDS = (
    2.0  # between two pulls that change hints request: one pull fetches all hinted changes
)
CREDIT = 25  # wakes at the short interval before the long one applies
FAULT_SECONDS = 1.0  # pause after a failed wake
LOG_SECONDS = 30.0  # between two log messages about failed wakes


class Waker:
    """Keeps one flag and at most one task per source, however many wakes are requested and however long Temporal is away."""

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
        """Request a wake of the source's drain, soon. Returns at once and never raises."""
        if source in self._drains.priorities:  # the sweeper reports events of unknown sources
            self._request("drain", source)

    def pull(self, source: str) -> None:
        """Request a pull of the source, soon: its vendor has changes."""
        self._request("pull", source)

    def _request(self, what: str, source: str) -> None:
        self._wanted.add((what, source))
        if (what, source) not in self._tasks:
            self._tasks[what, source] = asyncio.create_task(
                self._send(what, source), name=f"{what} {source}"
            )

    async def close(self) -> None:
        """Drop wakes that are not sent; the sweeper makes up for them."""
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
                        wait = self._interval(source)
                except (Unavailable, Conflict) as error:
                    self._count_failure(source, error)
                    wait = FAULT_SECONDS
                await asyncio.sleep(wait)
        finally:
            del self._tasks[what, source]

    def _interval(self, source: str) -> float:
        """Return the seconds until the next wake: short while the source has credit, which grows at the long interval."""
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
                "wakes fail; events are stored in PostgreSQL and wait for the sweeper or the next pull",
                source=source,
                failed=self._failed,
                reason=str(error),
            )
            self._logged_at = now
