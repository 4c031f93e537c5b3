"""The protocol holds in every interleaving, and each of its protections is needed: without it the model finds a failure."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.faults.model import ABLATIONS, CASTS, Protections, explore

LEAST = 5_000  # a cast that reaches fewer states is not the one that was meant


@pytest.mark.parametrize("cast", CASTS)
def test_the_protocol_keeps_its_promise_in_every_interleaving(cast: str) -> None:
    explored = explore(Protections(), CASTS[cast])
    assert explored.violation is None, explored.violation
    assert explored.states > LEAST


@pytest.mark.parametrize("protection", ABLATIONS)
def test_without_a_protection_the_promise_is_broken(protection: str) -> None:
    cast, expected = ABLATIONS[protection]
    explored = explore(replace(Protections(), **{protection: False}), CASTS[cast])
    assert explored.violation is not None, (
        "the protection protects from nothing, or the model is blind"
    )
    assert explored.violation.what == expected, explored.violation
