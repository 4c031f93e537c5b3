"""Files of batch sources: kept once, landed in chunks, and contradictions to an earlier file are findings."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from datetime import UTC, datetime
from typing import cast

import pytest
import pytest_asyncio

from apex_memory.config import Settings
from apex_memory.errors import NotFound, Unauthorized
from apex_memory.fetching.files import CHUNK, Files, ListedFile
from apex_memory.inbox.payload_store import PayloadStore
from apex_memory.model import MALFORMED, Document, Event, Priority
from apex_memory.saga.collector import Collector
from apex_memory.sources.base import FileSource, InboundRequest, PulledSettings, Received, Sample
from apex_memory.sources.http import VendorClient
from apex_memory.sources.pages import InboundFile, Page, PullContext, UnpackedFile
from apex_memory.stores.base import GraphStore, VectorStore
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


class Blocked(Lined):
    """Fails with some files: a reply that the partner refuses, content that this code did not expect."""

    def __init__(self, *, unsendable: str = "", unreadable: str = "") -> None:
        super().__init__()
        self.unsendable, self.unreadable = unsendable, unreadable

    def unpack(self, file: InboundFile) -> UnpackedFile:
        if file.name == self.unreadable:
            raise ValueError(file.name)
        return super().unpack(file)

    async def send(self, replies: Sequence[InboundFile], client: VendorClient) -> None:
        if replies[0].name == f"{self.unsendable}.ack":
            raise Unauthorized("lined: the partner refuses our key")
        await super().send(replies, client)


async def test_a_file_that_fails_keeps_no_other_from_landing_and_its_answer(db: Postgres) -> None:
    source, files = Blocked(unsendable="1.txt", unreadable="2.txt"), Files(db, PayloadStore(db))
    for n in range(5):  # one transaction each, so that their order is that of their names
        async with db.transaction() as connection:
            await files.insert(
                connection, source.name, [InboundFile(f"{n}.txt", f"{n}#a {n}#b".encode())]
            )
    for _ in range(2):
        with pytest.raises(ValueError, match=r"2\.txt"):  # it failed first: landing comes first
            await files.process(source, NO_LINK)
    landed = {row.name: row.landed for row in await files.listed()}
    assert landed == {"0.txt": 2, "1.txt": 2, "2.txt": 0, "3.txt": 2, "4.txt": 2}
    open_files = {row.name for row in await files.listed() if not row.ended_at}
    assert open_files == {"1.txt", "2.txt"}
    assert source.sent == ["0.txt.ack", "3.txt.ack", "4.txt.ack"]


async def test_all_files_land_before_one_is_answered(db: Postgres) -> None:
    source, files = Lined(), Files(db, PayloadStore(db))
    async with db.transaction() as connection:
        await files.insert(
            connection, source.name, [InboundFile(f"{n}.txt", b"%d#a" % n) for n in range(3)]
        )
    landed: list[int] = []
    send = source.send

    async def counting(replies: Sequence[InboundFile], client: VendorClient) -> None:
        landed.append(sum(row.landed for row in await files.listed()))
        await send(replies, client)

    source.send = counting  # type: ignore[method-assign]
    assert await files.process(source, NO_LINK) == 3
    assert landed == [3, 3, 3]


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


async def test_the_content_of_a_finished_file_goes_after_its_retention(db: Postgres) -> None:
    """Its record stays, the same content is recognised when it comes again, and who asks for it is told what is gone."""
    source = Lined()
    old = await processed(db, source, "old.txt", b"1#a 2#a")
    recent = await processed(db, source, "recent.txt", b"3#a")
    files = Files(db, PayloadStore(db))
    async with db.transaction() as connection:
        await files.insert(connection, source.name, [InboundFile("open.txt", b"4#a")])
    await db.execute("UPDATE files SET received_at = received_at - interval '3 years'")
    await db.execute(
        "UPDATE files SET ended_at = ended_at - interval '366 days' WHERE id = %s", (old.id,)
    )
    collector = Collector(db, cast(GraphStore, None), cast(VectorStore, None), Settings())
    await collector.collect()
    bodies = {row["name"]: row["body"] for row in await db.fetch("SELECT name, body FROM files")}
    assert bodies == {"old.txt": b"", "recent.txt": b"3#a", "open.txt": b"4#a"}
    rows = {row.name: row for row in await files.listed()}
    assert (rows["old.txt"].bytes, rows["old.txt"].kept, rows["old.txt"].landed) == (7, False, 2)
    assert (rows["recent.txt"].bytes, rows["recent.txt"].kept) == (3, True)

    with pytest.raises(NotFound, match="no longer kept") as gone:
        await Files(db, PayloadStore(db)).land_chunk(source, old.id)
    assert "payload_days" in gone.value.remedy
    async with db.transaction() as connection:
        again = await files.insert(connection, source.name, [InboundFile("again.txt", b"1#a 2#a")])
    assert again == [old.id] and old.id not in await files.open_files(source.name)
    assert recent.id not in await files.open_files(source.name)


async def test_contents_go_in_bounded_steps_and_by_their_index(
    db: Postgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("apex_memory.saga.collector.FILES_MAX", 3)
    await db.execute(
        """INSERT INTO files (id, source, name, sha256, body, ended_at)
           SELECT gen_random_uuid(), 'lined', 'f' || n, '', 'x', clock_timestamp() - make_interval(days => 365 + n)
           FROM generate_series(1, 7) n"""
    )
    collector = Collector(db, cast(GraphStore, None), cast(VectorStore, None), Settings())
    left = []
    for _ in range(3):
        await collector._drop_file_contents()
        [row] = await db.fetch("SELECT count(*)::integer AS n FROM files WHERE body <> ''")
        left.append(row["n"])
    assert left == [4, 1, 0]


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
