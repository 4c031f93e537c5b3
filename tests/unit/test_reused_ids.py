"""Other content under the id of an earlier event: it is kept, and a repetition is not."""

from __future__ import annotations

import asyncio
import json
import random
import threading
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any

import pytest

from apex_memory.errors import Rejected
from apex_memory.fetching.files import Files
from apex_memory.fetching.pulls import Pulls
from apex_memory.fetching.windows import Readings
from apex_memory.inbox import Inbox, reused_ids
from apex_memory.inbox.payload_store import PayloadStore
from apex_memory.inbox.reused_ids import land_every_content
from apex_memory.model import MALFORMED, TOMBSTONE, Document, Event, now
from apex_memory.simulate.server import serve_simulators
from apex_memory.sources.pages import InboundFile, UnpackedFile
from apex_memory.stores.postgres import Postgres
from apex_memory.work_threads import WorkThreads
from tests.unit.test_files import Lined
from tests.unit.test_front_poll import Script, front, listed, mail
from tests.unit.test_front_poll import record_of as listed_event
from tests.unit.vendors import vendor_client

AT = now()
JSON = "application/json"


@pytest.fixture
async def db(database_url: str) -> AsyncIterator[Postgres]:
    db = Postgres(database_url)
    await db.open()
    yield db
    await db.close()


def event(id: str, text: str, *, type: str = JSON, key: str = "d", **fields: Any) -> Event:
    """An event whose document is `text`; `fields` are in the payload alone."""
    payload = json.dumps({"text": text, **fields}).encode()
    return Event(
        source="toy",
        event_id=id,
        doc_key=key,
        version=1,
        occurred_at=AT,
        payload=payload,
        content_type=type,
    )


def document(event: Event) -> Document:
    body = json.loads(event.payload)
    if body["text"] == "unreadable":
        raise Rejected("unreadable", remedy="none")
    if body["text"] == "bug":
        raise KeyError("bug")
    metadata = body.get("metadata", {})
    return Document(kind="toy", title="", occurred_at=AT, text=body["text"], metadata=metadata)


async def landed(db: Postgres, *events: Event) -> list[tuple[str, bool]]:
    """Land events; return the id and whether it is a duplicate, of each."""
    async with db.transaction() as connection:
        results = await land_every_content(connection, "toy", events, document, PayloadStore(db))
    return [(result.event_id, result.duplicate) for result in results]


async def texts(db: Postgres) -> dict[str, str]:
    """Return the text in the payload of every event in the inbox, by its id."""
    rows = await db.fetch(
        "SELECT i.event_id, p.body FROM inbox i JOIN payloads p ON p.inbox_id = i.id"
    )
    return {row["event_id"]: json.loads(bytes(row["body"]))["text"] for row in rows}


