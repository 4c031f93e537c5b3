"""The facts of a rollout's step, from PostgreSQL alone, so that they are known whether or not Temporal responds."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, LiteralString

from apex_memory.inbox.routing import BUCKET_SQL
from apex_memory.rollout.gates import Copies, Side, StepFacts
from apex_memory.rollout.runs import Run
from apex_memory.rollout.subjects import BUILD
from apex_memory.rollout_settings import WINDOW_EVENTS
from apex_memory.stores.postgres import Connection, fetch_row, fetch_rows

BLIPS = 1
"""So many failed attempts of an event are no evidence: a store that was busy for a moment fails a whole batch."""

_SELECTED: dict[bool, LiteralString] = {
    False: "source = %(source)s",
    True: "source NOT IN (SELECT name FROM sources WHERE paused)",
}
"""Which events a rollout is about: those of its source, or, of a build, those of every source that is not paused."""

_PROCESSED_BY_NEW: dict[bool, LiteralString] = {
    False: "path = 'temporal'",
    True: "build = %(build)s",
}
"""Whether the new side processed an event; NULL before it is claimed."""


def recent_sql(*, build: bool) -> LiteralString:
    """Return the events received since the step began, by side. A time counts when nothing disturbed it, and no dead letter."""
    # In the order of `inbox_source`, which alone serves it: any other plan walks the events of all sources.
    selected: LiteralString = (
        _SELECTED[True] if build else "source BETWEEN %(source)s AND %(source)s"
    )
    order: LiteralString = "seq DESC" if build else "source, seq DESC"
    return f"""
        WITH recent AS MATERIALIZED (
          SELECT id, seq, state, open, attempts, received_at, ended_at,
                 coalesce({_PROCESSED_BY_NEW[build]}, {BUCKET_SQL} < %(share)s) AS new
          FROM inbox WHERE {selected} AND seq > %(since)s ORDER BY {order} LIMIT {WINDOW_EVENTS}
        ), timed AS (
          SELECT recent.*, recent.seq > %(calm)s AND letter.inbox_id IS NULL AS counts,
                 extract(epoch FROM coalesce(recent.ended_at, clock_timestamp()) - recent.received_at)::float AS seconds
          FROM recent LEFT JOIN dead_letters letter ON letter.inbox_id = recent.id
        )
        SELECT new, count(*) FILTER (WHERE counts) AS events, count(*) FILTER (WHERE ended_at IS NOT NULL) AS ended,
               count(*) FILTER (WHERE state = 'dead') AS dead,
               count(*) FILTER (WHERE open AND attempts > {BLIPS}) AS retrying,
               percentile_disc(0.99) WITHIN GROUP (ORDER BY seconds) FILTER (WHERE counts) AS p99
        FROM timed GROUP BY new"""


def waiting_sql(*, build: bool) -> LiteralString:
    """Return the events that are not final, by side: of a claimed or parked one the side that claimed it."""
    selected = _SELECTED[build]
    return f"""
        WITH waiting AS (
          (SELECT doc_id, path, build, batch, state, received_at FROM inbox WHERE open AND {selected} LIMIT {WINDOW_EVENTS})
          UNION ALL
          (SELECT doc_id, path, build, batch, state, received_at FROM inbox WHERE state = 'parked' AND {selected}
           LIMIT {WINDOW_EVENTS})
        )
        SELECT CASE WHEN batch IS NULL AND state <> 'parked' THEN {BUCKET_SQL} < %(share)s
                    ELSE coalesce({_PROCESSED_BY_NEW[build]}, {BUCKET_SQL} < %(share)s) END AS new,
               count(*) AS waiting, count(*) FILTER (WHERE state = 'parked') AS parked,
               extract(epoch FROM clock_timestamp() - min(greatest(received_at, %(began)s)))::float AS oldest
        FROM waiting GROUP BY 1"""


@dataclass(frozen=True, slots=True)
class _RecentEvents:
    """A row of `recent_sql`: the events of a side."""

    new: bool
    events: int
    ended: int
    dead: int
    retrying: int
    p99: float | None


@dataclass(frozen=True, slots=True)
class _WaitingEvents:
    """A row of `waiting_sql`: the events of a side."""

    new: bool
    waiting: int
    parked: int
    oldest: float


@dataclass(frozen=True, slots=True)
class _Clock:
    """Seconds since the step began, and whether the source is paused."""

    seconds: float
    paused: bool


def parameters_of(run: Run) -> dict[str, Any]:
    """Return the parameters of the queries for a run's step."""
    return {
        "source": run.subject.removeprefix("source:"),
        "build": run.build,
        "share": run.share.percent,
        "since": run.step_seq,
        "calm": run.calm_seq,
        "began": run.step_began,
    }


async def facts_of(connection: Connection, run: Run, copies: Copies) -> StepFacts:
    """Return the facts of a run's step. `copies` are those of its shadow."""
    build, parameters = run.subject == BUILD, parameters_of(run)
    recent = await fetch_rows(connection, _RecentEvents, recent_sql(build=build), parameters)
    recent_by_side = {row.new: row for row in recent}
    waiting = await fetch_rows(connection, _WaitingEvents, waiting_sql(build=build), parameters)
    waiting_by_side = {row.new: row for row in waiting}
    step = await fetch_row(
        connection,
        _Clock,
        """SELECT extract(epoch FROM clock_timestamp() - %(began)s)::float AS seconds,
                  EXISTS (SELECT FROM sources WHERE name = %(source)s AND paused) AS paused""",
        parameters,
    )
    assert step is not None
    parked = {side: row.parked for side, row in waiting_by_side.items()}
    return StepFacts(
        seconds=step.seconds,
        new=_side(recent_by_side.get(True), waiting_by_side.get(True)),
        other=_side(recent_by_side.get(False), waiting_by_side.get(False)),
        copies=copies,
        baseline=run.baseline,
        disturbed=_disturbed(run.share.percent, paused=step.paused, parked=parked),
    )


def _side(recent: _RecentEvents | None, waiting: _WaitingEvents | None) -> Side:
    side = Side()
    if recent:
        side = replace(
            side,
            events=recent.events,
            ended=recent.ended,
            dead=recent.dead,
            retrying=recent.retrying,
            p99=recent.p99,
        )
    if waiting:
        side = replace(side, waiting=waiting.waiting, oldest=waiting.oldest)
    return side


def _disturbed(share: int, *, paused: bool, parked: dict[bool, int]) -> str:
    """Return why the times of events say nothing of the new side; empty if they do.

    Events that wait for a store are the new side's own fault only while none of the other side do.
    """
    if paused:
        return "the source is paused"
    count = parked.get(False, 0) + (parked.get(True, 0) if share == 100 else 0)
    return f"{count} events wait for a store" if count else ""
