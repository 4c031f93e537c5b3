"""The activities that fetch: each calls `app` and returns ids and counts."""

from __future__ import annotations

import asyncio
from time import monotonic
from typing import TYPE_CHECKING
from uuid import UUID

from temporalio import activity

from apex_memory.errors import ApexError, Conflict, RetryLater, Unavailable
from apex_memory.flows.drain.control import Drains
from apex_memory.flows.fetch.messages import (
    BackfillInput,
    BackfillReport,
    FileInput,
    FileReport,
    FollowInput,
    FollowReport,
    PullInput,
    PullReport,
)
from apex_memory.flows.temporal.heartbeat import heartbeating
from apex_memory.sources.base import as_file_source, as_stream_source

if TYPE_CHECKING:  # the workflows import this module, and must not load every engine
    from apex_memory.app import App
    from apex_memory.fetching.pulls import OnPage, PullResult

STOP_SECONDS = 1.0  # how often a waiting step checks whether the worker stops


class Cancelled(Exception):
    """Raised when an operator has cancelled the backfill."""


class PullActivities:
    """The activities of fetching, over one opened `App`."""

    def __init__(self, app: App, drains: Drains) -> None:
        self._app = app
        self._drains = drains

    @activity.defn
    async def pull(self, input: PullInput) -> PullReport:
        """Fetch every page that the vendor has now. Return also the ids of unfinished files."""
        async with heartbeating():
            result = await self._app.fetcher.pull(
                input.source, on_page=self._wake_on_page(input.source)
            )
            files = await self._app.fetcher.files.open_files(input.source)
            return PullReport(
                result.pages,
                result.events,
                result.fresh,
                result.fresh_readings,
                [str(id) for id in files],
            )

    @activity.defn
    async def follow(self, input: FollowInput) -> FollowReport:
        """Pull, aggregate finished windows and wait, until the time is over or the worker stops. Each page is committed on its own."""
        end = monotonic() + input.run_seconds
        pulls = readings = events = windows = 0
        source = as_stream_source(self._app.sources[input.source])
        enabled = True
        async with heartbeating():
            while monotonic() < end and not activity.is_worker_shutdown():
                enabled = await self._app.fetcher.states.may_pull(input.source)
                result = await self._app.fetcher.pull(
                    input.source, on_page=self._wake_on_page(input.source)
                )
                pulls += 1
                readings += result.fresh_readings
                events += result.fresh
                if enabled:
                    finished = await self._app.fetcher.aggregate_windows(input.source)
                    windows += finished
                    if finished:
                        await self._drains.wake(input.source)
                await _wait(source.poll_every)
        return FollowReport(pulls, readings, events, windows, paused=not enabled)

    @activity.defn
    async def land_file(self, input: FileInput) -> FileReport:
        """Land the next chunk of a file's events."""
        async with heartbeating():
            source = as_file_source(self._app.sources[input.source])
            state = await self._app.fetcher.files.land_chunk(source, UUID(input.file))
            await self._drains.wake(input.source)
            return FileReport(state.events, state.landed, state.more)

    @activity.defn
    async def answer_file(self, input: FileInput) -> list[str]:
        """Send the acknowledgements of a file to its sender. Return an empty list."""
        # Names of files can hold what only the sender chose, so histories have none. It is still a list, because a worker
        # of an earlier build, which returned the names, may decode it.
        async with heartbeating():
            source = as_file_source(self._app.sources[input.source])
            client = self._app.fetcher.clients[input.source]
            await self._app.fetcher.files.answer(source, UUID(input.file), client)
            return []

    @activity.defn
    async def backfill(self, input: BackfillInput) -> BackfillReport:
        """Run a backfill or a replay to its end. Its state and progress are in PostgreSQL."""
        async with heartbeating():
            row = await self._app.backfills.get(UUID(input.id))
            work = self._replay if row.kind == "replay" else self._backfill
            try:
                await work(input)
                await self._app.backfills.end(UUID(input.id), "done")
            except Cancelled:
                pass
            except asyncio.CancelledError:
                # An attempt is cancelled too when its heartbeats were late or its worker stops: then another one goes on.
                details = activity.cancellation_details()
                if details and details.cancel_requested:
                    await self._app.backfills.end(UUID(input.id), "cancelled")
                raise
            except (RetryLater, Unavailable):
                raise  # Temporal retries the activity, which continues after the last page
            except Conflict as error:  # an earlier attempt, taken for dead, moved the cursor
                raise RetryLater(str(error)) from error
            except ApexError as error:
                await self._app.backfills.end(UUID(input.id), "failed", str(error)[:500])
            row = await self._app.backfills.get(UUID(input.id))
            return BackfillReport(row.state, row.seen, row.landed)

    async def _backfill(self, input: BackfillInput) -> None:
        id, began = UUID(input.id), monotonic()

        async def on_page(result: PullResult) -> None:
            seen = result.events + result.readings
            landed = result.fresh + result.fresh_readings
            if not await self._app.backfills.progress(id, seen=seen, landed=landed):
                raise Cancelled
            await self._drains.wake(input.source)
            await self._slow_down(result.events, began)

        backfill = await self._app.backfills.order(id)
        await self._app.fetcher.pull(input.source, on_page=on_page, backfill=backfill)

    async def _replay(self, input: BackfillInput) -> None:
        id, began, total = UUID(input.id), monotonic(), 0
        while True:
            chunk = await self._app.backfills.replay_chunk(id)
            if not chunk.more:
                break
            total += chunk.read
            if chunk.read:
                await self._drains.wake(input.source)
            await self._slow_down(total, began)
        if (await self._app.backfills.get(id)).state != "running":
            raise Cancelled

    async def _slow_down(self, events: int, began: float) -> None:
        due = began + events / self._app.settings.backfill_events_per_second
        await asyncio.sleep(max(0.0, due - monotonic()))

    def _wake_on_page(self, source: str) -> OnPage:
        async def on_page(result: PullResult) -> None:
            if result.fresh:
                await self._drains.wake(source)

        return on_page


async def _wait(seconds: float) -> None:
    """Wait, or return early when the worker stops."""
    end = monotonic() + seconds
    while (left := end - monotonic()) > 0 and not activity.is_worker_shutdown():  # noqa: ASYNC110 -- two conditions
        await asyncio.sleep(min(left, STOP_SECONDS))
