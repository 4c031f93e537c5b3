"""Rollouts on the whole stack: a planted fault goes back by itself, with Temporal and without it, and nothing is lost."""

from __future__ import annotations

import base64
import itertools
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
import pytest_asyncio

from apex_memory.inbox.routing import bucket_of
from apex_memory.model import document_uuid
from tests.e2e.stack import Stack, running_stack
from tests.waiting import seconds_until, until

SHARE = 50
SUBJECT = "/v1/rollouts/documents"
PLAN: dict[str, Any] = {
    "steps": [SHARE, 100],
    "min_seconds": 0,
    "min_events": 5_000,  # no test processes so many: the step is not left
    "latency_floor_seconds": 60,
}

pytestmark = pytest.mark.timeout(600)


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def stack() -> AsyncIterator[Stack]:
    async with running_stack(FALLBACK_SECONDS="600") as stack:
        yield stack


@pytest.fixture(scope="module")
def numbers() -> Iterator[int]:
    return itertools.count()


def keys(numbers: Iterator[int], count: int, *, temporal: bool) -> list[str]:
    """Return new keys of documents that Temporal processes at the share, or that the direct path does."""
    new_keys: list[str] = []
    while len(new_keys) < count:
        key = f"rollout/{next(numbers)}"
        if (bucket_of(document_uuid("documents", key)) < SHARE) == temporal:
            new_keys.append(key)
    return new_keys


async def start(stack: Stack, **plan: Any) -> None:
    await stack.post(f"{SUBJECT}/start", json={"reason": "test", "plan": {**PLAN, **plan}})


async def rollout(stack: Stack) -> Any:
    return await stack.get(SUBJECT)


async def rolled_back(stack: Stack) -> float:
    """Wait until the rollout went back by itself; return how many seconds it took."""

    async def is_back() -> bool:
        return bool((await rollout(stack))["rollout"]["state"] == "rolled back")

    return await seconds_until(is_back, seconds=150, every=0.1, what=stack.log_tail)


async def unreadable(stack: Stack, key: str) -> str:
    content = base64.b64encode(b"%PDF-1.7 this is no PDF").decode()
    body = {"key": key, "content_base64": content, "content_type": "application/pdf"}
    [event] = (await stack.post("/v1/documents", json=body))["events"]
    return str(event["id"])


async def test_a_planted_failure_rolls_back_by_itself_with_the_reason(
    stack: Stack, numbers: Iterator[int]
) -> None:
    await start(stack, min_events=100)
    broken = [await unreadable(stack, key) for key in keys(numbers, 2, temporal=True)]
    await stack.ended(broken, seconds=150)
    seconds = await rolled_back(stack)
    assert seconds <= 5, "after the evidence"
    row = await rollout(stack)
    assert row["share"] == 0
    assert row["rollout"]["reason"] == "failures: 2 of 2 events failed; allowed are 1 %"
    assert (row["history"][0]["actor"], row["history"][0]["event"]) == ("gate", "back")
    status = await stack.command("rollout", "status", "documents")
    assert "rolled back at off" in status.out and "2 of 2 events failed" in status.out


async def test_without_temporal_the_gate_rolls_back_and_the_direct_path_takes_over(
    stack: Stack, numbers: Iterator[int]
) -> None:
    await start(stack, min_events=10, latency_floor_seconds=1)
    for key in keys(numbers, 25, temporal=False):
        await stack.remember(key, "processed by the direct path")
    with stack.held("temporal"):
        waiting = [
            await stack.remember(key, "waits for Temporal", wait=False)
            for key in keys(numbers, 12, temporal=True)
        ]
        seconds = await rolled_back(stack)
        print(f"rolled back {seconds:.1f} s after Temporal was held")
        row = await rollout(stack)
        assert row["share"] == 0
        assert "latency: p99 is" in row["rollout"]["reason"]
        await stack.ended([event["id"] for event in waiting], seconds=150)
    await stack.whole(seconds=150)


async def test_a_step_without_data_holds(stack: Stack, numbers: Iterator[int]) -> None:
    await start(stack, min_events=1)
    for key in keys(numbers, 5, temporal=False):
        await stack.remember(key, "of the other side")

    async def checked() -> bool:
        return "0 of 1 events" in (await rollout(stack))["rollout"]["verdict"]

    await until(checked, seconds=60, what=stack.log_tail)
    first = (await rollout(stack))["rollout"]["checked_at"]

    async def checked_again() -> bool:
        return bool((await rollout(stack))["rollout"]["checked_at"] != first)

    await until(checked_again, seconds=60, what=stack.log_tail)
    row = await rollout(stack)
    assert (row["share"], row["rollout"]["state"]) == (SHARE, "running")
    for key in keys(numbers, 2, temporal=True):
        await stack.remember(key, "of this side")

    async def promoted() -> bool:
        return bool((await rollout(stack))["share"] == 100)

    await until(promoted, seconds=60, what=stack.log_tail)
    await stack.post(f"{SUBJECT}/stop", json={"reason": "test"})
