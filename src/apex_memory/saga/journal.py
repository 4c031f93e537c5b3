"""The journal: the transactions that begin, abort and commit stages. PostgreSQL alone decides here.

The lock order is the same everywhere, so that no two transactions wait for each other: family locks by key,
then inbox rows by id, then stages by document id, then documents by id, then dead letters by inbox id. Only
a transaction that holds a document changes the stage that its readers see. Work that the next pass can do
as well (renewing a lease, sweeping, collecting) skips rows that others hold, so it waits for nothing. Inbox
rows are locked `FOR NO KEY UPDATE`, so that rows that refer to them never wait.

A transaction uses its own connection for everything it needs: a second one from the same small pool could
wait for transactions that wait for a second one themselves.
"""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from uuid import UUID

from apex_memory.inbox import transitions
from apex_memory.inbox.transitions import EndedEvent
from apex_memory.model import Tally
from apex_memory.saga.families import delete_children, lock_families, lock_parents, restore_children
from apex_memory.saga.groups import next_group, suspicion
from apex_memory.saga.manifests import Manifests
from apex_memory.saga.stage import Stage
from apex_memory.stores.postgres import Connection, Postgres, fetch_rows
from apex_memory.telemetry import CONFLICTS


@dataclass(slots=True)
class BeginResult:
    """What `begin` decided about a batch."""

    stages: list[Stage] = field(default_factory=list)
    superseded: list[UUID] = field(default_factory=list)
    """Inbox ids of events that are older than their document, or than the deletion of its parent."""
    exhausted: list[UUID] = field(default_factory=list)
    """Inbox ids of events whose attempts timed out or ended the worker too often."""
    ended: list[EndedEvent] = field(default_factory=list)


@dataclass(slots=True)
class CommitResult:
    """What `commit` did with the stages it was given."""

    done: list[UUID] = field(default_factory=list)
    """Inbox ids whose version readers see from now on."""
    superseded: list[UUID] = field(default_factory=list)
    """Inbox ids whose document has a newer version."""
    lost: list[UUID] = field(default_factory=list)
    """Inbox ids whose stage this owner no longer holds: another worker took the event over."""
    dropped_stages: list[UUID] = field(default_factory=list)
    """Stages that readers saw until now."""
    landed: int = 0
    """Events landed for children of deleted or restored documents."""
    ended: list[EndedEvent] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class _PreparedEvent:
    """A prepared event of the batch, with its newest manifest and the live version of its document."""

    id: UUID
    doc_id: UUID
    version: int
    event_id: str
    source: str
    starts: int
    parks: int
    manifest_id: UUID | None
    """None if its manifest is gone, for example after a restore of a backup."""
    hash: bytes | None
    live_version: int | None
    live_event: str | None
    live_hash: bytes | None
    orphaned: bool | None
    """The parent was deleted by this version or a later one."""

    @property
    def order(self) -> tuple[int, str]:
        """What decides between two versions of a document; the higher wins."""
        return self.version, self.event_id

    @property
    def stale(self) -> bool:
        """The live version is this one or a newer one."""
        if self.live_version is None or self.live_event is None:
            return False
        return self.order <= (self.live_version, self.live_event)

    @property
    def conflicts(self) -> bool:
        """Another event has the same version and other content."""
        return (
            self.live_version == self.version
            and self.live_event != self.event_id
            and self.live_hash != self.hash
        )


@dataclass(frozen=True, slots=True)
class _RecordedTallies:
    """The columns of `stages` that say what the stores must hold of a stage."""

    stage_id: UUID
    chunks: int
    chunks_sum: int
    edges: int
    edges_sum: int


