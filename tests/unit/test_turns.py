"""Turns at a limited number of places."""

from __future__ import annotations

import asyncio

from apex_memory.pipeline.embedders.turns import Turns


async def test_urgent_work_takes_the_next_turn() -> None:
    turns = Turns(1)
    order: list[str] = []

    async def work(name: str, *, urgent: bool) -> None:
        async with turns.turn(urgent=urgent):
            order.append(name)

    async with turns.turn(urgent=False):
        tasks = [
            asyncio.create_task(work(name, urgent=urgent))
            for name, urgent in (("a", False), ("b", False), ("x", True), ("y", True))
        ]
        await asyncio.sleep(0)
        assert order == []
    await asyncio.gather(*tasks)
    assert order == ["x", "y", "a", "b"]


async def test_a_cancelled_wait_loses_no_place() -> None:
    turns = Turns(2)

    async def work() -> None:
        async with turns.turn(urgent=False):
            await asyncio.sleep(0)

    for cancelled in range(6):
        tasks = [asyncio.create_task(work()) for _ in range(6)]
        await asyncio.sleep(0)
        tasks[cancelled].cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    async with asyncio.timeout(5), turns.turn(urgent=False), turns.turn(urgent=False):
        pass


async def test_a_wait_cancelled_as_it_is_granted_passes_the_turn_on() -> None:
    turns = Turns(1)

    async def work() -> None:
        async with turns.turn(urgent=False):
            pass

    async with turns.turn(urgent=False):
        first, second = asyncio.create_task(work()), asyncio.create_task(work())
        await asyncio.sleep(0)
    first.cancel()  # it holds the grant, and has not run since
    async with asyncio.timeout(5):
        await second
        async with turns.turn(urgent=True):
            pass
