"""Searches that are repeated: served again while memory is as it was, and never after it changed. Real engines."""

from __future__ import annotations

import asyncio
import tempfile
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import psycopg
import pytest
from prometheus_client import REGISTRY

from apex_memory.app import App, open_app
from apex_memory.engines.base import free_port
from apex_memory.engines.edge import Edge
from apex_memory.errors import Rejected
from apex_memory.model import Filters, now
from apex_memory.search import Scope, SearchResult
from tests.conftest import PASSWORD, running
from tests.e2e.conftest import HASHING_DIMENSION, MakeSettings, delete_event, land, text_event
from tests.faulty import Fault, Faulty

QUERY = "gate code"


@pytest.fixture
async def app(make_settings: MakeSettings, own_vectors_url: str) -> AsyncIterator[App]:
    settings = make_settings(vectors=own_vectors_url, snapshot_seconds=5, grace_seconds=6)
    async with open_app(settings) as app:
        await app.recovery.check_restarted_stores()
        yield app
        await app.vectors.delete_stages([item.stage async for item in app.vectors.walk()])


async def remember(app: App, key: str, text: str, **fields: Any) -> uuid.UUID:
    [landed] = await land(app, text_event(app, key, text, **fields))
    await app.direct.drain("documents")
    return landed.doc_id


def counted(result: str) -> float:
    return REGISTRY.get_sample_value("apex_search_answers_total", {"result": result}) or 0.0


async def searched(app: App, query: str = QUERY, **options: Any) -> tuple[SearchResult, bool]:
    """Return the result, and whether it is the answer of an earlier search."""
    hits, misses = counted("hit"), counted("miss")
    result = await app.search.search(query, **options)
    is_hit = counted("hit") == hits + 1
    assert counted("hit") + counted("miss") == hits + misses + 1
    assert is_hit == ("stores" not in result.took_ms)
    return result, is_hit


async def kept(app: App, query: str = QUERY, **options: Any) -> SearchResult:
    """Search until the answer is one that was kept, and return it."""
    await searched(app, query, **options)
    result, is_hit = await searched(app, query, **options)
    assert is_hit and result.degraded == []
    return result


def snippets(result: SearchResult) -> list[str]:
    return [hit.snippet for hit in result.hits]


async def test_a_repeated_search_gets_the_same_answer_and_says_how_long_it_took(app: App) -> None:
    await remember(app, "a", "The gate code is seven")
    computed, is_hit = await searched(app, max_tokens=200)
    assert not is_hit
    again, is_hit = await searched(app, max_tokens=200)
    assert is_hit and again.hits == computed.hits and again.context == computed.context
    assert (again.evidence, again.entities, again.unknown) == (
        computed.evidence,
        computed.entities,
        computed.unknown,
    )
    assert again.took_ms.keys() == {"total", "kept"}
    assert again.took_ms["total"] < computed.took_ms["total"]


Change = Callable[[App], Awaitable[Any]]


async def _commits(app: App) -> None:
    await remember(app, "b", "The gate code of the north yard is two", version=1)


async def _supersedes(app: App) -> None:
    await remember(app, "a", "The gate code is nine", version=2)


async def _deletes(app: App) -> None:
    event = text_event(app, "a", "The gate code is seven", version=1)
    await land(app, delete_event(event, version=2))
    await app.direct.drain("documents")


async def _erases_by_hand(app: App) -> None:
    await app.db.execute("DELETE FROM documents WHERE doc_key = 'a'")


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (_commits, {"The gate code is seven", "The gate code of the north yard is two"}),
        (_supersedes, {"The gate code is nine"}),
        (_deletes, set()),
        (_erases_by_hand, set()),
    ],
)
async def test_whatever_changes_documents_ends_the_answer(
    app: App, change: Change, expected: set[str]
) -> None:
    await remember(app, "a", "The gate code is seven", version=1)
    assert snippets(await kept(app)) == ["The gate code is seven"]
    await change(app)
    result, is_hit = await searched(app)
    assert not is_hit and set(snippets(result)) == expected
    assert set(snippets(await kept(app))) == expected


async def test_what_changes_no_document_leaves_the_answer(app: App) -> None:
    await remember(app, "a", "The gate code is seven", version=1)
    await kept(app)
    await land(app, text_event(app, "b", "The gate code of the north yard is two"))
    await app.db.execute("UPDATE store_state SET verified_at = now()")
    result, is_hit = await searched(app)
    assert is_hit and snippets(result) == ["The gate code is seven"]


async def test_commits_side_by_side_do_not_wait_and_each_ends_the_answer(app: App) -> None:
    """Two writers hold their changes open at once; the later one commits first."""
    for key in "ab":
        await remember(app, key, f"The gate code of {key} is seven")

    async def hidden(connection: psycopg.AsyncConnection[Any], key: str) -> None:
        await connection.execute("SET LOCAL lock_timeout = '5s'")
        await connection.execute("UPDATE documents SET deleted = true WHERE doc_key = %s", (key,))

    assert len((await kept(app)).hits) == 2
    async with (
        await psycopg.AsyncConnection.connect(app.settings.documents) as first,
        await psycopg.AsyncConnection.connect(app.settings.documents) as second,
    ):
        await hidden(first, "a")
        await hidden(second, "b")
        assert len((await kept(app)).hits) == 2, "nothing is committed"
        for connection, left in ((second, 1), (first, 0)):
            await connection.commit()
            result, is_hit = await searched(app)
            assert not is_hit and len(result.hits) == left
            assert len((await kept(app)).hits) == left


