"""Picking files up: only whole ones, archived only once they are safe, and looked for in the archive by a backfill."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from typing import Any

from apex_memory.errors import Rejected
from apex_memory.model import Event, now
from apex_memory.sources.edi.x12.events import PRIORITY, SOURCE
from apex_memory.sources.edi.x12.places import UNFINISHED, Entry, Place
from apex_memory.sources.pages import InboundFile, Page, TimeRange
from apex_memory.sources.payloads import malformed_event

PAGE_FILES, PAGE_BYTES = 20, 8_000_000  # picked up in one transaction

Looks = dict[str, list[float]]
"""By file: its size, its time, and since when (seconds since 1970) it has them. A fourth number: it was refused."""


async def fresh(
    place: Place, cursor: Mapping[str, Any], *, settle: float, largest: int
) -> AsyncIterator[Page]:
    """Files that stand still since the look before, or were renamed from an unfinished name. Archived after their page.

    A worker that dies between the page and the archive finds the file again, and its content known.
    """
    before: Looks = dict(cursor.get(place.name) or {})
    entries = sorted(await place.listed(), key=lambda entry: (entry.changed, entry.name))
    looks, ready = _looked(entries, before, settle, now().timestamp())
    for batch in _batches(ready):
        taken, refused = [], []
        for entry in batch:
            if entry.size > largest:
                refused.append(_too_large(place, entry, largest))
                looks[_shown(entry.name)] = [entry.size, entry.changed, 0, 1]
                continue
            data = await place.read(entry.name)
            if len(data) == entry.size:
                taken.append((entry.name, data))
                del looks[_shown(entry.name)]
            else:  # it grew meanwhile
                looks[_shown(entry.name)] = [len(data), entry.changed, now().timestamp()]
        files = [InboundFile(f"{place.name}/{_shown(name)}", data) for name, data in taken]
        yield Page(files=files, events=refused, cursor={**cursor, place.name: dict(looks)})
        before = dict(looks)
        for name, data in taken:
            await place.archive(name, data)
    if looks != before:
        yield Page(cursor={**cursor, place.name: looks})


def _looked(
    entries: Sequence[Entry], before: Looks, settle: float, at: float
) -> tuple[Looks, list[Entry]]:
    """What this look shows, and the files that are whole."""
    looks: Looks = {}
    ready = []
    names = {entry.name for entry in entries}
    for entry in entries:
        if entry.name.startswith("."):
            continue
        known = before.get(_shown(entry.name))
        still = known is not None and known[:2] == [entry.size, entry.changed]
        looks[_shown(entry.name)] = known if known and still else [entry.size, entry.changed, at]
        if entry.name.endswith(UNFINISHED) or (known and len(known) > 3 and still):
            continue
        unfinished = (entry.name + ending for ending in UNFINISHED)
        renamed = any(_shown(one) in before and one not in names for one in unfinished)
        if renamed or (known and still and at - known[2] >= settle):
            ready.append(entry)
    return looks, ready


async def history(
    place: Place, cursor: Mapping[str, Any], window: TimeRange, *, largest: int
) -> AsyncIterator[Page]:
    """Archived files whose time is in the window, the oldest first."""
    done = tuple(cursor.get(place.name) or (0.0, ""))
    since, until = window.since.timestamp(), window.until.timestamp()
    entries = [
        entry
        for entry in await place.listed(archived=True)
        if since <= entry.changed < until
        and (entry.changed, _shown(entry.name)) > done
        and entry.size <= largest
    ]
    entries.sort(key=lambda entry: (entry.changed, _shown(entry.name)))
    for batch in _batches(entries):
        files = [
            InboundFile(
                f"{place.name}/{_shown(entry.name)}", await place.read(entry.name, archived=True)
            )
            for entry in batch
        ]
        last = [batch[-1].changed, _shown(batch[-1].name)]
        yield Page(files=files, cursor={**cursor, place.name: last})


def _batches(entries: Sequence[Entry]) -> Iterator[list[Entry]]:
    batch: list[Entry] = []
    size = 0
    for entry in entries:
        if batch and (len(batch) == PAGE_FILES or size + entry.size > PAGE_BYTES):
            yield batch
            batch, size = [], 0
        batch.append(entry)
        size += entry.size
    if batch:
        yield batch


def _too_large(place: Place, entry: Entry, largest: int) -> Event:
    record = {"file": f"{place.name}/{_shown(entry.name)}", "bytes": entry.size}
    reason = Rejected(
        f"{record['file']}: {entry.size} bytes, more than {largest}",
        remedy="ask the partner to send smaller files, and remove this one",
    )
    return malformed_event(SOURCE, record, reason, now(), PRIORITY)


def _shown(name: str) -> str:
    """A file name as text that can be stored, even if it is none."""
    return name.encode("utf-8", "backslashreplace").decode()
