"""What a text states, as the assertions that a document gets from it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from apex_memory.model import Assertion
from apex_memory.pipeline.extract import assertion_of, statements


def extract(
    text: str, passages: Sequence[tuple[int, int]], *given: Any, **named: Any
) -> list[Assertion]:
    """Return what `statements` finds as assertions."""
    return [assertion_of(statement) for statement in statements(text, passages, *given, **named)]
