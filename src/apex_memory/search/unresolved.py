"""Links whose other side is missing: entities that documents name and no source has sent the record of yet.

Nothing is stored for them. A link waits for as long as no live document is `about` its entity, and closes by itself
with the commit of the one that is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from apex_memory.stores.postgres import Postgres

RECORDED = ("shipment", "invoice")
"""Types of entities whose record is expected from a source. People and places have none."""


@dataclass(frozen=True, slots=True)
class WaitingLink:
    """An entity without its record: who names it (the first few documents, by source and key), and since when."""

    ref: str
    documents: int
    sources: Sequence[str]
    examples: Sequence[dict[str, Any]]
    since: datetime


async def waiting_links(
    db: Postgres, *, types: Sequence[str] = RECORDED, limit: int = 50
) -> list[WaitingLink]:
    """The longest waiting first."""
    rows = await db.fetch(
        """SELECT ref, count(*) AS documents, array_agg(DISTINCT source ORDER BY source) AS sources,
                  min(committed_at) AS since,
                  jsonb_agg(jsonb_build_object('document_id', doc_id, 'source', source, 'key', doc_key, 'title', title)
                            ORDER BY committed_at) AS examples
           FROM documents, unnest(entities) AS ref
           WHERE NOT deleted AND split_part(ref, ':', 1) = ANY(%s)
             AND NOT EXISTS (SELECT FROM documents record WHERE record.about = ref AND NOT record.deleted)
           GROUP BY ref ORDER BY since LIMIT %s""",
        (list(types), limit),
    )
    return [
        WaitingLink(row["ref"], row["documents"], row["sources"], row["examples"][:3], row["since"])
        for row in rows
    ]
