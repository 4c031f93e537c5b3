"""Facts from PostgreSQL that are metrics: backlog, waits, staleness, dead letters, rollouts, sizes.

One gateway of an installation reads them, every few seconds and never at a scrape, so that neither more gateways nor more
scrapers cost PostgreSQL anything. The others show none of these series, and no sum counts a fact twice.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from itertools import product
from time import perf_counter, time
from uuid import uuid4

from prometheus_client import Gauge
from temporalio.client import Client

from apex_memory.app import App
from apex_memory.errors import ApexError
from apex_memory.gateway.read_models.status import temporal_reachable
from apex_memory.rollout.shadow_facts import NOT_ACCEPTED
from apex_memory.rollout.subjects import BUILD, source_subject
from apex_memory.sources.base import PulledSource
from apex_memory.stores.lease import acquire, release
from apex_memory.telemetry import (
    DEAD_LETTERS,
    DEAD_LETTERS_OLDEST,
    FACTS_AT,
    FACTS_FAILED,
    FACTS_SECONDS,
    INBOX_OPEN,
    OLDEST_SECONDS,
    OLDEST_WAIT,
    RHYTHM,
    ROLLOUT_SHADOW,
    ROLLOUT_SHARE,
    SHADOW_RECENT,
    STAGES,
    STALENESS,
    TABLE_BYTES,
    TABLE_ROWS,
    TEMPORAL_REACHABLE,
    logger,
)

LEASE = "metrics"
LEASE_ROUNDS = 3  # rounds that another gateway waits after the reader died
BUSY_SHARE = 0.05  # of the time, at most, the reader queries PostgreSQL: with a long backlog it reads less often
LONGEST_WAIT = 60.0  # seconds between two readings, however long one takes
LEAST_LEASE = 15.0  # seconds
RARELY = 30  # rounds between two readings of sizes and rhythms, which change slowly
GAPS = 1_000  # events of a source of which the longest gap is its rhythm
LEAST_RHYTHM = 300.0  # seconds
TABLES = (
    "inbox",
    "payloads",
    "manifests",
    "stages",
    "documents",
    "dead_letters",
    "files",
    "audit",
    "readings",
)
UNSETTLED = ("staging", "aborted", "superseded", "reaping")
AGES = ("hour", "day", "week", "older")
RESULTS = ("equal", "accepted", "different", "failed", "dropped")

Series = Mapping[tuple[str, ...], float]
"""Values by the values of the labels."""


async def watch_temporal(client: Client, *, seconds: float) -> None:
    """Keep the gauge of whether Temporal responds to the gateway. Never returns."""
    while True:
        TEMPORAL_REACHABLE.labels("gateway").set(await temporal_reachable(client))
        await asyncio.sleep(seconds)


class GaugeFamily:
    """Gauges of one name that are replaced as a whole. A scrape meanwhile never misses a series that stays."""

    def __init__(self, gauge: Gauge) -> None:
        self._gauge = gauge
        self._shown: set[tuple[str, ...]] = set()

    def show(self, series: Series) -> None:
        """Set these series and remove all others."""
        for labels, value in series.items():
            self._gauge.labels(*labels).set(value)
        for labels in self._shown - series.keys():
            self._gauge.remove(*labels)
        self._shown = set(series)


@dataclass(frozen=True, slots=True)
class _Wait:
    """What waits for `owner`: the age of its oldest item in seconds."""

    source: str
    owner: str
    oldest: float


@dataclass(frozen=True, slots=True)
class _OpenEvents(_Wait):
    """The events of a source in a state."""

    state: str
    events: int


@dataclass(frozen=True, slots=True)
class _OpenLetters:
    source: str
    age: str
    letters: int
    oldest: float


@dataclass(frozen=True, slots=True)
class _SourceActivity:
    """A source, and when it was last pulled and last received an event."""

    name: str
    works: bool
    pulled_at: datetime | None
    received_at: datetime | None


@dataclass(frozen=True, slots=True)
class _Gap:
    name: str
    gap: float | None


@dataclass(frozen=True, slots=True)
class _Rollout:
    subject: str
    share: int
    shadow: bool


@dataclass(frozen=True, slots=True)
class _CountedCopies:
    subject: str
    result: str
    events: float


@dataclass(frozen=True, slots=True)
class _TableSize:
    name: str
    bytes: float
    rows: float


@dataclass(frozen=True, slots=True)
class _UnsettledStages:
    state: str
    stages: int


class FactGauges:
    """Reads the facts while it holds the lease, and keeps their gauges. `run` never returns."""

    def __init__(self, app: App, *, seconds: float) -> None:
        self._app = app
        self._db = app.db
        self._seconds = seconds
        self._wait = seconds
        self._owner = uuid4()
        self._round = 0
        self._since = time()
        self._rhythms: dict[str, float] = {}
        self._families = {
            gauge: GaugeFamily(gauge)
            for gauge in (
                *(INBOX_OPEN, OLDEST_SECONDS, OLDEST_WAIT, STALENESS, RHYTHM),
                *(DEAD_LETTERS, DEAD_LETTERS_OLDEST, ROLLOUT_SHARE, ROLLOUT_SHADOW, SHADOW_RECENT),
                *(STAGES, TABLE_BYTES, TABLE_ROWS),
            )
        }

    async def run(self) -> None:
        """Read for ever, and show nothing while another gateway reads or PostgreSQL does not respond."""
        log = logger(component="facts")
        try:
            while True:
                began = perf_counter()
                try:
                    await self.read()
                except ApexError as error:
                    # The other metrics are needed most while PostgreSQL is unavailable; these would be wrong.
                    FACTS_FAILED.inc()
                    self._hide()
                    log.warning("facts not read", reason=str(error)[:200])
                took = perf_counter() - began
                self._wait = min(max(self._seconds, took / BUSY_SHARE), LONGEST_WAIT)
                await asyncio.sleep(self._wait)
        finally:
            await self.end()

    async def end(self) -> None:
        """Show nothing any more, and let another gateway read."""
        self._hide()
        await release(self._db, LEASE, self._owner)

    async def read(self) -> bool:
        """Read once if no other gateway does, and return whether it was read. Raises what PostgreSQL raises."""
        lease = max(self._wait * LEASE_ROUNDS, LEAST_LEASE)
        longest = LONGEST_WAIT * LEASE_ROUNDS
        if not await acquire(self._db, LEASE, self._owner, lease, longest=longest):
            self._hide()
            return False
        began = perf_counter()
        await self._read_backlog()
        await self._read_dead_letters()
        await self._read_sources()
        await self._read_rollouts()
        if self._round % RARELY == 0:
            await self._read_sizes()
        self._round += 1
        FACTS_SECONDS.set(perf_counter() - began)
        FACTS_AT.set(time())
        return True

    def _hide(self) -> None:
        for family in self._families.values():
            family.show({})
        FACTS_AT.set(0)
        self._round = 0  # what is read rarely is read at once when this gateway reads again

    def _known(self, source: str) -> bool:
        """Return whether a source is in the settings. Rows of a source that was removed make no series."""
        return source in self._app.sources

    async def _read_backlog(self) -> None:
        rows = await self._db.fetch_rows(
            _OpenEvents,
            """SELECT source, state,
                      CASE WHEN state = 'parked' THEN coalesce(park_store, 'store')
                           WHEN source IN (SELECT name FROM sources WHERE paused) THEN 'operator'
                           WHEN next_at <= clock_timestamp() THEN 'queue'
                           WHEN batch IS NOT NULL THEN 'worker'
                           ELSE 'retry' END AS owner,
                      count(*) AS events, extract(epoch FROM clock_timestamp() - min(received_at))::float AS oldest
               FROM inbox WHERE open OR state = 'parked' GROUP BY 1, 2, 3""",
        )
        waits = await self._db.fetch_rows(
            _Wait,
            """SELECT source, 'vendor' AS owner, extract(epoch FROM clock_timestamp() - min(noted_at))::float AS oldest
                 FROM change_hints GROUP BY 1
               UNION ALL
               SELECT source, 'files', extract(epoch FROM clock_timestamp() - min(received_at))::float
                 FROM files WHERE ended_at IS NULL GROUP BY 1
               UNION ALL
               SELECT source, 'windows', extract(epoch FROM clock_timestamp() - min(due_at))::float
                 FROM windows WHERE dirty AND due_at < clock_timestamp() GROUP BY 1""",
        )
        # A source without unfinished events has 0, not a gap.
        events = _zeros(self._app.sources, ("received", "prepared", "parked"))
        oldest: dict[tuple[str, ...], float] = {(source,): 0.0 for source in self._app.sources}
        by_owner: dict[tuple[str, ...], float] = {}
        for row in filter(lambda row: self._known(row.source), rows):
            events[row.source, row.state] = events.get((row.source, row.state), 0) + row.events
            oldest[(row.source,)] = max(oldest[(row.source,)], row.oldest)
        for wait in (*rows, *waits):
            if self._known(wait.source):
                labels = (wait.source, wait.owner)
                by_owner[labels] = max(by_owner.get(labels, 0), wait.oldest)
        self._families[INBOX_OPEN].show(events)
        self._families[OLDEST_SECONDS].show(oldest)
        self._families[OLDEST_WAIT].show(by_owner)

    async def _read_dead_letters(self) -> None:
        rows = await self._db.fetch_rows(
            _OpenLetters,
            """SELECT source,
                      CASE WHEN first_at > now() - interval '1 hour' THEN 'hour'
                           WHEN first_at > now() - interval '1 day' THEN 'day'
                           WHEN first_at > now() - interval '1 week' THEN 'week'
                           ELSE 'older' END AS age,
                      count(*) AS letters, extract(epoch FROM now() - min(first_at))::float AS oldest
               FROM dead_letters WHERE status = 'open' GROUP BY 1, 2""",
        )
        letters = _zeros(self._app.sources, AGES)
        oldest: dict[tuple[str, ...], float] = {(source,): 0.0 for source in self._app.sources}
        for row in rows:
            if self._known(row.source):
                letters[row.source, row.age] = row.letters
                oldest[(row.source,)] = max(oldest[(row.source,)], row.oldest)
        self._families[DEAD_LETTERS].show(letters)
        self._families[DEAD_LETTERS_OLDEST].show(oldest)

    async def _read_sources(self) -> None:
        """Read how stale each source is that works: not one that is paused, disabled, or lacks a setting."""
        rows = await self._db.fetch_rows(
            # In the order of `inbox_source`, which alone serves this (`fetching/source_states.py`).
            _SourceActivity,
            """SELECT name, s.enabled IS NOT FALSE AND s.paused IS NOT TRUE AS works,
                      greatest(s.pulled_at, c.changed_at) AS pulled_at, e.received_at
               FROM unnest(%s::text[]) AS name LEFT JOIN sources s USING (name)
               LEFT JOIN cursors c ON c.source = name
               LEFT JOIN LATERAL (SELECT received_at FROM inbox WHERE source BETWEEN name AND name
                                  ORDER BY source, seq DESC LIMIT 1) e ON true""",
            (sorted(self._app.sources),),
        )
        if self._round % RARELY == 0:
            self._rhythms = await self._longest_gaps()
        staleness: dict[tuple[str, ...], float] = {}
        rhythms: dict[tuple[str, ...], float] = {}
        for row in rows:
            source = self._app.sources[row.name]
            if not row.works:
                continue
            if isinstance(source, PulledSource):
                if source.missing_settings:
                    continue
                rhythm = source.poll_every
                staleness[(source.name,)] = self._age(row.pulled_at)
            else:
                if row.received_at is None:
                    continue  # nobody sends to it yet
                rhythm = max(self._rhythms.get(source.name, 0), LEAST_RHYTHM)
                staleness[(source.name,)] = self._age(row.received_at)
            rhythms[(source.name,)] = rhythm
        self._families[STALENESS].show(staleness)
        self._families[RHYTHM].show(rhythms)

    def _age(self, at: datetime | None) -> float:
        """Return the seconds since a time, or since this reader began if it never was."""
        return max(0.0, time() - (at.timestamp() if at else self._since))

    async def _longest_gaps(self) -> dict[str, float]:
        """Return the longest time (s) between two of the last events of each source that is not pulled."""
        pushed = [
            name
            for name, source in self._app.sources.items()
            if not isinstance(source, PulledSource)
        ]
        rows = await self._db.fetch_rows(
            # The planner does not see the limit, so that it does not read and sort all events of a source (`inbox/queries.py`).
            _Gap,
            """SELECT name, max(gap)::float AS gap FROM unnest(%s::text[]) AS name CROSS JOIN LATERAL (
                 SELECT extract(epoch FROM received_at - lag(received_at) OVER (ORDER BY seq)) AS gap
                 FROM (SELECT seq, received_at FROM inbox WHERE source BETWEEN name AND name
                       ORDER BY source, seq DESC LIMIT (SELECT %s::bigint)) last) gaps
               GROUP BY 1""",
            (pushed, GAPS),
        )
        return {row.name: row.gap or 0.0 for row in rows}

    async def _read_rollouts(self) -> None:
        subjects = {BUILD, *map(source_subject, self._app.sources)}
        share: dict[tuple[str, ...], float] = {(subject,): 1.0 for subject in subjects}
        share[(BUILD,)] = 0.0
        shadow: dict[tuple[str, ...], float] = {(subject,): 0.0 for subject in subjects}
        for row in await self._db.fetch_rows(
            _Rollout, "SELECT subject, share, shadow FROM rollouts"
        ):
            if row.subject in subjects:
                share[(row.subject,)] = row.share / 100
                shadow[(row.subject,)] = float(row.shadow)
        self._families[ROLLOUT_SHARE].show(share)
        self._families[ROLLOUT_SHADOW].show(shadow)
        self._families[SHADOW_RECENT].show(await self._compared(subjects))

    async def _compared(self, subjects: Iterable[str]) -> Series:
        compared = _zeros(subjects, RESULTS)
        copies = await self._db.fetch_rows(
            _CountedCopies,
            f"""SELECT subject, CASE WHEN state = 'failed' THEN 'failed' WHEN equal THEN 'equal'
                                    WHEN {NOT_ACCEPTED} THEN 'different' ELSE 'accepted' END AS result, count(*) AS events
                FROM shadows s WHERE state <> 'waiting' AND ended_at > now() - interval '1 hour' GROUP BY 1, 2""",
        )
        dropped = await self._db.fetch_rows(
            _CountedCopies,
            """SELECT subject, 'dropped' AS result, sum(count)::float AS events FROM shadow_drops
               WHERE hour > now() - interval '2 hours' GROUP BY 1""",
        )
        for row in (*copies, *dropped):
            if (row.subject, row.result) in compared:
                compared[row.subject, row.result] = row.events
        return compared

    async def _read_sizes(self) -> None:
        tables = await self._db.fetch_rows(
            _TableSize,
            """SELECT name, sum(pg_total_relation_size(t.relid))::float AS bytes, sum(greatest(c.reltuples, 0))::float AS rows
               FROM unnest(%s::text[]) AS name
               CROSS JOIN LATERAL (SELECT to_regclass(name)::oid AS relid
                                   UNION ALL SELECT inhrelid FROM pg_inherits WHERE inhparent = to_regclass(name)) t
               JOIN pg_class c ON c.oid = t.relid GROUP BY 1""",
            (list(TABLES),),
        )
        states: dict[tuple[str, ...], float] = {(state,): 0.0 for state in UNSETTLED}
        for row in await self._db.fetch_rows(
            _UnsettledStages,
            "SELECT state, count(*) AS stages FROM stages WHERE state = ANY(%s) GROUP BY 1",
            (list(UNSETTLED),),
        ):
            states[(row.state,)] = row.stages
        self._families[TABLE_BYTES].show({(table.name,): table.bytes for table in tables})
        self._families[TABLE_ROWS].show({(table.name,): table.rows for table in tables})
        self._families[STAGES].show(states)


def _zeros(first: Iterable[str], second: Iterable[str]) -> dict[tuple[str, ...], float]:
    """Return 0 for every pair of labels, so that a series without events is 0 and not a gap."""
    return dict.fromkeys(product(first, second), 0.0)
