"""`apex unresolved`: entities that documents name and no source has recorded yet."""

from __future__ import annotations

from apex_memory.cli.client import gateway
from apex_memory.cli.options import Limit
from apex_memory.cli.output import Json, ago, say_more, show_json, show_table


def unresolved(limit: Limit = 50, json: Json = False) -> None:
    """List shipments and invoices that documents name and no source has recorded yet.

    Example: apex unresolved
    """
    with gateway() as api:
        rows, following = api.pages("/v1/unresolved", "unresolved", {}, limit)
    if json:
        show_json({"unresolved": rows, "next": following})
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
    say_more(following)
