"""Drains of copies: one for each source whose Temporal path is compared with the direct path. No reader sees a copy."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import TYPE_CHECKING

from temporalio.client import Client
from temporalio.common import Priority
from temporalio.service import RPCError, RPCStatusCode

from apex_memory.errors import ApexError, Unavailable
from apex_memory.flows.drain.messages import DrainInput
from apex_memory.flows.temporal.attributes import attributes_of
from apex_memory.flows.temporal.options import TASK_TIMEOUT
from apex_memory.flows.temporal.queues import SHADOW, copies_of
from apex_memory.telemetry import logger, traces

if TYPE_CHECKING:
    from apex_memory.app import App

CALL_SECONDS = 10
WAKE_SECONDS = 1.0  # between two looks at what waits
PRIORITY = 2  # in the search attributes: copies are bulk work, whatever the source is
LAST_KEY = 5  # Temporal's priority key


class CopyDrains:
    """Wakes and ends the drains of copies."""

    def __init__(self, client: Client) -> None:
        self._client = client

    async def wake(self, source: str) -> None:
        """Signal that copies of events of a source wait; starts the drain where it does not run. Raises `Unavailable`."""
        name = copies_of(source)
        try:
            with traces.untraced():
                await self._client.start_workflow(
                    "Drain",
                    DrainInput(name, PRIORITY),
                    id=name,
                    task_queue=SHADOW,
                    start_signal="wake",
                    static_summary=f"Copies of events of {source}: compared, never shown",
                    search_attributes=attributes_of(name, PRIORITY),
                    priority=Priority(priority_key=LAST_KEY, fairness_key=name),
                    task_timeout=TASK_TIMEOUT,
                    rpc_timeout=timedelta(seconds=CALL_SECONDS),
                )
        except (RPCError, RuntimeError) as error:
            raise _unavailable("wake", error) from error

    async def end(self, source: str) -> None:
        """End the drain of copies of a source, if it runs. What it works on is swept. Raises `Unavailable`."""
        handle = self._client.get_workflow_handle(copies_of(source))
        try:
            await handle.terminate(
                reason="the shadow is off", rpc_timeout=timedelta(seconds=CALL_SECONDS)
            )
        except RPCError as error:
            if error.status is not RPCStatusCode.NOT_FOUND:
                raise _unavailable("end", error) from error
        except RuntimeError as error:
            raise _unavailable("end", error) from error


def _unavailable(call: str, error: Exception) -> Unavailable:
    reason = error.status.name if isinstance(error, RPCError) else "no connection"
    return Unavailable("temporal", f"{call} of copies failed ({reason})")


async def keep_copies_awake(app: App, drains: CopyDrains) -> None:
    """Run for ever: wake the drain of every source whose copies wait, and end those whose shadow is off.

    A wake is repeated while copies wait: it costs a call a second, and the drain may have lost the last one. Only the
    current build wakes: a drain begins on that build, and one before it may not serve the queue.
    """
    log = logger(component="shadow")
    ended: set[str] = set()
    while True:
        try:
            routing = await app.builds.refresh()
            if routing.role_of(app.build) == "current":
                await _wake_or_end(app, drains, ended)
        except ApexError as error:
            log.warning("copies not woken", reason=str(error))
        await asyncio.sleep(WAKE_SECONDS)


async def _wake_or_end(app: App, drains: CopyDrains, ended: set[str]) -> None:
    """Wake the drains whose copies wait, and end those without a shadow. `ended` holds the sources whose drain was ended."""
    for source, wanted in (await app.shadow.drained_sources(app.sources)).items():
        if wanted:
            ended.discard(source)
            await drains.wake(source)
        elif source not in ended:
            await drains.end(source)
            ended.add(source)
