"""One trace from a webhook to searchable, through every process, as a receiver of traces sees it."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass

import pytest
import pytest_asyncio

from tests.e2e import front
from tests.e2e.stack import Stack, running_stack
from tests.otlp import ReceivedSpan, Receiver, receiver
from tests.waiting import until

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="reads /proc"),
    pytest.mark.timeout(240),
]

CALLER = "4bf92f3577b34da6a3ce929d0e0e4736"
SEARCHER = "5bd03a6b0c5a4d2f9a1b7c8d9e0f1a2b"
SECRET_TEXTS = ("quokka", "dana@example.com", "ops@example.com", "test_signing_key")
"""What the inputs of these tests and their keys hold, and no span may."""
STEPS = {"claim", "prepare", "begin", "stage graph", "stage vectors", "verify", "flip"}


@dataclass
class Traced:
    stack: Stack
    received: Receiver

    async def spans(self, trace: str, *names: str) -> list[ReceivedSpan]:
        """Wait until a trace has spans of all these names; return all its spans."""

        def has_all() -> bool:
            return set(names) <= {span.name for span in self.received.of_trace(trace)}

        def missing() -> str:
            return (
                f"{set(names) - {span.name for span in self.received.of_trace(trace)}} in {trace}"
            )

        await until(has_all, missing, seconds=30, every=0.1)
        return self.received.of_trace(trace)


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def traced() -> AsyncIterator[Traced]:
    with receiver() as received, pytest.MonkeyPatch.context() as patch:
        patch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", received.url)
        patch.setenv("OTEL_BSP_SCHEDULE_DELAY", "200")
        async with running_stack(TRACE_URL="http://viewer.test/trace/{trace_id}") as stack:
            yield Traced(stack, received)


async def test_one_trace_from_the_webhook_to_searchable(traced: Traced) -> None:
    stack = traced.stack
    body = front.message("m1", "c1", at=1, text="quokka: where is SHP-100045?")
    answer = await stack.hook(body)
    assert answer.status_code == 202, answer.text
    [event] = answer.json()["events"]
    await stack.ended([event["id"]])
    shown = await stack.get(f"/v1/events/{event['id']}")
    trace = shown["trace_id"]
    assert shown["trace_url"] == f"http://viewer.test/trace/{trace}"
    spans = await traced.spans(
        trace,
        *STEPS,
        *("receive frontapp", "land", "batch frontapp", "event frontapp"),
        *("RunActivity:prepare", "RunActivity:publish", "vectors upsert", "vectors tally"),
    )
    [root] = [span for span in spans if not span.parent]
    assert root.name == "receive frontapp" and root.process == "gateway"
    ids = {span.id for span in spans}
    assert all(span.parent in ids for span in spans if span is not root), "a span hangs in nothing"
    assert {span.process for span in spans} == {"gateway", "worker", "vectors"}
    [end] = [span for span in spans if span.name == "event frontapp"]
    assert end.attributes["apex.outcome"] == "done"
    assert end.attributes["apex.event"] == event["id"]
    flip = next(span for span in spans if span.name == "flip")
    assert end.began <= flip.began <= flip.ended <= end.ended


async def test_a_caller_with_a_key_continues_its_trace(traced: Traced) -> None:
    parent = f"00-{CALLER}-00f067aa0ba902b7-01"
    answer = await traced.stack.http.post(
        "/v1/documents?wait=searchable&timeout=30",
        json={"key": "k", "text": "quokka"},
        headers={"traceparent": parent},
    )
    assert answer.status_code == 200, answer.text
    [event] = answer.json()["events"]
    assert (await traced.stack.get(f"/v1/events/{event['id']}"))["trace_id"] == CALLER
    await traced.spans(CALLER, "receive documents", "event documents")


async def test_a_webhook_does_not_choose_its_trace(traced: Traced) -> None:
    """A stranger's `traceparent` is not continued: it has no key that was checked."""
    stack, stranger = traced.stack, "0af7651916cd43dd8448eb211c80319c"
    body = front.message("m2", "c2", at=2, text="quokka, once more")
    headers = stack.signed(body) | {"traceparent": f"00-{stranger}-b7ad6b7169203331-01"}
    answer = await stack.http.post("/hooks/frontapp", content=body, headers=headers)
    [event] = answer.json()["events"]
    shown = await stack.get(f"/v1/events/{event['id']}")
    assert shown["trace_id"] not in (None, stranger)
    await traced.spans(shown["trace_id"], "receive frontapp", "event frontapp")
    assert not traced.received.of_trace(stranger)