async def test_no_answer_is_older_than_a_commit_that_was_over_before(app: App) -> None:
    """Searches run all the while; whoever committed finds its own document at once."""
    await remember(app, "0", "gate code round 0")
    stop = asyncio.Event()

    async def search_on() -> None:
        while not stop.is_set():
            await app.search.search("gate code round", limit=30)

    searchers = [asyncio.create_task(search_on()) for _ in range(2)]
    try:
        for n in range(1, 15):
            await remember(app, str(n), f"gate code round {n}")
            found = await app.search.search("gate code round", limit=30)
            assert f"gate code round {n}" in snippets(found)
    finally:
        stop.set()
        await asyncio.gather(*searchers)


async def test_each_scope_has_its_own_answer(app: App) -> None:
    a = await remember(app, "a", "The gate code is seven, says Dana Ortiz")
    b = await remember(app, "b", "The gate code is nine")
    assert len((await kept(app)).hits) == 2
    for doc in (a, b):
        scope = Scope(documents=(str(doc),))
        result, is_hit = await searched(app, scope=scope)
        assert not is_hit and {hit.doc_id for hit in result.hits} == {doc}
        assert {hit.doc_id for hit in (await kept(app, scope=scope)).hits} == {doc}
    result, is_hit = await searched(app, filters=Filters(until=now()))
    assert not is_hit
    assert len((await kept(app)).hits) == 2


async def test_a_scope_that_now_names_several_documents_is_refused(app: App) -> None:
    """An event that only arrived changes no document, but it may share the beginning of its id with one."""
    doc = await remember(app, "a", "The gate code is seven")
    other = await remember(app, "b", "The gate code is nine")
    scope = Scope(documents=(str(doc)[:8],))
    await kept(app, scope=scope)
    await app.db.execute(
        """INSERT INTO inbox (id, source, event_id, doc_id, doc_key, priority, version, occurred_at, content_type)
           SELECT %s, source, 'again', doc_id, doc_key, priority, version, occurred_at, content_type FROM inbox WHERE doc_id = %s""",
        (uuid.UUID(str(doc)[:8] + uuid.uuid4().hex[8:]), other),
    )
    with pytest.raises(Rejected, match="several documents"):
        await app.search.search(QUERY, scope=scope)


async def test_a_store_that_is_not_complete_ends_the_answer(app: App) -> None:
    await remember(app, "a", "The gate code is seven")
    await kept(app)
    await app.db.execute("UPDATE store_state SET state = 'recovering' WHERE store = 'vectors'")
    for _ in range(2):  # a degraded answer is not kept
        result, is_hit = await searched(app)
        assert not is_hit and result.degraded == ["vectors"]
    await app.db.execute("UPDATE store_state SET state = 'ready' WHERE store = 'vectors'")
    assert (await kept(app)).degraded == []


async def test_an_answer_is_as_degraded_as_a_new_one_would_be(
    app: App, monkeypatch: pytest.MonkeyPatch
) -> None:
    await remember(app, "a", "The gate code is seven")
    await kept(app)
    faulty = Faulty(app.graph)
    faulty.plan(Fault.FAIL, "incarnation", times=2)
    monkeypatch.setattr(app.search, "_graph", faulty)
    result, is_hit = await searched(app)
    assert not is_hit and result.degraded == ["graph"]
    assert (await kept(app)).degraded == []


async def test_a_restart_of_a_store_and_of_the_process_ends_the_answer(
    make_settings: MakeSettings, engine_data: Path
) -> None:
    folder, port = Path(tempfile.mkdtemp(dir=engine_data)), free_port()
    settings = make_settings(
        vectors=f"edge://:{PASSWORD}@127.0.0.1:{port}", snapshot_seconds=5, grace_seconds=6
    )

    def engine() -> Edge:
        return Edge(folder, port, PASSWORD, HASHING_DIMENSION)

    async with open_app(settings) as app:
        async with running(engine()) as vectors:
            assert vectors.url == settings.vectors
            await app.recovery.check_restarted_stores()
            await remember(app, "a", "The gate code is seven")
            await kept(app)
        async with running(engine()):
            result, is_hit = await searched(app)
            assert not is_hit and result.degraded == ["vectors"], "not verified yet"
            await app.recovery.check_restarted_stores()
            result, is_hit = await searched(app)
            assert not is_hit and result.degraded == []
            await kept(app)
            async with open_app(settings) as other:
                _, is_hit = await searched(other)
                assert not is_hit, "another process has answers of its own"


async def test_the_number_of_answers_and_of_versions_is_bounded(app: App) -> None:
    await remember(app, "a", "The gate code is seven")
    answers = app.search._answers
    assert answers is not None
    answers._entries_max = 4
    for n in range(10):
        await searched(app, f"{QUERY} {n}")
        assert len(answers) <= 4
    for n in range(5):
        await remember(app, "a", f"The gate code is {n}")
    rows = await app.db.fetch("SELECT slot FROM memory_versions")
    assert len(rows) == 1, "commits one after the other replace one value"
