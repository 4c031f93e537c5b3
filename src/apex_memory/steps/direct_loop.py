"""The direct path as a part of the worker process: a drain of each source that has documents for it.

It is woken within milliseconds by a notice of the gateway (`inbox/notices.py`), polls behind that, and works on the
most urgent sources first. While the fallback is in force it takes the documents of both paths.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from contextlib import aclosing
from time import monotonic

from apex_memory.errors import ApexError
from apex_memory.inbox import Inbox
from apex_memory.inbox.notices import listen
from apex_memory.steps.direct import DirectPath
from apex_memory.steps.stalled import STALLED_SECONDS, StalledDrains
from apex_memory.tasks import end_tasks
from apex_memory.telemetry import logger
from apex_memory.telemetry.logs import unforeseen

POLL_SECONDS = 0.25  # between two queries for sources with work
POLL_SHARE = 0.05  # most of the time that these queries may take
CHECK_SECONDS = 10.0  # between two checks for stalled sources
RETRY_SECONDS = 1.0  # after a drain that failed, or without PostgreSQL
CLOSE_SECONDS = 120.0  # how long sources are watched closely after the fallback, and after the start of a process
CLOSE_STALLED_SECONDS = 5.0  # without a live lease, while they are watched closely
CLOSE_CHECK_SECONDS = 1.0
STOP_SECONDS = 5.0  # for the batches under way when the process stops
LOG_SECONDS = 30.0  # between two log messages about the same trouble

DRAINS = (4, 3, 2)
"""Most drains at a time from which one of P0, P1, P2 may begin: P0 never waits for less urgent sources alone."""


class DirectLoop:
    """Drains the sources of this process. `sources` maps each to its priority, 0 to 2.

    With `watches_stalls` it also drains the sources of every process on which nobody works. For `CLOSE_SECONDS` after
    `watch_closely` each loop does.
    """

    def __init__(
        self,
        direct: DirectPath,
        inbox: Inbox,
        sources: Mapping[str, int],
        *,
        documents: str,
        stalled: StalledDrains,
        watches_stalls: bool = True,
    ) -> None:
        self.everything = False
        """Whether it takes the documents of both paths. The fallback sets it."""
        self._direct = direct
        self._inbox = inbox
        self._sources = dict(sources)
        self._documents = documents
        self._stalled = stalled
        self._watches_stalls = watches_stalls
        self._wanted: set[str] = set()
        self._running: dict[str, asyncio.Task[None]] = {}
        self._changed = asyncio.Event()
        self._stopping = False
        self._close_until = float("-inf")
        self._logged_at = float("-inf")
        self._log = logger(component="direct")

    def wake(self, source: str) -> None:
        """Request a drain of the source, soon. Ignores sources of other processes."""
        if source in self._sources:
            self._wanted.add(source)
            self._changed.set()

    def wake_all(self) -> None:
        """Request a drain of every source."""
        for source in self._sources:
            self.wake(source)

    def watch_closely(self) -> None:
        """Take stalled sources sooner for `CLOSE_SECONDS`.

        For the minutes after Temporal, or a worker, was killed: Temporal responds, but gives the workflows whose tasks
        went under their next ones only when the old tasks' time limit has passed.
        """
        self._close_until = monotonic() + CLOSE_SECONDS

    async def run(self, stop: asyncio.Event) -> None:
        """Work until `stop` is set; then finish the batches under way, for up to `STOP_SECONDS`."""
        loops = (self._dispatch, self._poll, self._listen, self._drain_stalled)
        working = [asyncio.create_task(each(), name=f"direct{each.__name__}") for each in loops]
        stopping = asyncio.create_task(stop.wait())
        try:
            await asyncio.wait([*working, stopping], return_when=asyncio.FIRST_COMPLETED)
            for part in working:
                if part.done():
                    part.result()
        finally:
            await end_tasks([*working, stopping])
            await self._finish()

    async def _finish(self) -> None:
        self._stopping = True
        running = list(self._running.values())
        if running:
            await asyncio.wait(running, timeout=STOP_SECONDS)
        await end_tasks(running)
        await self._stalled.close()

    async def _dispatch(self) -> None:
        """Start drains of wanted sources, the most urgent first, as far as there is room for their priority."""
        while True:
            await self._changed.wait()
            self._changed.clear()
            waiting = [source for source in self._wanted if source not in self._running]
            for source in sorted(waiting, key=self._sources.__getitem__):
                if len(self._running) >= DRAINS[self._sources[source]]:
                    break  # those that follow are less urgent, and have less room
                self._wanted.discard(source)
                self._running[source] = asyncio.create_task(
                    self._drain(source), name=f"direct {source}"
                )

    async def _drain(self, source: str) -> None:
        paused, everything = False, self.everything

        def pause() -> bool:
            nonlocal paused
            changed = self.everything != everything
            paused = changed or self._stopping or self._is_outranked(source)
            return paused

        try:
            await self._direct.drain(source, everything=everything, pause=pause)
        except ApexError as error:
            self._log_seldom("draining failed; trying again", error, source=source)
            await asyncio.sleep(RETRY_SECONDS)
            paused = True
        except Exception as error:  # noqa: BLE001 (the outermost frame of a drain, whose message may quote data)
            self._log.error(
                "draining failed unexpectedly; trying again",
                source=source,
                **unforeseen(error),
            )
            await asyncio.sleep(RETRY_SECONDS)
            paused = True
        finally:
            del self._running[source]
            if paused:
                self._wanted.add(source)
            self._changed.set()

    def _is_outranked(self, source: str) -> bool:
        """Return whether a more urgent source has no room, so that this one must pause after its batch."""
        own = self._sources[source]
        return any(
            self._sources[other] < own
            and other not in self._running
            and len(self._running) >= DRAINS[self._sources[other]]
            for other in self._wanted
        )

    async def _poll(self) -> None:
        """Wake the sources that have something ready: notices can be lost, and attempts fall due."""
        while True:
            began = monotonic()
            try:
                ready = await self._inbox.ready_for_direct(
                    list(self._sources), everything=self.everything
                )
                for source in ready:
                    self.wake(source)
                await asyncio.sleep(max(POLL_SECONDS, (monotonic() - began) / POLL_SHARE))
            except ApexError as error:
                self._log_seldom("ready events not read; trying again", error)
                await asyncio.sleep(RETRY_SECONDS)

    async def _listen(self) -> None:
        while True:
            try:
                async with aclosing(listen(self._documents)) as notices:
                    async for source in notices:
                        self.wake(source)
            except ApexError as error:
                self._log_seldom("notices not received; polling", error)
            await asyncio.sleep(RETRY_SECONDS)

    async def _drain_stalled(self) -> None:
        """Drain what nobody works on, whatever the reason: Temporal may respond and yet be stuck."""
        while True:
            close = monotonic() < self._close_until
            await asyncio.sleep(CLOSE_CHECK_SECONDS if close else CHECK_SECONDS)
            # The fallback takes everything anyway. Every process watches closely: it may have died itself.
            if self.everything or not (self._watches_stalls or close):
                continue
            try:
                await self._stalled.look(
                    seconds=CLOSE_STALLED_SECONDS if close else STALLED_SECONDS
                )
            except ApexError as error:
                self._log_seldom("stalled sources not checked", error)

    def _log_seldom(self, what: str, error: ApexError, **context: str) -> None:
        if monotonic() - self._logged_at >= LOG_SECONDS:
            self._logged_at = monotonic()
            self._log.warning(what, reason=str(error), **context)
