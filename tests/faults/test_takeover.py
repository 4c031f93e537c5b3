"""Two gateways and three workers: what one process does for all is taken over when that process is killed."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import suppress
from datetime import datetime
from time import monotonic
from uuid import UUID

import httpx2
import pytest

from apex_memory.model import now
from apex_memory.stores.postgres import Postgres
from tests.faults.kinds import DEFAULT_GRAPH, FaultyStack, kinds_of_many
from tests.faults.loop import HEAL_SECONDS, faulty_stack, settings_of, works_again
from tests.soaking import only_in_soak
from tests.waiting import until

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="reads /proc"),
    pytest.mark.soak,
    pytest.mark.long,
    pytest.mark.timeout(400),  # starts the whole stack, of 12 processes
]

SLOW = 15.0  # seconds that a machine which others work on may add
FALLBACK_SECONDS = 2
# The heartbeat of a step, and the time limit of a decision if the killed worker was in the middle of one.
PULL_SECONDS = 75.0
LEASES = {"rollout": 3.0, "metrics": 15.0, "fallback": 10.0}
"""Each lease that one process holds for long, and the seconds after which another takes it, as
docs/discussions/processes.md says. `metrics` with the setting below."""


@pytest.fixture
async def stack(request: pytest.FixtureRequest) -> AsyncIterator[FaultyStack]:
    only_in_soak(request)
    async with faulty_stack(
        gateways=2, workers=3, FACTS_SECONDS="1", FALLBACK_SECONDS=str(FALLBACK_SECONDS)
    ) as stack:
        await stack.start()
        await stack.whole(seconds=HEAL_SECONDS)
        yield stack


class Leases:
    """The table `leases`, and the death of holders."""

    def __init__(self, stack: FaultyStack, db: Postgres) -> None:
        self._stack = stack
        self._db = db

    async def held(self, name: str) -> tuple[UUID, datetime] | None:
        """Return who holds a lease and until when; None if nobody does."""
        row = await self._db.fetch_one(
            "SELECT owner, until FROM leases WHERE name = %s AND until > clock_timestamp()", (name,)
        )
        return (row["owner"], row["until"]) if row else None

    async def kill_holder(self, name: str, processes: Sequence[str]) -> float:
        """Kill these processes one after the other until the holder is among them.

        Return the seconds from its death until another process holds the lease.
        """
        for process in processes:
            await until(self._is_back(process, 0), self._stack.log_tail, seconds=120)
            before = await until(lambda: self.held(name), f"{name} is held", seconds=60)
            assert before
            child = self._stack.children()[process]
            os.kill(child.pid, signal.SIGKILL)
            began = monotonic()
            await asyncio.sleep(0.3)  # a renewal that was under way has arrived
            last = await self.held(name)
            lived = False
            while monotonic() - began < LEASES[name] + SLOW:
                current = await self.held(name)
                if current and current[0] != before[0]:
                    return monotonic() - began
                if current and last and current[1] > last[1]:
                    lived = True  # the holder renews: it was another process
                    break
                await asyncio.sleep(0.1)  # a bounded poll, which measures
            assert lived, f"nobody took {name} over. {self._stack.log_tail()}"
            await until(self._is_back(process, child.pid), self._stack.log_tail, seconds=120)
        raise AssertionError(f"none of {processes} holds {name}")

    def _is_back(self, process: str, former: int) -> Callable[[], bool]:
        def is_back() -> bool:
            child = self._stack.children()[process]
            return child.ready and child.pid not in (0, former)

        return is_back


async def test_another_process_takes_over_what_one_did_for_all(stack: FaultyStack) -> None:
    db = Postgres(settings_of(stack).documents)
    await db.open()
    try:
        leases = Leases(stack, db)
        took: dict[str, float] = {}
        took["rollout"] = await leases.kill_holder("rollout", stack.workers)
        took["metrics"] = await leases.kill_holder("metrics", stack.gateways)
        with stack.held("temporal"):
            took["fallback"] = await leases.kill_holder("fallback", stack.workers)
            began = monotonic()
            await works_again(stack, 1)
            print(f"found without Temporal after {monotonic() - began:.1f} s")
        print({name: round(seconds, 1) for name, seconds in took.items()})
        for name, seconds in took.items():
            assert seconds < LEASES[name] + SLOW, took

        async def is_over() -> bool:
            return await leases.held("fallback") is None

        await until(is_over, stack.log_tail, seconds=60)
        await stack.whole(seconds=HEAL_SECONDS)
    finally:
        await db.close()


async def test_one_worker_and_one_gateway_go_on_when_the_others_are_killed(
    stack: FaultyStack,
) -> None:
    """Temporal gives the drains, rounds and pulls of the killed workers to the one that is left."""
    faults = {fault.name: fault for fault in kinds_of_many(DEFAULT_GRAPH, 2, 3)}
    chance = random.Random("takeover")
    await until(stack.pulled_at, stack.log_tail, seconds=60)
    for n, name in enumerate(("kill -9 all workers but one", "kill -9 a gateway and a worker")):
        await faults[name].strike(stack, chance)
        struck, began = now(), monotonic()

        async def is_pulled(since: datetime = struck) -> bool:
            with suppress(httpx2.TransportError):
                pulled = await stack.pulled_at()
                return bool(pulled and pulled > since)
            return False

        print(f"{name}: found again after {await works_again(stack, n):.1f} s")
        await until(is_pulled, stack.log_tail, seconds=PULL_SECONDS + SLOW)
        print(f"{name}: pulled again after {monotonic() - began:.1f} s at most")
    await stack.whole(seconds=HEAL_SECONDS)
