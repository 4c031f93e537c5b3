"""Families: deleting a document deletes those that name it as parent, and restoring it restores them.

Both are ordinary events, landed inside the commit that decides them, so they end, retry and show like any
other. A family lock per parent closes the gap in which a child could commit unseen.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from apex_memory.inbox import landing
from apex_memory.model import TOMBSTONE, Event, Manifest, Priority, SealedPayload
from apex_memory.saga.stage import Stage
from apex_memory.stores.postgres import Connection, fetch_rows


@dataclass(frozen=True, slots=True)
class _ChildDocument:
    """A child document, and the payload that its next version gets."""

    doc_id: UUID
    parent_id: UUID
    source: str
    doc_key: str
    priority: int
    occurred_at: datetime
    content_type: str
    body: bytes
    object: str | None
    data_key: UUID | None


async def lock_families(connection: Connection, manifests: Sequence[Manifest]) -> None:
    """Take the locks of a commit, in key order: each document's own family exclusively, its parent's shared."""
    keys = {manifest.parent_id: False for manifest in manifests if manifest.parent_id}
    keys |= {manifest.doc_id: True for manifest in manifests}
    await _lock(connection, keys)


async def lock_parents(connection: Connection, batch: UUID) -> None:
    """Take the locks of a begin: the families of the parents, shared, so that it waits for a restore in flight."""
    cursor = await connection.execute(
        """SELECT DISTINCT m.parent_id FROM inbox i JOIN manifests m ON m.inbox_id = i.id
           WHERE i.open AND i.batch = %s AND m.parent_id IS NOT NULL""",
        (batch,),
    )
    await _lock(connection, {row["parent_id"]: False for row in await cursor.fetchall()})


async def _lock(connection: Connection, keys: Mapping[UUID, bool]) -> None:
    """Take advisory locks until the transaction ends; True is exclusive, False shared."""
    if not keys:
        return
    await connection.execute(
        """SELECT CASE WHEN exclusive THEN pg_advisory_xact_lock(key) ELSE pg_advisory_xact_lock_shared(key) END
           FROM (SELECT hashtextextended(id::text, 0) AS key, exclusive
                 FROM unnest(%s::uuid[], %s::boolean[]) AS t (id, exclusive)
                 ORDER BY 1 OFFSET 0) AS sorted""",
        (list(keys), list(keys.values())),
    )


async def delete_children(connection: Connection, deleted: Sequence[Stage]) -> int:
    """Land a tombstone for every live child of the deleted documents; return their number."""
    if not deleted:
        return 0
    children = await fetch_rows(
        connection,
        _ChildDocument,
        """SELECT d.doc_id, d.parent_id, d.source, d.doc_key, i.priority, d.occurred_at,
                  %s AS content_type, ''::bytea AS body, NULL::text AS object, NULL::uuid AS data_key
           FROM documents d JOIN manifests m ON m.id = d.manifest_id JOIN inbox i ON i.id = m.inbox_id
           WHERE d.parent_id = ANY(%s) AND NOT d.deleted""",
        (TOMBSTONE, [stage.manifest.doc_id for stage in deleted]),
    )
    return await _land(connection, children, deleted)


async def restore_children(connection: Connection, restored: Sequence[Stage]) -> int:
    """Land the last version again of every child that was deleted with its parent, or never committed; return their number.

    Children are looked up by manifest: one that arrived while the parent was deleted has no document yet.
    """
    if not restored:
        return 0
    children = await fetch_rows(
        connection,
        _ChildDocument,
        """SELECT c.doc_id, c.parent_id, last.* FROM
             (SELECT DISTINCT doc_id, parent_id FROM manifests WHERE parent_id = ANY(%s)) c
           CROSS JOIN LATERAL (
             SELECT i.source, i.doc_key, i.priority, i.occurred_at, i.content_type, p.body, r.object, p.data_key
             FROM inbox i JOIN payloads p ON p.inbox_id = i.id LEFT JOIN payload_references r ON r.inbox_id = i.id
             WHERE i.doc_id = c.doc_id AND i.content_type <> %s AND i.state <> 'dead'
             ORDER BY i.version DESC, i.event_id DESC LIMIT 1) last
           LEFT JOIN documents d ON d.doc_id = c.doc_id
           WHERE d.doc_id IS NULL OR NOT d.deleted OR d.event_id LIKE '%%#' || d.doc_id""",
        ([stage.manifest.doc_id for stage in restored], TOMBSTONE),
    )
    return await _land(connection, children, restored)


async def _land(
    connection: Connection, children: Sequence[_ChildDocument], parents: Sequence[Stage]
) -> int:
    """Land the children's events; return their number. Their version is the parent's, their id says whose change it is."""
    by_id = {stage.manifest.doc_id: stage for stage in parents}
    events = []
    for child in children:
        parent = by_id[child.parent_id]
        events.append(
            Event(
                source=child.source,
                event_id=f"{parent.event_id}#{child.doc_id}",
                doc_key=child.doc_key,
                version=parent.version,
                occurred_at=child.occurred_at,
                payload=child.body,
                payload_object=child.object,
                sealed=SealedPayload(child.data_key, child.body) if child.data_key else None,
                content_type=child.content_type,
                priority=Priority(child.priority),
            )
        )
    await landing.land(connection, events)
    return len(events)
