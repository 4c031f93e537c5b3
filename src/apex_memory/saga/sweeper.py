"""The sweeper: repairs what crashes and outages leave behind. Runs every few seconds; every step is safe to repeat.

It marks an expired stage aborted by compare-and-set before it removes the stage from the stores, so that the
commit of a worker that wakes late is refused.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from time import monotonic
from uuid import UUID

import msgpack

from apex_memory.errors import RetryLater, Unavailable
from apex_memory.inbox import queries, transitions
from apex_memory.inbox.transitions import LONGEST_WAIT_SECONDS
from apex_memory.saga.retries import ResilientStore
from apex_memory.stores.base import GraphStore, Store, VectorStore
from apex_memory.stores.postgres import Postgres
from apex_memory.telemetry import STAGES_SWEPT, logger

SWEEP_MAX = 500  # stages removed in one pass
# Between two looks for deadlines far ahead, which read every open event: 0.5 s for 300,000. A clock is seldom set back, and the
# events have waited since. An index over `next_at` would make it quick, and cost every claim and every renewal of a lease.
DEADLINES_SECONDS = 60.0
MANIFESTS_READ = 50  # of stages that are removed, at once
REFS_AT_ONCE = 500  # entities that one statement of the graph looks at
# Events unparked by the first pass: one probe. Each further pass unparks ten times more.
RAMP_FIRST = 1
RAMP_MAX = 10_000


@dataclass(slots=True)
class SweepResult:
    """What a pass did: stages expired, stages removed, events unparked and still parked by store."""

    expired: int = 0
    removed: int = 0
    unparked: dict[str, int] = field(default_factory=dict)
    waiting: dict[str, int] = field(default_factory=dict)


class Sweeper:
    def __init__(
        self,
        db: Postgres,
        graph: GraphStore,
        vectors: VectorStore,
        stores: Sequence[Store],
        resilient_stores: Mapping[str, ResilientStore],
        *,
        lease: float,
    ) -> None:
        self._db = db
        self._graph = graph
        self._vectors = vectors
        self._stores = {store.name: store for store in stores}
        self._resilient_stores = resilient_stores
        self._lease = lease
        self._ramp: dict[str, int] = {}
        self._deadlines_at = float("-inf")
        self._log = logger(component="sweeper")

    async def sweep(self) -> SweepResult:
        """Expire stages, remove aborted ones, and unpark events whose store answers again; return what was done.

        Corrects deadlines first, once a minute, that a clock set back has put far ahead.
        """
        if monotonic() - self._deadlines_at >= DEADLINES_SECONDS:
            await self._correct_deadlines()
        result = SweepResult(expired=await self._expire())
        result.removed = await self.remove_aborted()
        await self._unpark(result)
        if result.expired or result.removed or result.unparked:
            self._log.info(
                "swept", expired=result.expired, removed=result.removed, unparked=result.unparked
            )
        return result

    async def _correct_deadlines(self) -> None:
        async with self._db.connection() as connection:
            late = await transitions.correct_deadlines(connection, lease=self._lease)
        self._deadlines_at = monotonic()
        if late:
            self._log.warning("deadlines were far ahead: was the clock set back?", events=late)

    async def _expire(self) -> int:
        """Abort the stages whose lease ran out; return their number.

        A lease that ends further ahead than two leases was written before the clock was set back, and not renewed since.
        """
        return await self._db.execute(
            """UPDATE stages SET state = 'aborted', ended_at = clock_timestamp(), error = 'the lease ran out'
               FROM (SELECT stage_id FROM stages WHERE state = 'staging'
                       AND (lease_until < clock_timestamp() OR lease_until > clock_timestamp() + make_interval(secs => %s))
                     FOR UPDATE SKIP LOCKED) expired
               WHERE stages.stage_id = expired.stage_id""",
            (2 * self._lease + LONGEST_WAIT_SECONDS,),
        )

    async def remove_aborted(self) -> int:
        """Delete aborted stages from the stores and mark them reaped; return their number.

        Zero when a store is unavailable: a later pass removes them.
        """
        rows = await self._db.fetch(
            "SELECT stage_id FROM stages WHERE state = 'aborted' ORDER BY lease_until LIMIT %s",
            (SWEEP_MAX,),
        )
        stages = [row["stage_id"] for row in rows]
        if not stages or not await remove_stages(self._db, stages, self._graph, self._vectors):
            return 0
        removed = await mark_reaped(self._db, stages, "aborted")
        STAGES_SWEPT.inc(removed)
        return removed

    async def _unpark(self, result: SweepResult) -> None:
        """Let events out of parking, store by store: one as a probe, then ten times more with each pass."""
        async with self._db.connection() as connection:
            parked = await queries.parked_by_store(connection)
        for store in [store for store in self._ramp if store not in parked]:
            del self._ramp[store]
        for store, waiting in parked.items():
            result.waiting[store] = waiting
            if not await self._is_available(store):
                self._ramp[store] = RAMP_FIRST
                continue
            limit = self._ramp.get(store, RAMP_FIRST)
            async with self._db.connection() as connection:
                result.unparked[store] = await transitions.unpark(connection, store, limit=limit)
            self._ramp[store] = min(limit * 10, RAMP_MAX)

    async def _is_available(self, name: str) -> bool:
        """Return whether a store's breaker lets calls through and the store answers a ping."""
        resilient_store, store = self._resilient_stores.get(name), self._stores.get(name)
        if resilient_store and resilient_store.breaker.state == "open":
            return False
        if store is None:  # an embedding server, say: the unparked event itself is the probe
            return True
        try:
            await store.ping()
        except (Unavailable, RetryLater):
            return False
        return True


async def remove_stages(
    db: Postgres, stages: Sequence[UUID], graph: GraphStore, vectors: VectorStore
) -> bool:
    """Delete the stages' items from both stores, and the entities that nothing else names.

    Return False when a store is unavailable, so that the caller tries later.
    """
    try:
        await graph.delete_stages(stages)
        await _forget_entities(db, stages, graph)
        await vectors.delete_stages(stages)
        await vectors.flush()
    except (Unavailable, RetryLater) as error:
        logger(component="sweeper").warning(
            "stages not removed yet", stages=len(stages), reason=str(error)
        )
        return False
    return True


async def _forget_entities(db: Postgres, stages: Sequence[UUID], graph: GraphStore) -> None:
    """Remove the entities that only these stages named: their refs hold names of people and addresses.

    The manifest of a stage is kept until the stage is marked `reaped`.
    """
    for first in range(0, len(stages), MANIFESTS_READ):
        rows = await db.fetch(
            """SELECT m.assertions FROM stages s JOIN manifests m ON m.id = s.manifest_id
               WHERE s.stage_id = ANY(%s)""",
            (list(stages[first : first + MANIFESTS_READ]),),
        )
        refs: set[str] = set()
        for row in rows:
            for _, subject, object, *_ in msgpack.unpackb(row["assertions"]):
                refs |= {subject, object} - {None}
        ordered = sorted(refs)
        for start in range(0, len(ordered), REFS_AT_ONCE):
            await graph.forget_entities(ordered[start : start + REFS_AT_ONCE])


async def mark_reaped(db: Postgres, stages: Sequence[UUID], state: str) -> int:
    """Mark stages `reaped` that are still in `state`; return their number."""
    return await db.execute(
        """UPDATE stages SET state = 'reaped', ended_at = clock_timestamp()
           FROM (SELECT stage_id FROM stages WHERE stage_id = ANY(%s) AND state = %s FOR UPDATE SKIP LOCKED) gone
           WHERE stages.stage_id = gone.stage_id""",
        (list(stages), state),
    )
