"""Temporal's spans and the batch's: in the trace of the events, and once, however often a workflow is replayed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import opentelemetry.trace
import pytest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import format_trace_id
from temporalio.worker import Replayer, Worker

from apex_memory.errors import Misconfigured
from apex_memory.flows.drain.workflow import Drain
from apex_memory.flows.temporal.client import connect
from apex_memory.flows.temporal.errors import Translation
from apex_memory.flows.temporal.tracing import plugins, replay_safe_provider
from apex_memory.flows.worker import WORKFLOWS
from apex_memory.telemetry import traces
from tests.flows.conftest import Bench
from tests.flows.scripted import Steps
from tests.flows.test_replay import FILES, history
from tests.waiting import until

FIRST, OTHER = "4bf92f3577b34da6a3ce929d0e0e4736", "0af7651916cd43dd8448eb211c80319c"
PARENTS = [f"00-{FIRST}-00f067aa0ba902b7-01", f"00-{OTHER}-b7ad6b7169203331-01"]
BATCH_SPANS = {
    "batch frontapp",
    *(
        f"{what}:{step}"
        for what in ("StartActivity", "RunActivity")
        for step in ("prepare", "publish")
    ),
}


@pytest.fixture
def exported(monkeypatch: pytest.MonkeyPatch) -> Iterator[InMemorySpanExporter]:
    """Traces that are on in this process, with the provider of a worker."""
    exporter = InMemorySpanExporter()
    provider = replay_safe_provider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(opentelemetry.trace, "_TRACER_PROVIDER", provider)
    traces.set_tracer(provider.get_tracer("test"))
    yield exporter
    traces.set_tracer(None)
    provider.shutdown()


def in_trace(exporter: InMemorySpanExporter, trace: str) -> list[ReadableSpan]:
    spans = exporter.get_finished_spans()
    return [
        span for span in spans if span.context and format_trace_id(span.context.trace_id) == trace
    ]


async def test_every_task_is_a_replay_and_no_span_is_doubled(
    temporal_address: str, exported: InMemorySpanExporter
) -> None:
    """The worker keeps no workflow in memory, so that each task replays all that went before."""
    client = await connect(temporal_address)
    bench = Bench(client, Steps(limit=5, trace_parents=PARENTS))
    async with Worker(
        client,
        task_queue=bench.name,
        workflows=[Drain],
        activities=bench.steps.activities,
        interceptors=[Translation()],
        max_cached_workflows=0,
    ):
        bench.steps.land(13)
        with traces.untraced():
            await bench.start(quiet_seconds=0.3)
            await bench.wake()
        await until(lambda: len(bench.steps.published) == 13, "13 events published", seconds=60)

        def batches() -> int:
            return len([s for s in exported.get_finished_spans() if s.name == "batch frontapp"])

        await until(lambda: batches() >= 3, "three batches", seconds=30)
        await until(lambda: bench.steps.claims >= 4, "one more claim after the burst", seconds=60)
        with traces.untraced():
            await client.get_workflow_handle(bench.name).terminate("the test is over")
    spans = in_trace(exported, FIRST)
    assert Counter(span.name for span in spans) == dict.fromkeys(BATCH_SPANS, 3)
    ids = {span.context.span_id for span in spans if span.context}
    assert len(ids) == len(spans)
    assert all(span.parent and span.parent.span_id in ids | {0x00F067AA0BA902B7} for span in spans)
    for span in spans:
        if span.name == "batch frontapp":
            assert [format_trace_id(link.context.trace_id) for link in span.links] == [OTHER]
    assert len(exported.get_finished_spans()) == len(spans), "a drain that waits made spans"


def batches_of(exporter: InMemorySpanExporter) -> list[ReadableSpan]:
    return [span for span in in_trace(exporter, FIRST) if span.name == "batch frontapp"]


async def test_a_batch_that_fails_ends_its_span(
    temporal_address: str, exported: InMemorySpanExporter
) -> None:
    client = await connect(temporal_address)
    steps = Steps(trace_parents=PARENTS, fail={"prepare": [Misconfigured("of dana@example.com")]})
    bench = Bench(client, steps)
    async with Worker(
        client,
        task_queue=bench.name,
        workflows=[Drain],
        activities=steps.activities,
        interceptors=[Translation()],
    ):
        bench.steps.land(1)
        with traces.untraced():
            await bench.start()
            await bench.wake()
        await until(lambda: len(bench.steps.published) == 1, "published in the end", seconds=60)
        await until(lambda: len(batches_of(exported)) == 2, "both batches", seconds=30)
        with traces.untraced():
            await client.get_workflow_handle(bench.name).terminate("the test is over")
    batches = batches_of(exported)
    assert [span.status.description for span in batches] == ["ActivityError", None]
    assert not any(span.events for span in batches)


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
async def test_a_history_replays_with_traces_and_exports_none(
    file: Path, exported: InMemorySpanExporter
) -> None:
    """Histories that were recorded without traces, too: tracing adds no command to a workflow."""
    await Replayer(workflows=WORKFLOWS, plugins=plugins()).replay_workflow(history(file))
    assert not exported.get_finished_spans()
