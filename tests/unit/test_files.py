"""Files of batch sources: kept once, landed in chunks, and contradictions to an earlier file are findings."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from datetime import UTC, datetime
from typing import cast

import pytest
import pytest_asyncio

from apex_memory.fetching.files import CHUNK, Files, ListedFile
from apex_memory.inbox.payload_store import PayloadStore
from apex_memory.model import MALFORMED, Document, Event, Priority
from apex_memory.sources.base import FileSource, InboundRequest, PulledSettings, Received, Sample
from apex_memory.sources.http import VendorClient
from apex_memory.sources.pages import InboundFile, Page, PullContext, UnpackedFile
from apex_memory.stores.postgres import Postgres

AT = datetime(2026, 11, 2, tzinfo=UTC)
NO_LINK = cast(VendorClient, None)  # this source writes to a list


class Lined(FileSource):
    """A line an event: `CONTROL#CONTENT`."""

    name, title, priority = "lined", "Lined", Priority.P2
    Settings = PulledSettings
    poll_seconds = 60

    def __init__(self, findings: Sequence[str] = ()) -> None:
        super().__init__(PulledSettings())
        self.sent: list[str] = []
        self.findings = findings

    def unpack(self, file: InboundFile) -> UnpackedFile:
        lines = file.data.decode().split()
        events = [
            Event(
                source=self.name,
                event_id=line,
                doc_key=line,
                version=1,
                occurred_at=AT,
                payload=b"{}",
            )
            for line in lines
        ]
        replies = [InboundFile(f"{file.name}.ack", b"ok")]
        return UnpackedFile(events=events, replies=replies, findings=self.findings)

    async def send(self, replies: Sequence[InboundFile], client: VendorClient) -> None:
        self.sent += [reply.name for reply in replies]

    def control(self, event_id: str) -> str:
        return event_id.partition("#")[0]

    def receive(self, request: InboundRequest) -> Received:
        raise NotImplementedError

    def pull(self, context: PullContext) -> AsyncIterator[Page]:
        raise NotImplementedError

    def document(self, event: Event) -> Document:
        raise NotImplementedError

    def samples(self) -> Sequence[Sample]:
        return []


@pytest_asyncio.fixture
async def db(database_url: str) -> AsyncIterator[Postgres]:
    db = Postgres(database_url)
    await db.open()
    yield db
    await db.close()


async def processed(db: Postgres, source: Lined, name: str, data: bytes) -> ListedFile:
    """Keep a file, land and answer it; return its row."""
    files = Files(db, PayloadStore(db))
    async with db.transaction() as connection:
        [id] = await files.insert(connection, source.name, [InboundFile(name, data)])
    while (await files.land_chunk(source, id)).more:
        pass
    await files.answer(source, id, NO_LINK)
    return next(row for row in await files.listed() if row.id == id)


async def test_s12_findings_keep_the_order_of_the_file(db: Postgres) -> None:
    findings = ["second in the alphabet", "zebra", "apple", "zebra", "first"]
    source = Lined(findings)
    row = await processed(
        db, source, "a.txt", " ".join(f"{n}#a" for n in range(CHUNK + 1)).encode()
    )
    assert row.findings == ["second in the alphabet", "zebra", "apple", "first"]
    later = await processed(db, source, "b.txt", b"0#b 1#a")
    assert later.findings[:4] == row.findings
    assert len(later.findings) == 5, "and the conflict with the file before, at the end"


async def test_a_file_lands_in_chunks_and_gets_one_reply(db: Postgres) -> None:
    source, data = Lined(), " ".join(f"{n}#a" for n in range(CHUNK + 7)).encode()
    row = await processed(db, source, "a.txt", data)
    assert (row.events, row.landed, row.findings) == (CHUNK + 7, CHUNK + 7, [])
    assert row.replies == ["a.txt.ack"] and row.ended_at
    again = await processed(db, source, "same-content.txt", data)
    assert again.id == row.id and again.ended_at == row.ended_at
    count = await db.fetch_one("SELECT count(*) AS n FROM inbox")
    assert count and count["n"] == CHUNK + 7


@pytest.mark.parametrize(
    ("second", "conflicts"),
    [(b"7#other 8#b", ["7"]), (b"7#a 9#c", []), (b"70#other", []), (b"7#x 8#y", ["7", "8"])],
)
async def test_other_content_under_a_known_control_is_a_finding(
    db: Postgres, second: bytes, conflicts: list[str]
) -> None:
    source = Lined()
    assert (await processed(db, source, "first", b"7#a 8#b")).findings == []
    row = await processed(db, source, "second", second)
    assert sorted(finding.split()[1] for finding in row.findings) == conflicts
    held = await db.fetch("SELECT event_id FROM inbox")
    assert {row["event_id"] for row in held} == {
        *b"7#a 8#b".decode().split(),
        *second.decode().split(),
    }


class Deadly(Lined):
    """A source whose files may never be unpacked."""

    unpacked = 0

    def unpack(self, file: InboundFile) -> UnpackedFile:
        self.unpacked += 1
        if file.data.startswith(b"deadly"):
            raise MemoryError
        return super().unpack(file)


async def test_a_file_that_ends_the_worker_is_given_up_and_holds_no_other(db: Postgres) -> None:
    source, payloads = Deadly(), PayloadStore(db)
    files = Files(db, payloads, max_attempts=3)
    async with db.transaction() as connection:
        bad, good = await files.insert(
            connection,
            source.name,
            [InboundFile("bad.txt", b"deadly"), InboundFile("good.txt", b"0#a 1#a")],
        )
    for _ in range(3):  # each time another process
        with pytest.raises(MemoryError):
            await Files(db, payloads, max_attempts=3).land_chunk(source, bad)
    assert await Files(db, payloads, max_attempts=3).process(source, NO_LINK) == 2
    assert source.unpacked == 4, "three attempts, and the good file"
    rows = {row.id: row for row in await files.listed()}
    assert rows[good].landed == 2 and rows[good].ended_at and rows[good].replies
    assert (rows[bad].events, rows[bad].landed, rows[bad].replies) == (1, 1, [])
    assert rows[bad].ended_at and "interrupted 3 times" in rows[bad].findings[0]
    query = "SELECT id FROM inbox WHERE content_type = %s"
    assert await db.fetch_one(query, (MALFORMED,))
    # An activity that was under way meanwhile changes nothing.
    assert not (await files.land_chunk(source, bad)).more
    assert await files.answer(source, bad, NO_LINK) == []
    count = await db.fetch_one("SELECT count(*) AS n FROM inbox")
    assert count and count["n"] == 3


async def test_a_file_is_given_up_after_some_of_its_chunks(db: Postgres) -> None:
    source = Deadly()
    files = Files(db, PayloadStore(db), max_attempts=3)
    data = " ".join(f"{n}#a" for n in range(CHUNK + 7)).encode()
    async with db.transaction() as connection:
        [id] = await files.insert(connection, source.name, [InboundFile("a.txt", data)])
    assert (await files.land_chunk(source, id)).more
    await db.execute("UPDATE files SET starts = 3 WHERE id = %s", (id,))
    state = await Files(db, PayloadStore(db), max_attempts=3).land_chunk(source, id)
    assert (state.events, state.landed) == (CHUNK + 1, CHUNK + 1)


async def test_an_unpacked_file_has_all_its_attempts_again(db: Postgres) -> None:
    source = Lined()
    data = " ".join(f"{n}#a" for n in range(3 * CHUNK)).encode()
    async with db.transaction() as connection:
        [id] = await Files(db, PayloadStore(db)).insert(
            connection, source.name, [InboundFile("a.txt", data)]
        )
    # Each chunk by another process, as after restarts of the worker.
    while (await Files(db, PayloadStore(db), max_attempts=1).land_chunk(source, id)).more:
        pass
    files = Files(db, PayloadStore(db), max_attempts=1)
    assert await files.answer(source, id, NO_LINK) == ["a.txt.ack"]
