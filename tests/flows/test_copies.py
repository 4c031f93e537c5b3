"""Copies of a source's events on a real Temporal server: processed by a drain of their own, which ends with the shadow."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack

from temporalio.api.enums.v1 import WorkflowExecutionStatus
from temporalio.client import Client
from temporalio.service import RPCError

from apex_memory.app import App, open_app
from apex_memory.engines.temporal import Temporal
from apex_memory.flows.drain.copies import WAKE_SECONDS, CopyDrains, keep_copies_awake
from apex_memory.flows.temporal.client import connect_by
from apex_memory.flows.temporal.queues import ROLES, copies_of
from apex_memory.rollout.builds import promote, register
from apex_memory.rollout.shadow_queue import waiting
from tests.conftest import running
from tests.e2e.conftest import MakeSettings, text_event
from tests.e2e.shadows import SOURCE, drain, facts, leftovers, shadow_off, shadow_on
from tests.flows.test_worker import serving, temporal
from tests.waiting import until

__all__ = ["temporal"]  # a fixture that is shared

RUNNING = WorkflowExecutionStatus.WORKFLOW_EXECUTION_STATUS_RUNNING


async def test_temporal_processes_copies_of_what_the_direct_path_processed(
    make_settings: MakeSettings, temporal: Temporal
) -> None:
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(running(temporal))
        app = await stack.enter_async_context(
            open_app(make_settings(temporal=temporal.url, temporal_payloads="plain"))
        )
        await shadow_on(app)
        await stack.enter_async_context(serving(app))
        events = [text_event(app, f"d{n}", f"Shipment SHP-1000{n:02} left.") for n in range(50)]
        await drain(app, *events)

        async def compared() -> bool:
            return (await facts(app)).compared == 50

        await until(compared, "all copies are compared", seconds=60, every=0.2)
        known = await facts(app)
        assert (known.equal, known.mismatched, known.failed) == (50, 0, 0)

        async def all_removed() -> bool:
            return await leftovers(app) == []

        await until(all_removed, "what the copies staged is removed", seconds=60, every=0.2)
        client = await connect_by(app.settings, app.keyring)
        history = await client.get_workflow_handle(copies_of(SOURCE)).fetch_history()
        assert "SHP-1000" not in history.to_json()
        await _ends_with_its_shadow(app, client)


async def test_copies_need_no_bulk_worker_and_make_progress_while_events_wait(
    make_settings: MakeSettings, temporal: Temporal
) -> None:
    """The bulk worker has the lowest CPU priority: on a busy machine what it processes may stand still."""
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(running(temporal))
        settings = make_settings(temporal=temporal.url, shadow_busy_share=0.1)
        app = await stack.enter_async_context(open_app(settings))
        await shadow_on(app)
        await drain(app, *(text_event(app, f"d{n}", f"Note {n}.") for n in range(40)))
        # Nobody drains this source here, so its events wait all the time.
        await app.inbox.land([text_event(app, f"w{n}", f"Waits {n}.") for n in range(5)])
        await stack.enter_async_context(serving(app, queues=ROLES["realtime"]))

        async def compared() -> bool:
            return (await facts(app)).compared >= 40

        await until(compared, "all copies are compared", seconds=120, every=0.2)
        assert (await facts(app)).mismatched == 0
        await _ends_with_its_shadow(app, await connect_by(app.settings, app.keyring))


class RecordedDrains(CopyDrains):
    """Records the sources that are woken."""

    def __init__(self) -> None:
        self.woken: list[str] = []

    async def wake(self, source: str) -> None:
        self.woken.append(source)

    async def end(self, source: str) -> None:
        """Nothing runs."""


async def test_only_the_current_build_starts_drains_of_copies(make_settings: MakeSettings) -> None:
    """A drain begins on the current build. One that another build starts may be on a queue that it does not serve."""
    async with open_app(make_settings(), build="candidate") as app:
        await shadow_on(app)
        await drain(app, text_event(app, "d", "Note."))
        await register(app.db, "current", decides=True)
        await register(app.db, "candidate", decides=True)
        async with app.db.connection() as connection:
            assert [row.copies for row in await waiting(connection)] == [1]
        drains = RecordedDrains()
        waking = asyncio.create_task(keep_copies_awake(app, drains))
        try:
            await asyncio.sleep(1.5 * WAKE_SECONDS)  # what is tested is that nothing happens
            assert drains.woken == []
            await promote(app.db, "candidate", actor="test", unchecked=True)
            await until(lambda: SOURCE in drains.woken, seconds=30, every=0.1)
        finally:
            waking.cancel()
            await asyncio.gather(waking, return_exceptions=True)


async def _ends_with_its_shadow(app: App, client: Client) -> None:
    assert await _runs(client)
    await shadow_off(app)

    async def ended() -> bool:
        return not await _runs(client)

    await until(ended, "the drain of copies has ended", seconds=30, every=0.2)


async def _runs(client: Client) -> bool:
    try:
        description = await client.get_workflow_handle(copies_of(SOURCE)).describe()
    except RPCError:
        return False
    return description.raw_description.workflow_execution_info.status == RUNNING
