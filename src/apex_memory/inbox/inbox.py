"""The inbox for callers that have no transaction of their own: one call, one commit."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from uuid import UUID

from apex_memory.errors import ApexError
from apex_memory.inbox import landing, leases, queries, transitions
from apex_memory.inbox.leases import Claim, Run
from apex_memory.inbox.queries import BacklogRow
from apex_memory.model import Event, LandResult
from apex_memory.stores.postgres import Postgres
from apex_memory.telemetry import logger


class Inbox:
    """Landing, leases and queries over the pool. Every method raises `Unavailable` without PostgreSQL."""

    def __init__(self, db: Postgres) -> None:
        self._db = db
        self._log = logger(component="inbox")

    async def land(self, events: Sequence[Event]) -> list[LandResult]:
        """Commit events; see `landing.land`. Only after this returns may a source be answered 2xx."""
        async with self._db.connection() as connection:
            return await landing.land(connection, events)

    async def claim(
        self, source: str, *, batch: UUID, limit: int, lease: float, run: Run | None = None
    ) -> Claim:
        """Lease ready events to a batch; see `leases.claim`."""
        async with self._db.connection() as connection:
            return await leases.claim(
                connection, source, batch=batch, limit=limit, lease=lease, run=run
            )

    async def renew(self, *batches: UUID, lease: float) -> None:
        """Extend the leases of batches; see `leases.renew`."""
        async with self._db.connection() as connection:
            await leases.renew(connection, batches, lease=lease)

    async def release(self, batch: UUID, ids: Sequence[UUID], *, seconds: float) -> None:
        """Return events of a batch to the queue; see `leases.release`."""
        async with self._db.connection() as connection:
            await leases.release(connection, batch, ids, seconds=seconds)

    @asynccontextmanager
    async def keeping(self, *batches: UUID, lease: float) -> AsyncIterator[None]:
        """Renew the leases of batches every third of `lease` seconds inside the block, however long it takes."""
        task = asyncio.create_task(self._keep(batches, lease))
        try:
            yield
        finally:
            task.cancel()

    async def _keep(self, batches: Sequence[UUID], lease: float) -> None:
        while True:
            await asyncio.sleep(lease / 3)
            try:
                await self.renew(*batches, lease=lease)
            except ApexError as error:
                self._log.warning("lease not renewed", batch=str(batches[0]), reason=str(error))

    async def unprepared(self, batch: UUID) -> dict[UUID, int]:
        """The events of a batch that have no manifest yet, with their `starts`."""
        async with self._db.connection() as connection:
            return await queries.unprepared(connection, batch)

    async def start(self, batch: UUID, ids: Sequence[UUID]) -> list[Event]:
        """Count that a step begins on events of a batch; return those that the batch still owns, with payloads."""
        async with self._db.connection() as connection:
            await transitions.start(connection, batch, ids)
            return await queries.events(connection, batch, ids)

    async def owned(self, batch: UUID) -> list[UUID]:
        """Ids of the open events that a batch owns."""
        async with self._db.connection() as connection:
            return await queries.owned(connection, batch)

    async def event(self, id: UUID) -> Event:
        """One raw event as it landed; `NotFound` if there is no payload."""
        async with self._db.connection() as connection:
            return await queries.event(connection, id)

    async def kept_events(self, source: str, event_ids: Sequence[str]) -> dict[str, Event]:
        """Return events as they landed, by event id; see `queries.kept_events`."""
        async with self._db.connection() as connection:
            return await queries.kept_events(connection, source, event_ids)

    async def payload_digests(
        self, source: str, event_ids: Sequence[str]
    ) -> dict[str, bytes | None]:
        """The SHA-256 of the payloads of events that exist; see `queries.payload_digests`."""
        async with self._db.connection() as connection:
            return await queries.payload_digests(connection, source, event_ids)

    async def ready(self) -> dict[str, int]:
        """Number of events by source that can be claimed now."""
        async with self._db.connection() as connection:
            return await queries.ready(connection)

    async def stalled(self, *, seconds: float) -> dict[str, float]:
        """Sources whose ready events nobody works on for over `seconds`, with how long (s)."""
        async with self._db.connection() as connection:
            return await queries.stalled(connection, seconds=seconds)

    async def finished(self, ids: Sequence[UUID]) -> set[UUID]:
        """Those of the events that are final or parked."""
        async with self._db.connection() as connection:
            return await queries.finished(connection, ids)

    async def backlog(self) -> list[BacklogRow]:
        """Events that are not final, by source, state and the store they wait for."""
        async with self._db.connection() as connection:
            return await queries.backlog(connection)
