"""A storm of broken files beside messages of another source: how much longer these take, and how much longer they wait."""

from __future__ import annotations

import asyncio
import itertools
import json
import statistics
import time
import uuid
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from tests.e2e import front
from tests.e2e.stack import Stack
from tests.faults.overload import Client, ids_of
from tests.faults.story import poison

STORM = 700
NEIGHBOURS = 1_000
ROUNDS = 4
HANDS = 4
RATE = 100.0  # broken files a second, where what counts is how long a single message waits
SINGLE = 24  # messages, one after the other
STORMS = 3  # with idle times between, for the machine is not the same from minute to minute
BEGUN_SECONDS = 0.5
LEAST = 2.0  # seconds of the rate that each storm must have had in fact
APART_SECONDS = 0.1  # between two messages: faster, they wait for each other's share of the wakes
AGAIN_SECONDS, TRIES = 0.5, 20  # as a vendor does after Retry-After
SAYS = "The truck waits at the dock. " * 12


@dataclass(slots=True)
class Stormed:
    """Seconds, with and without the storm beside."""

    processed_alone: list[float] = field(default_factory=list)
    """Until all of `NEIGHBOURS` that lay ready were searchable."""
    processed_beside: list[float] = field(default_factory=list)
    waited_alone: list[float] = field(default_factory=list)
    """From a webhook to its message being searchable."""
    waited_beside: list[float] = field(default_factory=list)
    waited_beside_sound: list[float] = field(default_factory=list)
    """The same beside as many sound documents: what so many requests cost, whatever is in them."""

    def slower(self) -> tuple[float, float, float]:
        """How many times as long it took beside the storm: to process a backlog, to wait, and to wait compared with beside
        as many sound documents. Of medians."""
        waited = statistics.median(self.waited_beside)
        return (
            statistics.median(self.processed_beside) / statistics.median(self.processed_alone),
            waited / statistics.median(self.waited_alone),
            waited / statistics.median(self.waited_beside_sound),
        )


async def storm(stack: Stack) -> Stormed:
    """First a backlog of both, which the worker finds at once; then files that come in while messages do."""
    result = Stormed()
    await _processed(stack, 0)  # what is done for the first time takes longer
    pair = [(0, result.processed_alone), (STORM, result.processed_beside)]
    for n in range(ROUNDS):  # the stores grow meanwhile, so each goes first as often as the other
        for broken, seconds in reversed(pair) if n % 2 else pair:
            seconds.append(await _processed(stack, broken))
    for _ in range(STORMS):
        result.waited_alone += await _waited(stack)
        async with _coming(stack, _poison) as poisoned:
            result.waited_beside += await _waited(stack)
        await _end_dead(stack, poisoned)
        async with _coming(stack, _sound) as sound:
            result.waited_beside_sound += await _waited(stack)
        await stack.ended(sound)
        assert set((await stack.states(sound)).values()) == {"done"}
    result.waited_alone += await _waited(stack)
    return result


async def _processed(stack: Stack, broken: int) -> float:
    with stack.held("worker"):
        ids = await _land(stack, [_message() for _ in range(NEIGHBOURS)], hook=True)
        poisoned = await _land(stack, _poisons(broken))
    began = time.monotonic()
    await stack.ended(ids)
    took = time.monotonic() - began
    await _end_dead(stack, poisoned)
    return took


async def _waited(stack: Stack) -> list[float]:
    """Seconds that each of `SINGLE` messages took, one after the other."""
    took = []
    for _ in range(SINGLE):
        began = time.monotonic()
        answer = await stack.hook(_message(), path="/hooks/frontapp?wait=searchable&timeout=30")
        assert answer.status_code == 200, answer.text
        took.append(time.monotonic() - began)
        await asyncio.sleep(APART_SECONDS)  # the pace: no request meets the one before
    return took


async def _land(stack: Stack, bodies: Sequence[bytes], *, hook: bool = False) -> list[str]:
    """Land the bodies as fast as may be; return the ids of their events."""

    async def land(share: Sequence[bytes]) -> list[str]:
        ids = []
        async with Client(stack) as client:
            for body in share:
                ids += await _send(client, body, hook=hook)
        return ids

    return await _gathered(land(bodies[n::HANDS]) for n in range(HANDS))


@asynccontextmanager
async def _coming(stack: Stack, body: Callable[[], bytes]) -> AsyncIterator[list[str]]:
    """Land `RATE` documents a second inside the block; yield the list that has their events' ids at its end."""
    ids: list[str] = []
    enough = asyncio.Event()
    landing = asyncio.create_task(_land_until(stack, enough, body))
    try:
        await asyncio.sleep(BEGUN_SECONDS)  # the load runs for a while before it is measured
        yield ids
    finally:
        enough.set()
        ids += await landing
    assert len(ids) > LEAST * RATE, "too few documents to speak of a storm"


async def _land_until(stack: Stack, enough: asyncio.Event, body: Callable[[], bytes]) -> list[str]:
    """Land `RATE` documents a second until there are enough; return the ids of their events."""

    async def land() -> list[str]:
        ids: list[str] = []
        began = time.monotonic()
        async with Client(stack) as client:
            for n in itertools.count():
                due = began + n * HANDS / RATE
                await asyncio.sleep(max(0.0, due - time.monotonic()))  # the pace of the load
                if enough.is_set():
                    break
                ids += await _send(client, body(), hook=False)
        return ids

    return await _gathered(land() for _ in range(HANDS))


async def _gathered(shares: Iterable[Coroutine[Any, Any, list[str]]]) -> list[str]:
    return [id for ids in await asyncio.gather(*shares) for id in ids]


async def _send(client: Client, body: bytes, *, hook: bool) -> list[str]:
    """Send a request, again after each refusal as a vendor does; return the ids of its events."""
    for _ in range(TRIES):
        status, _, answer = await client.post(body, hook=hook)
        if status not in (429, 503):
            break
        await asyncio.sleep(AGAIN_SECONDS)  # a client's pause before it repeats
    assert status in (200, 202), answer
    return ids_of(answer)


async def _end_dead(stack: Stack, ids: Sequence[str]) -> None:
    await stack.ended(ids)
    assert set((await stack.states(ids)).values()) <= {"dead"}


def _message() -> bytes:
    name = uuid.uuid4().hex[:12]
    return front.message(f"msg_{name}", f"cnv_{name}", at=0, text=f"About {name}. {SAYS}")


def _poisons(count: int) -> list[bytes]:
    return [_poison() for _ in range(count)]


def _poison() -> bytes:
    return poison(uuid.uuid4().int % 10**12, 1).body


def _sound() -> bytes:
    name = uuid.uuid4().hex[:12]
    return json.dumps({"key": name, "text": f"About {name}. The truck waits at the dock."}).encode()