async def test_a_batch_links_its_events(traced: Traced) -> None:
    stack = traced.stack
    documents = [{"key": f"batch-{n}", "text": f"quokka number {n}"} for n in range(30)]
    events = []
    # In requests of their own, so that each is a trace of its own.
    await stack.post("/v1/sources/documents/pause")
    for document in documents:
        [event] = (await stack.post("/v1/documents", json=document))["events"]
        events.append(event["id"])
    await stack.post("/v1/sources/documents/resume")
    await stack.ended(events)
    parents = [(await stack.get(f"/v1/events/{id}"))["trace_id"] for id in events]
    assert len(set(parents)) == len(events)
    for trace in parents:
        await traced.spans(trace, "receive documents", "event documents")
    batches = [span for span in traced.received.named("batch documents") if span.trace in parents]
    linked = {trace for span in batches for trace in span.links} | {span.trace for span in batches}
    assert len(linked & set(parents)) >= 20
    last = traced.received.of_trace(parents[-1])
    [end] = [span for span in last if span.name == "event documents"]
    assert end.links or end.trace in {span.trace for span in batches}


async def test_a_search_is_a_trace_with_a_span_a_leg(traced: Traced) -> None:
    await traced.stack.remember("searched", "quokka: where is SHP-100045?")
    answer = await traced.stack.http.post(
        "/v1/search",
        json={"query": "quokka SHP-100045"},
        headers={"traceparent": f"00-{SEARCHER}-00f067aa0ba902b7-01"},
    )
    assert answer.json()["hits"]
    await traced.spans(
        SEARCHER,
        *("search", "search total", "search identifiers", "search stores", "search read"),
        *("leg words", "leg meaning", "leg graph", "leg true scores", "vectors search_all"),
    )


async def test_a_drain_that_waits_makes_no_traces(traced: Traced) -> None:
    """It lives for ever: its claims belong to no trace, and its batches to those of their events."""
    event = await traced.stack.remember("carried", "quokka, carried by a drain")
    trace = (await traced.stack.get(f"/v1/events/{event['id']}"))["trace_id"]
    await traced.spans(trace, "RunActivity:prepare", "RunActivity:publish")
    names = {span.name for span in traced.received.spans}
    assert not {"RunWorkflow:Drain", "RunActivity:claim", "SignalWithStartWorkflow:Drain"} & names


async def test_no_span_holds_a_text_an_address_or_a_secret(traced: Traced) -> None:
    await traced.stack.get("/v1/search", q="quokka dana@example.com")
    await traced.stack.http.get("/v1/documents/quokka")
    marker = await traced.stack.remember("last", "quokka")
    trace = (await traced.stack.get(f"/v1/events/{marker['id']}"))["trace_id"]
    await traced.spans(trace, "event documents")
    assert {span.name for span in traced.received.spans} >= {"search", "receive documents"}
    for text in (*SECRET_TEXTS, traced.stack.key):
        assert not any(text.encode() in body for body in traced.received.bodies), text


async def test_the_log_lines_of_an_event_name_its_trace(traced: Traced) -> None:
    stack = traced.stack
    event = await stack.remember("logged", "quokka, logged")
    trace = (await stack.get(f"/v1/events/{event['id']}"))["trace_id"]

    def lines(name: str) -> list[str]:
        log = (stack.data_dir / "log" / f"{name}.log").read_text()
        return [line for line in log.splitlines() if event["id"] in line]

    [request] = await until(lambda: lines("gateway"), seconds=10)
    assert trace in request
    await until(lambda: any(trace in line for line in lines("worker")), seconds=10)
