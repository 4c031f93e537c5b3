"""The panels of each dashboard: what they show, why one looks at it, and the query behind it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from apex_memory.gateway.ops.queries import Age, Matcher, Quantile, Query, Rate, Ratio, Value

Unit = Literal["short", "seconds", "bytes", "share", "per second", "per hour", "state"]
"""How a value is written. `state`: 0 or 1, as words."""


@dataclass(frozen=True, slots=True)
class Line:
    """A query with the text of its legend, in which `{label}` stands for the value of a label."""

    query: Query
    legend: str = ""


@dataclass(frozen=True, slots=True)
class Panel:
    """A chart, or a single number (`kind` stat). `warn` and `bad` are limits from which the number has another colour."""

    title: str
    about: str
    lines: Sequence[Line]
    unit: Unit = "short"
    kind: Literal["chart", "stat"] = "chart"
    stacked: bool = False
    warn: float | None = None
    bad: float | None = None
    low_is_bad: bool = False
    """The limits are lower limits."""
    words: tuple[str, str] = ("no", "yes")
    """What a `state` of 0 and of 1 is called."""
    needs_prometheus: bool = False
    """It reads a target that the gateway does not keep in its own history."""

    @property
    def id(self) -> str:
        return "".join(letter if letter.isalnum() else "-" for letter in self.title.lower())


@dataclass(frozen=True, slots=True)
class Dashboard:
    name: str
    """Part of addresses and of file names."""
    title: str
    about: str
    panels: Sequence[Panel]


def panel_of(title: str, about: str, query: Query, legend: str = "", **options: object) -> Panel:
    """Return a panel with one query."""
    return Panel(title, about, [Line(query, legend)], **options)  # type: ignore[arg-type]


def quantiles(metric: str, by: tuple[str, ...] = (), **where: str) -> list[Line]:
    """Return the median and the 99th percentile of a histogram."""
    matchers: list[Matcher] = [(name, "=", value) for name, value in where.items()]
    named = " ".join(f"{{{label}}}" for label in by)
    return [
        Line(Quantile(metric, q, by, matchers), f"{named} {text}".strip())
        for q, text in ((0.5, "p50"), (0.99, "p99"))
    ]


WAITS_FOR_APEX: list[Matcher] = [("owner", "!=", "operator")]
MEASURED: list[Matcher] = [("process", "=~", "gateway|worker|bulk")]
LANDING: list[Matcher] = [
    ("method", "=", "POST"),
    ("route", "=~", "/hooks/.*|/v1/(documents|conversations)"),
]

OVERVIEW = Dashboard(
    "overview",
    "Overview",
    "Is it healthy, and what is late?",
    [
        panel_of(
            "Processes",
            "Whether every process of `apex up` runs and is ready.",
            Value("apex_engine_up", aggregate="min"),
            kind="stat",
            unit="state",
            words=("down", "all up"),
            bad=0.5,
            low_is_bad=True,
        ),
        panel_of(
            "Temporal",
            "Whether Temporal responds to the gateway. While it does not, the direct path processes everything.",
            Value("apex_temporal_reachable", where=[("process", "=", "gateway")], aggregate="min"),
            kind="stat",
            unit="state",
            words=("does not respond", "responds"),
            bad=0.5,
            low_is_bad=True,
        ),
        panel_of(
            "Fallback",
            "Whether the direct path processes everything because Temporal does not respond.",
            Value("apex_fallback_active"),
            kind="stat",
            unit="state",
            words=("not needed", "in force"),
            warn=0.5,
        ),
        panel_of(
            "Open events",
            "Events that are not searchable yet.",
            Value("apex_inbox_open", aggregate="sum", default=0),
            kind="stat",
        ),
        panel_of(
            "Oldest wait",
            "Age of the oldest thing for which Apex, a store or a vendor has to act; an operator's own decisions are left out.",
            Value("apex_oldest_wait_seconds", where=WAITS_FOR_APEX, default=0),
            kind="stat",
            unit="seconds",
            warn=60,
            bad=600,
        ),
        panel_of(
            "Dead letters",
            "Events whose processing failed for good. Somebody has to look at them.",
            Value("apex_dead_letters", aggregate="sum", default=0),
            kind="stat",
            warn=1,
            bad=100,
        ),
        panel_of(
            "Landed",
            "Events committed to the inbox, by source.",
            Rate("apex_events_landed_total", ("source",)),
            "{source}",
            unit="per second",
            stacked=True,
        ),
        panel_of(
            "Ended",
            "Events that reached a final state. Parked ones wait for a store.",
            Rate("apex_events_ended_total", ("state",)),
            "{state}",
            unit="per second",
            stacked=True,
        ),
        Panel(
            "Webhook to searchable",
            "Time from the receipt of an event until searches find it.",
            quantiles("apex_searchable_seconds"),
            unit="seconds",
        ),
        panel_of(
            "Unfinished by source",
            "Events that are not final.",
            Value("apex_inbox_open", ("source",), aggregate="sum"),
            "{source}",
            stacked=True,
        ),
        Panel(
            "Landing requests",
            "Duration of requests that land events.",
            [
                Line(Quantile("apex_http_seconds", 0.5, (), LANDING), "p50"),
                Line(Quantile("apex_http_seconds", 0.99, (), LANDING), "p99"),
            ],
            unit="seconds",
        ),
        panel_of(
            "Failed requests",
            "Share of all requests that the gateway failed (status 5xx).",
            Ratio(
                Rate("apex_http_seconds_count", where=[("status", "=~", "5..")], default=0),
                Rate("apex_http_seconds_count"),
            ),
            "5xx",
            unit="share",
        ),
        panel_of(
            "Delay of processes",
            "How late each process runs. Above 0.1 s it lacks processor time.",
            Value("apex_process_delay_seconds", ("process",), MEASURED),
            "{process}",
            unit="seconds",
        ),
        panel_of(
            "Age of the facts",
            "Time since backlog, waits and sizes were read from PostgreSQL.",
            Age("apex_facts_timestamp_seconds"),
            "facts",
            unit="seconds",
        ),
    ],
)

SOURCES = Dashboard(
    "sources",
    "Sources",
    "Does each source deliver, in its own rhythm, and completely?",
    [
        panel_of(
            "Staleness against rhythm",
            "Time since a source was known to be up to date, divided by how long it is usually silent. Above 3 something is wrong.",
            Ratio(
                Value("apex_source_staleness_seconds", ("source",)),
                Value("apex_source_rhythm_seconds", ("source",)),
            ),
            "{source}",
            unit="short",
        ),
        panel_of(
            "Staleness",
            "Time since the last successful pull, or the last event of a source that is not pulled.",
            Value("apex_source_staleness_seconds", ("source",)),
            "{source}",
            unit="seconds",
        ),
        panel_of(
            "Landed by source",
            "Events committed to the inbox.",
            Rate("apex_events_landed_total", ("source",)),
            "{source}",
            unit="per second",
        ),
        panel_of(
            "Redelivered",
            "Events that arrived again, for which no second row is written.",
            Rate("apex_events_duplicate_total", ("source",)),
            "{source}",
            unit="per second",
        ),
        panel_of(
            "Refused",
            "Requests refused before landing, by reason.",
            Rate("apex_requests_refused_total", ("source", "reason")),
            "{source} {reason}",
            unit="per second",
        ),
        panel_of(
            "Lost webhooks, healed",
            "Events whose webhook never came, and which the gap-fill fetched. Many of them: check the vendor's webhooks.",
            Rate("apex_webhooks_healed_total", ("source",), times=3600),
            "{source}",
            unit="per hour",
        ),
        panel_of(
            "Pulls",
            "Pulls that ended, by outcome.",
            Rate("apex_pulls_total", ("source", "outcome")),
            "{source} {outcome}",
            unit="per second",
        ),
        panel_of(
            "Calls to vendors",
            "By the class of the response.",
            Rate("apex_vendor_calls_total", ("source", "answer")),
            "{source} {answer}",
            unit="per second",
        ),
        panel_of(
            "Oldest wait by owner",
            "Who has to act next, and for how long already: a worker's queue, a worker, a retry, a store, the vendor, an operator.",
            Value("apex_oldest_wait_seconds", ("source", "owner")),
            "{source} {owner}",
            unit="seconds",
        ),
        panel_of(
            "Dead letters by age",
            "Open dead letters.",
            Value("apex_dead_letters", ("age",), aggregate="sum"),
            "{age}",
            stacked=True,
        ),
    ],
)

SAGA = Dashboard(
    "saga",
    "Saga and stores",
    "Do four stores stay one memory, and do they have room?",
    [
        Panel(
            "Steps of a batch",
            "Duration of each step.",
            quantiles("apex_step_seconds", ("step",)),
            unit="seconds",
        ),
        panel_of(
            "Events in a batch",
            "Batches grow under load, which makes an event cheaper.",
            Quantile("apex_batch_events", 0.9, ("source",)),
            "{source} p90",
        ),
        panel_of(
            "Retried store calls",
            "Calls that failed and were repeated.",
            Rate("apex_store_retries_total", ("store",)),
            "{store}",
            unit="per second",
        ),
        panel_of(
            "Circuit breakers",
            "1 is open: calls to the store fail at once, and its events are parked. 0.5 lets one probe through.",
            Value("apex_breaker_open", ("store",)),
            "{store}",
        ),
        panel_of(
            "Unsettled stages",
            "Stages being written, and those to be removed.",
            Value("apex_stages", ("state",)),
            "{state}",
            stacked=True,
        ),
        Panel(
            "Stages removed",
            "Expired or aborted ones are swept; superseded ones are collected.",
            [
                Line(Rate("apex_stages_swept_total"), "swept"),
                Line(Rate("apex_stages_collected_total"), "collected"),
            ],
            unit="per second",
        ),
        panel_of(
            "Documents repaired",
            "Documents staged again because a store lost part of them.",
            Rate("apex_documents_repaired_total", ("store",), times=3600),
            "{store}",
            unit="per hour",
        ),
        panel_of(
            "Size of tables",
            "With their indexes.",
            Value("apex_table_bytes", ("table",)),
            "{table}",
            unit="bytes",
            stacked=True,
        ),
        panel_of(
            "Free disk",
            "For the data of each engine. Graph and vectors refuse writes below their reserve.",
            Ratio(
                Value("apex_disk_free_bytes", ("engine",), aggregate="min"),
                Value("apex_disk_size_bytes", ("engine",)),
            ),
            "{engine}",
            unit="share",
        ),
        Panel(
            "Vectors",
            "Points, and those without an index yet, which make searches slower.",
            [
                Line(Value("apex_vectors_points"), "points"),
                Line(Value("apex_vectors_unindexed"), "not indexed"),
            ],
        ),
        panel_of(
            "Engines",
            "1 while a process of `apex up` runs and is ready.",
            Value("apex_engine_up", ("engine",), aggregate="min"),
            "{engine}",
        ),
    ],
)

TEMPORAL = Dashboard(
    "temporal",
    "Temporal: workers and flows",
    "Do the workers get their tasks in time, and have they room for more?",
    [
        panel_of(
            "Temporal responds",
            "1 while Temporal responds to the process.",
            Value("apex_temporal_reachable", ("process",), aggregate="min"),
            "{process}",
        ),
        panel_of(
            "Claimed by path",
            "Events claimed through Temporal, and by the direct path.",
            Rate("apex_events_claimed_total", ("path",)),
            "{path}",
            unit="per second",
            stacked=True,
        ),
        panel_of(
            "Duration of activities",
            "99th percentile.",
            Quantile("temporal_activity_execution_latency_seconds", 0.99, ("activity_type",)),
            "{activity_type}",
            unit="seconds",
        ),
        panel_of(
            "Activities wait for a worker",
            "From schedule to start, 99th percentile. It grows when the workers have no free slot.",
            Quantile("temporal_activity_schedule_to_start_latency_seconds", 0.99, ("task_queue",)),
            "{task_queue}",
            unit="seconds",
        ),
        panel_of(
            "Workflow tasks",
            "Duration of a workflow task, 99th percentile.",
            Quantile("temporal_workflow_task_execution_latency_seconds", 0.99, ("workflow_type",)),
            "{workflow_type}",
            unit="seconds",
        ),
        panel_of(
            "Used slots",
            "Tasks that a worker runs at the moment, by kind.",
            Value("temporal_worker_task_slots_used", ("process", "worker_type"), aggregate="sum"),
            "{process} {worker_type}",
        ),
        panel_of(
            "Calls to Temporal",
            "Requests of the workers to the server.",
            Rate("temporal_request_total", ("operation",)),
            "{operation}",
            unit="per second",
        ),
        panel_of(
            "Pollers",
            "Connections that wait for tasks.",
            Value("temporal_num_pollers", ("process", "poller_type"), aggregate="sum"),
            "{process} {poller_type}",
        ),
        Panel(
            "Lost and replaced",
            "Wakes that Temporal did not accept, sources that the direct path had to drain, and takeovers by the fallback.",
            [
                Line(Rate("apex_wakes_failed_total", times=3600), "failed wakes"),
                Line(Rate("apex_source_stalls_total", times=3600), "stalls"),
                Line(Rate("apex_fallbacks_total", times=3600), "fallbacks"),
            ],
            unit="per hour",
        ),
        panel_of(
            "Server: persistence",
            "Calls of the embedded server to its database, 99th percentile.",
            Quantile("persistence_latency", 0.99),
            "p99",
            unit="seconds",
            needs_prometheus=True,
        ),
    ],
)

ROLLOUT = Dashboard(
    "rollout",
    "Rollout",
    "Which share goes the new way, and is it as good as the old one?",
    [
        panel_of(
            "Share",
            "Share of the documents that Temporal processes, by source; `build` is the share of the candidate build.",
            Value("apex_rollout_share_ratio", ("subject",)),
            "{subject}",
            unit="share",
        ),
        panel_of(
            "Shadow",
            "1 while copies of a subject's events are processed the other way and compared.",
            Value("apex_rollout_shadow", ("subject",)),
            "{subject}",
        ),
        panel_of(
            "Claimed by path",
            "Events by the path that processes them.",
            Rate("apex_events_claimed_total", ("path",)),
            "{path}",
            unit="per second",
            stacked=True,
        ),
        panel_of(
            "Claimed by build",
            "Events by the build that processes them.",
            Rate("apex_events_claimed_total", ("build",)),
            "{build}",
            unit="per second",
            stacked=True,
        ),
        panel_of(
            "Compared in the last hour",
            "Events that a shadow processed too, by result.",
            Value("apex_shadow_recent_events", ("subject", "result"), aggregate="sum"),
            "{subject} {result}",
        ),
        panel_of(
            "Processes by build",
            "Running processes of each build.",
            Value("apex_build_info", ("build",), aggregate="sum"),
            "{build}",
            stacked=True,
        ),
        panel_of(
            "Failed events",
            "Share of the events that end as dead letters.",
            Ratio(
                Rate("apex_events_ended_total", where=[("state", "=", "dead")]),
                Rate("apex_events_ended_total"),
            ),
            "dead",
            unit="share",
        ),
        Panel(
            "Webhook to searchable by source",
            "99th percentile.",
            [Line(Quantile("apex_searchable_seconds", 0.99, ("source",)), "{source}")],
            unit="seconds",
        ),
    ],
)

SEARCH = Dashboard(
    "search",
    "Search",
    "Do agents get their answers in time, from all stores?",
    [
        panel_of(
            "Searches",
            "Searches per second.",
            Rate("apex_http_seconds_count", where=[("route", "=", "/v1/search")]),
            "searches",
            unit="per second",
        ),
        Panel(
            "Duration of a search",
            "As the gateway's callers see it.",
            quantiles("apex_http_seconds", route="/v1/search"),
            unit="seconds",
        ),
        panel_of(
            "Parts of a search",
            "99th percentile of each part.",
            Quantile("apex_search_seconds", 0.99, ("part",)),
            "{part}",
            unit="seconds",
        ),
        panel_of(
            "Without a store",
            "Searches that were answered without a store, because it was down or too slow.",
            Rate("apex_search_degraded_total", ("store",)),
            "{store}",
            unit="per second",
        ),
        panel_of(
            "Points without an index",
            "Searches are slower until the vector store has indexed them.",
            Value("apex_vectors_unindexed"),
            "not indexed",
        ),
        panel_of(
            "Delay of the gateway",
            "How late the gateway runs. Above 0.1 s it lacks processor time, and so do searches.",
            Value("apex_process_delay_seconds", where=[("process", "=", "gateway")]),
            "gateway",
            unit="seconds",
        ),
    ],
)

DASHBOARDS = (OVERVIEW, SOURCES, SAGA, TEMPORAL, ROLLOUT, SEARCH)


def lines() -> Iterator[tuple[Dashboard, Panel, Line]]:
    """Yield every query with where it stands."""
    for dashboard in DASHBOARDS:
        for panel in dashboard.panels:
            for line in panel.lines:
                yield dashboard, panel, line
