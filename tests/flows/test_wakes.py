"""Wakes: few, cheap, and harmless when Temporal is away."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import cast

import pytest
import pytest_asyncio
from temporalio.client import Client
from temporalio.service import RPCError

from apex_memory.engines.base import free_port
from apex_memory.engines.temporal import Temporal
from apex_memory.errors import NotFound, Unavailable
from apex_memory.flows import wakes
from apex_memory.flows.drain.control import Drains
from apex_memory.flows.fetch.control import Pulling
from apex_memory.flows.temporal.client import connect
from apex_memory.flows.temporal.queues import drain_id
from apex_memory.flows.wakes import Waker
from apex_memory.telemetry import WAKES_FAILED
from tests.conftest import running
from tests.waiting import until

SOURCES = {"wake-p0": 0, "wake-p2": 2}
NO_PULLS = Pulling(cast(Client, None), {})  # these sources send


@pytest_asyncio.fixture
async def waker(client: Client) -> AsyncIterator[Waker]:
    await end_all(client)
    waker = Waker(Drains(client, SOURCES), NO_PULLS)
    yield waker
    await waker.close()
    await end_all(client)


async def end_all(client: Client) -> None:
    """End every run, whose signals the next test would count. Each run is described by itself, because lists lag behind."""
    for source in SOURCES:
        with suppress(RPCError):
            await client.get_workflow_handle(drain_id(source)).terminate("the test is over")


async def signals(client: Client, source: str) -> int:
    history = await client.get_workflow_handle(drain_id(source)).fetch_history()
    return sum(
        event.HasField("workflow_execution_signaled_event_attributes") for event in history.events
    )


async def started(client: Client, source: str) -> bool:
    try:
        return await signals(client, source) > 0
    except Exception as error:
        assert "not found" in str(error).lower()
        return False


@pytest.fixture
def unreachable() -> str:
    return f"127.0.0.1:{free_port()}/apex"


def failed() -> float:
    return float(WAKES_FAILED._value.get())


async def test_a_thousand_wakes_are_a_few_signals(waker: Waker, client: Client) -> None:
    loop = asyncio.get_running_loop()
    began = loop.time()
    for _ in range(1000):
        waker.wake("wake-p0")
        await asyncio.sleep(0)  # others get their turn, as between requests
    lasted = loop.time() - began
    await until(lambda: not waker._tasks, "all sent")
    sent = await signals(client, "wake-p0")
    assert 1 <= sent <= 3 + lasted / wakes.LEAST_SECONDS


class Counted(Drains):
    """Counts the wakes that Temporal took."""

    taken = 0

    async def wake(self, source: str, *, paused: bool = False) -> None:
        await super().wake(source, paused=paused)
        self.taken += 1


async def test_the_last_wake_is_never_swallowed(client: Client) -> None:
    drains = Counted(client, SOURCES)
    waker = Waker(drains, NO_PULLS)
    try:
        for count in (1, 2, 3):
            waker.wake(
                "wake-p0"
            )  # the one before has just been taken, and its distance still holds
            await until(lambda: drains.taken == count, f"wake {count}")  # noqa: B023 (awaited here)
        assert await signals(client, "wake-p0") >= 1
    finally:
        await waker.close()
        await end_all(client)


async def test_sustained_load_is_spread_wider(
    waker: Waker, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wakes, "CREDIT", 3)
    loop = asyncio.get_running_loop()
    end = loop.time() + 1
    while loop.time() < end:
        waker.wake("wake-p0")
        await asyncio.sleep(0.005)  # the load: 200 wakes a second
    await until(lambda: not waker._tasks, "all sent")
    assert 5 <= await signals(client, "wake-p0") <= 18  # at 20 ms it would be 40 or so


async def test_bulk_is_woken_more_rarely_under_load(
    waker: Waker, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wakes, "CREDIT", 1)
    loop = asyncio.get_running_loop()
    end = loop.time() + 0.8
    while loop.time() < end:
        waker.wake("wake-p2")
        await asyncio.sleep(0.005)  # the load: 200 wakes a second
    assert await signals(client, "wake-p2") <= 3


async def test_each_source_has_its_queue_priority_and_attributes(
    waker: Waker, client: Client
) -> None:
    waker.wake("wake-p0")
    waker.wake("wake-p2")
    for source, queue, key in (("wake-p0", "apex-realtime", 1), ("wake-p2", "apex-bulk", 5)):
        await until(partial(started, client, source), f"{source} started")
        description = await client.get_workflow_handle(drain_id(source)).describe()
        assert description.task_queue == queue
        assert description.raw_info.priority.priority_key == key
        assert description.raw_info.priority.fairness_key == source
        attributes = {pair.key.name: pair.value for pair in description.typed_search_attributes}
        assert attributes["ApexSource"] == source
        assert attributes["ApexPriority"] == f"P{SOURCES[source]}"
        assert attributes["ApexOutcome"] == "idle"


async def test_unreachable_temporal_costs_landing_nothing(unreachable: str) -> None:
    waker = Waker(Drains(await connect(unreachable, lazy=True), SOURCES), NO_PULLS)
    before, loop = failed(), asyncio.get_running_loop()
    began = loop.time()
    for _ in range(10_000):
        waker.wake("wake-p0")
        waker.wake("wake-p2")
    assert loop.time() - began < 0.5
    assert len(waker._tasks) == 2
    await until(lambda: failed() > before, "the failure is counted")
    assert len(waker._tasks) <= 2
    await waker.close()
    assert not waker._tasks


async def test_a_stranger_is_refused_by_commands_and_passed_over_by_wakes(unreachable: str) -> None:
    drains = Drains(await connect(unreachable, lazy=True), SOURCES)
    with pytest.raises(NotFound):
        await drains.pause("stranger")
    with pytest.raises(Unavailable):
        await drains.pause("wake-p0")
    waker = Waker(drains, NO_PULLS)
    waker.wake("stranger")
    assert not waker._tasks


@pytest.fixture
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="apex-test-") as name:
        yield Path(name)


async def test_wakes_arrive_again_when_temporal_comes_and_comes_back(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wakes, "FAULT_SECONDS", 0.05)
    engine = Temporal(folder, free_port(), "", free_port())
    waker = Waker(Drains(await connect(engine.url, lazy=True, patience=0.2), SOURCES), NO_PULLS)
    before = failed()
    waker.wake("wake-p0")
    await until(lambda: failed() > before, "it fails while nobody is there")
    async with running(engine):
        client = await connect(engine.url)
        waker.wake("wake-p0")
        await until(lambda: started(client, "wake-p0"), "the drain is started")
    away = failed()
    waker.wake("wake-p0")
    await until(lambda: failed() > away, "it fails while Temporal is away")
    async with running(engine):
        client = await connect(engine.url)
        count = await signals(client, "wake-p0")
        waker.wake("wake-p0")

        async def one_more() -> bool:
            return await signals(client, "wake-p0") > count

        await until(one_more, "it arrives again")
    await waker.close()
