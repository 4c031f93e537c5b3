"""The steps that fetch, as Temporal runs them: each calls `app`, and answers with ids and counts."""

from __future__ import annotations

import asyncio
from time import monotonic
from typing import TYPE_CHECKING
from uuid import UUID

from temporalio import activity

from apex_memory.errors import ApexError, RetryLater
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

if TYPE_CHECKING:  # the workflows name the activities, and must not load every engine for that
    from apex_memory.app import App
    from apex_memory.fetching.pulls import OnPage, PullResult

STOP_SECONDS = 1.0  # how often a step that waits looks whether the worker is to stop


class Cancelled(Exception):
    """An operator cancelled the backfill."""


class PullActivities:
    """The activities of fetching, around one opened `App`."""

    def __init__(self, app: App, drains: Drains) -> None:
        self._app = app
        self._drains = drains

    @activity.defn
    async def pull(self, order: PullInput) -> PullReport:
        async with heartbeating():
            done = await self._app.fetcher.pull(order.source, on_page=self._woken(order.source))
            files = await self._app.fetcher.files.open_files(order.source)
            return PullReport(
                done.pages, done.events, done.fresh, done.readings, [str(id) for id in files]
            )

    @activity.defn
    async def follow(self, order: FollowInput) -> FollowReport:
        """Look, fold, rest, until the time is over or the worker stops. Every page is safe when it is taken."""
        end, looks, readings, events, folded = monotonic() + order.run_seconds, 0, 0, 0, 0
        source = as_stream_source(self._app.sources[order.source])
        may = True
        async with heartbeating():
            while monotonic() < end and not activity.is_worker_shutdown():
                may = await self._app.fetcher.states.may_pull(order.source)
                done = await self._app.fetcher.pull(order.source, on_page=self._woken(order.source))
                windows = await self._app.fetcher.aggregate_windows(order.source) if may else 0
                if windows:
                    await self._drains.wake(order.source)
                looks, readings, events, folded = (
                    looks + 1,
                    readings + done.readings,
                    events + done.fresh,
                    folded + windows,
                )
                await _rest(source.poll_every)
        return FollowReport(looks, readings, events, folded, paused=not may)

    @activity.defn
    async def land_file(self, order: FileInput) -> FileReport:
        async with heartbeating():
            source = as_file_source(self._app.sources[order.source])
            state = await self._app.fetcher.files.land_chunk(source, UUID(order.file))
            await self._drains.wake(order.source)
            return FileReport(state.events, state.landed, state.more)

    @activity.defn
    async def answer_file(self, order: FileInput) -> list[str]:
        async with heartbeating():
            source = as_file_source(self._app.sources[order.source])
            client = self._app.fetcher.clients[order.source]
            return await self._app.fetcher.files.answer(source, UUID(order.file), client)

    @activity.defn
    async def backfill(self, order: BackfillInput) -> BackfillReport:
        async with heartbeating():
            row = await self._app.backfills.get(UUID(order.id))
            carry = self._replay if row["kind"] == "replay" else self._backfill
            try:
                await carry(order)
                await self._app.backfills.end(UUID(order.id), "done")
            except Cancelled:
                pass
            except asyncio.CancelledError:
                if not activity.is_worker_shutdown():
                    await self._app.backfills.end(UUID(order.id), "cancelled")
                raise
            except RetryLater:
                raise  # tried again from where it was
            except ApexError as error:
                await self._app.backfills.end(UUID(order.id), "failed", str(error)[:500])
            row = await self._app.backfills.get(UUID(order.id))
            return BackfillReport(row["state"], row["seen"], row["landed"])

    async def _backfill(self, order: BackfillInput) -> None:
        id, began = UUID(order.id), monotonic()

        async def on_page(done: PullResult) -> None:
            if not await self._app.backfills.progress(id, seen=done.events, landed=done.fresh):
                raise Cancelled
            await self._drains.wake(order.source)
            await self._slow_down(done.events, began)

        backfill = await self._app.backfills.order(id)
        await self._app.fetcher.pull(order.source, on_page=on_page, backfill=backfill)

    async def _replay(self, order: BackfillInput) -> None:
        id, began, total = UUID(order.id), monotonic(), 0
        while (found := await self._app.backfills.replay_chunk(id))[0]:
            total += found[0]
            await self._drains.wake(order.source)
            await self._slow_down(total, began)
        if (await self._app.backfills.get(id))["state"] != "running":
            raise Cancelled

    async def _slow_down(self, events: int, began: float) -> None:
        due = began + events / self._app.settings.backfill_events_per_second
        await asyncio.sleep(max(0.0, due - monotonic()))

    def _woken(self, source: str) -> OnPage:
        async def on_page(done: PullResult) -> None:
            if done.fresh:
                await self._drains.wake(source)

        return on_page


async def _rest(seconds: float) -> None:
    """Wait; shorter when the worker is to stop."""
    end = monotonic() + seconds
    while (left := end - monotonic()) > 0 and not activity.is_worker_shutdown():  # noqa: ASYNC110 -- two conditions
        await asyncio.sleep(min(left, STOP_SECONDS))
