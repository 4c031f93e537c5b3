"""Facts about the copies of a subject: what the gates decide by, the report, and the two sides of one event."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from datetime import datetime
from typing import Any, LiteralString
from uuid import UUID

from psycopg.types.json import Jsonb

from apex_memory.errors import Conflict, NotFound, Rejected
from apex_memory.rollout.shadow_results import content_of, unpack
from apex_memory.saga.manifests import manifests_of_events
from apex_memory.stores.postgres import Connection, fetch_row, fetch_rows

# A difference is accepted by the name of its field, or of a part of it before a dot.
NOT_ACCEPTED: LiteralString = """EXISTS (
  SELECT FROM unnest(s.fields) AS f WHERE NOT EXISTS (
    SELECT FROM shadow_acceptances a WHERE a.subject = s.subject AND a.build = s.build
      AND (f = a.field OR starts_with(f, a.field || '.'))))"""
_RANGE: LiteralString = """s.subject = %(subject)s AND s.build = %(build)s AND s.state <> 'waiting'
  AND (%(since)s::timestamptz IS NULL OR s.ended_at >= %(since)s)"""


@dataclass(frozen=True, slots=True, kw_only=True)
class _EndedCopies:
    """The copies of a subject that were compared or given up since a time. Times are seconds."""

    compared: int = 0
    equal: int = 0
    mismatched: int = 0
    """Events with a difference that nobody accepted."""
    failed: int = 0
    """Copies that were given up after transient failures: they prove nothing."""
    last_at: datetime | None = None
    live_p50: float | None = None
    live_p99: float | None = None
    shadow_p50: float | None = None
    shadow_p99: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ShadowFacts(_EndedCopies):
    """What the copies of a subject came to since a time. `compared = equal + accepted + mismatched`."""

    subject: str
    build: str
    accepted: int = 0
    """Events that differ only in what was accepted by name."""
    waiting: int = 0
    dropped: int = 0
    """Copies that were not processed: the backlog was full, say. Counted by the hour in which `since` lies and later ones."""
    by_field: dict[str, int] = field(default_factory=dict)
    """Events by field that differs, without accepted fields."""


@dataclass(frozen=True, slots=True)
class FieldDifference:
    """How many events differ in a field for a reason, and whether that is accepted."""

    field: str
    reason: str
    events: int
    accepted: bool


@dataclass(frozen=True, slots=True)
class Acceptance:
    """A field in which the copies of a subject may differ: who accepted it, why and when."""

    field: str
    actor: str
    reason: str
    at: datetime


@dataclass(frozen=True, slots=True)
class DifferingEvent:
    """An event whose copy differs, and the fields. `id` is that of the copy."""

    id: int
    event: UUID
    source: str
    event_id: str
    document_id: UUID
    fields: list[str]
    live_outcome: str | None
    shadow_outcome: str | None
    error: str | None
    compared_at: datetime


@dataclass(frozen=True, slots=True)
class _StepSeconds:
    """The mean time of a step on a side, `live` or `shadow`."""

    side: str
    step: str
    seconds: float


async def mismatches(
    connection: Connection, subject: str, since: datetime | None = None, *, build: str = ""
) -> ShadowFacts:
    """Return the facts of a subject (`source:NAME`, or `build` with the candidate as `build`) since a time, or of all time kept.

    `compared` is 0 without evidence: whoever decides by it holds.
    """
    parameters = {"subject": subject, "build": build, "since": since}
    copies = await fetch_row(
        connection,
        _EndedCopies,
        f"""SELECT count(*) FILTER (WHERE state = 'compared') AS compared,
                   count(*) FILTER (WHERE state = 'compared' AND equal) AS equal,
                   count(*) FILTER (WHERE state = 'compared' AND NOT equal AND {NOT_ACCEPTED}) AS mismatched,
                   count(*) FILTER (WHERE state = 'failed') AS failed, max(ended_at) AS last_at,
                   percentile_disc(0.5) WITHIN GROUP (ORDER BY live_seconds) AS live_p50,
                   percentile_disc(0.99) WITHIN GROUP (ORDER BY live_seconds) AS live_p99,
                   percentile_disc(0.5) WITHIN GROUP (ORDER BY shadow_seconds) AS shadow_p50,
                   percentile_disc(0.99) WITHIN GROUP (ORDER BY shadow_seconds) AS shadow_p99
            FROM shadows s WHERE {_RANGE}""",
        parameters,
    )
    assert copies is not None  # an aggregate always gives a row
    return ShadowFacts(
        **asdict(copies),
        subject=subject,
        build=build,
        accepted=copies.compared - copies.equal - copies.mismatched,
        waiting=await _waiting(connection, subject, build),
        dropped=sum((await _drops(connection, parameters)).values()),
        by_field=await _by_field(connection, parameters),
    )


async def _waiting(connection: Connection, subject: str, build: str) -> int:
    cursor = await connection.execute(
        "SELECT count(*) AS copies FROM shadows WHERE subject = %s AND build = %s AND state = 'waiting'",
        (subject, build),
    )
    row = await cursor.fetchone()
    return int(row["copies"]) if row else 0


async def _drops(connection: Connection, parameters: dict[str, Any]) -> dict[str, int]:
    cursor = await connection.execute(
        """SELECT reason, sum(count)::bigint AS copies FROM shadow_drops
           WHERE subject = %(subject)s AND build = %(build)s
             AND (%(since)s::timestamptz IS NULL OR hour >= date_trunc('hour', %(since)s::timestamptz))
           GROUP BY reason ORDER BY reason""",
        parameters,
    )
    return {row["reason"]: row["copies"] for row in await cursor.fetchall()}


async def _by_field(connection: Connection, parameters: dict[str, Any]) -> dict[str, int]:
    cursor = await connection.execute(
        f"""SELECT f AS field, count(*) AS events FROM shadows s, unnest(s.fields) AS f
            WHERE {_RANGE} AND s.state = 'compared' AND NOT s.equal AND NOT EXISTS (
              SELECT FROM shadow_acceptances a WHERE a.subject = s.subject AND a.build = s.build
                AND (f = a.field OR starts_with(f, a.field || '.')))
            GROUP BY f ORDER BY 2 DESC, 1""",
        parameters,
    )
    return {row["field"]: row["events"] for row in await cursor.fetchall()}


@dataclass(frozen=True, slots=True)
class Report:
    """The facts of a subject, differences by field and reason, drops by reason, acceptances, and a page of differing events."""

    facts: ShadowFacts
    differences: list[FieldDifference]
    """Those in most events first."""
    dropped: dict[str, int]
    seconds: dict[str, dict[str, float]]
    """Mean seconds by step, of `live` and of `shadow`."""
    acceptances: list[Acceptance]
    events: list[DifferingEvent]
    next: int | None
    """Position of the following page of events; None on the last."""


async def report(
    connection: Connection,
    subject: str,
    *,
    build: str = "",
    since: datetime | None = None,
    after: int | None = None,
    limit: int = 50,
    every: bool = False,
) -> Report:
    """Return the report of a subject. `every` also lists events that differ only in what was accepted."""
    parameters = {"subject": subject, "build": build, "since": since}
    events = await _differing(
        connection, parameters | {"after": after, "limit": limit + 1}, every=every
    )
    return Report(
        facts=await mismatches(connection, subject, since, build=build),
        differences=await _differences(connection, parameters),
        dropped=await _drops(connection, parameters),
        seconds=await _steps(connection, parameters),
        acceptances=await acceptances(connection, subject, build),
        events=events[:limit],
        next=events[limit - 1].id if len(events) > limit else None,
    )


async def _differences(connection: Connection, parameters: dict[str, Any]) -> list[FieldDifference]:
    return await fetch_rows(
        connection,
        FieldDifference,
        f"""SELECT d ->> 'field' AS field, d ->> 'reason' AS reason, count(*) AS events,
                   bool_and(EXISTS (SELECT FROM shadow_acceptances a WHERE a.subject = s.subject AND a.build = s.build
                     AND (d ->> 'field' = a.field OR starts_with(d ->> 'field', a.field || '.')))) AS accepted
            FROM shadows s, jsonb_array_elements(s.differences) AS d
            WHERE {_RANGE} AND s.state = 'compared' AND NOT s.equal
            GROUP BY 1, 2 ORDER BY 3 DESC, 1, 2 LIMIT 200""",
        parameters,
    )


async def _steps(connection: Connection, parameters: dict[str, Any]) -> dict[str, dict[str, float]]:
    rows = await fetch_rows(
        connection,
        _StepSeconds,
        f"""SELECT side.key AS side, step.key AS step, avg(step.value::text::float8) AS seconds
            FROM (SELECT seconds FROM shadows s WHERE {_RANGE} AND s.state = 'compared'
                  ORDER BY ended_at DESC LIMIT 10000) recent,
                 jsonb_each(recent.seconds) AS side, jsonb_each(side.value) AS step
            GROUP BY 1, 2 ORDER BY 1, 2""",
        parameters,
    )
    seconds: dict[str, dict[str, float]] = {"live": {}, "shadow": {}}
    for row in rows:
        seconds[row.side][row.step] = round(row.seconds, 6)
    return seconds


async def _differing(
    connection: Connection, parameters: dict[str, Any], *, every: bool
) -> list[DifferingEvent]:
    condition: LiteralString = "true" if every else NOT_ACCEPTED
    return await fetch_rows(
        connection,
        DifferingEvent,
        f"""SELECT s.id, s.inbox_id AS event, s.source, i.event_id, i.doc_id AS document_id, s.fields, s.live_outcome,
                   s.shadow_outcome, s.error, s.ended_at AS compared_at
            FROM shadows s JOIN inbox i ON i.id = s.inbox_id
            WHERE {_RANGE} AND s.state = 'compared' AND NOT s.equal AND {condition}
              AND (%(after)s::bigint IS NULL OR s.id < %(after)s)
            ORDER BY s.id DESC LIMIT %(limit)s""",
        parameters,
    )


async def candidate(connection: Connection) -> str:
    """Return the build that the rollout of the build names, or else the build that processed a copy last; empty without either."""
    cursor = await connection.execute(
        """SELECT coalesce((SELECT build FROM rollouts WHERE subject = 'build'),
                           (SELECT build FROM shadows WHERE subject = 'build' ORDER BY id DESC LIMIT 1), '') AS build"""
    )
    row = await cursor.fetchone()
    return str(row["build"]) if row else ""


async def difference(
    connection: Connection, event: UUID, subject: str | None = None, build: str | None = None
) -> dict[str, Any]:
    """Return both sides of an event: its differences, and the content of each side where it is kept.

    Without a subject the copy compared last. Raises `NotFound` for an event without a compared copy.
    """
    cursor = await connection.execute(
        """SELECT s.inbox_id AS event, i.event_id, i.doc_id AS document_id, i.doc_key AS document_key, s.source, s.subject,
                  s.build, i.path, i.build AS live_build, s.state, s.equal, s.differences, s.live_outcome, s.shadow_outcome,
                  s.error, s.tallies, s.seconds, s.ended_at AS compared_at, s.content
           FROM shadows s JOIN inbox i ON i.id = s.inbox_id
           WHERE s.inbox_id = %(event)s AND s.state <> 'waiting' AND (%(subject)s::text IS NULL OR s.subject = %(subject)s)
             AND (%(build)s::text IS NULL OR s.build = %(build)s)
           ORDER BY s.ended_at DESC LIMIT 1""",
        {"event": event, "subject": subject, "build": build},
    )
    row = await cursor.fetchone()
    if row is None:
        raise NotFound(
            f"event {event}: no copy of it was compared",
            remedy="`apex rollout report` lists events that differ; copies are compared while a shadow is on",
        )
    live = await _live_content(connection, event)
    content = row.pop("content")
    shadow = unpack(content) if content else None
    if shadow is None and row["equal"]:
        shadow = live
    return {**row, "live": live, "shadow": shadow}


async def _live_content(connection: Connection, event: UUID) -> dict[str, Any] | None:
    manifest = (await manifests_of_events(connection, [event])).get(event)
    return content_of(manifest) if manifest else None


async def acceptances(connection: Connection, subject: str, build: str) -> list[Acceptance]:
    """Return the fields in which a subject may differ, with who accepted each, when and why."""
    return await fetch_rows(
        connection,
        Acceptance,
        "SELECT field, actor, reason, at FROM shadow_acceptances WHERE subject = %s AND build = %s ORDER BY field",
        (subject, build),
    )


async def accept(
    connection: Connection, subject: str, build: str, field: str, *, actor: str, reason: str
) -> None:
    """Accept a difference by the name of its field, or of the part before a dot. Part of the caller's transaction.

    Raises `Rejected` for a field in which no copy differs: it would be a typing error, or a licence in advance.
    """
    cursor = await connection.execute(
        """SELECT DISTINCT f AS field FROM shadows s, unnest(s.fields) AS f
           WHERE s.subject = %s AND s.build = %s AND s.state = 'compared' AND NOT s.equal ORDER BY 1 LIMIT 100""",
        (subject, build),
    )
    fields = [row["field"] for row in await cursor.fetchall()]
    if not any(name == field or name.startswith(f"{field}.") for name in fields):
        raise Rejected(
            f"{field}: no copy differs in this field",
            remedy=f"fields that differ: {', '.join(fields[:20]) or 'none'}",
        )
    await connection.execute(
        """INSERT INTO shadow_acceptances (subject, build, field, actor, reason) VALUES (%s, %s, %s, %s, %s)
           ON CONFLICT (subject, build, field) DO UPDATE
             SET actor = excluded.actor, reason = excluded.reason, at = clock_timestamp()""",
        (subject, build, field, actor, reason),
    )
    await _audit(connection, actor, "accept difference", subject, build, field, reason)


async def withdraw(
    connection: Connection, subject: str, build: str, field: str, *, actor: str, reason: str
) -> None:
    """Withdraw an acceptance. Part of the caller's transaction. Raises `Conflict` if the field is not accepted."""
    cursor = await connection.execute(
        "DELETE FROM shadow_acceptances WHERE subject = %s AND build = %s AND field = %s",
        (subject, build, field),
    )
    if not cursor.rowcount:
        raise Conflict(f"{field}: is not accepted", remedy="`apex rollout report` lists what is")
    await _audit(connection, actor, "withdraw acceptance", subject, build, field, reason)


async def _audit(
    connection: Connection,
    actor: str,
    action: str,
    subject: str,
    build: str,
    field: str,
    reason: str,
) -> None:
    detail = {"field": field, "build": build, "reason": reason}
    await connection.execute(
        "INSERT INTO audit (actor, action, subject, detail) VALUES (%s, %s, %s, %s)",
        (actor, action, subject, Jsonb(detail)),
    )


async def audit_replay(
    connection: Connection, actor: str, build: str, detail: dict[str, Any]
) -> None:
    """Write a replay to the audit log."""
    await connection.execute(
        "INSERT INTO audit (actor, action, subject, detail) VALUES (%s, 'replay for build', %s, %s)",
        (actor, build, Jsonb(detail)),
    )
