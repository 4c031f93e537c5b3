"""Files of batch sources: stored by content, unpacked into events in chunks, then replied to."""

from __future__ import annotations

import asyncio
import hashlib
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from time import monotonic
from uuid import UUID, uuid5

from apex_memory.errors import ApexError, NotFound, Rejected
from apex_memory.fetching.pages import land_page
from apex_memory.inbox.payload_store import PayloadStore
from apex_memory.model import NAMESPACE, Event
from apex_memory.sources.base import FileSource
from apex_memory.sources.http import VendorClient
from apex_memory.sources.pages import InboundFile, UnpackedFile
from apex_memory.sources.payloads import malformed_event
from apex_memory.stores.postgres import Connection, Postgres
from apex_memory.telemetry import logger
from apex_memory.telemetry.logs import unforeseen

CHUNK = 500  # events landed at once
ANSWERS_SECONDS = (
    60.0  # no further file is answered after that, where one failed: its partner may be away
)
UNPACKED_MAX = 4  # unpacked files kept in memory for their next chunk


def file_uuid(source: str, data: bytes) -> UUID:
    """Return the id of a file, from its content: the same wherever and however often it is picked up."""
    return uuid5(NAMESPACE, f"file\x00{source}\x00{hashlib.sha256(data).hexdigest()}")


@dataclass(frozen=True, slots=True)
class FileState:
    """How far a file is: `landed` of its `events` are in the inbox."""

    events: int
    landed: int

    @property
    def more(self) -> bool:
        return self.landed < self.events


@dataclass(frozen=True, slots=True, kw_only=True)
class ListedFile:
    """A row of `files`, without the content."""

    id: UUID
    source: str
    name: str
    sha256: str
    bytes: int
    """The size of the content, also of one that is removed."""
    kept: bool
    """The content is still there: it is removed `payload_days` after the file was finished."""
    received_at: datetime
    events: int | None
    """None until it is unpacked."""
    landed: int
    findings: list[str]
    replies: list[str]
    ended_at: datetime | None


@dataclass(frozen=True, slots=True)
class _StoredFile:
    """A file with its content, and how many of its events have landed."""

    name: str
    body: bytes
    landed: int
    kept: bool
    received_at: datetime
    ended: bool


class _GivenUp(Exception):
    """Raised for a file whose unpacking began `max_attempts` times and never ended."""


