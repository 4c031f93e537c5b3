"""`apex unresolved`: entities that documents name and no source has recorded yet."""

from __future__ import annotations

from itertools import chain

from apex_memory.cli.client import gateway
from apex_memory.cli.options import Limit
from apex_memory.cli.output import Json, ago, say, say_more, show_json, show_table


def unresolved(limit: Limit = 50, json: Json = False) -> None:
    """List shipments and invoices that documents name and no source has recorded yet.

    It looks at the newest 100,000 documents, and says so where memory has more.

    Example: apex unresolved
    """
    with gateway() as api:
        pages = list(api.each_page("/v1/unresolved", "unresolved", {}, limit))
    rows = list(chain.from_iterable(page["unresolved"] for page in pages))
    partial, looked_at, following = (pages[-1][name] for name in ("partial", "looked_at", "next"))
    if json:
        show_json(
            {
                "unresolved": rows,
                "partial": partial,
                "looked_at": looked_at,
                "next": following,
            }
        )
        return
    show_table(
        "Entities without a record",
        ("entity", "named by", "documents", "for example", "since"),
        [
            (
                entity["ref"],
                ", ".join(entity["sources"]),
                entity["documents"],
                entity["examples"][0]["title"],
                ago(entity["since"]),
            )
            for entity in rows
        ],
        empty="None: every shipment and invoice that documents name has a record.",
        free=("for example", "named by"),
    )
    if partial:
        say((f"Looked at the newest {looked_at:,} documents alone.", "yellow"))
    say_more(following)
