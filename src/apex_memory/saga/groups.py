"""How the events of a batch are worked on: together at first, apart after an attempt that never reported an outcome.

An event that ends the worker, or that makes a step time out, takes the events beside it along. `starts` counts such
attempts for each event (`inbox/transitions.py`). The next attempt works on the events that nothing happened to
first, then on smaller groups, then on single events: the event to blame fails alone, and its neighbours go on.
The same holds for events that were parked repeatedly: one that its store cannot take parks all that share its calls.
"""

from __future__ import annotations

from collections.abc import Mapping
from uuid import UUID

# Events that were parked this often are grouped like those with one unfinished start; twice as often: with two.
PARKS_EACH = 3
# Events worked on together: without suspicion, and with a little. With more of it each is worked on alone.
GROUP_SIZES = (500, 16)


def suspicion(starts: int, parks: int) -> int:
    """Return how often something went wrong with an event or its neighbours: what `next_group` compares."""
    return max(starts, parks // PARKS_EACH)


def next_group(suspicions: Mapping[UUID, int]) -> list[UUID]:
    """Return the events to work on next, from the suspicion of each: those with the least, in the given order."""
    if not suspicions:
        return []
    least = min(suspicions.values())
    size = GROUP_SIZES[least] if least < len(GROUP_SIZES) else 1
    return [id for id, value in suspicions.items() if value == least][:size]