class Files:
    """The files of batch sources. After `max_attempts` starts of unpacking that never ended a file is a dead letter."""

    def __init__(self, db: Postgres, payloads: PayloadStore, *, max_attempts: int = 5) -> None:
        self._db = db
        self._payloads = payloads
        self._max_attempts = max_attempts
        self._unpacked: OrderedDict[UUID, UnpackedFile] = OrderedDict()
        self._log = logger(component="files")

    async def insert(
        self, connection: Connection, source: str, files: Sequence[InboundFile]
    ) -> list[UUID]:
        """Store files inside the caller's transaction; return their ids. The same content again is the same row."""
        ids = []
        for file in files:
            id = file_uuid(source, file.data)
            await connection.execute(
                """INSERT INTO files (id, source, name, sha256, body) VALUES (%s, %s, %s, %s, %s)
                   ON CONFLICT DO NOTHING""",
                (id, source, file.name, hashlib.sha256(file.data).digest(), file.data),
            )
            ids.append(id)
        return ids

    async def open_files(self, source: str) -> list[UUID]:
        """Return the ids of the files that are not finished, the oldest first."""
        rows = await self._db.fetch(
            "SELECT id FROM files WHERE source = %s AND ended_at IS NULL ORDER BY received_at",
            (source,),
        )
        return [row["id"] for row in rows]

    async def land_chunk(self, source: FileSource, id: UUID) -> FileState:
        """Land the next chunk of a file; return how far the file is. Safe to repeat: an event that landed already is a duplicate.

        A file that cannot be unpacked in `max_attempts` attempts, such as one that ends the worker's process, is finished
        here as one dead letter. Raises `NotFound` for an unknown id.
        """
        stored = await self._stored(id)
        try:
            unpacked = await self._unpack(source, id, stored)
        except _GivenUp:
            return await self._give_up(source, id, stored)
        start = stored.landed
        events = await self._payloads.offload(unpacked.events[start : start + CHUNK])
        landed = start + len(events)
        async with self._db.transaction() as connection:
            await land_page(
                connection, source.name, events, document=source.document, payloads=self._payloads
            )
            conflicts = await _conflicts(connection, source, events)
            await connection.execute(
                """UPDATE files SET events = %(events)s, landed = greatest(landed, %(landed)s),
                     findings = findings || ARRAY(SELECT new.finding FROM unnest(%(findings)s::text[]) WITH ORDINALITY
                       AS new (finding, n) WHERE new.finding <> ALL(findings) GROUP BY 1 ORDER BY min(new.n))
                   WHERE id = %(id)s""",
                {
                    "events": len(unpacked.events),
                    "landed": landed,
                    "findings": [*unpacked.findings, *conflicts],
                    "id": id,
                },
            )
        return FileState(len(unpacked.events), landed)

    async def answer(self, source: FileSource, id: UUID, client: VendorClient) -> list[str]:
        """Send the file's replies to the partner and finish it; return the names of the replies.

        Does nothing for a finished file.
        """
        stored = await self._stored(id)
        if stored.ended:
            return []
        try:
            unpacked = await self._unpack(source, id, stored)
        except _GivenUp:
            await self._give_up(source, id, stored)
            return []
        if unpacked.replies:
            await source.send(unpacked.replies, client)
        names = [reply.name for reply in unpacked.replies]
        await self._db.execute(
            "UPDATE files SET ended_at = coalesce(ended_at, clock_timestamp()), replies = %s WHERE id = %s",
            (names, id),
        )
        self._unpacked.pop(id, None)
        return names

    async def process(self, source: FileSource, client: VendorClient) -> int:
        """Land every open file of a source, then answer each; return their number.

        A file that fails keeps no other from landing or from its answer. Raises the first failure at the end.
        """
        ids = await self.open_files(source.name)
        failures: dict[UUID, Exception] = {}
        for id in ids:
            with self._collected(failures, source, id):
                while (await self.land_chunk(source, id)).more:
                    pass
        began = monotonic()
        for id in ids:
            if id in failures:
                continue
            if failures and monotonic() - began > ANSWERS_SECONDS:
                break
            with self._collected(failures, source, id):
                await self.answer(source, id, client)
        for failure in failures.values():
            raise failure
        return len(ids)

    @contextmanager
    def _collected(
        self, failures: dict[UUID, Exception], source: FileSource, id: UUID
    ) -> Iterator[None]:
        """Log a failure of a file inside the block, and keep it in `failures` instead of raising it."""
        facts = {"source": source.name, "file": str(id)}
        try:
            yield
        except ApexError as error:
            self._log.warning(
                "file not processed yet", **facts, reason=str(error)[:300], remedy=error.remedy
            )
            failures[id] = error
        except Exception as error:  # noqa: BLE001 (a vendor's code; its message may quote the file)
            self._log.error("file failed unexpectedly", **facts, **unforeseen(error))
            failures[id] = error

    async def listed(
        self,
        *,
        source: str | None = None,
        after: tuple[datetime, UUID] | None = None,
        limit: int = 50,
    ) -> list[ListedFile]:
        """Return files without their content, the newest first.

        `after` is the `received_at` and the `id` of the last file of the previous page.
        """
        received_at, id = after or (None, None)
        return await self._db.fetch_rows(
            ListedFile,
            """SELECT id, source, name, encode(sha256, 'hex') AS sha256, coalesce(removed_bytes, length(body)) AS bytes,
                      removed_bytes IS NULL AS kept, received_at, events, landed, findings, replies, ended_at
               FROM files
               WHERE (%(source)s::text IS NULL OR source = %(source)s)
                 AND (%(received_at)s::timestamptz IS NULL OR (received_at, id) < (%(received_at)s, %(id)s::uuid))
               ORDER BY received_at DESC, id DESC LIMIT %(limit)s""",
            {"source": source, "received_at": received_at, "id": id, "limit": limit},
        )

    async def _stored(self, id: UUID) -> _StoredFile:
        stored = await self._db.fetch_row(
            _StoredFile,
            """SELECT name, body, landed, removed_bytes IS NULL AS kept, received_at, ended_at IS NOT NULL AS ended
               FROM files WHERE id = %s""",
            (id,),
        )
        if stored is None:
            raise NotFound(f"file {id} not found", remedy="`apex sources files` lists them")
        if not stored.kept:
            raise NotFound(
                f"file {id}: its content is no longer kept, only its record",
                remedy="ask the partner for it; the content of a finished file is kept for payload_days",
            )
        return stored

    async def _unpack(self, source: FileSource, id: UUID, stored: _StoredFile) -> UnpackedFile:
        if id not in self._unpacked:
            # Committed before the file is opened: whatever it does to this process, it has been counted.
            started = await self._db.fetch_one(
                "UPDATE files SET starts = starts + 1 WHERE id = %s AND starts < %s RETURNING starts",
                (id, self._max_attempts),
            )
            if started is None:
                raise _GivenUp
            file = InboundFile(stored.name, stored.body)
            self._unpacked[id] = await asyncio.to_thread(source.unpack, file)
            await self._db.execute("UPDATE files SET starts = 0 WHERE id = %s", (id,))
            while len(self._unpacked) > UNPACKED_MAX:
                self._unpacked.popitem(last=False)
        return self._unpacked[id]

    async def _give_up(self, source: FileSource, id: UUID, stored: _StoredFile) -> FileState:
        """Finish a file that is never unpacked, as one dead letter and without a reply."""
        reason = Rejected(
            f"{stored.name[:200]}: unpacking it was interrupted {self._max_attempts} times, by an error or the end of the worker",
            remedy="the worker's log says why; ask the partner to send its content in smaller files",
        )
        record = {
            "file": stored.name,
            "sha256": hashlib.sha256(stored.body).hexdigest(),
            "bytes": len(stored.body),
        }
        event = malformed_event(source.name, record, reason, stored.received_at, source.priority)
        landed = stored.landed + 1
        async with self._db.transaction() as connection:
            await land_page(connection, source.name, [event])
            await connection.execute(
                """UPDATE files SET events = %s, landed = %s, findings = findings || %s::text[],
                     ended_at = clock_timestamp() WHERE id = %s AND ended_at IS NULL""",
                (landed, landed, [str(reason)], id),
            )
        return FileState(landed, landed)


async def _conflicts(
    connection: Connection, source: FileSource, events: Sequence[Event]
) -> list[str]:
    """Return findings about control numbers that an earlier file used for other content. Both contents are kept."""
    controls: dict[str, str] = {}
    for event in events:
        if control := source.control(event.event_id):
            controls[event.event_id] = control
    if not controls:
        return []
    rows = await (
        await connection.execute(
            """SELECT DISTINCT t.control FROM unnest(%s::text[], %s::text[]) AS t (event_id, control)
               JOIN inbox i ON i.source = %s AND i.event_id >= t.control || '#' AND i.event_id < t.control || '$'
                           AND i.event_id <> t.event_id""",
            (list(controls), list(controls.values()), source.name),
        )
    ).fetchall()
    return [
        f"control {row['control']} was used before for other content; both are kept: ask the partner which is right"
        for row in rows
    ]
