"""Wake, pause and resume drains. Each call sends one signal, which also starts the drain where it does not run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import timedelta
from typing import TYPE_CHECKING, Literal

from temporalio.client import Client
from temporalio.common import PinnedVersioningOverride, Priority, WorkerDeploymentVersion
from temporalio.service import RPCError

from apex_memory.errors import NotFound, Unavailable
from apex_memory.flows.drain.messages import DrainInput
from apex_memory.flows.temporal.attributes import attributes_of
from apex_memory.flows.temporal.deployment import DEPLOYMENT
from apex_memory.flows.temporal.options import TASK_TIMEOUT
from apex_memory.flows.temporal.queues import candidate_drain_id, drain_id, key_of, queue_of
from apex_memory.rollout.builds import Routing
from apex_memory.sources.base import Source
from apex_memory.telemetry import traces

if TYPE_CHECKING:
    from apex_memory.app import App

CALL_SECONDS = 10

Signal = Literal["wake", "pause", "resume"]


class Drains:
    """Sends signals to the drains of each source. `priorities` maps every source to 0, 1 or 2 for P0 to P2.

    `routing` returns which build processes what, `deployment` is the name of the worker deployment. While a candidate
    build processes documents, a drain that is started is pinned to its build, and a wake reaches the candidate's drain too.
    """

    def __init__(
        self,
        client: Client,
        priorities: Mapping[str, int],
        *,
        routing: Callable[[], Routing] = Routing,
        deployment: str = DEPLOYMENT,
    ) -> None:
        self._client = client
        self.priorities = dict(priorities)
        self._routing = routing
        self._deployment = deployment

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

    async def _signal(self, source: str, signal: Signal, *, paused: bool = False) -> None:
        routing = self._routing()
        pinned = routing.current if routing.candidate else ""
        await self._send(source, signal, drain_id(source), build=pinned, paused=paused)
        # A candidate's drain is not paused: the claim leaves out paused sources anyway.
        if routing.share and signal != "pause":
            id = candidate_drain_id(source, routing.candidate)
            await self._send(source, "wake", id, build=routing.candidate)

    async def _send(
        self, source: str, signal: Signal, id: str, *, build: str, paused: bool = False
    ) -> None:
        """Signal a drain, which starts it where it does not run: pinned to `build`, or where Temporal routes it."""
        priority = self.priorities.get(source)
        if priority is None:
            raise NotFound(f"{source}: no such source", remedy="GET /v1/sources lists them")
        version = WorkerDeploymentVersion(self._deployment, build)
        try:
            # A drain lives on after the request that wakes it: its batches bring their own traces along.
            with traces.untraced():
                await self._client.start_workflow(
                    "Drain",
                    DrainInput(source, priority, paused=paused, build=build),
                    id=id,
                    task_queue=queue_of(priority),
                    start_signal=signal,
                    versioning_override=PinnedVersioningOverride(version) if build else None,
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


def drains_of(app: App, client: Client) -> Drains:
    """Return the drains of all sources, which follow the builds that process documents."""
    return Drains(
        client,
        priorities_of(app.sources),
        routing=lambda: app.builds.routing,
        deployment=app.settings.deployment_name,
    )
