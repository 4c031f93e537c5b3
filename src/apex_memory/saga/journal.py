"""The journal: the transactions that begin, abort and commit stages. PostgreSQL alone decides here.

Lock order is the same everywhere, so that no two transactions wait for each other: family locks by
key, then inbox rows by id, then stages by document id, then documents by id, then dead letters by
inbox id. A stage that readers may see is touched by those alone who hold its document. What the next
pass can do as well (renewing a lease, sweeping, collecting) skips the rows that others hold: it waits
for nothing. Inbox rows are locked `FOR NO KEY UPDATE`, so that rows that refer to them never wait.
"""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from uuid import UUID

from apex_memory.model import Tally
from apex_memory.saga.families import delete_children, lock_families, lock_parents, restore_children
from apex_memory.saga.manifests import Manifests
from apex_memory.saga.stage import Stage
from apex_memory.stores.postgres import Connection, Postgres
from apex_memory.telemetry import CONFLICTS


@dataclass(frozen=True, slots=True)
class Ended:
    """An event that reached its end in a transaction, for the metrics once that has committed."""

    source: str
    state: str
    seconds: float
    """From received to the end."""


@dataclass(slots=True)
class BeginResult:
    """What `begin` decided about a batch."""

    stages: list[Stage] = field(default_factory=list)
    superseded: list[UUID] = field(default_factory=list)
    """Inbox ids of events older than their document, or than their parent's deletion."""
    ended: list[Ended] = field(default_factory=list)


@dataclass(slots=True)
class Committed:
    """What `commit` made of the stages it was given."""

    done: list[UUID] = field(default_factory=list)
    """Inbox ids whose version readers now see."""
    superseded: list[UUID] = field(default_factory=list)
    lost: list[UUID] = field(default_factory=list)
    """Inbox ids whose stage is no longer ours: another worker has taken the event over."""
    dropped_stages: list[UUID] = field(default_factory=list)
    landed: int = 0
    """Events landed for children of deleted or restored documents."""
    ended: list[Ended] = field(default_factory=list)


