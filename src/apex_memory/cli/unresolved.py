"""`apex links`: what is named somewhere and recorded nowhere yet."""

from __future__ import annotations

from typing import Annotated

import typer

from apex_memory.cli.client import gateway
from apex_memory.cli.output import ago, show_json, show_table


def links(
    json: Annotated[bool, typer.Option("--json", help="Machine output.")] = False,
) -> None:
    """List links that wait: shipments and invoices that documents name and no source has recorded yet.

    Example: apex links
    """
    with gateway() as api:
        found = api.call("GET", "/v1/links")
    if json:
        show_json(found)
        return
    show_table(
        "Waiting links",
        ("waits for", "named by", "documents", "for example", "since"),
        [
            (
                one["ref"],
                ", ".join(one["sources"]),
                one["documents"],
                one["examples"][0]["title"],
                ago(one["since"]),
            )
            for one in found["links"]
        ],
        empty="None: whatever is named is recorded.",
    )
