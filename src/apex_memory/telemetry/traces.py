"""Traces: the spans of Apex, by OpenTelemetry's API alone. `export` sends them; without it every function here is a no-op.

How the spans of one event hang together:

- The request, or the page of a pull, that lands an event is its trace's first span. The inbox keeps it as `trace_parent`.
- A batch holds events of many traces. Its span (`BatchSpan`) is a part of the trace of its first traced event and
  links the traces of the others; what Temporal records of the batch hangs below it.
- Every other traced event gets the steps of its batch as spans in its own trace, each with a link to the real step
  (`following`). At its end every traced event gets a span from received to then, with its outcome.
- A long-lived workflow, and a loop that looks for work, would be a trace without an end: they run `untraced`, and
  each batch brings its trace along.

Spans hold ids, counts and names of sources. They never hold bodies, texts, addresses or secrets, so an exception is
recorded by its class alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from contextvars import ContextVar
from dataclasses import dataclass, field
from datetime import datetime
from time import time_ns
from typing import Any
from uuid import UUID

from opentelemetry import context as otel_context
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.propagate import extract
from opentelemetry.trace import (
    INVALID_SPAN,
    Link,
    NonRecordingSpan,
    Span,
    SpanContext,
    SpanKind,
    Status,
    StatusCode,
    TraceFlags,
    Tracer,
)
from opentelemetry.util.types import AttributeValue

MOST_LINKS = 100  # of a batch's span; OpenTelemetry keeps 128
MOST_FOLLOWED = 6  # events of a batch that get each step of it in their own traces; the others get their last span
# Steps of a batch in the trace of an event. A batch that is cut into many groups has more.
MOST_STEPS = 24

# The context of work whose spans belong to no trace that anybody looks for: valid, and not sampled.
_UNTRACED = NonRecordingSpan(SpanContext(1, 1, is_remote=False, trace_flags=TraceFlags(0)))


class _State:
    """The tracer of this process; None while traces are off."""

    tracer: Tracer | None = None


def set_tracer(tracer: Tracer | None) -> None:
    """Set the tracer of this process. `export.exporting` calls this."""
    _State.tracer = tracer


def enabled() -> bool:
    """Return whether this process exports traces."""
    return _State.tracer is not None


@contextmanager
def span(
    name: str,
    *,
    parent: Context | None = None,
    links: Sequence[SpanContext] = (),
    kind: SpanKind = SpanKind.INTERNAL,
    **attributes: AttributeValue,
) -> Iterator[Span]:
    """Run the block in a span, a child of the current one or of `parent`. `Context()` as parent begins a new trace.

    `source="frontapp"` becomes the attribute `apex.source`.
    """
    tracer = _State.tracer
    if tracer is None:
        # Events keep the trace of their caller.
        with _attached(parent) if parent else nullcontext():
            yield INVALID_SPAN
        return
    current = tracer.start_span(
        name,
        parent,
        kind,
        {f"apex.{key}": value for key, value in attributes.items()},
        [Link(context) for context in links],
    )
    try:
        with _current(current, parent):
            yield current
    except BaseException as error:
        mark_failed(current, error)
        raise
    finally:
        current.end()


def mark_failed(current: Span, error: BaseException) -> None:
    """Mark a span as failed by the class of its error: a message may quote what came from outside."""
    name = type(error).__name__
    current.set_attribute("error.type", name)
    current.set_status(Status(StatusCode.ERROR, name))


@contextmanager
def untraced() -> Iterator[None]:
    """Run the block outside of any trace, so that neither it nor what it starts is recorded.

    It holds for samplers that follow their parent, such as the default one.
    """
    if _State.tracer is None:
        yield
        return
    with _current(_UNTRACED, Context()):
        yield


@contextmanager
def _current(current: Span, parent: Context | None = None) -> Iterator[None]:
    """Make a span the current one inside the block.

    A workflow that a worker lets go of ends its blocks in another context, where the token is not valid.
    """
    with _attached(trace.set_span_in_context(current, parent)):
        yield


@contextmanager
def _attached(context: Context) -> Iterator[None]:
    token = otel_context.attach(context)
    try:
        yield
    finally:
        with suppress(ValueError):
            token.var.reset(token)


def trace_carrier() -> str | None:
    """Return the current span as W3C `traceparent`, to keep with an event; None outside of any trace.

    Always in this form, whatever OTEL_PROPAGATORS names: workers of every setting read it.
    """
    context = trace.get_current_span().get_span_context()
    if not context.is_valid:
        return None
    trace_id, span_id = format_ids(context)
    return f"00-{trace_id}-{span_id}-{context.trace_flags & TraceFlags.SAMPLED:02x}"


def format_ids(context: SpanContext) -> tuple[str, str]:
    """Return trace id and span id in hexadecimal digits."""
    return trace.format_trace_id(context.trace_id), trace.format_span_id(context.span_id)


def sampled_context(trace_parent: str | None) -> SpanContext | None:
    """Return the span that a `traceparent` names; None if its trace is not recorded, or the text is none."""
    context = _parsed(trace_parent)
    return context if context and context.trace_flags.sampled else None


def trace_id_of(trace_parent: str | None) -> str | None:
    """Return the trace id of a `traceparent` whose trace is recorded; None for others, which no viewer finds."""
    context = sampled_context(trace_parent)
    return trace.format_trace_id(context.trace_id) if context else None


def _parsed(trace_parent: str | None) -> SpanContext | None:
    parts = (trace_parent or "").split("-")
    if [len(part) for part in parts] != [2, 32, 16, 2]:
        return None
    with suppress(ValueError):
        context = SpanContext(
            int(parts[1], 16), int(parts[2], 16), True, TraceFlags(int(parts[3], 16) & 1)
        )
        if context.is_valid:
            return context
    return None


def context_of(trace_parent: str) -> Context:
    """Return the context whose current span is that of a `traceparent`."""
    context = _parsed(trace_parent)
    span = NonRecordingSpan(context) if context else _UNTRACED
    return trace.set_span_in_context(span, Context())


def caller_context(headers: Mapping[str, str]) -> Context | None:
    """Return the caller's context in the headers of a request; None without one.

    While traces are off here, an event still keeps the trace of its caller, who may export it.

    Only for requests whose API key has been checked. A stranger who could name the trace of a webhook could make
    every request be recorded whatever the sampler decides, and put its spans into the trace of another company's event.
    """
    return extract(headers) if enabled() or "traceparent" in headers else None


def current_trace_id() -> str | None:
    """Return the id of the current trace, 32 hexadecimal digits; None outside of any trace.

    It is there for a trace that the sampler leaves out, too: `current_sampled_trace_id` returns only ids that a
    trace viewer finds.
    """
    context = trace.get_current_span().get_span_context()
    return trace.format_trace_id(context.trace_id) if context.is_valid else None


def current_sampled_trace_id() -> str | None:
    """Return the id of the current trace if its spans are exported, such as for the exemplar of a metric; else None."""
    context = trace.get_current_span().get_span_context()
    if not (context.is_valid and context.trace_flags.sampled):
        return None
    return trace.format_trace_id(context.trace_id)


@dataclass(frozen=True, slots=True)
class TracedEvent:
    """An event whose trace is recorded. `received_at` is None where the event's end is not in sight."""

    id: UUID
    source: str
    trace_parent: str
    received_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class _EndedStep:
    """A step of a batch that has ended. Times are nanoseconds since 1970."""

    name: str
    began: int
    ended: int
    span: SpanContext


