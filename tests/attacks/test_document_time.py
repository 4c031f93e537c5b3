"""What a caller or a vendor writes into one event takes time in proportion to its size, and no place of other events."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any, cast

import pytest

from apex_memory.app import App
from apex_memory.errors import RetryLater, Unavailable
from apex_memory.flows import worker
from apex_memory.gateway import ingest
from apex_memory.gateway.dependencies import Gateway
from apex_memory.inbox import reused_ids
from apex_memory.model import Document, Event, now
from apex_memory.pipeline import Pipeline
from apex_memory.pipeline.embedders.hashing import HashingEmbedder
from apex_memory.sources.base import InboundRequest, Received
from apex_memory.sources.frontapp.settings import FrontAppSettings
from apex_memory.sources.frontapp.source import FrontApp
from apex_memory.sources.llm.documents import MAX_CITED, Turn, turns_of
from apex_memory.sources.llm.settings import LLMSettings
from apex_memory.sources.llm.source import LLM
from apex_memory.work_threads import WorkThreads

SIZE = 3_000_000  # bytes of a body
MOST_SECONDS = 10.0  # of processor time; with a square it takes minutes


def stream_line(event: Mapping[str, Any]) -> str:
    return f"data:{json.dumps(event, separators=(',', ':'))}\n"


def many_parts() -> dict[str, Any]:
    return {
        "messages": [{"role": "user", "content": ["a" * (SIZE // 2), *["a"] * (SIZE // 2 // 4)]}]
    }


def many_chunks() -> dict[str, Any]:
    long = stream_line({"choices": [{"delta": {"content": "a" * (SIZE // 2)}}]})
    short = stream_line({"choices": [{"delta": {"content": "a"}}]})
    response = long + short * (SIZE // 2 // len(short))
    return {"request": {"messages": [{"role": "user", "content": "q"}]}, "response": response}


def many_deltas() -> dict[str, Any]:
    message = {"type": "message", "role": "assistant"}
    block = {"type": "text", "text": "a" * (SIZE // 2)}
    head = stream_line({"type": "message_start", "message": message})
    head += stream_line({"type": "content_block_start", "index": 0, "content_block": block})
    text = stream_line({"index": 0, "delta": {"text": "a"}})
    cited = stream_line({"index": 0, "delta": {"type": "citations_delta", "citation": {}}})
    response = head + (text + cited) * (SIZE // 2 // len(text + cited))
    request = {"model": "claude", "messages": [{"role": "user", "content": "q"}]}
    return {"request": request, "response": response}


def many_citations() -> dict[str, Any]:
    citations = [{"title": f"{n:x}"} for n in range(SIZE // 2 // 22)]
    part = {"type": "text", "text": "b" * (SIZE // 2), "citations": citations}
    return {"messages": [{"role": "user", "content": [part]}]}


@pytest.mark.parametrize("body", [many_parts, many_chunks, many_deltas, many_citations])
def test_conversations_are_read_in_linear_time(body: Any) -> None:
    source = LLM(LLMSettings())
    data = json.dumps(body()).encode()
    request = InboundRequest(data, {"content-type": "application/json"}, {}, now(), "key")
    began = time.process_time()
    [event] = source.receive(request).events
    document = source.document(event)
    assert time.process_time() - began < MOST_SECONDS
    assert len(document.text) > SIZE // 2


def test_recipients_of_many_roles_are_read_in_linear_time() -> None:
    recipients = [
        {"role": f"r{n}", "handle": f"a{n}@x.example", "name": "A"} for n in range(20_000)
    ]
    data = {"id": "msg_1", "type": "email", "text": "hi", "recipients": recipients}
    body = {
        "id": "evt_1",
        "type": "inbound",
        "emitted_at": 1772550900,
        "conversation": {"id": "cnv_1"},
        "target": {"_meta": {"type": "message"}, "data": data},
    }
    event = Event(
        source="frontapp",
        event_id="e",
        doc_key="message:msg_1",
        version=1,
        occurred_at=now(),
        payload=json.dumps(body).encode(),
    )
    source = FrontApp(FrontAppSettings())
    began = time.process_time()
    document = source.document(event)
    assert time.process_time() - began < MOST_SECONDS
    assert "R19999: A <a19999@x.example>" in document.text


def test_a_turn_shows_the_citations_that_its_words_lack() -> None:
    words, result, others = turns_of(
        "user",
        [
            {"type": "text", "text": "one", "citations": [{"title": "one"}, {"title": "two"}]},
            "three",
            {"type": "tool_result", "content": "found"},
            "four",
        ],
        {},
    )
    assert words == Turn("user", "one\nthree", cited=("one", "two"))
    assert words.shown == "one\nthree\n[cites two]"
    assert (result.speaker, result.text, others.text) == ("tool", "found", "four")
    many = Turn("assistant", "x", cited=tuple(f"c{n}" for n in range(MAX_CITED + 5)))
    assert f"c{MAX_CITED - 1}" in many.shown and f"c{MAX_CITED}" not in many.shown


async def test_a_thread_that_outlives_its_limit_takes_no_place() -> None:
    end = threading.Event()
    threads = WorkThreads(places=1, most_abandoned=3)
    try:
        for _ in range(3):
            assert not threads.stuck
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.05):
                    await threads.run(end.wait)
        assert threads.stuck
        async with asyncio.timeout(30):
            assert await threads.run(lambda: "done") == "done"
    finally:
        end.set()
    async with asyncio.timeout(30):
        while threads.stuck:
            await asyncio.sleep(0.01)


async def test_work_in_a_thread_raises_what_it_raises() -> None:
    def fail() -> None:
        raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        await WorkThreads().run(fail)


async def test_neighbours_of_events_that_time_out_are_prepared() -> None:
    end = threading.Event()
    event = Event(source="s", event_id="e", doc_key="d", version=1, occurred_at=now(), payload=b"")

    def hang(event: Event) -> Document:
        end.wait()
        return document(event)

    def document(event: Event) -> Document:
        return Document(kind="note", title="Note", occurred_at=event.occurred_at, text="Hello.")

    pipeline = Pipeline(HashingEmbedder(), chunk_chars=900)
    pipeline._threads = WorkThreads(places=1, most_abandoned=3)
    try:
        for _ in range(2):
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.05):
                    await pipeline.prepare([(event, hang)], reuse=False)
        async with asyncio.timeout(60):
            [manifest] = await pipeline.prepare([(event, document)], reuse=False)
        assert not isinstance(manifest, Exception) and manifest.text == "Hello."
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await pipeline.prepare([(event, hang)], reuse=False)
        assert pipeline.stuck
        [refused] = await pipeline.prepare([(event, document)], reuse=False)
        assert isinstance(refused, RetryLater)
    finally:
        end.set()
        await pipeline.close()


@pytest.mark.parametrize("part", ["pipeline", "comparison"])
async def test_a_worker_whose_threads_are_stuck_ends(
    monkeypatch: pytest.MonkeyPatch, part: str
) -> None:
    monkeypatch.setattr(worker, "STUCK_SECONDS", 0.01)
    app = SimpleNamespace(pipeline=SimpleNamespace(stuck=False))
    comparison = SimpleNamespace(stuck=False)
    monkeypatch.setattr(reused_ids, "threads", comparison)
    watching = asyncio.create_task(worker.until_stuck(cast(App, app)))
    await asyncio.sleep(0.05)
    assert not watching.done()
    (app.pipeline if part == "pipeline" else comparison).stuck = True
    with pytest.raises(Unavailable, match="threads go on"):
        async with asyncio.timeout(30):
            await watching


async def test_a_request_that_is_read_for_ever_is_refused_and_holds_no_other(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(ingest, "READ_SECONDS", 0.05)
    end = threading.Event()
    gateway = cast(Gateway, SimpleNamespace(reading=WorkThreads(places=1, most_abandoned=2)))

    def hang() -> Received:
        end.wait()
        return Received([])

    try:
        for _ in range(2):
            with pytest.raises(Unavailable, match="reading the request took longer"):
                await ingest._in_thread(gateway, hang)
        assert gateway.reading.stuck
        monkeypatch.setattr(ingest, "READ_SECONDS", 60)
        assert await ingest._in_thread(gateway, lambda: Received([])) == Received([])
    finally:
        end.set()
