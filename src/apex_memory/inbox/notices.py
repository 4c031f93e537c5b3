"""Notices that events are ready for the direct path: PostgreSQL's LISTEN and NOTIFY.

A notice only saves time: whoever listens also polls, so one that is lost does no harm.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence

import psycopg

from apex_memory.stores.postgres import Connection, translated

CHANNEL = "apex_ready"


async def notify(connection: Connection, sources: Sequence[str]) -> None:
    """Send a notice for each of the sources, by one statement."""
    await connection.execute(
        "SELECT pg_notify(%s, source) FROM unnest(%s::text[]) AS t (source)",
        (CHANNEL, list(sources)),
    )


async def listen(url: str) -> AsyncGenerator[str]:
    """Yield the source of each notice, over a connection of its own. Raises `Unavailable` when that breaks.

    A pooler in transaction mode delivers no notices.
    """
    async with (
        translated(),
        await psycopg.AsyncConnection.connect(
            url, autocommit=True, connect_timeout=5, application_name="apex-listen"
        ) as connection,
    ):
        await connection.execute(f"LISTEN {CHANNEL}")
        async for notice in connection.notifies():
            yield notice.payload
