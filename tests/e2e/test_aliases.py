"""Names that people go by are one person: within a conversation, and by an equal address across the mails of a thread."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from datetime import UTC, datetime

import pytest

from apex_memory.app import App, open_app
from apex_memory.model import Event, now
from apex_memory.search import Hit
from apex_memory.sources.base import InboundRequest
from tests.e2e.conftest import MakeSettings, land

WRITTEN = datetime(2026, 1, 12, 9, tzinfo=UTC)


@pytest.fixture
async def app(make_settings: MakeSettings, own_vectors_url: str) -> AsyncIterator[App]:
    """The vector process is emptied after each test."""
    async with open_app(make_settings(vectors=own_vectors_url)) as app:
        await app.recovery.check_restarted_stores()
        yield app
        await app.vectors.delete_stages([item.stage async for item in app.vectors.walk()])


async def chat(app: App, *turns: tuple[str, str]) -> None:
    messages = [{"role": "user", "name": name, "content": text} for name, text in turns]
    body = json.dumps({"conversation_id": "bees", "messages": messages}).encode()
    request = InboundRequest(body, {"content-type": "application/json"}, {}, now())
    await land(app, *app.sources["llm"].receive(request).events)
    await app.direct.drain("llm")


async def thread(app: App, *mails: tuple[str, str]) -> None:
    events: list[Event] = []
    for n, (sender, text) in enumerate(mails):
        name, _, handle = sender.rstrip(">").rpartition(" <")
        target = {
            "id": f"msg_{n}",
            "type": "email",
            "is_inbound": True,
            "created_at": WRITTEN.timestamp() + n,
            "subject": "Bees",
            "text": text,
            "recipients": [{"name": name or None, "handle": handle, "role": "from"}],
        }
        about = {"id": "cnv_1", "subject": "Bees", "status": "archived"}
        payload = {"id": f"evt_{n}", "type": "inbound", "emitted_at": WRITTEN.timestamp() + n}
        payload |= {
            "conversation": about,
            "target": {"_meta": {"type": "message"}, "data": target},
        }
        events.append(
            Event(
                source="frontapp",
                event_id=f"evt_{n}",
                doc_key=f"message:msg_{n}",
                version=n + 1,
                occurred_at=WRITTEN,
                payload=json.dumps({"payload": payload}).encode(),
                priority=app.sources["frontapp"].priority,
            )
        )
    await land(app, *events)
    await app.direct.drain("frontapp")


async def by_speaker(app: App, question: str) -> list[Hit]:
    result = await app.search.search(question)
    assert not result.degraded
    return [hit for hit in result.hits if hit.legs.get("speaker")]


@pytest.mark.parametrize("name", ["Kim", "Kimberly", "KL", "kim@harbor.example", "Lee"])
async def test_in_a_conversation_any_name_finds_what_the_person_said(app: App, name: str) -> None:
    own = ("Kim Lee <kim@harbor.example>", "kim", "Kimberly Lee", "KL")
    turns = [(label, f"I keep bees, hive number {n} of mine.") for n, label in enumerate(own)]
    await chat(app, *turns, ("Dana Ortiz", "I keep bees, hive number 9 of mine."))
    hits = await by_speaker(app, f"where does {name} keep bees?")
    speakers = {hit.turn.speaker for hit in hits if hit.turn}
    assert speakers == set(own)


async def test_two_people_with_one_first_name_stay_two(app: App) -> None:
    await chat(
        app,
        ("Kim Lee", "I keep bees behind the depot."),
        ("Kim Park", "I keep bees at the mill."),
        ("kim", "I keep bees on the roof."),
    )
    park = await by_speaker(app, "where does Park keep bees?")
    assert [hit.turn.speaker for hit in park if hit.turn] == ["Kim Park"]
    lee = await by_speaker(app, "where does Lee keep bees?")
    assert [hit.turn.speaker for hit in lee if hit.turn] == ["Kim Lee"]


async def test_in_a_thread_an_equal_address_is_one_person(app: App) -> None:
    await thread(
        app,
        ("Kim Lee <kim@harbor.example>", "The bees are behind the depot."),
        ("Kimberly <kim@harbor.example>", "The bees went to the mill."),
        ("KL <KIM@harbor.example>", "The bees are on the roof."),
        ("Kim Park <park@mill.example>", "The bees are not at the mill."),
        ("Dana Ortiz <dana@harbor.example>", "The bees are gone."),
    )
    for name in ("Kimberly", "KL", "Lee"):
        hits = await by_speaker(app, f"where are the bees, {name}?")
        assert {hit.title for hit in hits} == {"Bees"}
        speakers = {hit.turn.speaker.casefold() for hit in hits if hit.turn}
        assert speakers == {
            "kim lee <kim@harbor.example>",
            "kimberly <kim@harbor.example>",
            "kl <kim@harbor.example>",
        }


async def test_a_mailbox_of_several_people_joins_nobody(app: App) -> None:
    await thread(
        app,
        ("Kim Lee <dispatch@harbor.example>", "The bees are behind the depot."),
        ("Dana Ortiz <dispatch@harbor.example>", "The bees went to the mill."),
    )
    hits = await by_speaker(app, "where are the bees, Dana?")
    assert [hit.turn.speaker for hit in hits if hit.turn] == [
        "Dana Ortiz <dispatch@harbor.example>"
    ]
