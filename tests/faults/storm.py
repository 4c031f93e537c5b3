"""A storm of broken files beside messages of another source: how much longer these take, and how much longer they wait."""

from __future__ import annotations

import asyncio
import statistics
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field

from tests.e2e import front
from tests.e2e.stack import Stack
from tests.faults.overload import Client, ids_of
from tests.faults.story import poison

STORM = 1_000
NEIGHBOURS = 1_500
ROUNDS = 4
HANDS = 4
RATE = 100.0  # broken files a second, where what counts is how long a single message waits
SINGLE = 32
STORMS = 3  # with idle times between, for the machine is not the same from minute to minute
APART_SECONDS = 0.1  # between two messages: faster, they wait for each other's share of the wakes
AGAIN_SECONDS, TRIES = 0.5, 20  # as a vendor does when it is told to come back
SAYS = "The truck waits at the dock. " * 12


@dataclass(slots=True)
class Stormed:
    """Seconds, with and without the storm beside."""

    carried_alone: list[float] = field(default_factory=list)
    """Until all of `NEIGHBOURS` that lay ready were searchable."""
    carried_beside: list[float] = field(default_factory=list)
    waited_alone: list[float] = field(default_factory=list)
    """From a webhook to its message being searchable."""
    waited_beside: list[float] = field(default_factory=list)

    def slower(self) -> tuple[float, float]:
        """How many times as long it took beside the storm: to carry a backlog, and to wait. Of medians."""
        medians = [
            statistics.median(some)
            for some in (
                *(self.carried_beside, self.carried_alone),
                *(self.waited_beside, self.waited_alone),
            )
        ]
        return medians[0] / medians[1], medians[2] / medians[3]


async def storm(stack: Stack) -> Stormed:
    """First a backlog of both, which the worker finds at once; then files that come in while messages do."""
    found = Stormed()
    await _carried(stack, 0)  # what is done for the first time takes longer
    pair = [(0, found.carried_alone), (STORM, found.carried_beside)]
    for n in range(ROUNDS):  # the stores grow meanwhile, so each goes first as often as the other
        for broken, seconds in reversed(pair) if n % 2 else pair:
            seconds.append(await _carried(stack, broken))
    for _ in range(STORMS):
        found.waited_alone += await _waited(stack, SINGLE)
        coming = asyncio.create_task(_land(stack, _poisons(STORM), rate=RATE))
        await asyncio.sleep(0.5)
        found.waited_beside += await _waited(stack, 2 * SINGLE, before=coming)
        await _end_dead(stack, await coming)
    found.waited_alone += await _waited(stack, SINGLE)
    return found


async def _carried(stack: Stack, broken: int) -> float:
    with stack.held("worker"):
        ids = await _land(stack, [_message() for _ in range(NEIGHBOURS)], hook=True)
        poisoned = await _land(stack, _poisons(broken))
    began = time.monotonic()
    await stack.ended(ids)
    took = time.monotonic() - began
    await _end_dead(stack, poisoned)
    return took


async def _waited(
    stack: Stack, count: int, before: asyncio.Task[list[str]] | None = None
) -> list[float]:
    """One after the other; fewer when the storm is over first."""
    took = []
    while len(took) < count and not (before and before.done()):
        began = time.monotonic()
        answer = await stack.hook(_message(), path="/hooks/frontapp?wait=searchable&timeout=30")
        assert answer.status_code == 200, answer.text
        took.append(time.monotonic() - began)
        await asyncio.sleep(APART_SECONDS)
    assert len(took) >= SINGLE / 2, "the storm was over too soon to tell"
    return took


async def _land(
    stack: Stack, bodies: Sequence[bytes], *, hook: bool = False, rate: float = 0
) -> list[str]:
    """The events' ids. `rate` requests a second; as fast as may be if 0."""

    async def hand(some: Sequence[bytes]) -> list[str]:
        ids, began = [], time.monotonic()
        async with Client(stack) as client:
            for n, body in enumerate(some):
                if rate:
                    await asyncio.sleep(max(0.0, began + n * HANDS / rate - time.monotonic()))
                for _ in range(TRIES):
                    status, _, answer = await client.post(body, hook=hook)
                    if status not in (429, 503):
                        break
                    await asyncio.sleep(AGAIN_SECONDS)
                assert status in (200, 202), answer
                ids += ids_of(answer)
        return ids

    answers = await asyncio.gather(*(hand(bodies[n::HANDS]) for n in range(HANDS)))
    return [id for ids in answers for id in ids]


async def _end_dead(stack: Stack, ids: Sequence[str]) -> None:
    await stack.ended(ids)
    assert set((await stack.states(ids)).values()) <= {"dead"}


def _message() -> bytes:
    name = uuid.uuid4().hex[:12]
    return front.message(f"msg_{name}", f"cnv_{name}", at=0, text=f"About {name}. {SAYS}")


def _poisons(count: int) -> list[bytes]:
    return [poison(uuid.uuid4().int % 10**12, 1).body for _ in range(count)]
