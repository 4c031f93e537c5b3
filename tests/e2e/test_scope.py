"""Searches restricted to a conversation, a document, an entity or a person, and turns cited as turns."""

from __future__ import annotations

import json
from datetime import datetime

import pytest

from apex_memory.app import App
from apex_memory.errors import NotFound, Rejected
from apex_memory.model import Event, Filters, document_uuid, now
from apex_memory.search import Scope, SearchResult
from apex_memory.sources.base import InboundRequest
from tests.e2e import front
from tests.e2e.conftest import delete_event, land, text_event

TURNS = (
    ("human", "Where is SHP-100045? The dock in Laredo waits.", "2026-03-03T10:00:00Z"),
    ("assistant", "It left Columbus at noon and is due on Thursday.", "2026-03-03T10:01:00Z"),
    ("human", "Then tell the dock in Laredo to expect it at two.", "2026-03-03T10:05:00Z"),
    ("assistant", "Done: the dock crew knows.", "2026-03-03T10:06:00Z"),
)
CHAT = "3f0c1b1e-92d4-4f7a-8a53-6c1d0e9b7a21"


def chat(id: str, turns: tuple[tuple[str, str, str], ...]) -> bytes:
    messages = [{"sender": who, "text": text, "created_at": at} for who, text, at in turns]
    return json.dumps(
        {"uuid": id, "name": "Where is it?", "updated_at": turns[-1][2], "chat_messages": messages}
    ).encode()


def received(app: App, source: str, body: bytes) -> list[Event]:
    held = app.sources[source]
    if source == "frontapp":
        return list(held.receive(front.request(held, body)).events)
    request = InboundRequest(
        body=body, headers={"content-type": "application/json"}, query={}, received_at=now()
    )
    return list(held.receive(request).events)


@pytest.fixture
async def world(app: App) -> App:
    """Two chats, two mail threads and two notes, all about the dock in Laredo."""
    events = [
        *received(app, "llm", chat(CHAT, TURNS)),
        *received(app, "llm", chat("other", TURNS[:2])),
        *received(
            app, "frontapp", front.message("msg_1", "cnv_1", at=1, text="The dock is closed.")
        ),
        *received(app, "frontapp", front.message("msg_2", "cnv_1", at=2, text="The dock is open.")),
        *received(app, "frontapp", front.message("msg_3", "cnv_2", at=3, text="Which dock?")),
        text_event(app, "note-1", "The dock in Laredo has six doors.", entities=["person:Ann Lee"]),
        text_event(app, "note-2", "The dock in El Paso has two doors."),
    ]
    await land(app, *events)
    for source in ("llm", "frontapp", "documents"):
        await app.direct.drain(source)
    return app


def keys(app: App, result: SearchResult) -> set[str]:
    names = {
        document_uuid(source, key): key
        for source, key in (
            ("llm", f"claude:{CHAT}"),
            ("llm", "claude:other"),
            ("frontapp", "message:msg_1"),
            ("frontapp", "message:msg_2"),
            ("frontapp", "message:msg_3"),
            ("documents", "note-1"),
            ("documents", "note-2"),
        )
    }
    return {names[hit.doc_id] for hit in result.hits}


async def test_a_search_within_a_conversation_finds_its_turns_with_speaker_time_and_link(
    world: App,
) -> None:
    result = await world.search.search("the dock in Laredo", scope=Scope(conversations=(CHAT,)))
    assert keys(world, result) == {f"claude:{CHAT}"} and result.degraded == []
    spoken = [(hit, hit.turn) for hit in result.hits if hit.turn]
    assert len(spoken) == len(TURNS)  # more than the three passages of a document otherwise
    [beside] = [hit for hit in result.hits if not hit.turn]  # the lines about the conversation
    assert beside.snippet.startswith("Conversation id")
    cited = {(turn.number, turn.speaker, turn.at) for _, turn in spoken}
    assert cited == {
        (n, {"human": "user"}.get(who, who), datetime.fromisoformat(at))
        for n, (who, _, at) in enumerate(TURNS, start=1)
    }
    for hit, turn in spoken:
        assert turn.start <= hit.start < hit.end <= turn.end
        assert hit.link == f"https://claude.ai/chat/{CHAT}"
        assert TURNS[turn.number - 1][1] in hit.snippet
    view = await world.search.document(result.hits[0].doc_id)
    assert [turn.number for turn in view.turns] == [1, 2, 3, 4]
    assert "apex_turns" not in view.metadata and "apex_link" not in view.metadata


@pytest.mark.parametrize(
    "name", ["cnv_1", "conversation:cnv_1", "msg_1", "message:msg_2", "evt_msg_1"]
)
async def test_any_id_of_a_thread_or_of_its_messages_restricts_to_it(world: App, name: str) -> None:
    result = await world.search.search("dock", scope=Scope(conversations=(name,)))
    assert keys(world, result) == {"message:msg_1", "message:msg_2"}
    turn = result.hits[0].turn
    assert turn and turn.speaker == "Ops <ops@example.com>" and turn.at
    assert result.hits[0].link.startswith("https://app.frontapp.com/open/msg_")


