"""Drains of sources on whose ready events nobody works, whatever the reason.

What sequences the steps otherwise may be down or stuck. Events are claimed by lease, so it does no harm when it recovers
meanwhile.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from time import monotonic

from apex_memory.errors import ApexError
from apex_memory.inbox import Inbox
from apex_memory.steps.direct import DirectPath
from apex_memory.tasks import end_tasks
from apex_memory.telemetry import STALLS, logger
from apex_memory.telemetry.logs import unforeseen

STALLED_SECONDS = 60.0  # after that long without a live lease, a source is stalled
SOURCES_AT_ONCE = 3


class StalledDrains:
    """Gives stalled sources turns on the direct path, `SOURCES_AT_ONCE` at a time.

    The next turn has the source whose last one is longest ago. A turn ends after a batch while others wait, so that a source that
    has events ready for ever keeps nobody waiting, neither now nor later.
    """

    def __init__(self, direct: DirectPath, inbox: Inbox, sources: Collection[str]) -> None:
        self._direct = direct
        self._inbox = inbox
        self._sources = sources
        self._running: dict[str, asyncio.Task[None]] = {}
        self._waiting: dict[str, float] = {}
        """How long (s) the sources without a turn have waited, the next one first."""
        self._last_turns: dict[str, float] = {}
        self._log = logger(component="direct")

    async def look(self, *, seconds: float = STALLED_SECONDS) -> None:
        """Begin turns of the sources whose ready events nobody works on for over `seconds`, without waiting for their end."""
        stalled = await self._inbox.stalled(seconds=seconds)
        waiting = [
            source for source in stalled if source in self._sources and source not in self._running
        ]
        waiting.sort(
            key=lambda source: (self._last_turns.get(source, float("-inf")), -stalled[source])
        )
        self._waiting = {source: stalled[source] for source in waiting}
        self._begin()

    async def close(self) -> None:
        """End all turns; the batches under way return to the queue."""
        self._waiting.clear()
        await end_tasks(self._running.values())

    def _begin(self) -> None:
        while self._waiting and len(self._running) < SOURCES_AT_ONCE:
            source = next(iter(self._waiting))
            self._running[source] = asyncio.create_task(
                self._turn(source, self._waiting.pop(source)), name=f"stalled {source}"
            )

    async def _turn(self, source: str, waited: float) -> None:
        self._log.warning(
            "a source is stalled; the direct path drains it", source=source, seconds=round(waited)
        )
        STALLS.labels(source).inc()
        has_begun = False

        def pause() -> bool:
            nonlocal has_begun
            ends = has_begun and bool(self._waiting)
            has_begun = True
            return ends

        try:
            await self._direct.drain(source, pause=pause)
        except ApexError as error:
            self._log.error(
                "draining failed", source=source, reason=str(error), remedy=error.remedy
            )
        except Exception as error:  # noqa: BLE001 (the outermost frame of a drain, whose message may quote data)
            self._log.error("draining failed unexpectedly", source=source, **unforeseen(error))
        finally:
            self._last_turns[source] = monotonic()
            del self._running[source]
            self._begin()
