"""What the live path made of events, for the comparison with their copies."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from uuid import UUID

from apex_memory.model import Manifest, Tally
from apex_memory.rollout.comparison import ProcessedEvent
from apex_memory.saga.manifests import manifests_of_events
from apex_memory.stores.postgres import Connection, fetch_rows

FINAL = ("done", "superseded", "dead")


@dataclass(frozen=True, slots=True)
class LiveEvent:
    """An ended event: what it came to, its seconds by step, and whether its document had a newer version by then."""

    processed: ProcessedEvent
    seconds: dict[str, float]
    outranked: bool
    """A newer version of the document, or the deletion of its parent, was live before the event ended."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _EndedEvent:
    """An ended event with the tallies of its first committed stage; seconds by step."""

    id: UUID
    state: str
    error_class: str | None
    chunks: int | None
    chunks_sum: int | None
    edges: int | None
    edges_sum: int | None
    wait: float | None
    prepare: float | None
    stage: float | None
    commit: float | None
    total: float | None
    outranked: bool


async def live_events(
    connection: Connection, ids: Sequence[UUID], parents: Sequence[UUID | None]
) -> dict[UUID, LiveEvent]:
    """Return what became of events, by id, without those that are not final. `parents` holds each copy's parent document."""
    manifests = await manifests_of_events(connection, ids)
    rows = await fetch_rows(
        connection,
        _EndedEvent,
        """SELECT i.id, i.state, l.error_class, s.chunks, s.chunks_sum, s.edges, s.edges_sum,
                  extract(epoch FROM i.claimed_at - i.received_at)::float AS wait,
                  extract(epoch FROM i.prepared_at - i.claimed_at)::float AS prepare,
                  extract(epoch FROM greatest(s.graph_at, s.vectors_at) - s.created_at)::float AS stage,
                  extract(epoch FROM s.committed_at - greatest(s.graph_at, s.vectors_at))::float AS commit,
                  extract(epoch FROM i.ended_at - i.claimed_at)::float AS total,
                  EXISTS (SELECT FROM inbox n WHERE n.doc_id = i.doc_id AND (n.version, n.event_id) > (i.version, i.event_id)
                            AND n.state = 'done' AND n.ended_at <= i.ended_at)
                  OR EXISTS (SELECT FROM manifests pm JOIN inbox p ON p.id = pm.inbox_id
                             WHERE pm.doc_id = t.parent AND pm.deleted AND (p.version, p.event_id) >= (i.version, i.event_id)
                               AND p.state = 'done' AND p.ended_at <= i.ended_at) AS outranked
           FROM unnest(%s::uuid[], %s::uuid[]) AS t (id, parent)
           JOIN inbox i ON i.id = t.id
           LEFT JOIN dead_letters l ON l.inbox_id = i.id AND i.state = 'dead'
           LEFT JOIN LATERAL (
             SELECT * FROM stages WHERE inbox_id = i.id AND committed_at IS NOT NULL ORDER BY created_at LIMIT 1
           ) s ON true
           WHERE i.state = ANY(%s)""",
        (list(ids), list(parents), list(FINAL)),
    )
    return {row.id: _live(row, manifests.get(row.id)) for row in rows}


def _live(row: _EndedEvent, manifest: Manifest | None) -> LiveEvent:
    processed = ProcessedEvent(
        outcome=row.state,
        error=row.error_class or "",
        # A dead event may have a manifest that was never published; the copy is compared with what readers got.
        manifest=None if row.state == "dead" else manifest,
        graph=_tally(row.edges, row.edges_sum),
        vectors=_tally(row.chunks, row.chunks_sum),
    )
    steps = {
        "wait": row.wait,
        "prepare": row.prepare,
        "stage": row.stage,
        "commit": row.commit,
        "total": row.total,
    }
    seconds = {step: round(value, 6) for step, value in steps.items() if value is not None}
    return LiveEvent(processed, seconds, row.outranked)


def _tally(count: int | None, checksum: int | None) -> Tally | None:
    """Return None for an event without a committed stage, which has neither."""
    return None if count is None or checksum is None else Tally(count, checksum)
