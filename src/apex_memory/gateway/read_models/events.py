"""Read model of events: state, owner, deadline, and which stores hold each one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, LiteralString
from urllib.parse import quote
from uuid import UUID

from apex_memory.config import Settings
from apex_memory.errors import NotFound, Rejected
from apex_memory.inbox.queries import PAYLOAD_BYTES
from apex_memory.model import TOMBSTONE, document_uuid, event_uuid, uuid_range
from apex_memory.stores.postgres import Postgres
from apex_memory.telemetry.traces import trace_id_of

# Of an event's stages the committed one counts, then the one being written, then the last.
_DETAIL: LiteralString = f"""
SELECT i.id, i.seq, i.source, i.event_id, i.doc_id, i.doc_key, i.priority, i.version, i.content_type, i.state, i.open, i.batch,
       i.occurred_at, i.received_at, i.prepared_at, i.ended_at, i.next_at, i.attempts, i.last_error, i.park_store,
       i.path, i.build, i.workflow_id, i.run_id, i.trace_parent,
       s.state AS stage_state, s.created_at AS staged_at, s.graph_at, s.vectors_at, s.committed_at,
       m.kind, m.title, coalesce(d.deleted, i.state IN ('done', 'superseded')) AS document_deleted, m.deleted, m.degraded, {PAYLOAD_BYTES} AS payload_bytes,
       l.id AS dead_letter_id, l.remedy
