"""The inputs and results of the drain's workflow and activities. Histories keep them: ids and counts only.

Plain dataclasses for Temporal's JSON converter: the sandbox imports this module for every workflow.
"""

from __future__ import annotations

from dataclasses import dataclass, field

SHOWN = 20  # most events whose ids a history holds


@dataclass(frozen=True)
class DrainInput:
    """Input of a drain. Times are seconds."""

    source: str
    priority: int
    paused: bool = False
    build: str = ""
    """The build that the run was started for, while a candidate processes documents; empty at other times. Such a run
    ends when that is over, because it cannot move to another build."""
    check_now: bool = False
    """Claim at once: the previous run ended in the middle of a burst."""
    idle_seconds: float = 30
    """Time after which a drain without a wake claims: a wake may have been lost."""
    quiet_seconds: float = 2
    """Time without events after which a burst is over."""
    fault_seconds: float = 15
    """Pause after a step that failed permanently."""
    run_events: int = 120
    """History length in events at which a run continues as new. A worker that lost its cache replays the whole history
    within one workflow task, so a run must be short enough to replay in a fraction of that time on a slow machine."""


@dataclass(frozen=True)
class ClaimInput:
    """Input of `claim`. `batch` is the id of the lease: repeating a claim whose response was lost returns the same events."""

    source: str
    batch: str


@dataclass(frozen=True)
class ClaimedBatch:
    """A leased batch. `events` has the ids of its first few events; `more` is true when the batch is full.

    The ids are those of the inbox. A source's own ids can hold addresses and keys of documents, and stay out of histories.
    """

    id: str
    count: int
    more: bool
    events: list[str] = field(default_factory=list)
    trace_parents: list[str] = field(default_factory=list)
    """Of the first few of its events whose trace is recorded."""
    place: str = ""
    """Whether the drain is on the build on which it belongs: `stay`, `leave` for the one that Temporal chooses, or `end`,
    so that the next wake starts it where it belongs. Empty in histories of earlier builds."""


@dataclass(frozen=True)
class BatchInput:
    """Input of `prepare` and `publish`."""

    source: str
    batch: str
    behind: str = ""
    """Id of the batch that is prepared meanwhile; its lease is extended too."""


@dataclass(frozen=True)
class GiveUpInput:
    """A batch whose step failed permanently. `reason` holds the class and place of the error, never data."""

    source: str
    batch: str
    step: str
    reason: str


@dataclass(frozen=True)
class StepReport:
    """Result of a step: events by outcome, the most severe few by id, and the number of events that it landed itself."""

    counts: dict[str, int] = field(default_factory=dict)
    outcomes: dict[str, str] = field(default_factory=dict)
    landed: int = 0

    @property
    def settled(self) -> int:
        """Events that the step took out of the batch: all but the prepared ones."""
        return sum(count for outcome, count in self.counts.items() if outcome != "prepared")