class Journal:
    def __init__(self, db: Postgres, manifests: Manifests, *, lease: float) -> None:
        self._db = db
        self._manifests = manifests
        self._lease = lease

    async def begin(self, batch: UUID) -> BeginResult:
        """Open a stage for the newest prepared event of each document in the batch; drop events that came too late.

        The rows written here are the saga's journal: whatever crashes later, the sweeper finds them.
        """
        begun = BeginResult()
        async with self._db.transaction() as connection:
            await lock_parents(connection, batch)
            rows = await (
                await connection.execute(
                    """SELECT i.id, i.doc_id, i.version, i.event_id, i.source, m.id AS manifest_id, m.hash,
                              d.version AS live_version, d.event_id AS live_event, d.hash AS live_hash,
                              (p.deleted AND (p.version, p.event_id) >= (i.version, i.event_id)) AS orphaned
                       FROM inbox i
                       CROSS JOIN LATERAL (SELECT id, hash, parent_id FROM manifests WHERE inbox_id = i.id
                                           ORDER BY created_at DESC LIMIT 1) m
                       LEFT JOIN documents d ON d.doc_id = i.doc_id
                       LEFT JOIN documents p ON p.doc_id = m.parent_id
                       WHERE i.open AND i.batch = %s AND i.state = 'prepared'
                       ORDER BY i.id FOR NO KEY UPDATE OF i""",
                    (batch,),
                )
            ).fetchall()
            newest: dict[UUID, dict[str, object]] = {}
            for row in sorted(rows, key=lambda row: (row["version"], row["event_id"])):
                key = (row["version"], row["event_id"])
                stale = row["live_version"] is not None and key <= (
                    row["live_version"],
                    row["live_event"],
                )
                if (
                    row["live_version"] == row["version"]
                    and row["live_event"] != row["event_id"]
                    and row["live_hash"] != row["hash"]
                ):
                    CONFLICTS.labels(row["source"]).inc()
                if stale or row["orphaned"]:
                    begun.superseded.append(row["id"])
                else:
                    newest[row["doc_id"]] = row
            begun.ended = await end_events(connection, begun.superseded, "superseded")
            if newest:
                begun.stages = await self._open(connection, batch, list(newest.values()))
        return begun

    async def _open(
        self, connection: Connection, batch: UUID, rows: Sequence[dict[str, object]]
    ) -> list[Stage]:
        manifests = await self._manifests.load(row["manifest_id"] for row in rows)  # type: ignore[misc]
        stages = [
            Stage(uuid.uuid4(), manifests[row["manifest_id"]], row["version"], row["event_id"])  # type: ignore[index, arg-type]
            for row in sorted(rows, key=lambda row: str(row["doc_id"]))
        ]
        await connection.execute(
            """UPDATE stages SET state = 'aborted', ended_at = clock_timestamp(), error = 'a later attempt took over'
               FROM (SELECT stage_id FROM stages WHERE inbox_id = ANY(%s) AND state = 'staging'
                     ORDER BY doc_id FOR UPDATE) earlier
               WHERE stages.stage_id = earlier.stage_id""",
            ([stage.manifest.inbox_id for stage in stages],),
        )
        await self.insert(connection, batch, stages)
        return stages

    async def insert(self, connection: Connection, owner: UUID, stages: Sequence[Stage]) -> None:
        """Write stages in state `staging`, owned by `owner` until the lease ends."""
        chunks = [stage.chunks_tally for stage in stages]
        edges = [stage.edges_tally for stage in stages]
        await connection.execute(
            """INSERT INTO stages (stage_id, inbox_id, doc_id, version, event_id, manifest_id, state, owner, lease_until,
                                   chunks, chunks_sum, edges, edges_sum)
               SELECT stage_id, inbox_id, doc_id, version, event_id, manifest_id, 'staging', %s,
                      clock_timestamp() + make_interval(secs => %s), chunks, chunks_sum, edges, edges_sum
               FROM unnest(%b::uuid[], %b::uuid[], %b::uuid[], %b::bigint[], %b::text[], %b::uuid[],
                           %b::integer[], %b::bigint[], %b::integer[], %b::bigint[])
                 AS t (stage_id, inbox_id, doc_id, version, event_id, manifest_id, chunks, chunks_sum, edges, edges_sum)""",
            (
                owner,
                self._lease,
                [stage.id for stage in stages],
                [stage.manifest.inbox_id for stage in stages],
                [stage.manifest.doc_id for stage in stages],
                [stage.version for stage in stages],
                [stage.event_id for stage in stages],
                [stage.manifest.id for stage in stages],
                [tally.count for tally in chunks],
                [tally.checksum for tally in chunks],
                [tally.count for tally in edges],
                [tally.checksum for tally in edges],
            ),
        )

    async def commit(
        self, owner: UUID, stages: Sequence[Stage], *, graph_at: datetime, vectors_at: datetime
    ) -> Committed:
        """Flip: the documents point at these stages, unless something newer is there or the stage is not ours any more."""
        outcome = Committed()
        if not stages:
            return outcome
        async with self._db.transaction() as connection:
            await lock_families(connection, [stage.manifest for stage in stages])
            mine = await _lock_mine(connection, owner, stages)
            outcome.lost = [stage.manifest.inbox_id for stage in stages if stage.id not in mine]
            before = await _deleted_before(
                connection, [stage.manifest.doc_id for stage in stages if stage.id in mine]
            )
            won = await _flip(connection, sorted(mine))
            winners = [stage for stage in stages if stage.id in won]
            losers = [stage for stage in stages if stage.id in mine and stage.id not in won]
            outcome.dropped_stages = await _retire(connection, winners)
            await _settle(connection, winners, "committed", graph_at, vectors_at)
            await _settle(connection, losers, "aborted", graph_at, vectors_at)
            outcome.done = [stage.manifest.inbox_id for stage in winners]
            outcome.superseded = [stage.manifest.inbox_id for stage in losers]
            outcome.ended = await end_events(connection, outcome.done, "done")
            outcome.ended += await end_events(connection, outcome.superseded, "superseded")
            await _close_dead_letters(connection, winners)
            outcome.landed = await delete_children(
                connection, [stage for stage in winners if stage.manifest.deleted]
            )
            outcome.landed += await restore_children(
                connection,
                [
                    stage
                    for stage in winners
                    if not stage.manifest.deleted and stage.manifest.doc_id in before
                ],
            )
        return outcome

    async def abort(self, owner: UUID, stages: Sequence[Stage], reason: str) -> None:
        """Mark stages dead that are still ours. The sweeper removes what they left in the stores."""
        await self._db.execute(
            """UPDATE stages SET state = 'aborted', ended_at = clock_timestamp(), error = %s
               FROM (SELECT stage_id FROM stages WHERE stage_id = ANY(%s) AND state = 'staging' AND owner = %s
                     ORDER BY doc_id FOR UPDATE) mine
               WHERE stages.stage_id = mine.stage_id""",
            (reason, [stage.id for stage in stages], owner),
        )

    async def expected(self, stages: Sequence[UUID]) -> dict[UUID, tuple[Tally, Tally]]:
        """(vectors, graph) tallies that the journal holds for stages."""
        rows = await self._db.fetch(
            "SELECT * FROM stages WHERE stage_id = ANY(%s)", (list(stages),)
        )
        return {
            row["stage_id"]: (
                Tally(row["chunks"], row["chunks_sum"]),
                Tally(row["edges"], row["edges_sum"]),
            )
            for row in rows
        }


