"""Traces: what is current, what is exported, and what a trace may say."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime

import pytest
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.sdk.trace import SpanLimits, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags

from apex_memory.errors import Misconfigured, Rejected
from apex_memory.telemetry import current_sampled_trace_id, current_trace_id, traces
from apex_memory.telemetry.export import check_tracing, wanted
from apex_memory.telemetry.traces import BatchSpan, TracedEvent
from tests.otlp import receiver

TRACE, SPAN = 0x4BF92F3577B34DA6A3CE929D0E0E4736, 0x00F067AA0BA902B7
TRACE_ID = "4bf92f3577b34da6a3ce929d0e0e4736"
PARENT = f"00-{TRACE_ID}-00f067aa0ba902b7-01"
OTHER_ID = "0af7651916cd43dd8448eb211c80319c"
OTHER = f"00-{OTHER_ID}-b7ad6b7169203331-01"
UNSAMPLED = PARENT[:-1] + "0"
ENDPOINT = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:4318"}


@pytest.fixture
def exported() -> Iterator[InMemorySpanExporter]:
    """Traces that are on, and what they exported."""
    exporter = InMemorySpanExporter()
    provider = TracerProvider(span_limits=SpanLimits(max_events=0), shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    traces.set_tracer(provider.get_tracer("test"))
    yield exporter
    traces.set_tracer(None)
    provider.shutdown()


def traced(trace_parent: str, *, received: bool = True) -> TracedEvent:
    at = datetime.now(UTC) if received else None
    return TracedEvent(uuid.uuid4(), "frontapp", trace_parent, at)


def test_the_current_trace_has_an_id_and_outside_there_is_none() -> None:
    assert current_trace_id() is None
    assert current_sampled_trace_id() is None
    for flags, sampled in ((1, True), (0, False)):
        context = SpanContext(TRACE, SPAN, is_remote=False, trace_flags=TraceFlags(flags))
        with trace.use_span(NonRecordingSpan(context)):
            assert current_trace_id() == TRACE_ID
            assert (current_sampled_trace_id() is not None) is sampled
    assert current_trace_id() is None


def test_without_a_receiver_every_function_is_a_no_op() -> None:
    assert not traces.enabled()
    with traces.span("one", source="frontapp"), traces.step("two"), traces.untraced():
        assert current_trace_id() is None
        assert traces.trace_carrier() is None
    assert traces.caller_context({}) is None
    with traces.span("one", parent=traces.caller_context({"traceparent": PARENT})):
        assert traces.trace_carrier() == PARENT, "events keep the trace of their caller"
    assert traces.trace_carrier() is None
    batch = BatchSpan("frontapp", "id", 1, [PARENT])
    with batch.current():
        assert current_trace_id() is None
    batch.end()


@pytest.mark.parametrize(
    ("environment", "variable"),
    [
        ({}, ""),
        (ENDPOINT, "OTEL_EXPORTER_OTLP_ENDPOINT"),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://x"}, "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": " "}, ""),
        ({"OTEL_TRACES_EXPORTER": "console"}, "OTEL_TRACES_EXPORTER"),
        (ENDPOINT | {"OTEL_TRACES_EXPORTER": "none"}, ""),
        (ENDPOINT | {"OTEL_SDK_DISABLED": "TRUE"}, ""),
        (ENDPOINT | {"OTEL_SDK_DISABLED": "no"}, "OTEL_EXPORTER_OTLP_ENDPOINT"),
        ({"OTEL_SERVICE_NAME": "apex"}, ""),
    ],
)
def test_the_standard_variables_turn_traces_on(environment: dict[str, str], variable: str) -> None:
    assert wanted(environment) == variable


@pytest.mark.parametrize(
    ("variables", "named"),
    [
        ({"OTEL_EXPORTER_OTLP_PROTOCOL": "pigeon"}, "pigeon"),
        ({"OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}, "otlp_proto_grpc"),
        ({"OTEL_TRACES_EXPORTER": "jaeger"}, "jaeger"),
    ],
)
def test_an_exporter_that_is_not_installed_is_named(variables: dict[str, str], named: str) -> None:
    with pytest.raises(Misconfigured, match=named) as raised:
        check_tracing(ENDPOINT | variables)
    assert raised.value.remedy


@pytest.mark.parametrize(
    "module", ["apex_memory.gateway", "apex_memory.flows", "apex_memory.edge.server"]
)
def test_a_process_without_the_extra_reports_it_and_ends(module: str) -> None:
    """In a process that cannot import the SDK, with the variable set."""
    script = (
        "import sys, runpy\n"
        "class Refuse:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.startswith('opentelemetry.sdk'): raise ModuleNotFoundError(name, name=name)\n"
        "import apex_memory.errors as errors\n"
        "real = errors.find_spec\n"
        "errors.find_spec = lambda name: None if name.startswith('opentelemetry.sdk') else real(name)\n"
        "sys.meta_path.insert(0, Refuse())\n"
        f"sys.argv = ['{module}']\n"
        f"runpy.run_module('{module}', run_name='__main__', alter_sys=True)\n"
    )
    edge = {f"APEX_EDGE_{name}": "1" for name in ("HOST", "PORT", "PASSWORD", "DIR", "DIMENSION")}
    environment = os.environ | ENDPOINT | (edge if "edge" in module else {})
    ran = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, env=environment, check=False
    )
    assert ran.returncode in (1, 2), ran.stderr
    assert "OTEL_EXPORTER_OTLP_ENDPOINT is set" in ran.stderr
    assert "apex-memory[otel]" in ran.stderr


def test_an_exception_is_recorded_by_its_class_alone(exported: InMemorySpanExporter) -> None:
    with pytest.raises(Rejected), traces.span("one"):
        raise Rejected("the mail of dana@example.com is broken")
    [span] = exported.get_finished_spans()
    assert span.attributes and span.attributes["error.type"] == "Rejected"
    assert span.status.description == "Rejected"
    assert "dana" not in span.to_json() and not span.events


def test_a_batch_is_in_the_trace_of_its_first_event_and_links_the_others(
    exported: InMemorySpanExporter,
) -> None:
    batch = BatchSpan("frontapp", "a-batch", 3, [UNSAMPLED, PARENT, OTHER, "no traceparent"])
    with batch.current(), traces.span("inside"):
        assert current_trace_id() == TRACE_ID
    batch.end()
    batch.end()
    inside, span = exported.get_finished_spans()
    assert (span.name, trace.format_trace_id(span.context.trace_id)) == ("batch frontapp", TRACE_ID)
    assert span.parent and span.parent.span_id == SPAN
    assert [trace.format_trace_id(link.context.trace_id) for link in span.links] == [OTHER_ID]
    assert inside.parent and inside.parent.span_id == span.context.span_id


def test_a_batch_without_traced_events_is_untraced(exported: InMemorySpanExporter) -> None:
    with traces.untraced():
        batch = BatchSpan("frontapp", "a-batch", 1, [UNSAMPLED])
        with batch.current(), traces.span("inside"):
            assert current_sampled_trace_id() is None
        batch.end()
    assert not exported.get_finished_spans()


def test_steps_are_shown_in_the_traces_of_the_other_events(exported: InMemorySpanExporter) -> None:
    first, other, open_event = traced(PARENT), traced(OTHER), traced(OTHER)
    batch = BatchSpan("frontapp", "a-batch", 3, [PARENT, OTHER, OTHER])
    with batch.current(), traces.following([first, other, open_event]) as followed:
        with traces.step("stage graph"):
            pass
        followed.outcomes = {first.id: "done", other.id: "superseded"}
    batch.end()
    spans = exported.get_finished_spans()
    copies = [span for span in spans if trace.format_trace_id(span.context.trace_id) == OTHER_ID]
    assert sorted(span.name for span in copies) == ["event frontapp", "stage graph", "stage graph"]
    assert all(len(span.links) == 1 for span in copies)
    ends = [span for span in spans if span.name == "event frontapp"]
    assert [span.attributes and span.attributes["apex.outcome"] for span in ends] == [
        "done",
        "superseded",
    ]
    assert [span.name for span in spans].count("stage graph") == 3  # the real one and two copies


def test_the_spans_of_a_batch_are_bounded(exported: InMemorySpanExporter) -> None:
    events = [traced(OTHER) for _ in range(500)]
    with traces.following(events) as followed:
        for _ in range(100):
            with traces.step("stage graph"):
                pass
        followed.outcomes = {event.id: "done" for event in events}
    copies = traces.MOST_FOLLOWED * traces.MOST_STEPS
    assert len(exported.get_finished_spans()) == 100 + copies + len(events)


@pytest.mark.parametrize(
    "text",
    [None, "", "x", PARENT + "-x", PARENT.replace("4b", "zz"), "00-" + "0" * 32 + PARENT[35:]],
)
def test_what_is_no_traceparent_belongs_to_no_trace(text: str | None) -> None:
    assert traces.sampled_context(text) is None
    assert traces.trace_id_of(text) is None


def test_the_trace_id_of_an_event_is_shown_only_if_a_viewer_finds_it() -> None:
    assert traces.trace_id_of(PARENT) == TRACE_ID
    assert traces.trace_id_of(PARENT[:-1] + "3") == TRACE_ID  # a flag of a later version beside it
    assert traces.trace_id_of(UNSAMPLED) is None


def test_a_new_trace_begins_where_the_parent_is_empty(exported: InMemorySpanExporter) -> None:
    with traces.span("outer"), traces.span("inner", parent=Context()):
        carrier = traces.trace_carrier()
    inner, outer = exported.get_finished_spans()
    assert inner.parent is None and inner.context.trace_id != outer.context.trace_id
    assert carrier and traces.trace_id_of(carrier) == trace.format_trace_id(inner.context.trace_id)


PROGRAM = """
import logging, time
from apex_memory.telemetry import configure_logging, traces
from apex_memory.telemetry.export import exporting
configure_logging("info", "json")
with exporting("worker"):
    with traces.span("outer", source="frontapp"), traces.span("inner"):
        pass
    began = time.monotonic()
