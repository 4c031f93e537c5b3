"""Families: deleting a document deletes those that name it as parent, and restoring it brings them back.

Both are ordinary events, landed inside the commit that decides them, so they end, retry and show
like any other. A family lock per parent closes the gap in which a child commits unseen.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from uuid import UUID

from apex_memory.model import TOMBSTONE, Manifest, event_uuid
from apex_memory.saga.stage import Stage
from apex_memory.stores.postgres import Connection, Row


async def lock_families(connection: Connection, manifests: Sequence[Manifest]) -> None:
    """For a commit: each document's own family alone, and its parent's shared. In key order."""
    keys = {manifest.parent_id: False for manifest in manifests if manifest.parent_id}
    keys |= {manifest.doc_id: True for manifest in manifests}
    await _lock(connection, keys)


async def lock_parents(connection: Connection, batch: UUID) -> None:
    """For a begin: the parents of the batch's documents, shared, so that a restore in flight is waited for."""
    cursor = await connection.execute(
        """SELECT DISTINCT m.parent_id FROM inbox i JOIN manifests m ON m.inbox_id = i.id
           WHERE i.open AND i.batch = %s AND m.parent_id IS NOT NULL""",
        (batch,),
    )
    await _lock(connection, {row["parent_id"]: False for row in await cursor.fetchall()})


async def _lock(connection: Connection, keys: Mapping[UUID, bool]) -> None:
    """Advisory locks until the transaction ends; True takes a key alone, False shares it."""
    if keys:
        await connection.execute(
            """SELECT CASE WHEN alone THEN pg_advisory_xact_lock(key) ELSE pg_advisory_xact_lock_shared(key) END
               FROM (SELECT hashtextextended(id::text, 0) AS key, alone FROM unnest(%s::uuid[], %s::boolean[]) AS t (id, alone)
                     ORDER BY 1 OFFSET 0) AS sorted""",
            (list(keys), list(keys.values())),
        )


async def delete_children(connection: Connection, deleted: Sequence[Stage]) -> int:
    """Land a tombstone for every live child of the deleted documents; answers how many."""
    if not deleted:
        return 0
    cursor = await connection.execute(
        """SELECT d.doc_id, d.parent_id, d.source, d.doc_key, d.occurred_at, i.priority
           FROM documents d JOIN manifests m ON m.id = d.manifest_id JOIN inbox i ON i.id = m.inbox_id
           WHERE d.parent_id = ANY(%s) AND NOT d.deleted""",
        ([stage.manifest.doc_id for stage in deleted],),
    )
    rows = [{**row, "content_type": TOMBSTONE, "body": b""} for row in await cursor.fetchall()]
    return await _land(connection, rows, deleted)


async def restore_children(connection: Connection, restored: Sequence[Stage]) -> int:
    """Land again the last version of every child that went with its parent, or never came; answers how many.

    Children are found by manifest: one that arrived while the parent was deleted has no document yet.
    """
    if not restored:
        return 0
    cursor = await connection.execute(
        """SELECT c.doc_id, c.parent_id, last.* FROM
             (SELECT DISTINCT doc_id, parent_id FROM manifests WHERE parent_id = ANY(%s)) c
           CROSS JOIN LATERAL (
             SELECT i.source, i.doc_key, i.priority, i.occurred_at, i.content_type, p.body
             FROM inbox i JOIN payloads p ON p.inbox_id = i.id
             WHERE i.doc_id = c.doc_id AND i.content_type <> %s AND i.state <> 'dead'
             ORDER BY i.version DESC, i.event_id DESC LIMIT 1) last
           LEFT JOIN documents d ON d.doc_id = c.doc_id
           WHERE d.doc_id IS NULL OR NOT d.deleted OR d.event_id LIKE '%%#' || d.doc_id""",
        ([stage.manifest.doc_id for stage in restored], TOMBSTONE),
    )
    return await _land(connection, await cursor.fetchall(), restored)


async def _land(connection: Connection, rows: Sequence[Row], parents: Sequence[Stage]) -> int:
    by_id = {stage.manifest.doc_id: stage for stage in parents}
    for row in rows:
        parent = by_id[row["parent_id"]]
        event_id = f"{parent.event_id}#{row['doc_id']}"
        await connection.execute(
            """WITH landed AS (
                 INSERT INTO inbox (id, source, event_id, doc_id, doc_key, priority, version, occurred_at, content_type)
                 VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s) ON CONFLICT DO NOTHING RETURNING id)
               INSERT INTO payloads (inbox_id, body) SELECT id, %s FROM landed""",
            (
                event_uuid(row["source"], event_id),
                row["source"],
                event_id,
                row["doc_id"],
                row["doc_key"],
                row["priority"],
                parent.version,
                row["occurred_at"],
                row["content_type"],
                row["body"],
            ),
        )
    return len(rows)