async def end_events(connection: Connection, ids: Sequence[UUID], state: str) -> list[Ended]:
    """Bring events to an end. Those that are at one already stay there."""
    if not ids:
        return []
    cursor = await connection.execute(
        """UPDATE inbox SET state = %s, ended_at = clock_timestamp(), batch = NULL, park_store = NULL, last_error = NULL
           WHERE id = ANY(%s) AND (open OR state = 'parked')
           RETURNING source, extract(epoch FROM ended_at - received_at)::float AS seconds""",
        (state, sorted(ids)),
    )
    return [Ended(row["source"], state, row["seconds"]) for row in await cursor.fetchall()]


async def _lock_mine(connection: Connection, owner: UUID, stages: Sequence[Stage]) -> set[UUID]:
    """Those of the stages that are still in `staging` and owned by `owner`, locked, and their events before them."""
    rows = await (
        await connection.execute(
            # The count asks for nothing: it has the events locked, all of them, before the first stage is.
            """WITH events AS (SELECT id FROM inbox WHERE id = ANY(%s) ORDER BY id FOR NO KEY UPDATE)
               SELECT stage_id FROM stages
               WHERE stage_id = ANY(%s) AND state = 'staging' AND owner = %s AND (SELECT count(*) FROM events) >= 0
               ORDER BY doc_id FOR UPDATE""",
            ([stage.manifest.inbox_id for stage in stages], [stage.id for stage in stages], owner),
        )
    ).fetchall()
    return {row["stage_id"] for row in rows}


async def _deleted_before(connection: Connection, doc_ids: Sequence[UUID]) -> set[UUID]:
    rows = await (
        await connection.execute(
            "SELECT doc_id FROM documents WHERE doc_id = ANY(%s) AND deleted", (list(doc_ids),)
        )
    ).fetchall()
    return {row["doc_id"] for row in rows}


