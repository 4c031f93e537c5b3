"""Wakes: signals to drains and pulls after events have landed. Cheap, coalesced, and never a delay for landing.

A wake carries no data, so many become one. Wakes that fail while Temporal is unavailable are counted; the sweeper and
the next scheduled pull make up for them.

Which paths are woken follows the shares of the sources: Temporal by a signal, the direct path by a notice. Both read
the shares again with each claim, so a wake that follows an old share costs a claim that finds nothing.
"""

from __future__ import annotations

import asyncio
from contextvars import Context

from apex_memory.errors import ApexError, Conflict, RetryLater, Unavailable
from apex_memory.flows.drain.control import Drains
from apex_memory.flows.fetch.control import Pulling
from apex_memory.inbox import Inbox
from apex_memory.inbox.routing import BUCKETS
from apex_memory.tasks import end_tasks
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
SHARES_SECONDS = 0.5  # between two reads of the shares
LOG_SECONDS = 30.0  # between two log messages about failed wakes


class Waker:
    """Keeps one flag and at most one task per source, however many wakes are requested and however long Temporal is away.

    `inbox` also wakes the direct path, for the sources of which it processes a share, or all while the fallback is in
    force; `watch_shares` keeps that up to date. Without it, every wake is Temporal's.
    """

    def __init__(self, drains: Drains, pulling: Pulling, inbox: Inbox | None = None) -> None:
        self._drains = drains
        self._pulling = pulling
        self._inbox = inbox
        self._shares: dict[str, int] = {}
        self._fallback = False
        self._wanted: set[tuple[str, str]] = set()
        self._tasks: dict[tuple[str, str], asyncio.Task[None]] = {}
        self._earned: dict[str, float] = {}
        self._failed = 0
        self._logged_at = float("-inf")
        self._log = logger(component="wakes")

    def wake(self, source: str) -> None:
        """Request a wake of the source's drain, soon. Returns at once and never raises."""
        if source not in self._drains.priorities:  # the sweeper reports events of unknown sources
            return
        share = self._shares.get(source, BUCKETS)
        if share > 0:
            self._request("drain", source)
        if self._inbox and (share < BUCKETS or self._fallback):
            self._request("notice", source)

    def pull(self, source: str) -> None:
        """Request a pull of the source, soon: its vendor has changes."""
        self._request("pull", source)

    async def watch_shares(self) -> None:
        """Read the shares twice a second, for ever, and wake both paths of a source whose share has changed."""
        assert self._inbox
        while True:
            try:
                shares, fallback = await self._inbox.shares(), await self._inbox.fallback_since()
            except ApexError as error:  # what is known still holds; landing fails, too
                self._log.warning("shares not read", reason=str(error)[:200])
            else:
                changed = dict(shares.items() ^ self._shares.items())
                self._shares, self._fallback = shares, fallback is not None
                for source in changed:
                    if source in self._drains.priorities:
                        self._request("drain", source)
                        self._request("notice", source)
            await asyncio.sleep(SHARES_SECONDS)

    def _request(self, what: str, source: str) -> None:
        self._wanted.add((what, source))
        if (what, source) not in self._tasks:
            # A context of its own: the wakes of many requests are sent in one task, whose log lines and spans
            # belong to none of them.
            self._tasks[what, source] = asyncio.create_task(
                self._send(what, source), name=f"{what} {source}", context=Context()
            )

    async def close(self) -> None:
        """Drop wakes that are not sent; the sweeper makes up for them."""
        await end_tasks(self._tasks.values())

    async def _send(self, what: str, source: str) -> None:
        try:
            while (what, source) in self._wanted:
                self._wanted.discard((what, source))
                try:
                    if what == "pull":
                        await self._pulling.trigger(source)
                        wait = PULL_SECONDS
                    elif what == "notice":
                        assert self._inbox
                        await self._inbox.notify([source])
                        wait = LEAST_SECONDS
                    else:
                        await self._drains.wake(source)
                        wait = self._interval(source)
                except (Unavailable, Conflict, RetryLater) as error:
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
