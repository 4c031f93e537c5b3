"""A short crash loop in every test run: one plan that stays the same, one that nobody has seen before."""

from __future__ import annotations

import secrets
import sys

import pytest

from tests.faults.kinds import KINDS, schedule
from tests.faults.loop import run

STRIKE_SECONDS = 20  # no fault starts later than that after the stack's start began


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.timeout(300)  # starts the whole stack on a machine that others work on, too
@pytest.mark.parametrize("seed", ["steady", secrets.token_hex(4)], ids=["steady", "fresh"])
async def test_the_promise_is_kept_through_faults(seed: str) -> None:
    result = await run(seed, len(KINDS), seconds=STRIKE_SECONDS)
    print(f"{result.faults.total()} faults, {result.accepted} events, {result.reads.total()} reads")
    assert result.violations == [], f"python -m tests.faults --seed {seed}: {result.violations[:5]}"
    assert result.faults and result.accepted and result.reads["seen whole"], "this proves nothing"


def test_a_seed_plans_the_same_faults_again_and_every_kind_comes_first() -> None:
    names = [fault.name for fault in schedule("a", 2 * len(KINDS))]
    assert names == [fault.name for fault in schedule("a", 2 * len(KINDS))]
    assert set(names[: len(KINDS)]) == {kind.name for kind in KINDS}
    assert names != [fault.name for fault in schedule("b", 2 * len(KINDS))]