async def test_a_document_is_named_by_any_id(world: App) -> None:
    id = document_uuid("documents", "note-1")
    for name in (str(id), str(id)[:8], "note-1"):
        result = await world.search.search("dock", scope=Scope(documents=(name,)))
        assert keys(world, result) == {"note-1"}, name
        assert result.hits[0].turn is None and result.hits[0].link == f"/v1/documents/{id}"
    both = await world.search.search("dock", scope=Scope(documents=("note-1", "msg_3")))
    assert keys(world, both) == {"note-1", "message:msg_3"}
    newest = await world.search.search("", scope=Scope(documents=("note-1", "msg_3")))
    assert keys(world, newest) == {"note-1", "message:msg_3"}


@pytest.mark.parametrize(
    ("person", "expected"),
    [
        ("ops@example.com", {"message:msg_1", "message:msg_2", "message:msg_3"}),
        ("OPS@Example.com", {"message:msg_1", "message:msg_2", "message:msg_3"}),
        ("Ops", {"message:msg_1", "message:msg_2", "message:msg_3"}),
        ("email:ops@example.com", {"message:msg_1", "message:msg_2", "message:msg_3"}),
        ("Ann Lee", {"note-1"}),
        ("ann  lee", {"note-1"}),
    ],
)
async def test_a_person_is_named_by_name_or_address(
    world: App, person: str, expected: set[str]
) -> None:
    result = await world.search.search("dock", scope=Scope(people=(person,)), limit=20)
    assert keys(world, result) == expected


async def test_scopes_and_filters_hold_together(world: App) -> None:
    scope = Scope(conversations=("cnv_1",), people=("ops@example.com",))
    result = await world.search.search(
        "dock", scope=scope, filters=Filters(entities=("conversation:cnv_1",), kinds=("email",))
    )
    assert keys(world, result) == {"message:msg_1", "message:msg_2"}
    none = await world.search.search("dock", scope=scope, filters=Filters(kinds=("note",)))
    assert none.hits == []


@pytest.mark.parametrize(
    ("scope", "error"),
    [
        (Scope(documents=("note-9",)), "document note-9: not found"),
        (Scope(documents=(str(document_uuid("documents", "x")),)), "not found"),
        (Scope(conversations=("cnv_9",)), "conversation cnv_9: not found"),
        (Scope(people=("Nobody Here",)), "person Nobody Here"),
        (Scope(people=("no@example.com",)), "person no@example.com"),
    ],
)
async def test_what_is_unknown_is_an_error_that_names_it(
    world: App, scope: Scope, error: str
) -> None:
    with pytest.raises(NotFound, match=error) as raised:
        await world.search.search("dock", scope=scope)
    assert raised.value.remedy


@pytest.mark.parametrize("query", ["dock", ""])
async def test_an_entity_that_nothing_names_finds_nothing_and_is_listed_as_unknown(
    world: App, query: str
) -> None:
    """A document with it may have been deleted, which is no error of the caller."""
    nobody = Filters(entities=("shipment:SHP-999999",))
    result = await world.search.search(query, filters=nobody)
    assert result.hits == [] and result.unknown == ["shipment:SHP-999999"]
    either = Filters(entities=("shipment:SHP-100045", "load:LD-7"))
    assert (await world.search.search(query, filters=either)).hits


async def test_a_deleted_document_is_unknown(world: App) -> None:
    source = text_event(world, "note-1", "gone")
    await land(world, delete_event(source, version=source.version + 1))
    await world.direct.drain("documents")
    with pytest.raises(NotFound, match="note-1"):
        await world.search.search("dock", scope=Scope(documents=("note-1",)))


async def test_a_part_of_several_peoples_names_is_refused_with_their_names(app: App) -> None:
    for n, name in enumerate(("Dana Ortiz", "Dana Smith")):
        body = json.loads(front.message(f"msg_{n}", f"cnv_{n}", at=n))
        person = {"handle": f"d{n}@example.com", "role": "from", "name": name}
        body["payload"]["target"]["data"]["recipients"] = [person]
        await land(app, *received(app, "frontapp", json.dumps(body).encode()))
    await app.direct.drain("frontapp")
    with pytest.raises(Rejected, match="several people") as raised:
        await app.search.search("eta", scope=Scope(people=("Dana",)))
    assert raised.value.remedy == "name one: dana-ortiz, dana-smith"
    result = await app.search.search("eta", scope=Scope(people=("Smith",)))
    assert [hit.doc_id for hit in result.hits] == [document_uuid("frontapp", "message:msg_1")]


async def test_an_id_that_several_documents_have_is_refused_with_their_ids(app: App) -> None:
    await land(
        app,
        text_event(app, "msg_1", "a note with the id of a mail"),
        *received(app, "frontapp", front.message("msg_1", "cnv_1", at=1)),
    )
    for source in ("documents", "frontapp"):
        await app.direct.drain(source)
    with pytest.raises(Rejected, match="several documents") as raised:
        await app.search.search("mail", scope=Scope(documents=("msg_1",)))
    assert str(document_uuid("documents", "msg_1")) in raised.value.remedy


@pytest.mark.parametrize(
    "scope", [Scope(documents=("x",) * 21), Scope(people=(" ",)), Scope(conversations=("",))]
)
async def test_a_scope_over_its_limits_is_refused(app: App, scope: Scope) -> None:
    with pytest.raises(Rejected):
        await app.search.search("dock", scope=scope)
