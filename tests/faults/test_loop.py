"""A minute of the crash loop with a fixed plan. `make soak` runs it with random plans."""

from __future__ import annotations

import os
import sys

import pytest

from tests.faults.kinds import GRAPHS, kinds, kinds_of_graph, schedule
from tests.faults.loop import Result, run

STRIKE_SECONDS = 60  # no fault begins later than that after the stack is up

pytestmark = [
    pytest.mark.alone,
    pytest.mark.skipif(sys.platform != "linux", reason="reads /proc"),
    pytest.mark.timeout(300),  # starts the whole stack on a machine that others work on, too
]


async def test_the_promise_is_kept_through_faults() -> None:
    result = await run("steady", 100, seconds=STRIKE_SECONDS)
    _judge(result)


async def test_the_promise_is_kept_on_neo4j(request: pytest.FixtureRequest) -> None:
    """Its server killed, stopped and cut off, each once."""
    if not (request.config.getoption("--servers") or os.environ.get("SERVERS")):
        pytest.skip("needs Java and Maven: `make test-servers`")
    of = kinds_of_graph("neo4j")
    result = await run("steady", len(of), graph="neo4j", of=of)
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
