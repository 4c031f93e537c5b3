"""Stalled sources get turns on the direct path: none that has events for ever keeps another waiting."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable
from typing import cast

import pytest_asyncio

from apex_memory.errors import RetryLater
from apex_memory.inbox import Inbox, WorkflowRun
from apex_memory.steps.batches import BatchSteps
from apex_memory.steps.direct import DirectPath
from apex_memory.steps.stalled import SOURCES_AT_ONCE, StalledDrains
from tests.waiting import until

ENDLESS = tuple(f"endless-{n}" for n in range(SOURCES_AT_ONCE))


class Waiting:
    """An inbox in which these sources wait, and a direct path whose drains are counted in batches."""

    def __init__(self) -> None:
        self.stalls: dict[str, float] = {}
        self.fails: set[str] = set()

    async def stalled(self, *, seconds: float) -> dict[str, float]:
        return {source: wait for source, wait in self.stalls.items() if wait > seconds}


class Counted(DirectPath):
    """Sources of `ENDLESS` have batches for ever, the others have one."""

    def __init__(self, inbox: Waiting) -> None:
        super().__init__(cast(BatchSteps, None))
        self._waiting = inbox
        self.batches: Counter[str] = Counter()
        self.running: Counter[str] = Counter()
        self.most = 0

    async def drain(
        self,
        source: str,
        *,
        everything: bool = True,
        run: WorkflowRun | None = None,
        pause: Callable[[], bool] = bool,
    ) -> int:
        self.running[source] += 1
        self.most = max(self.most, self.running.total())
        try:
            while not pause():
                if source in self._waiting.fails:
                    raise RetryLater("away")
                self.batches[source] += 1
                await asyncio.sleep(0.001)
                if source not in ENDLESS:
                    del self._waiting.stalls[source]
                    break
        finally:
            self.running[source] -= 1
        return 1


@pytest_asyncio.fixture
async def inbox() -> Waiting:
    return Waiting()


@pytest_asyncio.fixture
async def path(inbox: Waiting) -> Counted:
    return Counted(inbox)


@pytest_asyncio.fixture
async def drains(inbox: Waiting, path: Counted) -> AsyncIterator[StalledDrains]:
    drains = StalledDrains(path, cast(Inbox, inbox), (*ENDLESS, "small", "other"))
    yield drains
    await drains.close()
    assert not path.running.total()


async def test_a_source_that_stalls_while_others_are_drained_for_ever_has_its_turn(
    inbox: Waiting, path: Counted, drains: StalledDrains
) -> None:
    """It had none before all drains that had begun were at their end: 364 s on a slow machine."""
    inbox.stalls = dict.fromkeys(ENDLESS, 1000.0)
    await drains.look()
    await until(lambda: min(path.batches[source] for source in ENDLESS) > 2, "they are drained")
    inbox.stalls["small"] = 61.0
    await drains.look()
    await until(lambda: path.batches["small"], "the new one is drained")
    assert path.most == SOURCES_AT_ONCE


async def test_sources_have_their_turns_in_the_order_of_their_last_ones(
    inbox: Waiting, path: Counted, drains: StalledDrains
) -> None:
    """Those without one come first, also where others have waited for longer: a long backlog stays old."""
    inbox.stalls = dict.fromkeys(ENDLESS, 1000.0) | {"small": 62.0, "other": 61.0}
    for _ in range(3):
        await drains.look()
        await until(lambda: not drains._waiting, "all have begun")
    assert path.batches["small"] == path.batches["other"] == 1
    assert all(path.batches[source] for source in ENDLESS)


async def test_no_turn_before_its_time_and_none_of_an_unknown_source(
    inbox: Waiting, path: Counted, drains: StalledDrains
) -> None:
    inbox.stalls = {"small": 59.0, "former": 1000.0, "other": 61.0}
    await drains.look()
    await until(lambda: path.batches["other"], "the stalled one is drained")
    assert set(path.batches) == {"other"}


async def test_a_drain_that_fails_ends_its_turn_alone(
    inbox: Waiting, path: Counted, drains: StalledDrains
) -> None:
    inbox.stalls = {"small": 61.0, "other": 61.0}
    inbox.fails = {"small"}
    await drains.look()
    await until(lambda: path.batches["other"] and not path.running.total(), "both turns ended")
    inbox.fails = set()
    await drains.look()
    await until(lambda: path.batches["small"], "it is drained by the next look")
