"""Every metric of Apex, with its description: `docs/reference/metrics.md` is generated from this table.

A label has a value of a known, small set: a source of the settings, a route's template, a class of responses. No value comes from a
request, so that strangers cannot make series grow. Each process has a registry of its own, which it exposes itself.
"""

from __future__ import annotations

from collections.abc import Iterable

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
    "apex_searchable_seconds",
    "Time from received to searchable.",
    ["source"],
    buckets=(*SECONDS, 300, 1_800, 7_200, 43_200, 172_800),  # what waits for a store that is away
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
    "Turns of a source on the direct path because nobody had worked on its ready events for a minute.",
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
MIRROR_ATTEMPTS = Counter(
    "apex_mirror_attempts",
    "Webhooks sent to a source's former system, by outcome: delivered, refused or failed.",
    ["source", "outcome"],
)
MIRROR_DEAD = Counter(
    "apex_mirror_dead",
    "Mirrored webhooks that became dead letters of the mirror.",
    ["source"],
)
MIRROR_WAITING = Gauge(
    "apex_mirror_waiting", "Webhooks that wait for a source's former system.", ["source"]
)
MIRROR_OLDEST_SECONDS = Gauge(
    "apex_mirror_oldest_seconds",
    "Age of the oldest webhook that waits for a source's former system.",
    ["source"],
)
MIRROR_DEAD_LETTERS = Gauge(
    "apex_mirror_dead_letters",
    "Dead letters of the mirror that are neither redriven nor discarded.",
    ["source"],
)
ENGINE_RESTARTS = Counter(
    "apex_engine_restarts", "Embedded engines restarted by `apex up`.", ["engine"]
)
LOG_WRITES_LOST = Counter(
    "apex_log_writes_lost", "Writes to the log that failed, because its disk is full, say.", []
)