async def test_a_document_that_takes_for_ever_holds_no_landing(
    db: Postgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its payload is compared instead, and other content is kept."""
    monkeypatch.setattr(reused_ids, "DOCUMENT_SECONDS", 0.2)
    monkeypatch.setattr(reused_ids, "threads", WorkThreads(most_abandoned=2))
    released = threading.Event()

    def slow(event: Event) -> Document:
        released.wait(60)
        return document(event)

    async def land(text: str) -> list[tuple[str, bool]]:
        async with db.transaction() as connection:
            results = await land_every_content(
                connection, "toy", [event("e1", text)], slow, PayloadStore(db)
            )
        return [(result.event_id, result.duplicate) for result in results]

    try:
        await land("first")
        for text in ("second", "third", "fourth"):  # from the third on no thread is begun
            async with asyncio.timeout(10):
                [(id, duplicate)] = await land(text)
            assert id.startswith("e1#")
            assert not duplicate
            assert await land("first") == [("e1", True)]
        assert reused_ids.threads.stuck
        assert set((await texts(db)).values()) == {"first", "second", "third", "fourth"}
    finally:
        released.set()


async def test_other_content_under_an_old_id_is_kept_and_a_repetition_is_not(db: Postgres) -> None:
    assert await landed(db, event("a", "first")) == [("a", False)]
    assert await landed(db, event("a", "first")) == [("a", True)]
    [(own, duplicate)] = await landed(db, event("a", "second"))
    assert own.startswith("a#") and not duplicate
    assert await landed(db, event("a", "second"), event("a", "first")) == [(own, True), ("a", True)]
    assert await texts(db) == {"a": "first", own: "second"}


async def test_two_contents_of_one_id_in_one_page_are_both_kept(db: Postgres) -> None:
    results = await landed(db, event("a", "first"), event("a", "second"), event("a", "second"))
    assert [duplicate for _, duplicate in results] == [False, False, True]
    assert sorted((await texts(db)).values()) == ["first", "second"]


async def test_bytes_that_no_document_shows_are_no_other_content(db: Postgres) -> None:
    await landed(db, event("a", "first", sent_at=1, metadata={"x": 1, "y": {"z": 2}}))
    reordered = {"y": {"z": 2}, "x": 1}
    assert await landed(db, event("a", "first", sent_at=2, metadata=reordered)) == [("a", True)]
    [(own, _)] = await landed(db, event("a", "second", sent_at=3))
    assert await landed(db, event("a", "second", sent_at=4)) == [(own, True)], (
        "the own id names the content, not the bytes"
    )
    assert len(await texts(db)) == 2


@pytest.mark.parametrize(
    "other",
    [
        event("a", "unreadable"),
        event("a", "bug"),
        event("a", "first", type=TOMBSTONE),
        event("a", "first", type=MALFORMED),
        event("a", "first", key="another document"),
    ],
)
async def test_what_has_no_document_or_another_key_is_other_content(
    db: Postgres, other: Event
) -> None:
    await landed(db, event("a", "first"))
    [(own, duplicate)] = await landed(db, other)
    assert own.startswith("a#") and not duplicate
    assert await landed(db, other) == [(own, True)]


async def test_payloads_too_large_for_documents_in_a_transaction_are_compared_as_they_are(
    db: Postgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reused_ids, "DOCUMENT_BYTES", 10)
    monkeypatch.setattr(reused_ids, "THREAD_BYTES", 10)
    await landed(db, event("a", "first"))
    assert await landed(db, event("a", "first")) == [("a", True)]
    [(own, duplicate)] = await landed(db, event("a", "second"))
    assert own.startswith("a#") and not duplicate


async def test_a_repetition_of_what_retention_removed_stays_one(db: Postgres) -> None:
    await landed(db, event("a", "first"))
    await db.execute("DELETE FROM payloads")
    assert await landed(db, event("a", "second")) == [("a", True)]


async def test_in_any_order_every_content_is_kept_once(db: Postgres) -> None:
    chance = random.Random(5)
    sent: set[tuple[str, str]] = set()
    for _ in range(40):
        events = [
            event(chance.choice("abc"), chance.choice("123"), noise=chance.random())
            for _ in range(chance.randrange(1, 6))
        ]
        await landed(db, *events)
        sent |= {(item.event_id, json.loads(item.payload)["text"]) for item in events}
        kept = await texts(db)
        assert {(id.partition("#")[0], text) for id, text in kept.items()} == sent
        assert len(kept) == len(sent)


# By pulls and files


class Company:
    """An installation that pulls from a Front, whose list of events a test gives."""

    def __init__(self, db: Postgres) -> None:
        self.db = db
        self.pulls = Pulls(
            db, Files(db, PayloadStore(db)), Readings(db, keep=timedelta(days=1)), PayloadStore(db)
        )
        self.script = Script()

    async def pull(self, *records: dict[str, Any], **things: Any) -> int:
        """Pull; return how many events were new."""
        self.script = Script(events=listed(*records), **things)
        async with serve_simulators([self.script]) as served, vendor_client("frontapp") as client:
            return (await self.pulls.run(front(f"{served.url}/frontapp"), client)).fresh

    async def texts(self) -> dict[str, str]:
        """Return the text of the document of every event, by its id."""
        rows = await self.db.fetch("SELECT id FROM inbox")
        inbox = Inbox(self.db)
        events = [await inbox.event(row["id"]) for row in rows]
        return {event.event_id: front().document(event).text for event in events}


def conversation(id: str, status: str) -> dict[str, Any]:
    return {"id": id, "subject": "ETA?", "status": status}


async def test_a_list_of_front_that_shows_an_event_with_other_content(db: Postgres) -> None:
    company = Company(db)
    old = listed_event("evt_1", 1, conversation=conversation("cnv_1", "assigned"))
    new = listed_event("evt_1", 1, conversation=conversation("cnv_1", "archived"))
    assert await company.pull(old) == 1
    assert await company.pull(old) == 0
    assert await company.pull(new) == 1, "within the overlap of two polls"
    assert await company.pull(new) == 0
    first, second = sorted((await company.texts()).items())
    assert first[0] == "evt_1" and "Status: assigned" in first[1]
    assert second[0].startswith("evt_1#") and "Status: archived" in second[1]

    await db.execute("DELETE FROM cursors")  # all is listed again, as by a backfill
    newest = listed_event("evt_1", 1, conversation=conversation("cnv_1", "deferred"))
    assert await company.pull(newest) == 1
    assert await company.pull(newest) == 0
    assert len(await company.texts()) == 3


async def test_a_preview_with_other_content_does_not_fetch_its_message_again(db: Postgres) -> None:
    company = Company(db)
    message = {"id": "msg_1", "type": "email", "text": "Any news?"}
    for status, fresh in (("assigned", 2), ("archived", 1)):
        state = conversation("cnv_1", status)
        preview = listed_event("evt_1", 1, "inbound", target=mail("msg_1"), conversation=state)
        assert await company.pull(preview, messages__msg_1=message) == fresh
    assert not [path for path in company.script.requests if path.startswith("/messages/")]


async def test_a_cursor_of_an_earlier_release_fetches_nothing_again(db: Postgres) -> None:
    company = Company(db)
    record = listed_event("evt_1", 1)
    assert await company.pull(record) == 1
    await db.execute("UPDATE cursors SET position = position - 'contents'")
    assert await company.pull({**record, "type": "other"}) == 0
    [cursor] = await db.fetch("SELECT position FROM cursors")
    assert "contents" not in cursor["position"], "nothing was new, so nothing was stored"


class Numbered(Lined):
    """A line an event, whose id is its number: another file has the same ids."""

    def unpack(self, file: InboundFile) -> UnpackedFile:
        lines = file.data.decode().splitlines()
        return UnpackedFile(events=[event(str(n), line) for n, line in enumerate(lines)])

    def document(self, event: Event) -> Document:
        return document(event)


async def test_a_file_that_reuses_the_ids_of_an_earlier_one(db: Postgres) -> None:
    files = Files(db, PayloadStore(db))
    for name, data in (("a", b"first\nsecond"), ("b", b"first\nother"), ("c", b"first\nother")):
        async with db.transaction() as connection:
            [id] = await files.insert(connection, "lined", [InboundFile(name, data)])
        while (await files.land_chunk(Numbered(), id)).more:
            pass
    assert sorted((await texts(db)).values()) == ["first", "other", "second"]
