"""How many examples a property test draws when the number of the profile is not right for it."""

from __future__ import annotations

from hypothesis import settings

USUAL = 100  # examples of a property in the gate, hypothesis' own default
LEAST = 10


def examples(number: int) -> int:
    """Return how many examples to draw for a test that draws `number` in the gate: fewer in `make quick`, more in a soak."""
    assert settings.default is not None
    return max(LEAST, number * settings.default.max_examples // USUAL)