async def _flip(connection: Connection, stage_ids: Sequence[UUID]) -> set[UUID]:
    """Point documents at the stages where they are newer; answers the stages that won."""
    rows = await (
        await connection.execute(
            """INSERT INTO documents AS d (doc_id, source, doc_key, kind, title, version, event_id, stage_id, manifest_id,
                                           parent_id, deleted, occurred_at, entities, hash, about, committed_at)
               SELECT m.doc_id, m.source, m.doc_key, m.kind, m.title, s.version, s.event_id, s.stage_id, m.id,
                      m.parent_id, m.deleted, m.occurred_at, m.entities, m.hash, m.about, clock_timestamp()
               FROM stages s JOIN manifests m ON m.id = s.manifest_id
               LEFT JOIN documents p ON p.doc_id = m.parent_id
               WHERE s.stage_id = ANY(%s)
                 AND NOT coalesce(p.deleted AND (p.version, p.event_id) >= (s.version, s.event_id), false)
               ORDER BY m.doc_id
               ON CONFLICT (doc_id) DO UPDATE SET
                 kind = excluded.kind, title = excluded.title, version = excluded.version, event_id = excluded.event_id,
                 stage_id = excluded.stage_id, manifest_id = excluded.manifest_id,
                 parent_id = coalesce(excluded.parent_id, d.parent_id), deleted = excluded.deleted,
                 occurred_at = excluded.occurred_at, entities = excluded.entities, hash = excluded.hash, about = excluded.about,
                 committed_at = excluded.committed_at
               WHERE (d.version, d.event_id) < (excluded.version, excluded.event_id)
               RETURNING d.stage_id""",
            (list(stage_ids),),
        )
    ).fetchall()
    return {row["stage_id"] for row in rows}


async def _retire(connection: Connection, winners: Sequence[Stage]) -> list[UUID]:
    """Stages that readers saw until now become superseded; the collector removes them after the grace."""
    if not winners:
        return []
    rows = await (
        await connection.execute(
            """UPDATE stages SET state = 'superseded', ended_at = clock_timestamp()
               WHERE doc_id = ANY(%s) AND state = 'committed' AND stage_id <> ALL(%s) RETURNING stage_id""",
            ([stage.manifest.doc_id for stage in winners], [stage.id for stage in winners]),
        )
    ).fetchall()
    return [row["stage_id"] for row in rows]


async def _settle(
    connection: Connection,
    stages: Sequence[Stage],
    state: str,
    graph_at: datetime,
    vectors_at: datetime,
) -> None:
    if stages:
        await connection.execute(
            """UPDATE stages SET state = %(state)s, graph_at = %(graph)s, vectors_at = %(vectors)s,
                      committed_at = CASE WHEN %(state)s = 'committed' THEN clock_timestamp() END,
                      ended_at = CASE WHEN %(state)s = 'aborted' THEN clock_timestamp() END,
                      error = CASE WHEN %(state)s = 'aborted' THEN 'a newer version was there' END
               WHERE stage_id = ANY(%(ids)s)""",
            {
                "state": state,
                "graph": graph_at,
                "vectors": vectors_at,
                "ids": [stage.id for stage in stages],
            },
        )


async def _close_dead_letters(connection: Connection, winners: Sequence[Stage]) -> None:
    """An open dead letter of the same event is resolved; one of an older version of the document is superseded."""
    if winners:
        await connection.execute(
            """UPDATE dead_letters l SET status = CASE WHEN l.event_id = w.event_id THEN 'resolved' ELSE 'superseded' END,
                      resolution = 'committed ' || w.event_id, last_at = clock_timestamp()
               FROM (SELECT o.id, w.event_id
                     FROM unnest(%s::uuid[], %s::bigint[], %s::text[]) AS w (doc_id, version, event_id)
                     JOIN dead_letters o ON o.doc_id = w.doc_id AND o.status IN ('open', 'retrying')
                                        AND (o.version, o.event_id) <= (w.version, w.event_id COLLATE "C")
                     ORDER BY o.inbox_id FOR UPDATE OF o) w
               WHERE l.id = w.id""",
            (
                [stage.manifest.doc_id for stage in winners],
                [stage.version for stage in winners],
                [stage.event_id for stage in winners],
            ),
        )