class Journal:
    def __init__(
        self,
        db: Postgres,
        manifests: Manifests,
        *,
        lease: float,
        pipeline: str = "",
        max_starts: int = 5,
    ) -> None:
        """`pipeline` names what makes manifests in this process: of an event's manifests its own are preferred."""
        self._db = db
        self._manifests = manifests
        self._lease = lease
        self._pipeline = pipeline
        self._max_starts = max_starts

    async def begin(self, batch: UUID) -> BeginResult:
        """Open a stage for the newest prepared event of each document in the batch; end events that came too late.

        Returns what was opened and what was ended. Opens a group of the batch where attempts never reported an outcome
        (`groups.py`): call it until it returns nothing. The rows written here are the saga's journal: whatever crashes
        later, the sweeper reads them.
        """
        result = BeginResult()
        async with self._db.transaction() as connection:
            await lock_parents(connection, batch)
            events = await _lock_prepared(connection, batch, self._pipeline)
            newest: dict[UUID, _PreparedEvent] = {}
            unprepared: list[UUID] = []
            for event in sorted(events, key=lambda event: event.order):
                if event.manifest_id is None:
                    unprepared.append(event.id)
                    continue
                if event.conflicts:
                    CONFLICTS.labels(event.source).inc()
                if event.stale or event.orphaned:
                    result.superseded.append(event.id)
                else:
                    newest[event.doc_id] = event
            result.ended = await transitions.end(connection, result.superseded, "superseded")
            await transitions.unprepare(connection, unprepared)
            suspicions: dict[UUID, int] = {}
            for event in newest.values():
                if event.starts >= self._max_starts:
                    result.exhausted.append(event.id)
                else:
                    suspicions[event.id] = suspicion(event.starts, event.parks)
            group = set(next_group(suspicions))
            if group:
                await transitions.start(connection, batch, sorted(group))
                opened = [event for event in newest.values() if event.id in group]
                result.stages = await self._open(connection, batch, opened)
        return result

    async def _open(
        self, connection: Connection, batch: UUID, events: Sequence[_PreparedEvent]
    ) -> list[Stage]:
        ids = [event.manifest_id for event in events if event.manifest_id]
        manifests = await self._manifests.load(connection, ids)
        stages = [
            Stage(uuid.uuid4(), manifests[event.manifest_id], event.version, event.event_id)
            for event in sorted(events, key=lambda event: str(event.doc_id))
            if event.manifest_id
        ]
        inbox_ids = [stage.manifest.inbox_id for stage in stages]
        await abort_attempts(connection, inbox_ids, "a later attempt took over")
        await self.insert(connection, batch, stages)
        return stages

    async def insert(
        self, connection: Connection, owner: UUID, stages: Sequence[Stage], *, shadow: bool = False
    ) -> None:
        """Insert stages in state `staging`, which belong to `owner` until the lease ends.

        A shadow stage is never committed. Its row names itself as its event, so that it is no attempt of the event.
        """
        chunks = [stage.chunks_tally for stage in stages]
        edges = [stage.edges_tally for stage in stages]
        await connection.execute(
            """INSERT INTO stages (stage_id, inbox_id, doc_id, version, event_id, manifest_id, state, shadow, owner, lease_until,
                                   chunks, chunks_sum, edges, edges_sum)
               SELECT stage_id, inbox_id, doc_id, version, event_id, manifest_id, 'staging', %s, %s,
                      clock_timestamp() + make_interval(secs => %s), chunks, chunks_sum, edges, edges_sum
               FROM unnest(%b::uuid[], %b::uuid[], %b::uuid[], %b::bigint[], %b::text[], %b::uuid[],
                           %b::integer[], %b::bigint[], %b::integer[], %b::bigint[])
                 AS t (stage_id, inbox_id, doc_id, version, event_id, manifest_id, chunks, chunks_sum, edges, edges_sum)""",
            (
                shadow,
                owner,
                self._lease,
                [stage.id for stage in stages],
                [stage.id if shadow else stage.manifest.inbox_id for stage in stages],
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
    ) -> CommitResult:
        """Flip the documents to these stages, unless a newer version is live or the owner lost the stage.

        Returns what became of each. `graph_at` and `vectors_at` are when each store held the stages durably.
        """
        result = CommitResult()
        if not stages:
            return result
        async with self._db.transaction() as connection:
            await lock_families(connection, [stage.manifest for stage in stages])
            mine = await _lock_mine(connection, owner, stages)
            result.lost = [stage.manifest.inbox_id for stage in stages if stage.id not in mine]
            deleted_before = await _deleted(
                connection, [stage.manifest.doc_id for stage in stages if stage.id in mine]
            )
            won = await _flip(connection, sorted(mine))
            winners = [stage for stage in stages if stage.id in won]
            losers = [stage for stage in stages if stage.id in mine and stage.id not in won]
            result.dropped_stages = await _retire(connection, winners)
            await _finish(connection, winners, "committed", graph_at, vectors_at)
            await _finish(connection, losers, "aborted", graph_at, vectors_at)
            result.done = [stage.manifest.inbox_id for stage in winners]
            result.superseded = [stage.manifest.inbox_id for stage in losers]
            result.ended = await transitions.end(connection, result.done, "done")
            result.ended += await transitions.end(connection, result.superseded, "superseded")
            await _close_dead_letters(connection, winners)
            deleted = [stage for stage in winners if stage.manifest.deleted]
            restored = [
                stage
                for stage in winners
                if not stage.manifest.deleted and stage.manifest.doc_id in deleted_before
            ]
            result.landed = await delete_children(connection, deleted)
            result.landed += await restore_children(connection, restored)
        return result

    async def abort(self, owner: UUID, stages: Sequence[Stage], reason: str) -> None:
        """Mark stages dead that `owner` still holds. The sweeper removes what they wrote to the stores."""
        await self._db.execute(
            """UPDATE stages SET state = 'aborted', ended_at = clock_timestamp(), error = %s
               FROM (SELECT stage_id FROM stages WHERE stage_id = ANY(%s) AND state = 'staging' AND owner = %s
                     ORDER BY doc_id FOR UPDATE) mine
               WHERE stages.stage_id = mine.stage_id""",
            (reason, [stage.id for stage in stages], owner),
        )

    async def expected(self, stages: Sequence[UUID]) -> dict[UUID, tuple[Tally, Tally]]:
        """Return the (vectors, graph) tallies that the stores must hold, by stage id."""
        rows = await self._db.fetch_rows(
            _RecordedTallies,
            "SELECT stage_id, chunks, chunks_sum, edges, edges_sum FROM stages WHERE stage_id = ANY(%s)",
            (list(stages),),
        )
        return {
            row.stage_id: (Tally(row.chunks, row.chunks_sum), Tally(row.edges, row.edges_sum))
            for row in rows
        }


async def abort_attempts(connection: Connection, inbox_ids: Sequence[UUID], reason: str) -> None:
    """Mark the stages of these events dead that are still `staging`, whoever owns them."""
    await connection.execute(
        """UPDATE stages SET state = 'aborted', ended_at = clock_timestamp(), error = %s
           FROM (SELECT stage_id FROM stages WHERE inbox_id = ANY(%s) AND state = 'staging'
                 ORDER BY doc_id FOR UPDATE) attempts
           WHERE stages.stage_id = attempts.stage_id""",
        (reason, list(inbox_ids)),
    )


async def _lock_prepared(
    connection: Connection, batch: UUID, pipeline: str
) -> list[_PreparedEvent]:
    """Return the prepared events that the batch owns, locked by id.

    An event that several builds prepared, the last one perhaps after it lost the event, has a manifest of each.
    """
    return await fetch_rows(
        connection,
        _PreparedEvent,
        """SELECT i.id, i.doc_id, i.version, i.event_id, i.source, i.starts, i.parks, m.id AS manifest_id, m.hash,
                  d.version AS live_version, d.event_id AS live_event, d.hash AS live_hash,
                  (p.deleted AND (p.version, p.event_id) >= (i.version, i.event_id)) AS orphaned
           FROM inbox i
           LEFT JOIN LATERAL (SELECT id, hash, parent_id FROM manifests WHERE inbox_id = i.id
                              ORDER BY pipeline = %s DESC, created_at DESC LIMIT 1) m ON true
           LEFT JOIN documents d ON d.doc_id = i.doc_id
           LEFT JOIN documents p ON p.doc_id = m.parent_id
           WHERE i.open AND i.batch = %s AND i.state = 'prepared'
           ORDER BY i.id FOR NO KEY UPDATE OF i""",
        (pipeline, batch),
    )


async def _lock_mine(connection: Connection, owner: UUID, stages: Sequence[Stage]) -> set[UUID]:
    """Lock the events of the stages, then those stages that are still `staging` and belong to `owner`; return these."""
    cursor = await connection.execute(
        # The count is always true. It makes PostgreSQL lock every event before the first stage.
        """WITH events AS (SELECT id FROM inbox WHERE id = ANY(%s) ORDER BY id FOR NO KEY UPDATE)
           SELECT stage_id FROM stages
           WHERE stage_id = ANY(%s) AND state = 'staging' AND owner = %s AND (SELECT count(*) FROM events) >= 0
           ORDER BY doc_id FOR UPDATE""",
        ([stage.manifest.inbox_id for stage in stages], [stage.id for stage in stages], owner),
    )
    return {row["stage_id"] for row in await cursor.fetchall()}


async def _deleted(connection: Connection, doc_ids: Sequence[UUID]) -> set[UUID]:
    """Return those of the documents whose live version is a tombstone."""
    cursor = await connection.execute(
        "SELECT doc_id FROM documents WHERE doc_id = ANY(%s) AND deleted", (list(doc_ids),)
    )
    return {row["doc_id"] for row in await cursor.fetchall()}


async def _flip(connection: Connection, stage_ids: Sequence[UUID]) -> set[UUID]:
    """Point documents at the stages that are newer than what is live; return these stages."""
    cursor = await connection.execute(
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
    return {row["stage_id"] for row in await cursor.fetchall()}


async def _retire(connection: Connection, winners: Sequence[Stage]) -> list[UUID]:
    """Mark the stages superseded that readers saw until now; return them. The collector removes them after the grace."""
    if not winners:
        return []
    cursor = await connection.execute(
        """UPDATE stages SET state = 'superseded', ended_at = clock_timestamp()
           WHERE doc_id = ANY(%s) AND state = 'committed' AND stage_id <> ALL(%s) RETURNING stage_id""",
        ([stage.manifest.doc_id for stage in winners], [stage.id for stage in winners]),
    )
    return [row["stage_id"] for row in await cursor.fetchall()]


async def _finish(
    connection: Connection,
    stages: Sequence[Stage],
    state: str,
    graph_at: datetime,
    vectors_at: datetime,
) -> None:
    """Record that stages are `committed`, or `aborted` because a newer version was live."""
    if not stages:
        return
    await connection.execute(
        """UPDATE stages SET state = %(state)s, graph_at = %(graph)s, vectors_at = %(vectors)s,
                  committed_at = CASE WHEN %(state)s = 'committed' THEN clock_timestamp() END,
                  ended_at = CASE WHEN %(state)s = 'aborted' THEN clock_timestamp() END,
                  error = CASE WHEN %(state)s = 'aborted' THEN 'a newer version was live' END
           WHERE stage_id = ANY(%(ids)s)""",
        {
            "state": state,
            "graph": graph_at,
            "vectors": vectors_at,
            "ids": [stage.id for stage in stages],
        },
    )


async def _close_dead_letters(connection: Connection, winners: Sequence[Stage]) -> None:
    """Resolve an open dead letter of a committed event; supersede those of older versions of its document."""
    if not winners:
        return
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
