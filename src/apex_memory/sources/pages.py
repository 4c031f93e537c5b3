"""The input and output of a pull: its context, pages, readings, files and change hints."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from apex_memory.errors import ApexError
from apex_memory.model import MALFORMED, UNFETCHED, Event, Priority, micros
from apex_memory.sources.http import VendorClient
from apex_memory.sources.payloads import malformed_payload


@dataclass(frozen=True, slots=True)
class ChangeHint:
    """A vendor's notification that the thing `key` changed, without its content. Several for one thing count as one.

    It is stored until a pull acknowledges that it fetched the thing.
    """

    key: str
    at: datetime | None = None
    """When it changed, according to the vendor; of several the newest."""


@dataclass(frozen=True, slots=True)
class Unfetched:
    """A hinted record that the vendor did not return, and why."""

    hint: ChangeHint
    reason: ApexError


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

    `cursor` None leaves it where it is. `acknowledged` are the change hints that this page makes good. `hints` are records
    for a later pull. `unfetched` are records that the vendor did not return: each is stored as a change hint, tried
    again later, and in the end a dead letter, so the cursor may move past it.
    """

    events: Sequence[Event] = ()
    readings: Sequence[Reading] = ()
    files: Sequence[InboundFile] = ()
    acknowledged: Sequence[ChangeHint] = ()
    hints: Sequence[ChangeHint] = ()
    unfetched: Sequence[Unfetched] = ()
    cursor: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class BackfillRange:
    """The time that a backfill covers, from `since` (inclusive) until `until` (exclusive)."""

    since: datetime
    until: datetime


async def _none() -> Sequence[ChangeHint]:
    return ()


@dataclass(frozen=True, slots=True, kw_only=True)
class PullContext:
    """The starting point of a pull. With `window` it is a backfill, which has a cursor of its own."""

    client: VendorClient
    cursor: Mapping[str, Any] = field(default_factory=dict)
    change_hints: Sequence[ChangeHint] = ()
    new_hints: Callable[[], Awaitable[Sequence[ChangeHint]]] = _none
    """Return change hints that arrived since the last call, so that a long pull can fetch urgent things before its end."""
    window: BackfillRange | None = None


def unfetched_event(source: str, failed: Unfetched, priority: Priority) -> Event:
    """Return an event for a hinted record that the vendor does not return. It ends as a dead letter with the reason.

    So the hint can go: one record never stops its source. Redriving the dead letter stores the hint again.
    """
    at = failed.hint.at or datetime.now(UTC)
    key = UNFETCHED + failed.hint.key
    return Event(
        source=source,
        event_id=f"{key}@{micros(at)}",
        doc_key=key,
        version=micros(at),
        occurred_at=at,
        payload=malformed_payload(
            {"hint": failed.hint.key, "at": at.isoformat()},
            f"{failed.hint.key}: {failed.reason}",
            "find out at the vendor why it does not return this record; a redrive fetches it again"
            + (f" ({failed.reason.remedy})" if failed.reason.remedy else ""),
        ),
        content_type=MALFORMED,
        priority=priority,
    )
