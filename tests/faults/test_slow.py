"""What `python -m tests.faults slow` calls wrong, and how memory is compared with a day's truth."""

from __future__ import annotations

from dataclasses import replace

import pytest

from apex_memory.simulate.vendor import Truth
from tests.e2e.simulated import differences
from tests.faults.slow import STALL_SECONDS, Part, what_is_wrong

GOOD = Part(
    seconds={"start": 100.0, "ended": 20.0},
    looks=9,
    stalled={"turvo": STALL_SECONDS - 1},
    doctor=["machine: slow: the gateway runs 600 ms late"],
)


@pytest.mark.parametrize(
    ("part", "word"),
    [
        (replace(GOOD, seconds={"start": 100.0}), "not end"),
        (replace(GOOD, looks=0), "never seen"),
        (replace(GOOD, stalled={"turvo": STALL_SECONDS + 1}), "turvo"),
        (replace(GOOD, doctor=["source turvo: paused"]), "doctor"),
    ],
    ids=["end", "looks", "stall", "doctor"],
)
def test_a_part_that_did_not_go_well_is_noticed(part: Part, word: str) -> None:
    assert not what_is_wrong(GOOD)
    [wrong] = what_is_wrong(part)
    assert word in wrong


def test_memory_that_is_not_the_truth_is_noticed() -> None:
    truth = [Truth("a", "one"), Truth("b", "two"), Truth("c", deleted=True)]
    assert not differences({"a": "one.", "b": "two."}, truth)
    assert differences({"a": "one."}, truth) == ["b is missing"]
    assert differences({"a": "one", "b": "two", "c": "three"}, truth) == ["c is too much"]
    [stale] = differences({"a": "one", "b": "an older text"}, truth)
    assert stale.startswith("b: 'two' is not in")