CLAIMED = Counter(
    "apex_events_claimed",
    "Events claimed, by the path and the build that process them. An event that is tried again is claimed again.",
    ["source", "path", "build"],
)
TEMPORAL_REACHABLE = Gauge(
    "apex_temporal_reachable",
    "1 while Temporal responds to a process, 0 while it does not.",
    ["process"],
)
FALLBACK = Gauge(
    "apex_fallback_active",
    "1 while the direct path processes everything because Temporal does not respond, else 0.",
)
FALLBACKS = Counter(
    "apex_fallbacks", "Times that the direct path took over because Temporal did not respond.", []
)
ROLLOUT_SHARE = Gauge(
    "apex_rollout_share_ratio",
    "Share of the documents, 0 to 1, that Temporal processes (subject `source:NAME`) or the candidate build (subject `build`).",
    ["subject"],
)
ROLLOUT_SHADOW = Gauge(
    "apex_rollout_shadow", "1 while a subject's shadow is compared, else 0.", ["subject"]
)
FLAG_DEFAULTS = Counter(
    "apex_rollout_flag_defaults",
    "Looks at a source's flag that gave no decision, so that its share stayed as it was.",
    ["source"],
)
SHADOW_COMPARED = Counter(
    "apex_shadow_compared",
    "Events processed by a shadow and compared, by result: equal, different or failed.",
    ["subject", "result"],
)
SHADOW_DROPPED = Counter(
    "apex_shadow_dropped",
    "Events that a shadow did not process because its backlog was full.",
    ["subject"],
)
SHADOW_RECENT = Gauge(
    "apex_shadow_recent_events",
    "Events that a shadow compared in the last hour, by result: equal, accepted, different or failed; and those it dropped in this hour and the last.",
    ["subject", "result"],
)
STALENESS = Gauge(
    "apex_source_staleness_seconds",
    "Time since a source was last known to be up to date: since its last successful pull, or its last event where it is not pulled.",
    ["source"],
)
RHYTHM = Gauge(
    "apex_source_rhythm_seconds",
    "Longest time that a source is usually silent: the interval of its pulls, or the longest usual gap between its events.",
    ["source"],
)
WEBHOOKS_HEALED = Counter(
    "apex_webhooks_healed",
    "Events whose webhook had not arrived 15 s after they happened, and which the gap-fill fetched from the vendor.",
    ["source"],
)
OLDEST_WAIT = Gauge(
    "apex_oldest_wait_seconds",
    "Age of the oldest thing that waits, by its owner: who has to act next.",
    ["source", "owner"],
)
DEAD_LETTERS = Gauge(
    "apex_dead_letters",
    "Open dead letters, by age: up to an hour, a day, a week, or older.",
    ["source", "age"],
)
DEAD_LETTERS_OLDEST = Gauge(
    "apex_dead_letters_oldest_seconds", "Age of the oldest open dead letter.", ["source"]
)
STAGES = Gauge(
    "apex_stages", "Stages in the saga's journal that are not settled, by state.", ["state"]
)
TABLE_BYTES = Gauge(
    "apex_table_bytes", "Size of a table of PostgreSQL with its indexes.", ["table"]
)
TABLE_ROWS = Gauge(
    "apex_table_rows", "Rows of a table of PostgreSQL, as its planner estimates them.", ["table"]
)
FACTS_AT = Gauge(
    "apex_facts_timestamp_seconds",
    "Time of the last reading of facts from PostgreSQL by this process; 0 where another process reads them.",
)
FACTS_SECONDS = Gauge(
    "apex_facts_duration_seconds", "Duration of the last reading of facts from PostgreSQL."
)
FACTS_FAILED = Counter(
    "apex_facts_failures", "Readings of facts that failed because PostgreSQL did not respond.", []
)
PAYLOAD_OBJECTS = Counter(
    "apex_payload_object_requests",
    "Requests to the object store of large payloads, by operation (put, get, delete) and outcome (done, failed, missing).",
    ["operation", "outcome"],
)
PAYLOAD_OBJECT_SECONDS = Histogram(
    "apex_payload_object_seconds",
    "Duration of a request to the object store of large payloads, with its repetitions.",
    ["operation"],
    buckets=SECONDS,
)
SEARCH_READS = Counter(
    "apex_search_reads",
    "Searches by the server of PostgreSQL that they read from: `standby` or `primary`. Counted where there is a standby.",
    ["server"],
)
SEARCH_ANSWERS = Counter(
    "apex_search_answers",
    "Searches by whether the answer of an earlier one still held (`hit`) or was computed (`miss`).",
    ["result"],
)
STANDBY_BEHIND = Gauge(
    "apex_standby_behind_seconds",
    "At most so far is the standby behind, as this gateway knows. `+Inf` while it was not seen; 0 without one.",
)
DISK_FREE = Gauge("apex_disk_free_bytes", "Free space for the data of an engine.", ["engine"])
DISK_SIZE = Gauge("apex_disk_size_bytes", "Size of the volume of an engine's data.", ["engine"])
ENGINE_UP = Gauge(
    "apex_engine_up", "1 while a process of `apex up` runs and is ready, else 0.", ["engine"]
)
ENGINE_REFUSES = Gauge(
    "apex_engine_refuses_writes",
    "1 while an embedded engine refuses writes because its disk is nearly full, else 0.",
    ["engine"],
)
BUILD_INFO = Gauge("apex_build_info", "Always 1. The labels name what runs.", ["version", "build"])


STAGED_STORES = ("graph", "vectors")
STEPS = ("prepare", "begin", "stage", "verify", "commit")


def touch_metrics(sources: Iterable[str]) -> None:
    """Create the series that alerts and rates need at 0, for the sources of the settings.

    A counter that first appears with 1 is not an increase to Prometheus.
    """
    for source in sources:
        for counter in (LANDED, DUPLICATES, WEBHOOKS_HEALED, STALLS, CONFLICTS):
            counter.labels(source)
        for state in ("done", "superseded", "dead", "parked"):
            ENDED.labels(source, state)
        for outcome in ("done", "failed"):
            PULLS.labels(source, outcome)
        for result in ("equal", "different", "failed"):
            SHADOW_COMPARED.labels(f"source:{source}", result)
        SEARCHABLE_SECONDS.labels(source)
        BATCH_EVENTS.labels(source)
    for store in STAGED_STORES:
        RETRIES.labels(store)
        DEGRADED.labels(store)
        REPAIRED.labels(store)
    for result in ("hit", "miss"):
        SEARCH_ANSWERS.labels(result)
    for step in STEPS:
        STEP_SECONDS.labels(step)


def metric_rows() -> list[tuple[str, str, str]]:
    """Return (name, kind, description) of every Apex metric, for the generated page. Names are those of the exposition."""
    rows: list[tuple[str, str, str]] = []
    for metric in REGISTRY.collect():
        if metric.name.startswith("apex_"):
            suffix = "_total" if metric.type == "counter" else ""
            rows.append((metric.name + suffix, metric.type, metric.documentation))
    return sorted(rows)
