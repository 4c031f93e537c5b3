"""Waiting for events to finish: one query per turn serves all waiting requests, so that none holds a connection."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from uuid import UUID

from apex_memory.errors import ApexError, RetryLater
from apex_memory.inbox import Inbox
from apex_memory.telemetry import logger

TURN_SECONDS = 0.015  # pause between two queries
FAILED_SECONDS = 0.5  # pause after a failed query
MAX_WAITERS = 1_000


class CompletionWaiter:
    """Lets requests wait until their events have finished. `run` does the queries, in a task of its own."""

    def __init__(self, inbox: Inbox) -> None:
        self._inbox = inbox
        self._waiters: dict[asyncio.Event, set[UUID]] = {}
        self._has_waiters = asyncio.Event()
        self._log = logger(component="gateway")

    async def until_ended(self, ids: Sequence[UUID], seconds: float) -> bool:
        """Wait until all events have finished or are parked. Return False when `seconds` pass first.

        Raises `RetryLater` when `MAX_WAITERS` requests wait already.
        """
        if not ids:
            return True
        if len(self._waiters) >= MAX_WAITERS:
            raise RetryLater(
                f"{MAX_WAITERS} requests are waiting already",
                after=1,
                remedy="repeat it without `wait`",
            )
        ended = asyncio.Event()
        self._waiters[ended] = set(ids)
        self._has_waiters.set()
        try:
            async with asyncio.timeout(seconds):
                await ended.wait()
            return True
        except TimeoutError:
            return False
        finally:
            self._waiters.pop(ended, None)

    async def run(self) -> None:
        """Query for all waiters together, until cancelled."""
        while True:
            self._has_waiters.clear()
            if not self._waiters:
                await self._has_waiters.wait()
            try:
                await self._turn()
                await asyncio.sleep(TURN_SECONDS)
            except ApexError as error:
                self._log.warning("query for waiting requests failed", reason=str(error)[:200])
                await asyncio.sleep(FAILED_SECONDS)

    async def _turn(self) -> None:
        pending: set[UUID] = set().union(*self._waiters.values())
        finished = await self._inbox.finished(list(pending))
        for ended, ids in list(self._waiters.items()):
            ids.difference_update(finished)
            if not ids:
                ended.set()
                self._waiters.pop(ended, None)
