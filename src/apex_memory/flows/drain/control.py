"""The drains as others see them: woken, paused, resumed. One call is one signal; the drain is started by it if need be."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from typing import Literal

from temporalio.client import Client
from temporalio.common import Priority
from temporalio.service import RPCError

from apex_memory.errors import NotFound, Unavailable
from apex_memory.flows.drain.messages import DrainInput
from apex_memory.flows.temporal.attributes import attributes_of
from apex_memory.flows.temporal.queues import drain_id, key_of, queue_of
from apex_memory.sources.base import Source

CALL_SECONDS = 10


class Drains:
    """Signals to the drain of each source. `priorities` names all sources there are (0, 1, 2 for P0 to P2)."""

    def __init__(self, client: Client, priorities: Mapping[str, int]) -> None:
        self._client = client
        self.priorities = dict(priorities)

    @property
    def sources(self) -> list[str]:
        return sorted(self.priorities)

    async def wake(self, source: str, *, paused: bool = False) -> None:
        """Tell the drain that something is ready. `paused` holds for a drain that this starts. Raises `Unavailable`."""
        await self._signal(source, "wake", paused=paused)

    async def pause(self, source: str) -> None:
        """Let the drain finish its batch, then wait. Events land and wait meanwhile. Raises `Unavailable`."""
        await self._signal(source, "pause")

    async def resume(self, source: str) -> None:
        await self._signal(source, "resume")

    async def _signal(
        self, source: str, signal: Literal["wake", "pause", "resume"], *, paused: bool = False
    ) -> None:
        priority = self.priorities.get(source)
        if priority is None:
            raise NotFound(f"{source}: no such source", remedy="GET /v1/sources lists them")
        try:
            await self._client.start_workflow(
                "Drain",
                DrainInput(source, priority, paused=paused),
                id=drain_id(source),
                task_queue=queue_of(priority),
                start_signal=signal,
                static_summary=f"Events of {source}, from inbox to memory",
                memo={"paused": paused},
                search_attributes=attributes_of(source, priority),
                priority=Priority(priority_key=key_of(priority), fairness_key=source),
                rpc_timeout=timedelta(seconds=CALL_SECONDS),
            )
        except RPCError as error:
            raise Unavailable("temporal", f"{signal} failed ({error.status.name})") from error
        except RuntimeError as error:  # how the library says that a lazy client found nobody
            raise Unavailable("temporal", f"{signal} failed: no connection") from error


def priorities_of(sources: Mapping[str, Source]) -> dict[str, int]:
    return {name: int(source.priority) for name, source in sources.items()}
