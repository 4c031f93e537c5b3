"""The fallback: while Temporal does not respond, the direct path processes everything.

Every worker process watches Temporal itself. After `fallback_seconds` without a response its direct loop takes the
documents of both paths, and one process, the holder of a lease, also fetches, sweeps and collects. It ends with the
first response: Temporal's drains are woken, and whoever claimed an event before finishes it.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from time import monotonic
from uuid import uuid4

from psycopg.types.json import Jsonb
from temporalio.api.common.v1 import WorkflowExecution
from temporalio.api.workflowservice.v1 import DescribeWorkflowExecutionRequest
from temporalio.client import Client
from temporalio.service import RPCError, RPCStatusCode

from apex_memory.app import App
from apex_memory.errors import ApexError
from apex_memory.flows.drain.control import Drains
from apex_memory.inbox.queries import FALLBACK_LEASE
from apex_memory.steps.direct_loop import DirectLoop
from apex_memory.steps.rhythm import Rhythm
from apex_memory.stores.lease import acquire, release
from apex_memory.tasks import end_tasks
from apex_memory.telemetry import FALLBACK, FALLBACKS, TEMPORAL_REACHABLE, logger

CALL_SECONDS = 2.0  # longest that the server may take to respond
CHECK_SECONDS = 1.0  # between two calls
LEASE_SECONDS = 10.0  # after that long others see that the fallback of a killed process is over
PROBE = "apex-probe"
"""Id of a workflow that does not exist: the server looks for it in its database, so a response shows that it works."""


async def responds(client: Client) -> bool:
    """Return whether the server answers for this namespace within `CALL_SECONDS`, from its database."""
    request = DescribeWorkflowExecutionRequest(
        namespace=client.namespace, execution=WorkflowExecution(workflow_id=PROBE)
    )
    try:
        async with asyncio.timeout(CALL_SECONDS):
            await client.workflow_service.describe_workflow_execution(request)
        return True
    except RPCError as error:  # an unknown namespace is "not found", too
        return error.status is RPCStatusCode.NOT_FOUND and "amespace" not in error.message
    except (RuntimeError, TimeoutError):  # RuntimeError: a lazy client could not connect
        return False


class Fallback:
    """The watch of one worker process. `fetches` is true for the process that may fetch, sweep and collect."""

    def __init__(
        self,
        app: App,
        client: Client,
        drains: Drains,
        loop: DirectLoop,
        *,
        process: str,
        fetches: bool,
    ) -> None:
        self._app = app
        self._client = client
        self._drains = drains
        self._loop = loop
        self._process = process
        self._fetches = fetches
        self._seconds = app.settings.fallback_seconds
        self._owner = uuid4()
        self._rhythm: asyncio.Task[None] | None = None
        self._log = logger(component="fallback")

    @property
    def in_force(self) -> bool:
        return self._loop.everything

    async def watch(self) -> None:
        """Watch Temporal until cancelled; then give the lease back."""
        responded_at = monotonic()
        FALLBACK.set(0)
        try:
            while True:
                reachable = await responds(self._client)
                TEMPORAL_REACHABLE.labels(self._process).set(reachable)
                away = 0.0 if reachable else monotonic() - responded_at
                if reachable:
                    responded_at = monotonic()
                    if self.in_force:
                        await self._end()
                elif self.in_force or away >= self._seconds:
                    await self._go_on(away)
                await asyncio.sleep(min(CHECK_SECONDS, max(0.05, self._seconds - away)))
        finally:
            await self._stop_fetching()

    async def _go_on(self, away: float) -> None:
        """Begin the fallback, or keep it in force."""
        if not self.in_force:
            self._log.warning(
                "Temporal does not respond; the direct path processes everything",
                away_seconds=round(away, 1),
            )
            FALLBACK.set(1)
            FALLBACKS.inc()
            self._loop.everything = True
            self._loop.wake_all()
        if not self._fetches:
            return
        try:
            holds = await acquire(self._app.db, FALLBACK_LEASE, self._owner, LEASE_SECONDS)
            if holds and self._rhythm is None:
                await self._record("began", away)
        except ApexError as error:
            self._log.warning("lease of the fallback not renewed", reason=str(error)[:200])
            return
        if holds and (self._rhythm is None or self._rhythm.done()):
            self._rhythm = asyncio.create_task(self._new_rhythm().run(), name="rhythm")
        elif (
            not holds and self._rhythm
        ):  # this process was cut off from PostgreSQL, and another took over
            await end_tasks([self._rhythm])
            self._rhythm = None

    async def _end(self) -> None:
        self._loop.everything = False
        self._loop.watch_closely()
        FALLBACK.set(0)
        self._log.warning("Temporal responds again; it takes its documents back")
        await self._stop_fetching()
        for source in self._drains.sources:
            try:
                await self._drains.wake(source)
            except ApexError as error:  # away again; the sweep or the next fallback makes up for it
                self._log.warning("wake failed", source=source, reason=str(error)[:200])
                return

    async def _stop_fetching(self) -> None:
        if self._rhythm is None:
            return
        await end_tasks([self._rhythm])
        self._rhythm = None
        with suppress(ApexError):  # the lease runs out
            await release(self._app.db, FALLBACK_LEASE, self._owner)
            await self._record("ended", 0.0)

    async def _record(self, subject: str, away: float) -> None:
        await self._app.db.execute(
            "INSERT INTO audit (actor, action, subject, detail) VALUES (%s, 'fallback', %s, %s)",
            (self._process, subject, Jsonb({"away_seconds": round(away, 1)})),
        )

    def _new_rhythm(self) -> Rhythm:
        app = self._app
        return Rhythm(
            app.db, app.fetcher, app.upkeep, app.sources, app.settings, wake=self._loop.wake
        )