FROM chosen i
LEFT JOIN payloads p ON p.inbox_id = i.id
LEFT JOIN payload_references r ON r.inbox_id = i.id LEFT JOIN payload_objects o ON o.name = r.object
LEFT JOIN LATERAL (
  SELECT * FROM stages s WHERE s.inbox_id = i.id
  ORDER BY array_position(ARRAY['committed', 'staging', 'superseded', 'reaping'], s.state) NULLS LAST, s.created_at DESC LIMIT 1
) s ON true
LEFT JOIN LATERAL (
  SELECT kind, title, deleted, metadata -> 'apex_degraded' AS degraded FROM manifests WHERE manifests.inbox_id = i.id
  ORDER BY manifests.id = s.manifest_id DESC NULLS LAST, created_at DESC LIMIT 1
) m ON true
LEFT JOIN dead_letters l ON l.inbox_id = i.id
LEFT JOIN documents d ON d.doc_id = i.doc_id
ORDER BY i.seq DESC"""

_STAGING: LiteralString = (
    "EXISTS (SELECT FROM stages WHERE stages.inbox_id = inbox.id AND stages.state = 'staging')"
)
# `open` is in the index of ready rows, `state` is not.
_STATES: dict[str, LiteralString] = {
    "received": "open AND state = 'received'",
    "prepared": f"open AND state = 'prepared' AND NOT {_STAGING}",
    "staged": f"open AND state = 'prepared' AND {_STAGING}",
    "done": "state = 'done'",
    "superseded": "state = 'superseded'",
    "parked": "state = 'parked'",
    "dead": "state = 'dead'",
}
FINAL = ("done", "superseded", "dead")
# Events in these states are few, or the backlog: an index or another table lists them. Those of other states, and those received
# since a time, are found by walking from the newest.
_LISTED: dict[str, LiteralString] = {
    "received": "true",
    "prepared": "true",
    "staged": "true",
    "parked": "true",
    "dead": "id IN (SELECT inbox_id FROM dead_letters)",
}
NEWEST = 2**63 - 1  # above every `seq`
FIRST_WALK = 2_000  # events that a request with conditions looks at first
NEXT_WALK = 10_000
MOST_WALKED = 100_000  # and at most: then its page ends, with a position to go on
# Events are numbered in the order in which they are received, but for the length of a landing and small steps of the clock.
CLOCK_MARGIN = timedelta(minutes=15)


@dataclass(frozen=True, slots=True)
class ResolvedIds:
    """An event, and the document that it changes."""

    event: UUID
    document: UUID


@dataclass(frozen=True, slots=True)
class KnownVersion:
    """The newest version that is known of a document."""

    source: str
    doc_key: str
    version: int
    event_id: str
    deleted: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class _EventRow:
    """A row of `_DETAIL`: an event with its stage, its manifest and its dead letter, if it has them."""

    id: UUID
    seq: int
    source: str
    event_id: str
    doc_id: UUID
    doc_key: str
    priority: int
    version: int
    content_type: str
    state: str
    open: bool
    batch: UUID | None
    occurred_at: datetime
    received_at: datetime
    prepared_at: datetime | None
    ended_at: datetime | None
    next_at: datetime
    attempts: int
    last_error: str | None
    park_store: str | None
    path: str | None
    build: str | None
    workflow_id: str | None
    run_id: str | None
    trace_parent: str | None
    stage_state: str | None
    staged_at: datetime | None
    graph_at: datetime | None
    vectors_at: datetime | None
    committed_at: datetime | None
    kind: str | None
    title: str | None
    document_deleted: bool
    """Also where the tombstone is gone already."""
    deleted: bool | None
    degraded: dict[str, Any] | None
    payload_bytes: int | None
    dead_letter_id: UUID | None
    remedy: str | None


@dataclass(frozen=True, slots=True)
class _IdMatch:
    event: UUID
    document: UUID
    rank: int


@dataclass(frozen=True, slots=True)
class _NewestEvent:
    id: UUID
    event_id: str
    doc_id: UUID
    doc_key: str
    version: int
    state: str
    content_type: str


@dataclass(frozen=True, slots=True)
class _Walk:
    """A stretch of events, from the newest on."""

    events: int
    last: int | None
    """The number (`seq`) of its last event; None if it has none."""
    newest: datetime | None
    """When the latest of its events was received."""
    ids: list[UUID]
    """Its first events that meet the conditions."""


class Events:
    """Queries over the inbox and the stages of its events."""

    def __init__(self, db: Postgres, settings: Settings) -> None:
        self._db = db
        self._ui = settings.temporal_ui.rstrip("/")
        self._trace_url = settings.trace_url
        self._namespace = settings.temporal.partition("/")[2] or "default"

    async def find(
        self,
        *,
        source: str | None = None,
        state: str | None = None,
        since: datetime | None = None,
        ids: Sequence[UUID] = (),
        after: int | None = None,
        limit: int = 50,
        of_deleted: bool = False,
    ) -> tuple[list[dict[str, Any]], int | None]:
        """Return events, newest first, and the position where the next page starts (None on the last).

        A page of events in a rare state, or since a time, may have fewer than `limit` events, and even none, before the last:
        a request looks at `MOST_WALKED` events at most. Titles of deleted documents are left out, except with `of_deleted`.
        """
        within: LiteralString = "true"
        order: LiteralString = "seq DESC"
        if source is not None:
            # In the order of `inbox_source`, which alone serves this: any other plan walks the events of all sources.
            within, order = "source BETWEEN %(source)s AND %(source)s", "source, seq DESC"
        if ids:
            within += " AND id = ANY(%(ids)s)"
        conditions: LiteralString = _STATES[state] if state is not None else "true"
        if since is not None:
            conditions += " AND received_at >= %(since)s"
        values = {
            "source": source,
            "since": since,
            "ids": list(ids),
            "after": after,
            "limit": limit + 1,
        }
        position: int | None = None
        if state is not None or since is not None:
            chosen, position, is_done = await self._walk(within, order, conditions, values, state)
            if is_done:
                within, order, values["ids"] = "id = ANY(%(ids)s)", "seq DESC", chosen
            else:
                # Not by the order of `seq`: an index that has it would be walked to its end for the last of these events.
                assert state is not None
                within += f" AND {conditions} AND {_LISTED[state]}"
                order = "seq + 0 DESC"
        rows = await self._db.fetch_rows(
            _EventRow,
            f"""WITH chosen AS MATERIALIZED (
                  SELECT * FROM inbox WHERE {within} AND (%(after)s::bigint IS NULL OR seq < %(after)s)
                  ORDER BY {order} LIMIT %(limit)s
                ) {_DETAIL}""",
            values,
        )
        if len(rows) > limit:
            position = rows[limit - 1].seq
        return [self._event(row, of_deleted=of_deleted) for row in rows[:limit]], position

    async def _walk(
        self,
        within: LiteralString,
        order: LiteralString,
        conditions: LiteralString,
        values: Mapping[str, Any],
        state: str | None,
    ) -> tuple[list[UUID], int | None, bool]:
        """Look for events from the newest on; return their ids, the position to go on, and whether these are the page.

        They are not when the newest events hold too few of them and `_LISTED` has all of their state.
        """
        chosen: list[UUID] = []
        walked, size, position = 0, FIRST_WALK, values["after"]
        while True:
            walk = await self._db.fetch_row(
                _Walk,
                f"""WITH walked AS MATERIALIZED (
                      SELECT id, seq, state, open, received_at FROM inbox
                      WHERE {within} AND seq < %(after)s ORDER BY {order} LIMIT %(size)s
                    )
                    SELECT count(*) AS events, min(seq) AS last, max(received_at) AS newest,
                           ARRAY(SELECT id FROM walked AS inbox WHERE {conditions}
                                 ORDER BY seq DESC LIMIT %(missing)s) AS ids
                    FROM walked""",
                {
                    **values,
                    "after": NEWEST if position is None else position,
                    "size": size,
                    "missing": values["limit"] - len(chosen),
                },
            )
            assert walk is not None
            chosen += walk.ids
            if len(chosen) == values["limit"] or walk.events < size:
                return chosen, None, True
            since = values["since"]
            if since is not None and walk.newest and walk.newest < since - CLOCK_MARGIN:
                return chosen, None, True
            if state in _LISTED:
                return [], None, False
            walked, size, position = walked + walk.events, NEXT_WALK, walk.last
            if walked >= MOST_WALKED:
                return chosen, position, True

    async def show(self, id: UUID, *, of_deleted: bool = False) -> dict[str, Any]:
        """Return one event, the title of a deleted document only with `of_deleted`. Raises `NotFound`."""
        events, _ = await self.find(ids=[id], limit=1, of_deleted=of_deleted)
        if not events:
            raise NotFound("no such event", remedy="check the id; GET /v1/events lists events")
        return events[0]

    async def states(self, ids: Sequence[UUID]) -> dict[UUID, str]:
        """Return the state of each event by its id. Unknown ids are left out."""
        rows = await self._db.fetch(
            "SELECT id, CASE WHEN state = 'prepared' AND "
            + _STAGING
            + " THEN 'staged' ELSE state END AS state FROM inbox WHERE id = ANY(%s)",
            (list(ids),),
        )
        return {row["id"]: row["state"] for row in rows}

    async def shown(self, ids: Sequence[UUID]) -> dict[UUID, dict[str, Any]]:
        """Return events by id, for the receipt of a request."""
        events, _ = await self.find(ids=ids, limit=max(1, len(ids)))
        return {event["id"]: event for event in events}

    async def resolve(self, text: str, key_prefixes: Mapping[str, Sequence[str]]) -> ResolvedIds:
        """Return the event and the document that an id names.

        It may be the id of an event or a document, its first 8 or more characters, a source's own id of an event, or
        a document's key, with or without its source's prefix (`key_prefixes`). A document's event is that of its newest version; an event's document is the one it changes.
        Raises `NotFound` if nothing has this id, and `Rejected` if several things do.
        """
        low, high = uuid_range(text)
        derived_events = [event_uuid(source, text) for source in key_prefixes]
        derived_documents: list[UUID] = []
        for source, prefixes in key_prefixes.items():
            keys = [text, *(f"{prefix}{text}" for prefix in prefixes)]
            derived_documents += [document_uuid(source, key) for key in keys]
        rows = await self._db.fetch_rows(
            _IdMatch,
            """SELECT id AS event, doc_id AS document, 1 AS rank FROM inbox WHERE id = ANY(%(events)s)
               UNION (SELECT id, doc_id, 1 FROM inbox WHERE id BETWEEN %(low)s AND %(high)s LIMIT 3)
               UNION
               SELECT event.id, known.doc_id, 2 FROM (
                 (SELECT DISTINCT doc_id FROM inbox WHERE doc_id = ANY(%(documents)s))
                 UNION (SELECT DISTINCT doc_id FROM inbox WHERE doc_id BETWEEN %(low)s AND %(high)s LIMIT 3)
               ) known
               CROSS JOIN LATERAL (
                 SELECT id FROM inbox WHERE doc_id = known.doc_id ORDER BY version DESC, event_id DESC LIMIT 1
               ) event
               ORDER BY rank""",
            {"events": derived_events, "documents": derived_documents, "low": low, "high": high},
        )
        if not rows:
            raise NotFound(
                f"{text[:80]}: no event and no document has this id",
                remedy="check the id; GET /v1/events lists events, GET /v1/documents lists documents",
            )
        if len({row.document for row in rows}) > 1:
            raise Rejected(
                f"{text[:80]}: several events or documents have this id",
                remedy="send more of it, or all of it",
            )
        return ResolvedIds(event=rows[0].event, document=rows[0].document)

    async def newest_of_keys(self, source: str, keys: Sequence[str]) -> list[dict[str, Any]]:
        """Return the newest event of each document of a source, by the documents' keys. Unknown keys are left out."""
        rows = await self._db.fetch_rows(
            _NewestEvent,
            """SELECT event.* FROM unnest(%s::uuid[]) AS wanted
               CROSS JOIN LATERAL (
                 SELECT id, event_id, doc_id, doc_key, version, state, content_type FROM inbox WHERE doc_id = wanted
                 ORDER BY version DESC, event_id DESC LIMIT 1
               ) event""",
            ([document_uuid(source, key) for key in dict.fromkeys(keys)],),
        )
        return [
            {
                "key": row.doc_key,
                "document": row.doc_id,
                "event": row.id,
                "event_id": row.event_id,
                "version": row.version,
                "state": row.state,
                "deletion": row.content_type == TOMBSTONE,
            }
            for row in rows
        ]

    async def newest(self, document: UUID) -> KnownVersion:
        """Return the newest version of a document, or of an unfinished event about it, whichever is newer.

        Raises `NotFound` if there is neither, or if the newest is a deletion.
        """
        rows = await self._db.fetch_rows(
            KnownVersion,
            """SELECT * FROM (
                 SELECT source, doc_key, version, event_id, deleted FROM documents WHERE doc_id = %(id)s
                 UNION ALL
                 SELECT source, doc_key, version, event_id, content_type = %(tombstone)s FROM inbox
                 WHERE doc_id = %(id)s AND state IN ('received', 'prepared', 'parked')
               ) AS known ORDER BY version DESC, event_id COLLATE "C" DESC LIMIT 1""",
            {"id": document, "tombstone": TOMBSTONE},
        )
        if not rows or rows[0].deleted:
            raise NotFound(
                "no such document, or it is deleted already",
                remedy="GET /v1/documents lists documents",
            )
        return rows[0]

    def _event(self, row: _EventRow, *, of_deleted: bool) -> dict[str, Any]:
        state = row.state
        if state == "prepared" and row.stage_state == "staging":
            state = "staged"
        owned = row.open and row.batch is not None
        return {
            "id": row.id,
            "source": row.source,
            "event_id": row.event_id,
            "document_id": row.doc_id,
            "document_key": row.doc_key,
            "priority": row.priority,
            "version": row.version,
            "content_type": row.content_type,
            "kind": row.kind,
            "title": None if row.document_deleted and not of_deleted else row.title,
            "deletion": bool(row.deleted) or row.content_type == TOMBSTONE,
            "payload_bytes": row.payload_bytes,
            "state": state,
            "occurred_at": row.occurred_at,
            "received_at": row.received_at,
            "prepared_at": row.prepared_at,
            "staged_at": row.staged_at,
            "ended_at": row.ended_at,
            "owner": row.batch if owned else None,
            "deadline": None if row.state in FINAL else row.next_at,
            "attempts": row.attempts,
            "last_error": row.last_error,
            "park_store": row.park_store if row.state == "parked" else None,
            "dead_letter": row.dead_letter_id,
            "remedy": row.remedy if row.state == "dead" else None,
            "degraded": row.degraded or {},
            "stores": _stores(row),
            "path": row.path,
            "build": row.build,
            "workflow_id": row.workflow_id,
            "run_id": row.run_id,
            "workflow_url": self.workflow_url(row.workflow_id, row.run_id),
            "trace_id": trace_id_of(row.trace_parent),
            "trace_url": self.trace_url(trace_id_of(row.trace_parent)),
        }

    def trace_url(self, trace_id: str | None) -> str | None:
        """Return the URL of a trace in the trace viewer; None without a viewer or a trace that is recorded."""
        if not trace_id or not self._trace_url:
            return None
        return self._trace_url.replace("{trace_id}", trace_id)

    def workflow_url(self, workflow_id: str | None, run_id: str | None) -> str | None:
        """Return the URL of the run's history in the Temporal UI; None without a UI or a workflow."""
        if not workflow_id or not self._ui:
            return None
        url = f"{self._ui}/namespaces/{quote(self._namespace, safe='')}/workflows/{quote(workflow_id, safe='')}"
        return f"{url}/{quote(run_id, safe='')}/history" if run_id else url


def _stores(row: _EventRow) -> dict[str, dict[str, Any]]:
    """Return what each store holds of the event. The cache is filled when the document is read, and decides nothing."""
    held = {
        None: "none",
        "staging": "writing",
        "committed": "held",
        "superseded": "superseded",
        "reaping": "superseded",
    }.get(row.stage_state, "removed")
    return {
        "documents": {"state": held, "at": row.committed_at},
        "graph": {"state": held, "at": row.graph_at},
        "vectors": {"state": held, "at": row.vectors_at},
        "cache": {"state": "on_read", "at": None},
    }
