"""A minute of the crash loop, with a fixed plan in the gate and a fresh one in `make soak`."""

from __future__ import annotations

import random
import sys
import time
from collections.abc import AsyncIterator

import pytest

from apex_memory.model import document_uuid
from tests.faults.kinds import (
    GRAPHS,
    FaultyStack,
    kinds,
    kinds_of_graph,
    name_kinds,
    schedule,
    vendor_kinds,
)
from tests.faults.loop import HEAL_SECONDS, Result, faulty_stack, run, works_again

STRIKE_SECONDS = 60  # no fault begins later than that after the stack is up

GATE_SEED = "steady"

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="reads /proc"),
    pytest.mark.timeout(300),  # starts the whole stack on a machine that others work on, too
]


@pytest.fixture
def seed(request: pytest.FixtureRequest) -> str:
    soak: int | None = request.config.getoption("--soak")
    return GATE_SEED if soak is None else str(soak)


@pytest.mark.soak
@pytest.mark.long
async def test_the_promise_is_kept_through_faults(seed: str) -> None:
    result = await run(seed, 100, seconds=STRIKE_SECONDS)
    _judge(result)


@pytest.mark.soak
@pytest.mark.long
async def test_the_promise_is_kept_on_falkordb(seed: str) -> None:
    """The embedded graph with a process of its own, killed, stopped and cut off, each once."""
    if seed == GATE_SEED:
        pytest.skip("two minutes: `make faults GRAPH=falkordb`, `make soak`")
    of = kinds_of_graph("falkordb")
    result = await run(seed, len(of), graph="falkordb", of=of)
    _judge(result)


@pytest.mark.soak
@pytest.mark.server
@pytest.mark.alone(reason="Neo4j takes both processors to come back after a kill")
async def test_the_promise_is_kept_on_neo4j(seed: str, request: pytest.FixtureRequest) -> None:
    """Its server killed, stopped and cut off, each once. The gate has the contract's tests of a kill and a restart."""
    if seed == GATE_SEED and request.config.option.markexpr != "server":
        pytest.skip("five minutes: `make test-servers`, `make soak`")
    of = kinds_of_graph("neo4j")
    result = await run(seed, len(of), graph="neo4j", of=of)
    _judge(result)


@pytest.fixture
async def stack() -> AsyncIterator[FaultyStack]:
    """A stack with a vendor, whose stores the worker reaches by name; without the writers and readers of the loop."""
    async with faulty_stack() as stack:
        await stack.start()
        await stack.whole(seconds=HEAL_SECONDS)
        yield stack


async def test_vendors_and_names_that_do_not_respond_hold_nobody_else_and_come_back(
    stack: FaultyStack,
) -> None:
    """Each kind once, as the loop strikes with it: its own checks are that others go on, and that pulls come back."""
    assert stack.vendor
    for n, fault in enumerate([*vendor_kinds(), *name_kinds()]):
        began = time.monotonic()
        await fault.strike(stack, random.Random(n))
        struck = time.monotonic() - began
        print(
            f"{fault.name}: {struck:.0f} s, found again after {await works_again(stack, n):.0f} s"
        )
    await stack.whole(seconds=HEAL_SECONDS)
    for fact in stack.vendor.truth(stack.vendor.clock.now):
        assert not fact.deleted, "too early in the vendor's day"
        path = f"/v1/documents/{document_uuid(stack.vendor.name, fact.doc_key)}"
        assert fact.text in (await stack.get(path))["text"]


def _judge(result: Result) -> None:
    print(f"{result.faults.total()} faults, {result.accepted} events, {result.reads.total()} reads")
    again = f"python -m tests.faults --seed {result.seed} --graph {result.graph}"
    assert result.violations == [], f"{again}: {result.violations[:5]}"
    assert result.faults and result.accepted and result.reads["seen whole"], "this proves nothing"


@pytest.mark.parametrize("graph", GRAPHS)
def test_a_seed_plans_the_same_faults_again_and_every_kind_comes_first(graph: str) -> None:
    of = kinds(graph)
    names = [fault.name for fault in schedule("a", 2 * len(of), of)]
    assert names == [fault.name for fault in schedule("a", 2 * len(of), of)]
    assert set(names[: len(of)]) == {kind.name for kind in of}
    assert names != [fault.name for fault in schedule("b", 2 * len(of), of)]
