"""Picking files up: complete ones only, archived only once they are committed; a backfill reads the archive."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from typing import Any

from apex_memory.errors import Rejected
from apex_memory.model import Event, now
from apex_memory.sources.edi.events import PRIORITY, SOURCE
from apex_memory.sources.edi.mailboxes import UNFINISHED_SUFFIXES, FileEntry, Mailbox
from apex_memory.sources.pages import BackfillRange, InboundFile, Page
from apex_memory.sources.payloads import malformed_event

PAGE_FILES, PAGE_BYTES = 20, 8_000_000  # picked up in one transaction

Observations = dict[str, list[float]]
"""By file name, as the cursor keeps it: size in bytes, modification time, and since when both are unchanged (both in
seconds since 1970). A fourth number marks a file that was refused."""


async def pull_inbound(
    mailbox: Mailbox, cursor: Mapping[str, Any], *, settle: float, largest: int
) -> AsyncIterator[Page]:
    """Yield pages of files that are unchanged for `settle` seconds, or were renamed from an unfinished name.

    A file is archived after its page is committed. A worker that dies in between picks the file up again, and its
    content is known by then. A file of more than `largest` bytes becomes a dead letter and stays.
    """
    before: Observations = dict(cursor.get(mailbox.name) or {})
    entries = await mailbox.list_files()
    entries.sort(key=lambda entry: (entry.modified_at, entry.name))
    observations, ready = _observe(entries, before, settle, now().timestamp())
    for batch in _batches(ready):
        taken, refused = [], []
        for entry in batch:
            name = _storable_name(entry.name)
            if entry.size > largest:
                refused.append(_too_large(mailbox, entry, largest))
                observations[name] = [entry.size, entry.modified_at, 0, 1]
                continue
            data = await mailbox.read(entry)
            if data is None:  # it changed since it was listed: it has to settle anew
                observations[name] = [entry.size, entry.modified_at, now().timestamp()]
            else:
                taken.append((entry.name, data))
                observations.pop(name, None)
        files = [_inbound_file(mailbox, name, data) for name, data in taken]
        cursor_after = {**cursor, mailbox.name: dict(observations)}
        yield Page(files=files, events=refused, cursor=cursor_after)
        before = dict(observations)
        for name, data in taken:
            await mailbox.archive(name, data)
    if observations != before:
        yield Page(cursor={**cursor, mailbox.name: observations})


def _observe(
    entries: Sequence[FileEntry], before: Observations, settle: float, at: float
) -> tuple[Observations, list[FileEntry]]:
    """Return what this listing shows, and the files that are complete."""
    observations: Observations = {}
    ready = []
    names = {entry.name for entry in entries}
    for entry in entries:
        if entry.name.startswith("."):
            continue
        name = _storable_name(entry.name)
        known = before.get(name)
        is_unchanged = known is not None and known[:2] == [entry.size, entry.modified_at]
        if known and is_unchanged:
            observations[name] = known
        else:
            observations[name] = [entry.size, entry.modified_at, at]
        is_refused = known is not None and len(known) > 3 and is_unchanged
        if entry.name.endswith(UNFINISHED_SUFFIXES) or is_refused:
            continue
        is_settled = known is not None and is_unchanged and at - known[2] >= settle
        if is_settled or _was_renamed(entry.name, names, before):
            ready.append(entry)
    return observations, ready


def _was_renamed(name: str, names: set[str], before: Observations) -> bool:
    """Return whether the file had an unfinished name at the listing before."""
    unfinished_names = [name + suffix for suffix in UNFINISHED_SUFFIXES]
    return any(
        _storable_name(unfinished) in before and unfinished not in names
        for unfinished in unfinished_names
    )


async def pull_archive(
    mailbox: Mailbox, cursor: Mapping[str, Any], window: BackfillRange, *, largest: int
) -> AsyncIterator[Page]:
    """Yield pages of the archived files whose modification time is in `window`, the oldest first."""
    done = tuple(cursor.get(mailbox.name) or (0.0, ""))
    since, until = window.since.timestamp(), window.until.timestamp()
    entries = [
        entry
        for entry in await mailbox.list_files(archived=True)
        if since <= entry.modified_at < until
        and (entry.modified_at, _storable_name(entry.name)) > done
        and entry.size <= largest
    ]
    entries.sort(key=lambda entry: (entry.modified_at, _storable_name(entry.name)))
    for batch in _batches(entries):
        files, refused = [], []
        for entry in batch:
            data = await mailbox.read(entry, archived=True)
            if data is None:
                refused.append(_changed(mailbox, entry))
            else:
                files.append(_inbound_file(mailbox, entry.name, data))
        last = [batch[-1].modified_at, _storable_name(batch[-1].name)]
        yield Page(files=files, events=refused, cursor={**cursor, mailbox.name: last})


def _batches(entries: Sequence[FileEntry]) -> Iterator[list[FileEntry]]:
    batch: list[FileEntry] = []
    size = 0
    for entry in entries:
        if batch and (len(batch) == PAGE_FILES or size + entry.size > PAGE_BYTES):
            yield batch
            batch, size = [], 0
        batch.append(entry)
        size += entry.size
    if batch:
        yield batch


def _inbound_file(mailbox: Mailbox, name: str, data: bytes) -> InboundFile:
    return InboundFile(f"{mailbox.name}/{_storable_name(name)}", data)


def _too_large(mailbox: Mailbox, entry: FileEntry, largest: int) -> Event:
    record = {"file": f"{mailbox.name}/{_storable_name(entry.name)}", "bytes": entry.size}
    reason = Rejected(
        f"{record['file']}: {entry.size} bytes, more than {largest}",
        remedy="ask the partner to send smaller files, and remove this one",
    )
    return malformed_event(SOURCE, record, reason, now(), PRIORITY)


def _changed(mailbox: Mailbox, entry: FileEntry) -> Event:
    record = {"file": f"{mailbox.name}/{_storable_name(entry.name)}", "bytes": entry.size}
    reason = Rejected(
        f"{record['file']}: it changed while the archive was read",
        remedy="see who writes to the archive, then run the backfill again",
    )
    return malformed_event(SOURCE, record, reason, now(), PRIORITY)


def _storable_name(name: str) -> str:
    """Return a file name as text that can be stored, even if its bytes are no text. Two names never have one form."""
    return name.replace("\\", r"\\").encode("utf-8", "backslashreplace").decode()
