"""Builds side by side: brings Temporal's routing into line with PostgreSQL, or follows it where somebody else owns it.

Every real-time worker runs a `BuildKeeper`, whatever its build. What it does is the same from any of them, so that a
worker that restarts takes nothing back: it sets what PostgreSQL says, never its own build.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from temporalio.service import RPCError

from apex_memory.errors import ApexError
from apex_memory.flows.drain.control import Drains
from apex_memory.flows.fetch.control import Pulling
from apex_memory.flows.schedules import ensure_pulls, ensure_schedules, start_rounds
from apex_memory.flows.temporal.attributes import ensure_attributes
from apex_memory.flows.temporal.deployment import NOT_YET, UNCLAIMED_SECONDS, Deployment
from apex_memory.flows.temporal.queues import drain_id
from apex_memory.rollout import builds
from apex_memory.rollout.builds import Routing
from apex_memory.sources.base import PulledSource, Source
from apex_memory.telemetry import logger

if TYPE_CHECKING:
    from apex_memory.app import App

MAINTAIN_SECONDS = 30.0
TICK_SECONDS = 1.0
SOON_SECONDS = 0.25  # while Temporal is not in line yet: it takes a moment to see a new worker
FOLLOW_SECONDS = 2.0  # between two looks at a routing that somebody else owns
WAKES = (
    5  # ticks in which drains are woken after a change: some were just ending on the build before
)
LOG_SECONDS = 30.0


class BuildKeeper:
    """Keeps Temporal in line, and this build's own work going, while a worker is connected."""

    def __init__(
        self, app: App, drains: Drains, deployment: Deployment, *, seconds: float = MAINTAIN_SECONDS
    ) -> None:
        self._db = app.db
        self._watch = app.builds
        self._settings = app.settings
        self._sources: Mapping[str, Source] = app.sources
        self._drains = drains
        self._deployment = deployment
        self._pulling = Pulling(deployment.client, app.sources)
        self._seconds = seconds
        self._log = logger(component="worker", build=deployment.build)
        self._in_line: Routing | None = None
        """The routing that Temporal had when it was last looked at; None when it had another one."""
        self._active = False
        """This build is current, and its schedules and streams are set up."""
        self._complete: set[str] = set()
        self._woken = Routing()
        self._wakes_left = 0
        self._logged_at = float("-inf")

    @property
    def _decides(self) -> bool:
        return self._settings.routing == "self"

    async def run(self, *, unclaimed: float = UNCLAIMED_SECONDS) -> None:
        """Work until cancelled. `unclaimed` (s) is how long a task without a worker waits before its run is ended."""
        clock = asyncio.get_running_loop().time
        due = clock()
        while True:
            try:
                if clock() >= due:
                    self._in_line = None
                    due = clock() + self._seconds
                    await self._tick()
                    if self._active:
                        await self._maintain(unclaimed)
                else:
                    await self._tick()
            except (RPCError, ApexError) as error:
                self._report("Temporal does not respond; trying again", str(error))
            await asyncio.sleep(self._pause())

    def _pause(self) -> float:
        """Return the seconds until the next tick: the server allows few requests a second to a deployment."""
        if not self._decides:
            return FOLLOW_SECONDS
        return TICK_SECONDS if self._in_line else SOON_SECONDS

    async def _tick(self) -> None:
        if self._decides:
            routing = await self._watch.refresh()
            if routing != self._in_line and not await self._bring_into_line(routing):
                return
        else:
            routing = await self._follow()
        role = routing.role_of(self._deployment.build)
        if role == "current" and not self._active:
            await self._activate()
        elif role != "current":
            self._active = False
        await self._wake_after_change(routing)

    async def _bring_into_line(self, routing: Routing) -> bool:
        """Set Temporal's routing to this one. Return whether Temporal has it now."""
        state = await self._deployment.state()
        ramping = routing.candidate if routing.share else ""
        percentage = routing.share if ramping else 0
        current_is_set = state.current == routing.current
        ramp_is_set = (state.ramping, round(state.percentage)) == (ramping, percentage)
        if current_is_set and ramp_is_set:
            self._in_line = routing
            return True
        self._active = self._active and current_is_set  # else Temporal lost its data, or moved on
        try:
            if not current_is_set:
                await self._deployment.set_current(routing.current)
            # Apart from the current build: setting that leaves a ramp on.
            if not ramp_is_set:
                await self._deployment.set_ramp(ramping, percentage)
        except RPCError as error:
            if error.status not in NOT_YET:
                raise
            if state.manager:
                reason = f'{state.manager} owns the routing: set `routing = "external"`'
                self._report("Temporal refuses the routing", reason)
        return False

    async def _follow(self) -> Routing:
        """Take over the routing that its owner has set in Temporal."""
        state = await self._deployment.state()
        if state.current:
            changed = await builds.follow(
                self._db, state.current, state.ramping, round(state.percentage)
            )
            if changed:
                self._log.info(
                    "the owner of the routing changed it",
                    current=state.current,
                    ramping=state.ramping,
                    share=round(state.percentage),
                )
        routing = await self._watch.refresh()
        self._in_line = routing
        if not state.current:  # nothing begins anywhere until its owner decides
            return replace(routing, current="-")
        return routing

    async def _activate(self) -> None:
        """Set up what the current build alone does: schedules, streams, and a drain for every source."""
        await ensure_attributes(self._deployment.client)
        await ensure_schedules(self._deployment.client, self._settings, self._sources)
        await self._pulling.follow()
        self._complete = _complete_sources(self._sources)
        self._active = True
        self._woken = Routing()
        self._log.info("worker ready", sources=self._drains.sources)

    async def _wake_after_change(self, routing: Routing) -> None:
        """Wake all drains after a change, for some ticks: each build then claims what is its own."""
        if routing != self._woken:
            self._woken, self._wakes_left = routing, WAKES
        role = routing.role_of(self._deployment.build)
        if self._wakes_left and (role == "current" or (role == "candidate" and routing.share)):
            self._wakes_left -= 1
            for source in self._drains.sources:
                await self._drains.wake(source)

    async def _maintain(self, unclaimed: float) -> None:
        if self._decides:  # another owner of the routing ends workflows itself
            await self._restart_abandoned(unclaimed)
        if _complete_sources(self._sources) != self._complete:  # secrets were set meanwhile
            self._complete = _complete_sources(self._sources)
            await ensure_pulls(self._deployment.client, self._sources)
        await self._pulling.follow()

    async def _restart_abandoned(self, unclaimed: float) -> None:
        """End workflows that no worker runs any more, and those of retired builds; start them on this build.

        Paused stays paused.
        """
        known = {version.build for version in (await self._deployment.state()).versions}
        living = await builds.living(self._db)
        ended = await self._deployment.terminate_abandoned(unclaimed, living=living)
        for build in known & set(await builds.retired(self._db)):
            ended += await self._deployment.terminate_all(build)
        by_id = {drain_id(source): source for source in self._drains.sources}
        for execution in ended:
            self._log.warning(
                "ended a workflow without a worker, or of a retired build",
                workflow=execution.id,
                run=execution.run_id,
            )
            if execution.id in by_id:
                paused = bool(await execution.memo_value("paused", False))
                await self._drains.wake(by_id[execution.id], paused=paused)
            elif (schedule := execution.id.partition("-")[0]) in ("sweep", "collect"):
                await start_rounds(self._deployment.client, schedule)

    def _report(self, message: str, reason: str) -> None:
        """Log a warning, every half minute at most."""
        now = asyncio.get_running_loop().time()
        if now - self._logged_at >= LOG_SECONDS:
            self._logged_at = now
            self._log.warning(message, reason=reason[:300])


def _complete_sources(sources: Mapping[str, Source]) -> set[str]:
    return {
        name
        for name, source in sources.items()
        if isinstance(source, PulledSource) and not source.missing_settings
    }
