"""Files of a batch: read by several processes, for a bounded time, each event for itself."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from datetime import UTC, datetime

import pytest

from apex_memory.errors import ApexError, Rejected
from apex_memory.model import Document, File
from apex_memory.pipeline.document_files import NotBegun, read_files_of_batch
from apex_memory.pipeline.parse import Parsed
from apex_memory.pipeline.reader import FileReader, ReadFiles

AT = datetime(2026, 3, 3, 9, tzinfo=UTC)


def document(name: str = "", **fields: object) -> Document:
    files = (File(name, "application/pdf", name.encode()),) if name else ()
    return Document(**{"kind": "note", "title": "", "occurred_at": AT, "files": files, **fields})  # type: ignore[arg-type] # fields of a test


class Played(FileReader):
    """A reader whose files are read when the test lets them."""

    def __init__(self, *, processes: int = 3) -> None:
        super().__init__(processes=processes)
        self.reading: list[str] = []
        self.most = 0
        self.released = asyncio.Event()

    async def read_file(self, file: File) -> ReadFiles:
        self.reading.append(file.name)
        self.most = max(self.most, len(self.reading))
        await self.released.wait()
        self.reading.remove(file.name)
        if file.name == "bad":
            raise Rejected("unreadable", remedy="none")
        return ReadFiles(Parsed(f"text of {file.name}"))


def kinds(results: Sequence[Document | ApexError]) -> list[str]:
    return [
        type(result).__name__ if isinstance(result, ApexError) else result.text
        for result in results
    ]


async def test_a_batch_leaves_one_process_to_others_and_keeps_the_order() -> None:
    reader = Played(processes=4)
    refused = Rejected("no document", remedy="none")
    work: list[Document | ApexError] = [
        document("a"),
        refused,
        document(text="plain"),
        document("bad"),
        document("b"),
    ]
    reading = asyncio.create_task(read_files_of_batch(work, reader, seconds=60))
    while len(reader.reading) < 3:
        await asyncio.sleep(0)  # a turn of the loop
    reader.released.set()
    assert kinds(await reading) == ["text of a", "Rejected", "plain", "Rejected", "text of b"]
    assert reader.most == 3


@pytest.mark.parametrize(("processes", "begun"), [(1, 1), (2, 1), (4, 3)])
async def test_what_is_not_begun_in_time_is_not_blamed(processes: int, begun: int) -> None:
    """Each process begins one file, however short the time is, so that every batch makes progress."""
    reader = Played(processes=processes)
    reader.released.set()
    work = [document("a"), document("b"), document("c"), document("d"), document(text="plain")]
    results = kinds(await read_files_of_batch(work, reader, seconds=0))
    names = [f"text of {name}" for name in "abcd"]
    assert results == [*names[:begun], *["NotBegun"] * (4 - begun), "plain"]
    assert not issubclass(NotBegun, Rejected), "such an event must not become a dead letter"


async def test_deleted_documents_are_not_read() -> None:
    work = [document("a", deleted=True)]
    assert await read_files_of_batch(work, Played(), seconds=0) == work


@pytest.mark.parametrize(
    ("date", "expected"),
    [
        ("Mon, 2 Feb 2026 10:15:00 +0100", datetime(2026, 2, 2, 9, 15, tzinfo=UTC)),
        ("Mon, 2 Feb 2026 10:15:00 -0000", datetime(2026, 2, 2, 10, 15, tzinfo=UTC)),
        ("Mon, 6 Jul 2099 10:15:00 +0000", AT),  # after its file: a wrong clock, or forged
        ("yesterday", AT),
        ("", AT),
    ],
)
async def test_a_mail_has_the_time_of_its_date(date: str, expected: datetime) -> None:
    mail = f"From: a@example.com\nDate: {date}\nSubject: Dock\n\nThe dock is open.\n".encode()
    reader = FileReader()
    try:
        read = await read_files_of_batch(
            [
                document(files=(File("dock.eml", "message/rfc822", mail),)),
                document(files=(File("note.txt", "text/plain", mail),)),
                document(text="Seen.", files=(File("dock.eml", "message/rfc822", mail),)),
            ],
            reader,
            seconds=60,
        )
    finally:
        await reader.close()
    assert [result.occurred_at for result in read if isinstance(result, Document)] == [
        expected,
        AT,
        AT,
    ]
