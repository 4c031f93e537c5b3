"""Pulls as others see them: triggered, followed, backfilled. See `drains` for the way from inbox to memory."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from datetime import timedelta
from uuid import UUID

from temporalio.client import Client, ScheduleOverlapPolicy
from temporalio.common import Priority, WorkflowIDConflictPolicy
from temporalio.service import RPCError, RPCStatusCode

from apex_memory.errors import Conflict, Unavailable
from apex_memory.flows.fetch.messages import BackfillInput, FollowInput
from apex_memory.flows.temporal.attributes import attributes_of
from apex_memory.flows.temporal.queues import (
    BULK,
    backfill_id,
    follow_id,
    key_of,
    pull_id,
    queue_of,
)
from apex_memory.model import Priority as Urgency
from apex_memory.sources.base import PulledSource, Source, StreamSource

CALL = timedelta(seconds=10)


class Pulling:
    def __init__(self, client: Client, sources: Mapping[str, Source]) -> None:
        self._client = client
        self._sources = sources

    async def trigger(self, name: str) -> None:
        """Look now, once more if a look is under way. A stream looks by itself every few seconds. Raises `Unavailable`."""
        source = self._sources[name]
        if isinstance(source, StreamSource) or not isinstance(source, PulledSource):
            return
        if source.missing_settings:
            raise Conflict(
                f"{name}: {source.missing_settings} is not set",
                remedy=f"set sources.{name}.{source.missing_settings}, see docs/howto/sources/{name}.md",
            )
        async with _told(f"pull of {name}"):
            handle = self._client.get_schedule_handle(pull_id(name))
            await handle.trigger(overlap=ScheduleOverlapPolicy.BUFFER_ONE, rpc_timeout=CALL)

    async def follow(self) -> None:
        """See that every stream that has what it needs is followed."""
        for name, source in self._sources.items():
            if isinstance(source, StreamSource) and not source.missing_settings:
                priority = int(source.priority)
                async with _told(f"follow {name}"):
                    await self._client.start_workflow(
                        "Follow",
                        FollowInput(name),
                        id=follow_id(name),
                        task_queue=queue_of(priority),
                        id_conflict_policy=WorkflowIDConflictPolicy.USE_EXISTING,
                        static_summary=f"Stays with the stream of {source.title}",
                        search_attributes=attributes_of(name, priority),
                        priority=Priority(priority_key=key_of(priority), fairness_key=name),
                        rpc_timeout=CALL,
                    )

    async def backfill(self, name: str, id: UUID) -> None:
        """Start what `Backfills.create` wrote down, at the lowest priority."""
        async with _told(f"backfill of {name}"):
            await self._client.start_workflow(
                "Backfill",
                BackfillInput(name, str(id)),
                id=backfill_id(name, str(id)),
                task_queue=BULK,
                id_conflict_policy=WorkflowIDConflictPolicy.USE_EXISTING,
                static_summary=f"A stretch of {name}'s past",
                search_attributes=attributes_of(name, int(Urgency.P2)),
                priority=Priority(priority_key=5, fairness_key=name),
                rpc_timeout=CALL,
            )


@asynccontextmanager
async def _told(what: str) -> AsyncIterator[None]:
    try:
        yield
    except RPCError as error:
        if error.status == RPCStatusCode.NOT_FOUND:
            raise Unavailable(
                "temporal", f"{what}: no worker has set it up yet", remedy="start a worker"
            ) from error
        raise Unavailable("temporal", f"{what} failed ({error.status.name})") from error
    except RuntimeError as error:  # how the library says that a lazy client found nobody
        raise Unavailable("temporal", f"{what} failed: no connection") from error