print("ended after", round(time.monotonic() - began, 1))
"""


def run_program(**environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", PROGRAM],
        capture_output=True,
        text=True,
        env=os.environ | environment,
        check=True,
    )


def test_a_process_exports_to_the_receiver_that_the_environment_names() -> None:
    with receiver() as received:
        run_program(
            OTEL_EXPORTER_OTLP_ENDPOINT=received.url,
            OTEL_RESOURCE_ATTRIBUTES="deployment.environment.name=test,service.namespace=ours",
        )
    inner, outer = received.spans
    assert (outer.name, inner.name, inner.parent) == ("outer", "inner", outer.id)
    assert outer.attributes == {"apex.source": "frontapp"}
    [resource] = received.resources
    assert resource["service.name"] == "apex-worker"
    assert resource["deployment.environment.name"] == "test"
    assert resource["service.namespace"] == "ours"


def test_the_environment_names_the_service_and_decides_what_is_sampled() -> None:
    with receiver() as received:
        url = received.url
        run_program(OTEL_EXPORTER_OTLP_ENDPOINT=url, OTEL_SERVICE_NAME="ours")
        run_program(OTEL_EXPORTER_OTLP_ENDPOINT=url, OTEL_TRACES_SAMPLER="always_off")
        run_program(OTEL_EXPORTER_OTLP_ENDPOINT=url, OTEL_SDK_DISABLED="true")
    assert len(received.spans) == 2
    assert received.resources[0]["service.name"] == "ours"
    assert received.resources[0]["apex.process"] == "worker"


def test_a_receiver_that_is_down_delays_the_end_by_seconds_at_most() -> None:
    began = time.monotonic()
    with receiver(status=503) as received:
        ran = run_program(OTEL_EXPORTER_OTLP_ENDPOINT=received.url)
    seconds = float(ran.stdout.split()[-1])
    assert seconds < 6, ran.stdout
    assert time.monotonic() - began < 60
    assert "Traceback" not in ran.stderr


def test_off_costs_nothing_measurable() -> None:
    """A span that is off takes microseconds: a batch of 256 events takes a quarter of a second and has about ten."""
    logging.getLogger("opentelemetry").setLevel(logging.ERROR)
    began = time.process_time()
    for _ in range(10_000):
        with traces.span("one", source="frontapp"):
            pass
    assert (time.process_time() - began) / 10_000 < 50e-6
