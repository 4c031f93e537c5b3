"""A minute of the crash loop, with a fixed plan in the gate and a fresh one in `make soak`."""

from __future__ import annotations

import sys

import pytest

from tests.faults.kinds import GRAPHS, kinds, kinds_of_graph, schedule
from tests.faults.loop import Result, run

STRIKE_SECONDS = 60  # no fault begins later than that after the stack is up

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="reads /proc"),
    pytest.mark.timeout(300),  # starts the whole stack on a machine that others work on, too
]


@pytest.fixture
def seed(request: pytest.FixtureRequest) -> str:
    soak: int | None = request.config.getoption("--soak")
    return "steady" if soak is None else str(soak)


@pytest.mark.soak
async def test_the_promise_is_kept_through_faults(seed: str) -> None:
    result = await run(seed, 100, seconds=STRIKE_SECONDS)
    _judge(result)


@pytest.mark.soak
@pytest.mark.server
@pytest.mark.alone(reason="Neo4j takes both processors to come back after a kill")
async def test_the_promise_is_kept_on_neo4j(seed: str) -> None:
    """Its server killed, stopped and cut off, each once."""
    of = kinds_of_graph("neo4j")
    result = await run(seed, len(of), graph="neo4j", of=of)
    _judge(result)


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
