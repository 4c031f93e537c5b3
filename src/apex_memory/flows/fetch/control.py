"""Trigger pulls, follow streams, start backfills. `drain.control` does the same for drains."""

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
from apex_memory.flows.temporal.options import TASK_TIMEOUT
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
from apex_memory.telemetry import traces

CALL = timedelta(seconds=10)


class Pulling:
    """Starts what fetches from the vendors of `sources`."""

    def __init__(self, client: Client, sources: Mapping[str, Source]) -> None:
        self._client = client
        self._sources = sources

    async def trigger(self, name: str) -> None:
        """Pull now, or once more after a running pull. Does nothing for a stream, which is read every few seconds.

        Raises `Conflict` when a setting is missing, `Unavailable` without Temporal.
        """
        source = self._sources[name]
        if isinstance(source, StreamSource) or not isinstance(source, PulledSource):
            return
        if source.missing_settings:
            raise Conflict(
                f"{name}: {source.missing_settings} is not set",
                remedy=f"set sources.{name}.{source.missing_settings}, see docs/howto/sources/{name}.md",
            )
        async with _translated_errors(f"pull of {name}"):
            handle = self._client.get_schedule_handle(pull_id(name))
            await handle.trigger(overlap=ScheduleOverlapPolicy.BUFFER_ONE, rpc_timeout=CALL)

    async def follow(self) -> None:
        """Start the workflow of every stream whose settings are complete, where it does not run. Raises `Unavailable`."""
        for name, source in self._sources.items():
            if isinstance(source, StreamSource) and not source.missing_settings:
                priority = int(source.priority)
                # Untraced: it lives on for ever, and each of its pages is a trace of its own.
                async with _translated_errors(f"follow {name}"):
                    with traces.untraced():
                        await self._start_following(name, source, priority)

    async def _start_following(self, name: str, source: StreamSource, priority: int) -> None:
        await self._client.start_workflow(
            "Follow",
            FollowInput(name),
            id=follow_id(name),
            task_queue=queue_of(priority),
            id_conflict_policy=WorkflowIDConflictPolicy.USE_EXISTING,
            static_summary=f"Reads the stream of {source.title}",
            search_attributes=attributes_of(name, priority),
            priority=Priority(priority_key=key_of(priority), fairness_key=name),
            task_timeout=TASK_TIMEOUT,
            rpc_timeout=CALL,
        )

    async def backfill(self, name: str, id: UUID) -> None:
        """Start a backfill that `Backfills.create` stored, at the lowest priority. Raises `Unavailable`."""
        async with _translated_errors(f"backfill of {name}"):
            await self._client.start_workflow(
                "Backfill",
                BackfillInput(name, str(id)),
                id=backfill_id(name, str(id)),
                task_queue=BULK,
                id_conflict_policy=WorkflowIDConflictPolicy.USE_EXISTING,
                static_summary=f"Backfill or replay of {name}",
                search_attributes=attributes_of(name, int(Urgency.P2)),
                priority=Priority(priority_key=5, fairness_key=name),
                task_timeout=TASK_TIMEOUT,
                rpc_timeout=CALL,
            )


@asynccontextmanager
async def _translated_errors(what: str) -> AsyncIterator[None]:
    try:
        yield
    except RPCError as error:
        if error.status == RPCStatusCode.NOT_FOUND:
            raise Unavailable(
                "temporal",
                f"{what}: no worker has created its schedule yet",
                remedy="start a worker",
            ) from error
        raise Unavailable("temporal", f"{what} failed ({error.status.name})") from error
    except RuntimeError as error:  # raised by a lazy client that cannot connect
        raise Unavailable("temporal", f"{what} failed: no connection") from error
