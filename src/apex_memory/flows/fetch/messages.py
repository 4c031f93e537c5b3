"""What travels between the workflows that fetch and their activities: names, ids and counts. See `orders`."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class PullInput:
    source: str


@dataclass(frozen=True)
class PullReport:
    """What a pull brought; `files` are those that are not at an end, whenever they came."""

    pages: int = 0
    events: int = 0
    fresh: int = 0
    readings: int = 0
    files: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class FollowInput:
    """Follow a stream for so many seconds a step, as often as its settings say; then the next run goes on."""

    source: str
    run_seconds: float = 600
    runs: int = 50
    """Activities in one run of the workflow."""


@dataclass(frozen=True)
class FollowReport:
    looks: int = 0
    readings: int = 0
    events: int = 0
    folded: int = 0
    paused: bool = False


@dataclass(frozen=True)
class FileInput:
    source: str
    file: str


@dataclass(frozen=True)
class FileReport:
    """How far a file is."""

    events: int
    landed: int
    more: bool


@dataclass(frozen=True)
class BackfillInput:
    source: str
    id: str


@dataclass(frozen=True)
class BackfillReport:
    state: str
    seen: int
    landed: int
