"""The Python client against a gateway over real engines."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from pydantic import BaseModel

from apex_memory.client import (
    Apex,
    AsyncApex,
    Entity,
    Forbidden,
    NotFound,
    Rejected,
    SearchAnswer,
    TooLarge,
    Unauthorized,
    results,
)
from apex_memory.client.calls import Call, any_json
from apex_memory.engines.base import free_port
from tests.e2e.conftest import MakeSettings
from tests.e2e.serving import Served, serving_gateway
from tests.e2e.test_api import processed

NOTE = "Shipment SHP-100045 left Columbus, OH for Northwind Trucking."


@pytest.fixture
async def served(make_settings: MakeSettings, own_vectors_url: str) -> AsyncIterator[Served]:
    settings = make_settings(temporal=f"127.0.0.1:{free_port()}/apex", vectors=own_vectors_url)
    async with serving_gateway(settings) as served:
        yield served


async def test_what_is_remembered_is_found_by_every_call(served: Served) -> None:
    async with AsyncApex(served.url, await served.key("admin")) as memory, processed(served.api):
        receipt = await memory.remember(NOTE, key="n-1", title="Departure", wait=30)
        assert receipt.searchable and receipt.events[0].state == "done"
        id, event_id = receipt.events[0].document_id, receipt.events[0].id
        answer = await memory.search("where is SHP-100045?", limit=3)
        assert answer.hits[0].document_id == id and answer.hits[0].provenance.id == event_id
        document = await memory.get_document(id)
        assert document.text == NOTE and document.versions[0].id == event_id
        earlier = await memory.get_document(id, version=document.provenance.version)
        assert earlier.text == NOTE
        entity = await memory.get_entity("shipment:SHP-100045")
        assert entity.documents[0].document_id == id
        [event] = (await memory.events(source="documents", limit=1)).events
        assert event == await memory.event(event_id) and event.stores["graph"].state == "held"
        assert (await memory.resolve(id[:8])) == {"event": event_id, "document": id}
        assert (await memory.documents()).documents[0].title == "Departure"
        assert {store.state for store in (await memory.status()).stores} == {"ready"}
        states = {source.name: source for source in await memory.sources()}
        assert states["documents"].documents == 1 and states["documents"].last_event_at
        again = await memory.remember("A newer text.", key="n-1", wait=30)
        assert again.events[0].document_id == id
        assert (await memory.get_document(id)).text == "A newer text."


async def test_the_same_request_is_stored_once(served: Served) -> None:
    async with AsyncApex(served.url, await served.key("ingest")) as memory:
        first = await memory.remember(NOTE, key="n", idempotency_key="mine")
        again = await memory.remember(NOTE, key="n", idempotency_key="mine")
    assert not first.events[0].duplicate and again.events[0].duplicate
    assert first.events[0].id == again.events[0].id


async def test_a_timeline_has_every_document_once_by_time(served: Served) -> None:
    async with AsyncApex(served.url, await served.key("admin")) as memory:
        for n in range(7):
            # Two at each time: the cursor must tell documents of the same time apart.
            at = f"2026-03-0{1 + n // 2}T08:00:00Z"
            await memory.remember(f"{n}: SHP-100046 moved on.", key=f"t-{n}", occurred_at=at)
        await memory.remember("SHP-100047 is another one.", key="other")
        await served.process()
        seen: list[tuple[Any, str]] = []
        cursor: str | None = None
        pages = 0
        while cursor is not None or not pages:
            page = await memory.timeline("shipment:SHP-100046", cursor=cursor, limit=3)
            assert len(page.documents) <= 3
            seen += [(row.occurred_at, row.document_id) for row in page.documents]
            cursor, pages = page.next, pages + 1
        assert pages == 3 and len(set(seen)) == 7
        assert [at for at, _ in seen] == sorted((at for at, _ in seen), reverse=True)
        assert not (await memory.timeline("shipment:SHP-999999")).documents
        for wrong in ("no cursor", "bm90IGEgY3Vyc29y"):
            with pytest.raises(Rejected):
                await memory.timeline("shipment:SHP-100046", cursor=wrong)
        with pytest.raises(Rejected):
            await memory.timeline("SHP-100046")


async def test_errors_have_their_class_and_a_remedy(served: Served) -> None:
    keys = {scope: await served.key(scope) for scope in ("read", "ingest")}
    async with AsyncApex(served.url, keys["read"]) as memory:
        assert (await memory.own_key()).scopes == ("read",)
        writer = memory.with_key(keys["ingest"])
        assert not (await writer.own_key()).may("read") and (await writer.own_key()).may("ingest")
        stranger = memory.with_key("apex_x_y")
        unknown = "0a3f6f4e-64c7-5d0f-9d83-2b8a4b0e6c11"
        for kind, refused in (
            (Forbidden, memory.remember("x")),
            (Forbidden, writer.search("x")),
            (Unauthorized, stranger.own_key()),
            (NotFound, memory.get_document(unknown)),
            (NotFound, memory.get_entity("shipment:SHP-999999")),
            (Rejected, memory.search("x", limit=1_000)),
            (Rejected, memory.search("x", sources=["no such source"])),
            (TooLarge, memory.search("x" * 1_100_000)),
        ):
            with pytest.raises(kind) as caught:
                await refused
            assert caught.value.remedy and caught.value.code, kind


async def test_threads_share_a_client(served: Served) -> None:
    key = await served.key("admin")

    def search(memory: Apex) -> SearchAnswer:
        return memory.search("anything")

    with Apex(served.url, key) as memory:
        answers = await asyncio.gather(*(asyncio.to_thread(search, memory) for _ in range(8)))
    assert len(answers) == 8


async def test_every_field_of_a_result_is_one_of_the_api(served: Served) -> None:
    """Results are declared here and in the gateway: what the client requires, the gateway's schema must promise."""
    document = served.api.application.openapi()["components"]["schemas"]
    pairs: dict[type[BaseModel], str] = {
        results.SearchAnswer: "SearchResponse",
        results.Hit: "HitView",
        results.Provenance: "ProvenanceView",
        results.RecognisedEntity: "RecognisedEntity",
        results.Document: "DocumentView",
        results.Version: "VersionView",
        results.DocumentPage: "DocumentPage",
        results.DocumentSummary: "DocumentSummary",
        Entity: "EntityView",
        results.Attribute: "AttributeView",
        results.Relation: "RelationView",
        results.Event: "EventView",
        results.EventPage: "EventPage",
        results.StoreState: "StoreState",
        results.OwnKey: "OwnKey",
        results.Status: "Status",
        results.StoreHealth: "StoreRow",
        results.SourceState: "SourceRow",
    }
    for model, name in pairs.items():
        required = {field for field, info in model.model_fields.items() if info.is_required()}
        assert required <= set(document[name]["required"]), (name, required)


