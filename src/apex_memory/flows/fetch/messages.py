"""The inputs and results of the workflows that fetch: names of sources, ids and counts. See `drain.messages`."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class PullInput:
    """Input of `Pull`."""

    source: str


@dataclass(frozen=True)
class PullReport:
    """Result of a pull. `fresh` counts new events; `files` are all unfinished files, whenever they arrived."""

    pages: int = 0
    events: int = 0
    fresh: int = 0
    readings: int = 0
    files: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class FollowInput:
    """Input of `Follow`: the seconds that one activity reads the stream, and the activities of one run."""

    source: str
    run_seconds: float = 600
    runs: int = 50


@dataclass(frozen=True)
class FollowReport:
    """Result of reading a stream: pulls, readings stored, new events, windows aggregated."""

    pulls: int = 0
    readings: int = 0
    events: int = 0
    windows: int = 0
    paused: bool = False


@dataclass(frozen=True)
class FileInput:
    """Input of `File`. `file` is the file's id."""

    source: str
    file: str


@dataclass(frozen=True)
class FileReport:
    """Progress of a file: its events, those that landed, and whether any are left."""

    events: int
    landed: int
    more: bool


@dataclass(frozen=True)
class BackfillInput:
    """Input of `Backfill`. `id` is the row that holds its range and progress."""

    source: str
    id: str


@dataclass(frozen=True)
class BackfillReport:
    """Result of a backfill or replay: `seen` counts its events, `landed` those that were new."""

    state: str
    seen: int
    landed: int
