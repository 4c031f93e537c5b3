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

LOOKED_AT = 100_000
"""Newest documents whose entities are looked at: with all of a million documents it took 5.8 s."""

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


@dataclass(frozen=True, slots=True)
class UnresolvedPage:
    """Unresolved references. With `partial`, of the newest `LOOKED_AT` documents alone, and so are their numbers and times."""

    references: list[UnresolvedReference]
    partial: bool


async def unresolved_references(
    db: Postgres,
    *,
    types: Sequence[str] = RECORDED,
    after: tuple[datetime, str] | None = None,
    limit: int = 50,
) -> UnresolvedPage:
    """Return the references that wait longest first, as the newest `LOOKED_AT` documents name them.

    `after` is the `since` and the `ref` of the last one of the previous page.
    """
    since, ref = after or (None, None)
    references = await db.fetch_rows(
        UnresolvedReference,
        # A record is looked up for each reference in turn, until the page is full: with NOT EXISTS all documents are read for it.
        # And only the page's references get their sources and examples.
        """WITH named AS NOT MATERIALIZED (
             SELECT ref, doc_id, source, doc_key, title, committed_at
             FROM (SELECT * FROM documents ORDER BY committed_at DESC LIMIT %(looked_at)s) d, unnest(entities) AS ref
             WHERE NOT deleted AND split_part(ref, ':', 1) = ANY(%(types)s)),
           waiting AS NOT MATERIALIZED (
             SELECT ref, min(committed_at) AS since FROM named GROUP BY ref
             HAVING %(since)s::timestamptz IS NULL OR (min(committed_at), ref) > (%(since)s, %(ref)s::text)
             ORDER BY since, ref),
           page AS MATERIALIZED (
             SELECT ref FROM waiting
             LEFT JOIN LATERAL (SELECT true AS found FROM documents d
                                WHERE d.about = waiting.ref AND NOT d.deleted LIMIT 1) record ON true
             WHERE record.found IS NULL ORDER BY since, ref LIMIT %(limit)s)
           SELECT ref, count(*) AS documents, array_agg(DISTINCT source ORDER BY source) AS sources, min(committed_at) AS since,
                  (array_agg(jsonb_build_object('document_id', doc_id, 'source', source, 'key', doc_key, 'title', title)
                             ORDER BY committed_at))[:3] AS examples
           FROM named JOIN page USING (ref) GROUP BY ref ORDER BY since, ref""",
        {"types": list(types), "since": since, "ref": ref, "limit": limit, "looked_at": LOOKED_AT},
    )
    older = await db.fetch_one(
        "SELECT FROM documents ORDER BY committed_at DESC OFFSET %s LIMIT 1", (LOOKED_AT,)
    )
    return UnresolvedPage(references, partial=older is not None)
