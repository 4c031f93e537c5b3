"""Leases: one process at a time does something that takes longer than a transaction may, such as a call to a vendor."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from uuid import UUID, uuid4

from apex_memory.errors import ApexError
from apex_memory.stores.postgres import Postgres
from apex_memory.telemetry import logger

LEASE_SECONDS = 30.0  # how long others wait after the holder died
POLL_SECONDS = 0.1


@asynccontextmanager
async def leased(db: Postgres, name: str, *, seconds: float = LEASE_SECONDS) -> AsyncIterator[None]:
    """Hold the lease `name` inside the block, over all processes. Waits while another holds it.

    No transaction is open meanwhile. The holder renews the lease every third of `seconds`. A holder that is
    cut off from PostgreSQL for longer may lose it without notice, so what the block stores must be compared
    with what it read. Raises `Unavailable` without PostgreSQL.
    """
    owner = uuid4()
    while not await acquire(db, name, owner, seconds):  # noqa: ASYNC110 -- another process holds it
        await asyncio.sleep(POLL_SECONDS)
    renewing = asyncio.create_task(_renew(db, name, owner, seconds))
    try:
        yield
    finally:
        renewing.cancel()
        await release(db, name, owner)


@asynccontextmanager
async def leased_if_free(
    db: Postgres, name: str, *, seconds: float = LEASE_SECONDS
) -> AsyncIterator[bool]:
    """Hold the lease `name` inside the block as `leased` does, or yield False at once while another holds it."""
    owner = uuid4()
    if not await acquire(db, name, owner, seconds):
        yield False
        return
    renewing = asyncio.create_task(_renew(db, name, owner, seconds))
    try:
        yield True
    finally:
        renewing.cancel()
        await release(db, name, owner)


async def acquire(
    db: Postgres, name: str, owner: UUID, seconds: float, *, longest: float | None = None
) -> bool:
    """Take or renew the lease for so many seconds if it is free, ran out, or is the owner's already. Return whether it is held.

    `longest` is the longest time for which anybody takes this lease; without it everybody takes it for `seconds`. One that
    runs out later than in twice that time was taken before the clock of PostgreSQL was set back: it is free.
    """
    return bool(
        await db.execute(
            """INSERT INTO leases (name, owner, until) VALUES (%s, %s, clock_timestamp() + make_interval(secs => %s))
               ON CONFLICT (name) DO UPDATE SET owner = excluded.owner, until = excluded.until
               WHERE leases.until NOT BETWEEN clock_timestamp() AND clock_timestamp() + make_interval(secs => %s)
                  OR leases.owner = excluded.owner""",
            (name, owner, seconds, 2 * (longest or seconds)),
        )
    )


async def release(db: Postgres, name: str, owner: UUID) -> None:
    """Return the lease if this owner holds it. Without PostgreSQL it runs out instead."""
    try:
        await db.execute("DELETE FROM leases WHERE name = %s AND owner = %s", (name, owner))
    except ApexError as error:
        logger(component="lease").warning(
            "lease not returned; it runs out", lease=name, reason=str(error)
        )


async def _renew(db: Postgres, name: str, owner: UUID, seconds: float) -> None:
    while True:
        await asyncio.sleep(seconds / 3)
        try:
            await acquire(db, name, owner, seconds)
        except ApexError as error:
            logger(component="lease").warning("lease not renewed", lease=name, reason=str(error))