_steps: ContextVar[list[_EndedStep] | None] = ContextVar("apex_steps", default=None)


@contextmanager
def step(name: str, **attributes: Any) -> Iterator[None]:
    """Run a step of a batch in a span. It is shown in the traces of the events that `following` names, too."""
    if _State.tracer is None:
        yield
        return
    began = time_ns()
    with span(name, **attributes) as current:
        try:
            yield
        finally:
            steps = _steps.get()
            if steps is not None and len(steps) < MOST_STEPS:
                steps.append(_EndedStep(name, began, time_ns(), current.get_span_context()))


@dataclass(slots=True)
class Followed:
    """The traced events of a batch, and the outcomes of those that have ended."""

    events: Sequence[TracedEvent] = ()
    outcomes: dict[UUID, str] = field(default_factory=dict)


@contextmanager
def following(events: Sequence[TracedEvent] = ()) -> Iterator[Followed]:
    """Show the steps that run inside the block in the traces of these events, once the block ends."""
    followed = Followed(events)
    if _State.tracer is None:
        yield followed
        return
    steps: list[_EndedStep] = []
    token = _steps.set(steps)
    try:
        yield followed
    finally:
        _steps.reset(token)
        _show(followed, steps)


def _show(followed: Followed, steps: Sequence[_EndedStep]) -> None:
    """Make the spans of a batch's steps, and the last span of each event that has ended, in the events' own traces."""
    own = trace.get_current_span().get_span_context()
    for n, event in enumerate(followed.events):
        context = sampled_context(event.trace_parent)
        if context is None:
            continue
        if context.trace_id != own.trace_id and n < MOST_FOLLOWED:
            for item in steps:
                _show_past(item.name, context, item.began, item.ended, item.span, event)
        outcome = followed.outcomes.get(event.id)
        if outcome and event.received_at:
            began = int(event.received_at.timestamp() * 1e9)
            _show_past(f"event {event.source}", context, began, time_ns(), own, event, outcome)


