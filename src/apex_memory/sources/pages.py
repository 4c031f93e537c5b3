"""What a pulled source brings, and what it starts from: pages, readings, files, change hints."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from apex_memory.model import Event
from apex_memory.sources.http import VendorClient


@dataclass(frozen=True, slots=True)
class ChangeHint:
    """A thin notification: the vendor says that the thing `key` changed. Many for one thing are one.

    Kept durably until a pull says that it fetched the thing.
    """

    key: str
    at: datetime | None = None
    """When it changed, as the vendor says; the newest of several is kept."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """One measurement of a stream, kept raw. Its identity is (series, kind, at)."""

    series: str
    """What was measured: a vehicle's id."""
    kind: str
    at: datetime
    value: Any
    """JSON."""


@dataclass(frozen=True, slots=True)
class InboundFile:
    """A file of a batch source, as it lay there."""

    name: str
    data: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class UnpackedFile:
    """What a file holds: events in order, files to write back, and what is wrong with the file as a whole."""

    events: Sequence[Event] = ()
    replies: Sequence[InboundFile] = ()
    findings: Sequence[str] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """One step of a pull, committed in one transaction: the cursor moves only with the data.

    `cursor` None leaves it where it is. `answered` are the change hints this page makes good.
    """

    events: Sequence[Event] = ()
    readings: Sequence[Reading] = ()
    files: Sequence[InboundFile] = ()
    acknowledged: Sequence[ChangeHint] = ()
    cursor: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class TimeRange:
    """The time that a backfill covers: inclusive since, exclusive until."""

    since: datetime
    until: datetime


async def _none() -> Sequence[ChangeHint]:
    return ()


@dataclass(frozen=True, slots=True, kw_only=True)
class PullContext:
    """What a pull starts from. With `window` it is a backfill, whose cursor is its own."""

    link: VendorClient
    cursor: Mapping[str, Any] = field(default_factory=dict)
    change_hints: Sequence[ChangeHint] = ()
    new_hints: Callable[[], Awaitable[Sequence[ChangeHint]]] = _none
    """Change hints that came since: for a pull that takes long, so that what is waited for need not wait for its end."""
    window: TimeRange | None = None
