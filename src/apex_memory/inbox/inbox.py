"""The inbox for callers that have no transaction of their own: one call, one commit."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from datetime import datetime
from uuid import UUID

from apex_memory.errors import ApexError, Conflict
from apex_memory.inbox import landing, leases, notices, queries, reused_ids, transitions
from apex_memory.inbox.leases import Claim, WorkflowRun
from apex_memory.inbox.payload_store import PayloadStore
from apex_memory.inbox.queries import BacklogRow
from apex_memory.inbox.reused_ids import MakeDocument
from apex_memory.inbox.routing import Consumer
from apex_memory.model import Event, LandResult
from apex_memory.stores.postgres import Connection, Postgres
from apex_memory.telemetry import logger, traces
from apex_memory.telemetry.traces import TracedEvent

MOST_TRACED = 500  # events of a batch that get spans; no batch has more


class Inbox:
    """Landing, leases and queries over the pool. Every method raises `Unavailable` without PostgreSQL."""

    def __init__(self, db: Postgres, payloads: PayloadStore | None = None) -> None:
        """`payloads` opens sealed payloads, for comparisons."""
        self._db = db
        self._payloads = payloads or PayloadStore(db)
        self._log = logger(component="inbox")

    async def land(self, events: Sequence[Event]) -> list[LandResult]:
        """Commit events; see `landing.land`. Only after this returns may a source be answered 2xx."""
        async with self._db.connection() as connection:
            return await landing.land(connection, events)

    async def land_together(
        self, events: Sequence[Event], digests: Mapping[str, bytes]
    ) -> list[LandResult]:
        """Commit the events of one request, all of them or none; see `landing.land`. All are of one source.

        `digests` are the SHA-256 of their payloads by event id. Raises `Conflict`, and lands nothing, unless all events are
        new, or all exist already with these payloads.
        """
        async with self._db.transaction() as connection:
            results = await landing.land(connection, events)
            duplicates = [result for result in results if result.duplicate]
            if not duplicates:
                return results
            # The rows of a request that was first are committed: the statement above waited for them.
            same = await self._same_payloads(connection, events[0].source, digests)
            if len(duplicates) < len(results) or not all(same.values()):
                raise Conflict("other events have landed under the ids of these")
        return results

    async def claim(
        self,
        source: str,
        *,
        batch: UUID,
        limit: int,
        lease: float,
        consumer: Consumer,
        run: WorkflowRun | None = None,
    ) -> Claim:
        """Lease ready events to a batch and return what it got; see `leases.claim`."""
        async with self._db.connection() as connection:
            return await leases.claim(
                connection,
                source,
                batch=batch,
                limit=limit,
                lease=lease,
                consumer=consumer,
                run=run,
            )

    async def traced(self, batch: UUID) -> list[TracedEvent]:
        """Return those of a batch's events whose trace is recorded; none while this process exports no traces."""
        if not traces.enabled():
            return []
        async with self._db.connection() as connection:
            return await queries.traced(connection, batch, limit=MOST_TRACED)

    async def claim_events(
        self, ids: Sequence[UUID], *, batch: UUID, lease: float, consumer: Consumer
    ) -> list[UUID]:
        """Lease these events to a batch, where nobody has them; return those it got; see `leases.claim_events`."""
        async with self._db.connection() as connection:
            return await leases.claim_events(
                connection, ids, batch=batch, lease=lease, consumer=consumer
            )

    async def renew(self, *batches: UUID, lease: float) -> None:
        """Extend the leases of batches; see `leases.renew`."""
        async with self._db.connection() as connection:
            await leases.renew(connection, batches, lease=lease)

    async def release(self, batch: UUID, ids: Sequence[UUID], *, seconds: float) -> None:
        """Return events of a batch to the queue; see `leases.release`."""
        async with self._db.connection() as connection:
            await leases.release(connection, batch, ids, seconds=seconds)

    def keeping(self, *batches: UUID, lease: float) -> AbstractAsyncContextManager[None]:
        """Renew the leases of batches inside the block; see `leases.keeping`."""
        return leases.keeping(self._db, batches, lease=lease)

    async def unprepared(self, batch: UUID) -> dict[UUID, int]:
        """Return the events of a batch that have no manifest yet, with their `starts`."""
        async with self._db.connection() as connection:
            return await queries.unprepared(connection, batch)

    async def start(self, batch: UUID, ids: Sequence[UUID]) -> list[Event]:
        """Count that a step begins on events of a batch; return those that the batch still owns, with payloads."""
        async with self._db.connection() as connection:
            await transitions.start(connection, batch, ids)
            return await queries.events(connection, batch, ids)

    async def owned(self, batch: UUID) -> list[UUID]:
        """Return the ids of the open events that a batch owns."""
        async with self._db.connection() as connection:
            return await queries.owned(connection, batch)

    async def event(self, id: UUID) -> Event:
        """Return one raw event as it landed. Raises `NotFound` if there is no payload."""
        async with self._db.connection() as connection:
            return await queries.event(connection, id)

    async def with_own_ids(
        self,
        source: str,
        events: Sequence[Event],
        results: Sequence[LandResult],
        document: MakeDocument,
    ) -> dict[int, Event]:
        """Return the duplicates that have other content, under ids of their own; see `reused_ids.with_own_ids`."""
        async with self._db.connection() as connection:
            return await reused_ids.with_own_ids(
                connection, source, events, results, document, self._payloads
            )

    async def same_payloads(self, source: str, digests: Mapping[str, bytes]) -> dict[str, bool]:
        """Return whether the payload of each of the events that exist has this SHA-256, by event id.

        False where retention removed it. Raises `Misconfigured` for a sealed payload whose key is not configured.
        """
        async with self._db.connection() as connection:
            return await self._same_payloads(connection, source, digests)

    async def _same_payloads(
        self, connection: Connection, source: str, digests: Mapping[str, bytes]
    ) -> dict[str, bool]:
        known = await queries.payload_digests(connection, source, list(digests))
        sealed = [item for item in known.values() if isinstance(item, Event) and item.sealed]
        opened = await self._payloads.opened(connection, sealed)
        for event in opened:
            if isinstance(event, ApexError):
                raise event
            known[event.event_id] = hashlib.sha256(event.payload).digest()
        same: dict[str, bool] = {}
        for id, item in known.items():
            if isinstance(item, Event):
                assert item.payload_object is not None
                same[id] = self._payloads.holds(item.payload_object, digests[id])
            else:
                same[id] = item == digests[id]
        return same

    async def ready(self) -> dict[str, int]:
        """Return the number of events by source that can be claimed now."""
        async with self._db.connection() as connection:
            return await queries.ready(connection)

    async def shares(self) -> dict[str, int]:
        """Return the share of each source that is rolled out; see `queries.shares`."""
        async with self._db.connection() as connection:
            return await queries.shares(connection)

    async def fallback_since(self) -> datetime | None:
        """Return since when the fallback is in force; see `queries.fallback_since`."""
        async with self._db.connection() as connection:
            return await queries.fallback_since(connection)

    async def ready_for_direct(self, sources: Sequence[str], *, everything: bool) -> list[str]:
        """Return those of the sources that the direct path has work for; see `queries.ready_for_direct`."""
        async with self._db.connection() as connection:
            return await queries.ready_for_direct(connection, sources, everything=everything)

    async def notify(self, sources: Sequence[str]) -> None:
        """Send the direct path a notice that events of these sources are ready; see `notices`."""
        async with self._db.connection() as connection:
            await notices.notify(connection, sources)

    async def stalled(self, *, seconds: float) -> dict[str, float]:
        """Return the sources whose ready events nobody works on for over `seconds`, with how long (s)."""
        async with self._db.connection() as connection:
            return await queries.stalled(connection, seconds=seconds)

    async def finished(self, ids: Sequence[UUID]) -> set[UUID]:
        """Return those of the events that are final or parked."""
        async with self._db.connection() as connection:
            return await queries.finished(connection, ids)

    async def backlog(self) -> list[BacklogRow]:
        """Return the events that are not final, by source, state and the store they wait for."""
        async with self._db.connection() as connection:
            return await queries.backlog(connection)