async def test_any_route_can_be_called(served: Served) -> None:
    async with AsyncApex(served.url, await served.key("admin")) as memory:
        assert "keys" in await memory.call("GET", "/v1/keys")
        call = Call(method="GET", path="/v1/keys", read=any_json)
        assert await memory.send(call) == await memory.call("GET", "/v1/keys")


async def test_an_answer_says_how_fresh_its_sources_are(served: Served) -> None:
    async with AsyncApex(served.url, await served.key("admin")) as memory:
        await memory.remember(NOTE, key="n-1")
        await served.process()
        answer = await memory.search("where is SHP-100045?")
        [documents] = answer.freshness
        assert documents.source == "documents" and documents.last_event_at and not documents.behind
        assert documents.pulled_at is None and documents.waiting == 0
        await served.api.app.db.execute(
            "INSERT INTO sources (name, pulled_at, error, error_at) VALUES ('documents', now(), '401 from it', now())"
        )
        states = {state.source: state for state in await memory.freshness(now=True)}
        documents = states["documents"]
        assert documents.behind and documents.pulled_at and documents.as_of > documents.pulled_at
        assert documents.reason == "the source is failing: 401 from it"
        answer = await memory.search("nothing of the kind", kinds=["email"])
        assert answer.hits == () and answer.freshness == (
            documents,
        )  # behind, so something may be missing


async def test_a_search_costs_no_statement_for_freshness(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    readings = 0
    current = served.api.app.fetcher.states.current

    async def counted() -> Any:
        nonlocal readings
        readings += 1
        return await current()

    monkeypatch.setattr(served.api.gateway.freshness, "_read", counted)
    async with AsyncApex(served.url, await served.key("read")) as memory:
        await asyncio.gather(*(memory.search(f"dock {n}") for n in range(30)))
    assert readings == 1


async def test_a_context_holds_whole_sentences_within_its_tokens_and_cites_them(
    served: Served,
) -> None:
    text = "The dock opens at six. " + "Trucks wait in the yard until a door is free. " * 30
    async with AsyncApex(served.url, await served.key("admin")) as memory:
        await memory.remember(text, key="long", title="Dock rules")
        await memory.remember("The dock in Laredo closes at ten.", key="short", title="Hours")
        await served.process()
        answer = await memory.search("when does the dock in Laredo close?", limit=1, max_tokens=150)
        context = answer.context
        assert context and len(answer.hits) == 1  # the context is not limited by it
        assert context.tokens <= context.max_tokens == 150 and context.left_out
        assert {citation.title for citation in context.citations} == {"Dock rules", "Hours"}
        for citation in context.citations:
            document = await memory.get_document(citation.document_id)
            piece = document.text[citation.start : citation.end]
            assert piece in context.text and piece.endswith(".") and not citation.cut
            assert f"[{citation.number}] {citation.title} (" in context.text
        whole = await memory.search("when does the dock open?", max_tokens=32_000)
        assert whole.context and whole.context.left_out == 0
        assert (await memory.search("when does the dock open?")).context is None
        newest = await memory.search("", max_tokens=100)
        assert newest.context and newest.context.tokens <= 100
        for tokens in (0, 99, 32_001):
            with pytest.raises(Rejected):
                await memory.search("dock", max_tokens=tokens)


async def test_what_restricts_a_search_and_is_unknown_is_not_found(served: Served) -> None:
    async with AsyncApex(served.url, await served.key("admin")) as memory:
        await memory.remember(NOTE, key="n-1")
        await memory.remember("Another note on shipments.", key="n-2")
        await served.process()
        answer = await memory.search("shipment", documents=["n-1"], people=())
        assert [hit.snippet for hit in answer.hits] == [NOTE]
        for search in (
            memory.search("shipment", documents=["n-9"]),
            memory.search("shipment", conversations=["n-9"]),
            memory.search("shipment", people=["n-9"]),
        ):
            with pytest.raises(NotFound, match=r"(?i)n-9") as raised:
                await search
            assert raised.value.remedy
        answer = await memory.search("shipment", entities=["shipment:n-9"])
        assert answer.hits == () and answer.unknown == ("shipment:N-9",)
