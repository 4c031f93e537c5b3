"""Structured logs on stderr. They name events by id; they never hold payloads, texts or secrets.

The fields that lead from line to line: `trace_id` and `span_id` (of a trace that is exported), `events` (ids, at most
`LOGGED_IDS`), `batch`, `source`, `request`. `docs/howto/tracing.md` documents the JSON form.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from itertools import islice
from traceback import extract_tb
from typing import Any, TextIO, cast
from uuid import UUID

import structlog
from opentelemetry import trace

from apex_memory.telemetry.metrics import LOG_WRITES_LOST
from apex_memory.telemetry.traces import current_sampled_trace_id, format_ids

LOGGED_IDS = 20  # event ids in one line
LOGGED_FRAMES = 4  # of the trace of an unforeseen error


class _LogStream:
    """Standard error, where a write that fails is counted and lost: a full disk must not end the work that logs."""

    def write(self, text: str) -> int:
        with self._counted():
            sys.stderr.write(text)
        return len(text)

    def flush(self) -> None:
        with self._counted():
            sys.stderr.flush()

    @contextmanager
    def _counted(self) -> Iterator[None]:
        try:
            yield
        except OSError:
            LOG_WRITES_LOST.inc()


def configure_logging(level: str, style: str) -> None:
    """Structured logs on stderr: `console` for people, `json` for machines. Lines of libraries have the same form."""
    stream = cast(TextIO, _LogStream())
    shared: list[Any] = [
        structlog.contextvars.merge_contextvars,
        _add_trace,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
    ]
    renderers = _renderers(style)
    lowest = getattr(logging, level.upper())
    structlog.configure(
        processors=[*shared, *renderers],
        wrapper_class=structlog.make_filtering_bound_logger(lowest),
        logger_factory=structlog.PrintLoggerFactory(stream),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(stream)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[*shared, structlog.stdlib.add_logger_name],
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *renderers],
        )
    )
    logging.basicConfig(level=lowest, handlers=[handler])
    logging.getLogger("httpx2").setLevel(logging.WARNING)


def _renderers(style: str) -> list[Any]:
    if style == "json":
        return [
            structlog.processors.EventRenamer("message"),
            structlog.processors.JSONRenderer(default=str),
        ]
    return [structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty(), pad_event_to=28)]


def _add_trace(_: Any, __: str, fields: Any) -> Any:
    """Return the fields of a line, with the ids of the current span if its trace is exported."""
    if current_sampled_trace_id():
        trace_id, span_id = format_ids(trace.get_current_span().get_span_context())
        fields["trace_id"] = trace_id
        fields["span_id"] = span_id
    return fields


def logger(**context: Any) -> Any:
    """Return a structured logger; `context` is part of each of its lines."""
    return structlog.get_logger(**context)


def bound(**fields: str) -> AbstractContextManager[None]:
    """Add fields to every line that is logged inside the block."""
    return cast(AbstractContextManager[None], structlog.contextvars.bound_contextvars(**fields))


def bind_trace() -> None:
    """Add the current trace, if it is exported, to every further line of this task."""
    trace_id = current_sampled_trace_id()
    if trace_id:
        structlog.contextvars.bind_contextvars(trace_id=trace_id)


def bound_trace_id() -> str | None:
    """Return the trace that `bind_trace` added in this task; None without one."""
    trace_id: str | None = structlog.contextvars.get_contextvars().get("trace_id")
    return trace_id


def bind_events(ids: Iterable[UUID]) -> None:
    """Add the ids of events to every further line of this task."""
    structlog.contextvars.bind_contextvars(events=event_ids(ids))


def event_ids(ids: Iterable[UUID]) -> list[str]:
    """Return ids for a line of the log, no more than `LOGGED_IDS`."""
    return [str(id) for id in islice(ids, LOGGED_IDS)]


def unforeseen(error: Exception) -> dict[str, Any]:
    """Return the fields of a log line for an unforeseen error: its class, and where it was raised as `file:line`.

    Its message stays out of the log: it may quote what came from outside.
    """
    frames = extract_tb(error.__traceback__)[-LOGGED_FRAMES:]
    return {
        "error": type(error).__name__,
        "where": [f"{frame.filename}:{frame.lineno}" for frame in frames],
    }
