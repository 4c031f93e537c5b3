"""Tests that take minutes by themselves: `make soak` runs them, so that the gate stays short."""

from __future__ import annotations

import pytest


def only_in_soak(request: pytest.FixtureRequest) -> None:
    """Skip the test unless this is `make soak`."""
    if request.config.getoption("--soak") is None:
        pytest.skip("takes minutes by itself: `make soak`")
