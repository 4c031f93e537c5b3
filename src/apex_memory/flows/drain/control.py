"""Wake, pause and resume drains. Each call sends one signal, which also starts the drain where it does not run."""

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
from apex_memory.flows.temporal.options import TASK_TIMEOUT
from apex_memory.flows.temporal.queues import drain_id, key_of, queue_of
from apex_memory.sources.base import Source

CALL_SECONDS = 10


class Drains:
    """Sends signals to the drain of each source. `priorities` maps every source to 0, 1 or 2 for P0 to P2."""

    def __init__(self, client: Client, priorities: Mapping[str, int]) -> None:
        self._client = client
        self.priorities = dict(priorities)

    @property
    def sources(self) -> list[str]:
        return sorted(self.priorities)

    async def wake(self, source: str, *, paused: bool = False) -> None:
        """Signal that events are ready. `paused` is the state of a drain that this call starts. Raises `Unavailable`."""
        await self._signal(source, "wake", paused=paused)

    async def pause(self, source: str) -> None:
        """Stop the drain after its current batch. Events still land, and wait. Raises `Unavailable`."""
        await self._signal(source, "pause")

    async def resume(self, source: str) -> None:
        """Continue a paused drain. Raises `Unavailable`."""
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
                task_timeout=TASK_TIMEOUT,
                rpc_timeout=timedelta(seconds=CALL_SECONDS),
            )
        except RPCError as error:
            raise Unavailable("temporal", f"{signal} failed ({error.status.name})") from error
        except RuntimeError as error:  # raised by a lazy client that cannot connect
            raise Unavailable("temporal", f"{signal} failed: no connection") from error


def priorities_of(sources: Mapping[str, Source]) -> dict[str, int]:
    return {name: int(source.priority) for name, source in sources.items()}
