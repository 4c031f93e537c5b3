"""Logs, metrics and traces. Every metric of Apex is in the table below, with its description.

`docs/reference/metrics.md` is generated from the table. Logs name events by id; they never hold
payloads, texts or secrets.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TextIO, cast

import structlog
from opentelemetry import trace
from prometheus_client import REGISTRY, Counter, Gauge, Histogram

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)

LANDED = Counter("apex_events_landed", "Events committed to the inbox.", ["source"])
DUPLICATES = Counter(
    "apex_events_duplicate", "Redeliveries, for which no second row is written.", ["source"]
)
REFUSED = Counter(
    "apex_requests_refused", "Requests refused before landing, by reason.", ["source", "reason"]
)
CONNECTIONS_REFUSED = Counter(
    "apex_connections_refused",
    "Connections closed before a request was handled: too many, or headers too large or too slow.",
    ["reason"],
)
ENDED = Counter(
    "apex_events_ended",
    "Events that became done, superseded, dead or parked, by state.",
    ["source", "state"],
)
DOCUMENTS_CUT = Counter(
    "apex_documents_cut",
    "Documents that are not whole because of a limit: characters, entities or files.",
    ["source", "limit"],
)
CONFLICTS = Counter(
    "apex_version_conflicts",
    "Events with the version of the stored document but other content.",
    ["source"],
)
VENDOR_CALLS = Counter(
    "apex_vendor_calls",
    "Calls to a source's vendor, by the class of the response (2xx, 4xx, 5xx) or `unreachable`.",
    ["source", "answer"],
)
CHANGE_HINTS = Counter(
    "apex_change_hints",
    "Thin notifications stored until the thing they name is fetched.",
    ["source"],
)
PULLS = Counter(
    "apex_pulls", "Pulls of a source that ended, by outcome: done or failed.", ["source", "outcome"]
)
READINGS = Counter("apex_readings", "Readings of streams committed, without repeats.", ["source"])
RETRIES = Counter("apex_store_retries", "Retried store calls.", ["store"])
BREAKER = Gauge(
    "apex_breaker_open",
    "State of a store's circuit breaker: 1 open, 0.5 half-open, 0 closed.",
    ["store"],
)
STAGES_SWEPT = Counter(
    "apex_stages_swept", "Expired or aborted stages removed from the stores.", []
)
STAGES_COLLECTED = Counter(
    "apex_stages_collected", "Superseded stages removed from the stores.", []
)
REPAIRED = Counter(
    "apex_documents_repaired",
    "Documents staged again because a store lost part of them.",
    ["store"],
)
STEP_SECONDS = Histogram(
    "apex_step_seconds", "Duration of a step of a batch.", ["step"], buckets=SECONDS
)
BATCH_EVENTS = Histogram(
    "apex_batch_events",
    "Events in a batch.",
    ["source"],
    buckets=(1, 2, 5, 10, 25, 50, 100, 250, 500),
)
SEARCHABLE_SECONDS = Histogram(
    "apex_searchable_seconds", "Time from received to searchable.", ["source"], buckets=SECONDS
)
SEARCH_SECONDS = Histogram(
    "apex_search_seconds", "Duration of a search.", ["part"], buckets=SECONDS
)
DEGRADED = Counter("apex_search_degraded", "Searches answered without a store.", ["store"])
HTTP_SECONDS = Histogram(
    "apex_http_seconds",
    "Duration of an HTTP request.",
    ["method", "route", "status"],
    buckets=SECONDS,
)
DELAY = Gauge(
    "apex_process_delay_seconds",
    "How late this process runs, averaged over half a minute. Above 0.1 it lacks processor time.",
)
INBOX_OPEN = Gauge(
    "apex_inbox_open", "Events in the inbox that are not final.", ["source", "state"]
)
STALLS = Counter(
    "apex_source_stalls",
    "Times that nobody worked on a source's ready events for a minute, and the direct path drained it.",
    ["source"],
)
OLDEST_SECONDS = Gauge("apex_inbox_oldest_seconds", "Age of the oldest open event.", ["source"])
WAKES_FAILED = Counter(
    "apex_wakes_failed", "Wakes that Temporal did not accept; the sweeper repeats them.", []
)
CACHE_FAILURES = Counter(
    "apex_cache_failures", "Failed cache calls; results were right, but slower.", ["call"]
)
VECTORS_POINTS = Gauge("apex_vectors_points", "Points in the embedded vector store.")
VECTORS_UNINDEXED = Gauge(
    "apex_vectors_unindexed",
    "Points of the embedded vector store that are not indexed yet; until then searches are slower.",
)
VECTORS_FAILURES = Gauge(
    "apex_vectors_indexing_failures",
    "Consecutive failed indexings of the embedded vector store; it retries every minute.",
)
ENGINE_RESTARTS = Counter(
    "apex_engine_restarts", "Embedded engines restarted by `apex up`.", ["engine"]
)

tracer = trace.get_tracer("apex_memory")


def metric_rows() -> list[tuple[str, str, str]]:
    """(name, kind, description) of every Apex metric, for the generated page."""
    rows = {
        (m.name, m.type, m.documentation) for m in REGISTRY.collect() if m.name.startswith("apex_")
    }
    return sorted(rows)


LOG_WRITES_LOST = Counter(
    "apex_log_writes_lost", "Writes to the log that failed, because its disk is full, say.", []
)


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
    """Structured logs on stderr: `console` for people, `json` for machines."""
    stream = cast(TextIO, _LogStream())
    renderer: Any = (
        structlog.processors.JSONRenderer()
        if style == "json"
        else structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty(), pad_event_to=28)
    )
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(getattr(logging, level.upper())),
        logger_factory=structlog.PrintLoggerFactory(stream),
        cache_logger_on_first_use=True,
    )
    logging.basicConfig(
        level=getattr(logging, level.upper()),
        stream=stream,
        format="%(levelname)s %(name)s %(message)s",
    )
    logging.getLogger("httpx2").setLevel(logging.WARNING)


def logger(**context: Any) -> Any:
    """A structured logger; `context` is part of each of its lines."""
    return structlog.get_logger(**context)


def trace_carrier() -> Mapping[str, str]:
    """The W3C trace headers of the current span, to pass on with work."""
    from opentelemetry.propagate import inject

    carrier: dict[str, str] = {}
    inject(carrier)
    return carrier
