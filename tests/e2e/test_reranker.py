"""A reranker behind a URL: its order, and what a search is without it. A stand-in serves on a real socket."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from time import monotonic
from typing import Any

import pytest

from apex_memory.app import App, open_app
from apex_memory.cli.doctor import _reranker as doctor_of
from apex_memory.engines.base import free_port
from apex_memory.model import Filters
from apex_memory.search import SearchResult
from apex_memory.search.reranker import MAX_RESPONSE_BYTES, RERANKED, TEI_TEXTS
from tests.e2e.conftest import MakeSettings, land, text_event
from tests.e2e.test_api import running_api
from tests.receiver import Received, Receiver, Response

QUESTION = "when does the dock take deliveries?"
NOTES = [
    f"Dock {n} takes deliveries on {day}." for n, day in enumerate(["Monday", "Friday", "Sunday"])
]
BEST = "The yard is closed."
"""Shares no word with the question: last by every leg, and first by the stand-in."""


@pytest.fixture
async def server() -> AsyncIterator[Receiver]:
    server = Receiver()
    await server.start()
    try:
        yield server
    finally:
        await server.stop()


def worth(text: str) -> float:
    return 0.9 if BEST in text else 0.1


def tei(request: Received) -> Response:
    """Respond as TEI does: the best first."""
    texts = json.loads(request.body)["texts"]
    rows = [{"index": n, "score": worth(text)} for n, text in enumerate(texts)]
    rows.sort(key=lambda row: -row["score"])
    return Response(body=json.dumps(rows).encode())


def cohere(request: Received) -> Response:
    """Respond as Cohere, Jina and vLLM do."""
    texts = json.loads(request.body)["documents"]
    rows = [{"index": n, "relevance_score": worth(text)} for n, text in enumerate(texts)]
    return Response(body=json.dumps({"id": "1", "results": rows[::-1]}).encode())


@asynccontextmanager
async def memory(
    make_settings: MakeSettings,
    vectors: str,
    texts: Sequence[str] = (*NOTES, BEST),
    **settings: Any,
) -> AsyncIterator[App]:
    """A memory that holds these texts."""
    given = {
        "temporal": f"127.0.0.1:{free_port()}/apex",
        "vectors": vectors,
        "reranker_milliseconds": 5_000,  # a busy machine is no failure
        **settings,
    }
    async with open_app(make_settings(**given)) as app:
        await app.recovery.check_restarted_stores()
        await land(app, *(text_event(app, f"note-{n}", text) for n, text in enumerate(texts)))
        await app.direct.drain("documents")
        yield app


def texts_of(result: SearchResult) -> list[str]:
    return [hit.snippet for hit in result.hits]


async def test_it_orders_the_candidates(
    make_settings: MakeSettings, own_vectors_url: str, server: Receiver
) -> None:
    server.script = tei
    async with memory(make_settings, own_vectors_url, reranker=server.url) as app:
        result = await app.search.search(QUESTION)
        assert texts_of(result)[0] == BEST and len(result.hits) == len(NOTES) + 1
        assert result.hits[0].legs["reranker"] == 0.9 and result.degraded == []
        assert [hit.rank for hit in result.hits] == [1, 2, 3, 4]
        scores = [hit.score for hit in result.hits]
        assert scores == sorted(scores, reverse=True)
        assert "rerank" in result.took_ms
        few = await app.search.search(QUESTION, limit=1)
        assert texts_of(few) == [BEST]  # of all candidates, not of those that the limit leaves
        context = (await app.search.search(QUESTION, max_tokens=100)).context
        assert context and context.text.startswith("[1]") and BEST in context.text
    [first, *_] = server.received
    body = json.loads(first.body)
    assert body["query"] == QUESTION and len(body["texts"]) == len(NOTES) + 1
    assert "authorization" not in dict(first.headers)


async def test_the_protocol_of_cohere_jina_and_vllm(
    make_settings: MakeSettings, own_vectors_url: str, server: Receiver
) -> None:
    server.script = cohere
    async with memory(
        make_settings,
        own_vectors_url,
        reranker=server.url,
        reranker_model="rerank-v3",
        reranker_key="secret",
    ) as app:
        assert texts_of(await app.search.search(QUESTION))[0] == BEST
    [request] = server.received
    assert json.loads(request.body)["model"] == "rerank-v3"
    assert request.header("authorization") == "Bearer secret"


async def test_what_has_the_identifier_stays_first(
    make_settings: MakeSettings, own_vectors_url: str, server: Receiver
) -> None:
    server.script = tei
    texts = [*NOTES, BEST, "SHP-100045 waits."]
    async with memory(make_settings, own_vectors_url, texts, reranker=server.url) as app:
        result = await app.search.search("where does SHP-100045 wait: at the dock or in the yard?")
        assert texts_of(result)[:2] == ["SHP-100045 waits.", BEST]
        assert "reranker" not in result.hits[0].legs
        assert (await app.search.search("SHP-100045 SHP-999999")).unknown == ["SHP-999999"]


async def test_at_most_fifty_candidates_in_requests_that_tei_accepts(
    make_settings: MakeSettings, own_vectors_url: str, server: Receiver
) -> None:
    server.script = tei
    texts = [f"Dock {n} takes deliveries at {n} o'clock." for n in range(60)]
    async with memory(make_settings, own_vectors_url, texts, reranker=server.url) as app:
        await app.search.search(QUESTION)
    sizes = [len(json.loads(request.body)["texts"]) for request in server.received]
    assert len(sizes) == 2 and max(sizes) == TEI_TEXTS and sum(sizes) <= RERANKED


def with_first(row: bytes) -> Callable[[Received], Response]:
    """Return a script that answers every text, and has this row in place of the first."""

    def respond(request: Received) -> Response:
        count = len(json.loads(request.body)["texts"])
        rest = [b'{"index": %d, "score": 1}' % n for n in range(1, count)]
        return Response(body=b"[" + b",".join([row, *rest]) + b"]")

    return respond


FAILURES: dict[str, Callable[[Received], Response]] = {
    "hangs": lambda request: Response(hang=True),
    "500": lambda request: Response(500, body=b"boom"),
    "429": lambda request: Response(429, {"retry-after": "1"}),
    "a redirect": lambda request: Response(307, {"location": "/elsewhere"}),
    "no JSON": lambda request: Response(body=b"<html>"),
    "no list": lambda request: Response(body=b"7"),
    "too few": lambda request: Response(body=b'[{"index": 0, "score": 1}]'),
    "not a number": with_first(b'{"index": 0, "score": NaN}'),
    "an endless number": with_first(b'{"index": 0, "score": %s}' % (b"9" * 400)),
    "no score": with_first(b'{"index": 0}'),
    "an endless index": with_first(b'{"index": 1e999, "score": 1}'),
    "a broken index": with_first(b'{"index": 0.5, "score": 1}'),
    "an index twice": with_first(b'{"index": 1, "score": 1}'),
    "too many": with_first(b'{"index": 0, "score": 1}, {"index": 1, "score": 1}'),
    "deep": lambda request: Response(body=b"[" * 200_000),
    "large": lambda request: Response(body=b" " * (MAX_RESPONSE_BYTES + 1)),
}


async def test_a_search_keeps_its_order_without_it(
    make_settings: MakeSettings, own_vectors_url: str, server: Receiver
) -> None:
    async with memory(
        make_settings,
        own_vectors_url,
        reranker=server.url,
        reranker_milliseconds=200,
        breaker_failures=100,
    ) as app:
        server.script = FAILURES["500"]
        fused = texts_of(await app.search.search(QUESTION))
        assert fused[-1] == BEST
        for name, script in FAILURES.items():
            server.script = script
            began = monotonic()
            result = await app.search.search(QUESTION)
            assert result.degraded == ["reranker"], name
            assert texts_of(result) == fused, name
            assert result.took_ms["rerank"] < 1_000 and monotonic() - began < 10, name
            assert app.reranker and app.reranker.last_failure, name
        assert {request.target for request in server.received} == {"/legacy"}, (
            "no redirect is followed"
        )
        await server.stop()
        assert (await app.search.search(QUESTION)).degraded == ["reranker"]


async def test_its_breaker_opens_and_closes(
    make_settings: MakeSettings, own_vectors_url: str, server: Receiver
) -> None:
    async with memory(
        make_settings,
        own_vectors_url,
        reranker=server.url,
        breaker_failures=3,
        breaker_open_seconds=60,
    ) as app:
        breaker = app.reranker_server.breaker
        server.script = FAILURES["500"]
        for _ in range(5):
            assert (await app.search.search(QUESTION)).degraded == ["reranker"]
        assert breaker.state == "open" and len(server.received) == 3
        breaker._open_seconds = 0.0  # the minute has passed
        await app.breaker_probes.probe()
        assert len(server.received) == 4 and breaker._opened_at is not None
        server.script = tei
        await app.breaker_probes.probe()
        assert breaker.state == "closed" and not app.reranker_server.breaker._in_a_row
        assert texts_of(await app.search.search(QUESTION))[0] == BEST


async def test_nothing_is_called_that_is_not_set(
    make_settings: MakeSettings, own_vectors_url: str, server: Receiver
) -> None:
    async with memory(make_settings, own_vectors_url) as app:
        result = await app.search.search(QUESTION)
        assert texts_of(result)[-1] == BEST and "rerank" not in result.took_ms
        assert result.degraded == []
    async with memory(make_settings, own_vectors_url, reranker=server.url) as app:
        assert (await app.search.search("")).hits  # the newest, in the order of time
        nothing = await app.search.search(QUESTION, filters=Filters(kinds=("invoice",)))
        assert nothing.hits == [] and nothing.degraded == []
    assert server.received == []


async def test_status_and_doctor_show_it(
    make_settings: MakeSettings, own_vectors_url: str, server: Receiver
) -> None:
    settings = make_settings(
        temporal=f"127.0.0.1:{free_port()}/apex",
        vectors=own_vectors_url,
        reranker=server.url,
        reranker_milliseconds=5_000,
    )
    async with running_api(settings) as api:
        for n, text in enumerate(NOTES):
            await api.land(f"note-{n}", text)
        await api.app.direct.drain("documents")
        steps = ((tei, "ready"), (FAILURES["500"], "failing"), (tei, "ready"))
        for number, (script, state) in enumerate(steps):
            server.script = script
            question = (
                f"{QUESTION} {number}"  # another one: an answer that is kept asks no reranker
            )
            answer = (await api.post("/v1/search", json={"query": question})).json()
            assert answer["degraded"] == ([] if state == "ready" else ["reranker"])
            report = (await api.get("/v1/status")).json()
            assert report["reranker"]["state"] == state
            assert report["reranker"]["address"] == server.url
            [finding] = doctor_of(report)
            assert finding.state == ("good" if state == "ready" else "bad")
            assert state == "ready" or ("status 500" in finding.detail and finding.remedy)
        metrics = (await api.get("/metrics")).text
    assert 'apex_search_seconds_count{part="rerank"}' in metrics
    assert 'apex_search_degraded_total{store="reranker"}' in metrics
    assert 'apex_breaker_open{store="reranker"} 0.0' in metrics
    assert list(doctor_of({"reranker": None})) == []
