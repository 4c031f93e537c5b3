"""Exemplars: a histogram names the trace of a sample, where the trace is exported."""

from __future__ import annotations

from collections.abc import Mapping

from opentelemetry import trace
from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags
from prometheus_client import REGISTRY, Histogram
from prometheus_client.openmetrics.exposition import generate_latest

from apex_memory.telemetry.exemplars import observe, timed

TRACE = 0x4BF92F3577B34DA6A3CE929D0E0E4736
PLAIN = Histogram("test_exemplars_seconds", "A histogram.", ["part"], buckets=(1.0,))


def exemplars(part: str) -> list[Mapping[str, str]]:
    return [
        sample.exemplar.labels
        for metric in PLAIN.collect()
        for sample in metric.samples
        if sample.labels.get("part") == part and sample.exemplar
    ]


def inside(sampled: bool) -> NonRecordingSpan:
    flags = TraceFlags(TraceFlags.SAMPLED if sampled else TraceFlags.DEFAULT)
    return NonRecordingSpan(SpanContext(TRACE, 1, is_remote=False, trace_flags=flags))


def test_a_sample_names_its_trace_in_openmetrics() -> None:
    with trace.use_span(inside(sampled=True)), timed(PLAIN.labels("sampled")):
        pass
    assert exemplars("sampled") == [{"trace_id": f"{TRACE:032x}"}]
    text = generate_latest(REGISTRY).decode()  # type: ignore[no-untyped-call]
    assert f'# {{trace_id="{TRACE:032x}"}}' in text


def test_a_trace_that_is_not_exported_is_not_named() -> None:
    with trace.use_span(inside(sampled=False)):
        observe(PLAIN.labels("left out"), 0.5)
    observe(PLAIN.labels("left out"), 0.5)
    assert exemplars("left out") == []


def test_a_given_trace_is_named() -> None:
    observe(PLAIN.labels("given"), 0.5, trace_id="a" * 32)
    assert exemplars("given") == [{"trace_id": "a" * 32}]
