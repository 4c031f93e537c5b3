"""The input and output of a pull: its context, pages, readings, files and change hints."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from apex_memory.errors import Rejected
from apex_memory.model import Event, Priority
from apex_memory.sources.http import VendorClient
from apex_memory.sources.payloads import malformed_event


@dataclass(frozen=True, slots=True)
class ChangeHint:
    """A vendor's notification that the thing `key` changed, without its content. Several for one thing count as one.

    It is stored until a pull acknowledges that it fetched the thing.
    """

    key: str
    at: datetime | None = None
    """When it changed, according to the vendor; of several the newest."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """One measurement of a stream, stored raw. (series, kind, at) identifies it."""

    series: str
    """The measured object, such as a vehicle's id."""
    kind: str
    at: datetime
    value: Any
    """Any JSON value."""


@dataclass(frozen=True, slots=True)
class InboundFile:
    """A file of a file source, as the partner wrote it."""

    name: str
    data: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class UnpackedFile:
    """The content of a file: events in order, files to write back, and findings about the file as a whole."""

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
    """The time that a backfill covers, from `since` (inclusive) until `until` (exclusive)."""

    since: datetime
    until: datetime


async def _none() -> Sequence[ChangeHint]:
    return ()


@dataclass(frozen=True, slots=True, kw_only=True)
class PullContext:
    """The starting point of a pull. With `window` it is a backfill, which has a cursor of its own."""

    link: VendorClient
    cursor: Mapping[str, Any] = field(default_factory=dict)
    change_hints: Sequence[ChangeHint] = ()
    new_hints: Callable[[], Awaitable[Sequence[ChangeHint]]] = _none
    """Return change hints that arrived since the last call, so that a long pull can fetch urgent things before its end."""
    window: TimeRange | None = None


def unfetchable_event(source: str, hint: ChangeHint, reason: Rejected, priority: Priority) -> Event:
    """Return an event for a hinted record that the vendor refuses to return. It ends as a dead letter with the reason.

    So the hint can be acknowledged: one record never stops its source. Redrive needs the record to be fetched again.
    """
    at = hint.at or datetime.now(UTC)
    return malformed_event(source, {"hint": hint.key, "at": at.isoformat()}, reason, at, priority)
