"""Exemplars: histograms name the trace of a sample, which a dashboard links to. Only traces that are exported."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from time import perf_counter

from prometheus_client import Histogram

from apex_memory.telemetry.traces import current_sampled_trace_id


def observe(histogram: Histogram, value: float, *, trace_id: str | None = None) -> None:
    """Add a value to a histogram, with the id of its trace, or of the current one, as exemplar."""
    trace_id = trace_id or current_sampled_trace_id()
    histogram.observe(value, {"trace_id": trace_id} if trace_id else None)


@contextmanager
def timed(histogram: Histogram) -> Iterator[None]:
    """Observe the duration (s) of the block, with the trace that is current at its end."""
    began = perf_counter()
    try:
        yield
    finally:
        observe(histogram, perf_counter() - began)
