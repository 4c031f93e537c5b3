"""How current each source is, for every answer: read at most every few seconds, so that a search costs no statement for it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection, Sequence
from dataclasses import dataclass
from datetime import datetime
from time import monotonic

from apex_memory.errors import ApexError
from apex_memory.fetching.source_states import SourceState
from apex_memory.model import now
from apex_memory.telemetry import logger

FRESH_SECONDS = 3.0  # how long what was read is used without reading it again
STALE_SECONDS = 15.0  # and how long it is used while it is read again in the background
READ_SECONDS = 2.0  # longest that an answer waits for the first reading
BEHIND_SECONDS = 60.0  # age of the oldest unfinished event from which a source is behind
BROKEN = ("paused", "disabled", "failing", "stalled")


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceFreshness:
    """How current a source was at the time `as_of`.

    `last_event_at` is when its newest event arrived, `pulled_at` when it was last fetched without an error (None for a
    source that sends its events). `waiting` events have arrived and are not searchable yet. A source is `behind`, for the
    `reason`, if newer events than the searchable ones may exist.
    """

    source: str
    state: str
    last_event_at: datetime | None
    pulled_at: datetime | None
    waiting: int
    behind: bool
    reason: str | None
    as_of: datetime


class FreshnessCache:
    """The freshness of all sources, as one process knows it. `read` returns the state of each source."""

    def __init__(
        self,
        read: Callable[[], Awaitable[Sequence[SourceState]]],
        *,
        clock: Callable[[], float] = monotonic,
    ) -> None:
        self._read = read
        self._clock = clock
        self._states: Sequence[SourceFreshness] = ()
        self._read_at = float("-inf")
        self._reading: asyncio.Task[None] | None = None
        self._log = logger(component="freshness")

    async def of(self, sources: Collection[str]) -> list[SourceFreshness]:
        """Return the state of these sources, and of every source that is behind. It may be some seconds old."""
        return [state for state in await self.all() if state.behind or state.source in sources]

    async def fresh(self) -> Sequence[SourceFreshness]:
        """Return the present state of every source in use; what was read last where it cannot be read now."""
        await self._refresh()
        return self._states

    async def all(self) -> Sequence[SourceFreshness]:
        """Return the state of every source in use; what was read last where it cannot be read now."""
        age = self._clock() - self._read_at
        if age > FRESH_SECONDS and self._reading is None:
            self._reading = asyncio.create_task(self._refresh(), name="freshness")
        if age > STALE_SECONDS and self._reading is not None:
            await asyncio.wait([self._reading], timeout=READ_SECONDS)
        return self._states

    async def _refresh(self) -> None:
        try:
            async with asyncio.timeout(READ_SECONDS):
                sources = await self._read()
        except (ApexError, TimeoutError) as error:
            self._log.warning("freshness of sources not read", reason=type(error).__name__)
        else:
            at = now()
            self._states = [freshness(source, at) for source in sources if _is_in_use(source)]
        finally:
            # After a failure too: the next attempt is some seconds later, not with the next search.
            self._read_at = self._clock()
            self._reading = None


def _is_in_use(source: SourceState) -> bool:
    """Return whether a source is set up, or has sent something: webhooks come without the settings of a poll."""
    return source.missing is None or source.last_event_at is not None


def freshness(source: SourceState, as_of: datetime) -> SourceFreshness:
    """Return how current a source is."""
    reason = None
    if source.state in BROKEN:
        reason = f"the source is {source.state}"
        if source.error:
            reason += f": {source.error[:200]}"
    elif source.lag is not None and source.lag > BEHIND_SECONDS:
        reason = f"its oldest unfinished event has waited {source.lag:.0f} s"
    elif source.parked:
        reason = f"{source.parked} of its events wait for a store"
    return SourceFreshness(
        source=source.name,
        state=source.state,
        last_event_at=source.last_event_at,
        pulled_at=source.pulled_at,
        waiting=source.backlog + source.parked,
        behind=reason is not None,
        reason=reason,
        as_of=as_of,
    )
