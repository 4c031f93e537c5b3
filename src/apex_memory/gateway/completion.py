"""Waiting for events to end: one question a turn for all who wait, never a connection per waiter."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from uuid import UUID

from apex_memory.errors import ApexError, RetryLater
from apex_memory.inbox import Inbox
from apex_memory.telemetry import logger

TURN_SECONDS = 0.015
FAILED_SECONDS = 0.5  # pause while PostgreSQL does not answer
MAX_WAITERS = 1_000


class CompletionWaiter:
    def __init__(self, inbox: Inbox) -> None:
        self._inbox = inbox
        self._waiters: dict[asyncio.Event, set[UUID]] = {}
        self._someone = asyncio.Event()
        self._log = logger(component="gateway")

    async def until_ended(self, ids: Sequence[UUID], seconds: float) -> bool:
        """True when all events are at an end or parked; False when `seconds` are over before."""
        if not ids:
            return True
        if len(self._waiters) >= MAX_WAITERS:
            raise RetryLater(
                f"{MAX_WAITERS} requests wait already", after=1, remedy="ask without `wait`"
            )
        ended = asyncio.Event()
        self._waiters[ended] = set(ids)
        self._someone.set()
        try:
            async with asyncio.timeout(seconds):
                await ended.wait()
            return True
        except TimeoutError:
            return False
        finally:
            self._waiters.pop(ended, None)

    async def run(self) -> None:
        """Ask for all waiters together, until cancelled."""
        while True:
            self._someone.clear()
            if not self._waiters:
                await self._someone.wait()
            try:
                await self._turn()
                await asyncio.sleep(TURN_SECONDS)
            except ApexError as error:
                self._log.warning("waiters were not served", reason=str(error)[:200])
                await asyncio.sleep(FAILED_SECONDS)

    async def _turn(self) -> None:
        asked = {id for ids in self._waiters.values() for id in ids}
        finished = await self._inbox.finished(list(asked))
        for ended, ids in list(self._waiters.items()):
            ids.difference_update(finished)
            if not ids:
                ended.set()
                self._waiters.pop(ended, None)
