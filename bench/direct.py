"""The direct path as users meet it: one event over HTTP, and the whole load when Temporal has died."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import time

from apex_memory.steps.direct_loop import CLOSE_SECONDS
from bench.rows import Row, at_most, percentile
from bench.standing import DEFAULT_EMBEDDER, Standing, standing
from tests.e2e import front
from tests.waiting import until

SINGLE, WARM = 60, 5
EVERY_SECONDS = 0.2  # between two webhooks while Temporal is away
AWAY_SECONDS = 90.0


async def direct() -> list[Row]:
    """Measure single documents on the direct path with the default model, then the fallback."""
    async with standing(DEFAULT_EMBEDDER) as (stack, _):
        await stack.whole(seconds=60)
        seconds = await _one_after_another(stack)
        fallback, carried = await _without_temporal(stack)
    return [
        at_most(
            "direct path by HTTP, p50",
            1000 * percentile(seconds, 0.5),
            "ms",
            60,
            f"{len(seconds)} documents of one passage, `POST /v1/documents?path=direct&wait=searchable`, one after the other with irregular pauses, default model; p99 {1000 * percentile(seconds, 0.99):.0f} ms; the last was searched for and found",
        ),
        at_most(
            "fallback, from Temporal's death to the next event carried",
            fallback,
            "s",
            20,
            f"SIGSTOP to Temporal, a webhook each {EVERY_SECONDS:g} s, `fallback_seconds` of 15 as by default; all {carried} webhooks of the outage were searchable before Temporal was back",
        ),
    ]


async def _one_after_another(stack: Standing) -> list[float]:
    """Return the seconds of each request, from POST to the response that says searchable."""
    dice, taken = random.Random(1), []
    for n in range(SINGLE + WARM):
        body = {
            "key": f"direct{n}",
            "text": f"Load direct{n} waits at the dock of Northwind, Reno.",
        }
        began = time.perf_counter()
        answer = await stack.post("/v1/documents?path=direct&wait=searchable", json=body)
        assert answer["searchable"], answer
        if n >= WARM:
            taken.append(time.perf_counter() - began)
        await asyncio.sleep(dice.uniform(0.05, 0.3))  # makes the stack idle
    results = await stack.search(f"direct{SINGLE + WARM - 1}")
    assert f"direct{SINGLE + WARM - 1}" in results["hits"][0]["snippet"], (
        "searchable, but not found"
    )
    return taken


async def _without_temporal(stack: Standing) -> tuple[float, int]:
    """Stop Temporal; return the seconds until the first event after that is done, and how many were carried."""
    # For a while after its start a worker takes stalled sources sooner: that would be measured instead.
    await asyncio.sleep(CLOSE_SECONDS)
    temporal = stack.children()["temporal"].pid
    os.kill(temporal, signal.SIGSTOP)
    began, ids = time.monotonic(), list[str]()
    try:
        first = 0.0
        while not first:
            assert time.monotonic() - began < AWAY_SECONDS, stack.log_tail()
            n = len(ids)
            answer = await stack.hook(front.message(f"away{n}", f"cnv_{n}", at=n, text=f"away{n}"))
            assert answer.status_code == 202, answer.text
            ids.append(answer.json()["events"][0]["id"])
            await asyncio.sleep(EVERY_SECONDS)  # the load
            if "done" in (await stack.states(ids)).values():
                first = time.monotonic() - began

        async def all_done() -> bool:
            return set((await stack.states(ids)).values()) == {"done"}

        await until(all_done, seconds=60, what=stack.log_tail)
    finally:
        os.kill(temporal, signal.SIGCONT)
    return first, len(ids)