def _show_past(
    name: str,
    parent: SpanContext,
    began: int,
    ended: int,
    link: SpanContext,
    event: TracedEvent,
    outcome: str = "",
) -> None:
    assert _State.tracer
    attributes = {"apex.event": str(event.id), "apex.source": event.source}
    if outcome:
        attributes["apex.outcome"] = outcome
    is_useful = link.is_valid and link.trace_flags.sampled and link.trace_id != parent.trace_id
    _State.tracer.start_span(
        name,
        trace.set_span_in_context(NonRecordingSpan(parent), Context()),
        attributes=attributes,
        links=[Link(link)] if is_useful else (),
        start_time=began,
    ).end(max(began, ended))


class BatchSpan:
    """The span of a batch, from its claim to the outcomes of its events. Safe in a workflow.

    `trace_parents` are those of its traced events: the span is a child of the first and links the others. Without any
    the batch is untraced, and nothing happens here.
    """

    def __init__(self, source: str, batch: str, events: int, trace_parents: Sequence[str]) -> None:
        contexts = [context for text in trace_parents if (context := sampled_context(text))]
        self._span: Span | None = None
        if _State.tracer is None or not contexts:
            return
        first, *others = contexts
        self._span = _State.tracer.start_span(
            f"batch {source}",
            trace.set_span_in_context(NonRecordingSpan(first), Context()),
            SpanKind.CONSUMER,
            {"apex.source": source, "apex.batch": batch, "apex.events": events},
            [Link(context) for context in others[:MOST_LINKS]],
        )

    @contextmanager
    def current(self) -> Iterator[None]:
        """Make it the current span inside the block. An error in the block ends it, as failed."""
        if self._span is None:
            yield
            return
        try:
            with _current(self._span):
                yield
        except (
            Exception
        ) as error:  # not what ends a workflow that its worker lets go of: another one continues it
            self.end(error)
            raise

    def end(self, error: BaseException | None = None) -> None:
        """End it, as failed if there is an error. The second call does nothing."""
        current, self._span = self._span, None
        if current:
            if error:
                mark_failed(current, error)
            current.end()
