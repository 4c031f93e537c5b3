"""Unresolved references: entities that documents name although no source has sent the entity's own record yet.

Nothing is stored for them. A reference is unresolved as long as no live document is `about` its entity; the commit of
such a document resolves it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from apex_memory.stores.postgres import Postgres

RECORDED = ("shipment", "invoice")
"""Types of entities whose record a source is expected to send. People and places have none."""


@dataclass(frozen=True, slots=True)
class UnresolvedReference:
    """An entity without its record: the documents that name it, and since when they do."""

    ref: str
    documents: int
    sources: Sequence[str]
    examples: Sequence[dict[str, Any]]
    """The first three documents: `{"document_id", "source", "key", "title"}`."""
    since: datetime


async def unresolved_references(
    db: Postgres,
    *,
    types: Sequence[str] = RECORDED,
    after: tuple[datetime, str] | None = None,
    limit: int = 50,
) -> list[UnresolvedReference]:
    """Return the references that wait longest first.

    `after` is the `since` and the `ref` of the last one of the previous page.
    """
    since, ref = after or (None, None)
    return await db.fetch_rows(
        UnresolvedReference,
        """SELECT ref, count(*) AS documents, array_agg(DISTINCT source ORDER BY source) AS sources,
                  min(committed_at) AS since,
                  (array_agg(jsonb_build_object('document_id', doc_id, 'source', source, 'key', doc_key, 'title', title)
                             ORDER BY committed_at))[:3] AS examples
           FROM documents, unnest(entities) AS ref
           WHERE NOT deleted AND split_part(ref, ':', 1) = ANY(%(types)s)
             AND NOT EXISTS (SELECT FROM documents record WHERE record.about = ref AND NOT record.deleted)
           GROUP BY ref
           HAVING %(since)s::timestamptz IS NULL OR (min(committed_at), ref) > (%(since)s, %(ref)s::text)
           ORDER BY since, ref LIMIT %(limit)s""",
        {"types": list(types), "since": since, "ref": ref, "limit": limit},
    )
