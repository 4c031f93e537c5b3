"""What is exported passes through a real collector: it accepts every span, of one process and of a whole stack, and changes nothing."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.e2e import front
from tests.e2e.stack import running_stack
from tests.otlp import ReceivedSpan
from tests.servers.collector import PROGRAM, build, collector
from tests.waiting import until

pytestmark = pytest.mark.server("go", seconds=3_600)  # the first time the collector is built

STEPS = {
    "receive frontapp",
    "land",
    "claim",
    "prepare",
    "stage graph",
    "stage vectors",
    "verify",
    "flip",
    "vectors upsert",
    "event frontapp",
}
"""Spans of one event, from the webhook to searchable."""


@pytest.fixture
def program(request: pytest.FixtureRequest) -> Path:
    """The collector, built where that is wanted: it takes minutes."""
    if not PROGRAM.exists() and not request.config.getoption("--build-servers"):
        pytest.skip("NOT TESTED on a real collector: `make test-servers` builds it")
    return build()


EXPORTING = """
from apex_memory.telemetry import configure_logging, traces
from apex_memory.telemetry.export import exporting
from apex_memory.telemetry.traces import BatchSpan
configure_logging("info", "json")
with exporting("worker"):
    with traces.span("receive frontapp", source="frontapp"):
        first = traces.trace_carrier()
    with traces.span("receive edi", source="edi"):
        second = traces.trace_carrier()
    batch = BatchSpan("frontapp", "a-batch", 2, [first, second])
    with batch.current(), traces.step("stage graph", stages=2):
        pass
    batch.end()
print(first, second)
"""


def export(environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """Run a process that exports four spans; it prints the two traces."""
    return subprocess.run(
        [sys.executable, "-c", EXPORTING],
        capture_output=True,
        text=True,
        env=os.environ | environment,
        check=True,
    )


async def test_spans_pass_through_a_real_collector(tmp_path: Path, program: Path) -> None:
    with collector(program, tmp_path) as (url, received):
        environment = {"OTEL_EXPORTER_OTLP_ENDPOINT": url, "OTEL_EXPORTER_OTLP_TIMEOUT": "30"}
        ran = await asyncio.to_thread(export, environment)
        log = tmp_path / "collector.log"
        await until(lambda: len(received.spans) == 4, lambda: log.read_text()[-2000:], seconds=60)
    first, second = (parent.split("-")[1] for parent in ran.stdout.split())
    [batch] = received.named("batch frontapp")
    [step] = received.named("stage graph")
    assert (batch.trace, batch.links) == (first, [second])
    assert (step.trace, step.parent) == (first, batch.id)
    assert batch.attributes == {
        "apex.source": "frontapp",
        "apex.batch": "a-batch",
        "apex.events": 2,
    }
    assert {resource["service.name"] for resource in received.resources} == {"apex-worker"}


async def test_a_trace_of_a_whole_stack_passes_through_a_real_collector(
    tmp_path: Path, program: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with collector(program, tmp_path) as (url, received):
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", url)
        monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "200")
        async with running_stack() as stack:
            answer = await stack.hook(front.message("m1", "c1", at=1, text="Where is SHP-100045?"))
            [event] = answer.json()["events"]
            await stack.ended([event["id"]])
            trace = (await stack.get(f"/v1/events/{event['id']}"))["trace_id"]
            await until(
                lambda: not incomplete(received.of_trace(trace)),
                lambda: incomplete(received.of_trace(trace)),
                seconds=60,
            )
            spans = received.of_trace(trace)
    [root] = [span for span in spans if not span.parent]
    assert (root.name, root.process) == ("receive frontapp", "gateway")
    assert {span.process for span in spans} == {"gateway", "worker", "vectors"}


def incomplete(spans: list[ReceivedSpan]) -> str:
    """Return what a trace lacks; nothing for one whose steps are all there, each below another span of the trace."""
    names, ids = {span.name for span in spans}, {span.id for span in spans}
    hanging = [span.name for span in spans if span.parent and span.parent not in ids]
    return " ".join((*sorted(STEPS - names), *(f"parent of {name}" for name in hanging)))
