"""What travels between workflows and activities, and so stays in histories: ids and counts, nothing else.

Plain dataclasses for Temporal's own JSON converter: the sandbox imports this for every workflow.
"""

from __future__ import annotations

from dataclasses import dataclass, field

SHOWN = 20  # most events that a history names one by one


@dataclass(frozen=True)
class DrainInput:
    """What a drain works on. Times are seconds."""

    source: str
    priority: int
    paused: bool = False
    check_now: bool = False
    """Look for events at once: the run before left off in the middle of a burst."""
    idle_seconds: float = 30
    """Without a wake, look that often: a wake may have been lost."""
    quiet_seconds: float = 2
    """A burst is over when nothing came for so long."""
    fault_seconds: float = 15
    """Wait after a step that failed for good, before the next batch."""
    run_events: int = 600
    """History length at which a run hands over to the next, well below the server's hint of 4,096."""


@dataclass(frozen=True)
class ClaimInput:
    """`batch` names the lease: the same claim again, after a lost answer, gets the same events."""

    source: str
    batch: str


@dataclass(frozen=True)
class EventName:
    """An event by its own id and by the source's."""

    id: str
    event_id: str


@dataclass(frozen=True)
class ClaimedBatch:
    """A leased batch; `events` names the first few, `more` says that it came back full."""

    id: str
    count: int
    more: bool
    events: list[EventName] = field(default_factory=list)


@dataclass(frozen=True)
class BatchInput:
    source: str
    batch: str
    behind: str = ""
    """Id of the batch that is claimed and prepared meanwhile, and waits for this one."""


@dataclass(frozen=True)
class GiveUpInput:
    """A batch whose step failed for good; `reason` holds class and place, never data."""

    source: str
    batch: str
    step: str
    reason: str


@dataclass(frozen=True)
class StepReport:
    """What a step did: events by outcome, the gravest few by id, and how many events it landed itself."""

    counts: dict[str, int] = field(default_factory=dict)
    outcomes: dict[str, str] = field(default_factory=dict)
    landed: int = 0
