"""The sweeper: puts right what crashes and outages leave behind. Runs every few seconds; every step is safe to repeat.

Dead first, then delete: an expired stage is marked aborted by compare-and-set, and only then removed
from the stores, so that a worker that wakes late finds its commit refused.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from uuid import UUID

from apex_memory.errors import RetryLater, Unavailable
from apex_memory.saga.retries import ResilientStore
from apex_memory.stores.base import GraphStore, Store, VectorStore
from apex_memory.stores.postgres import Postgres
from apex_memory.telemetry import STAGES_SWEPT, logger

SWEEP_MAX = 500  # stages removed in one pass
RAMP_FIRST = 1  # one probe, then ten times more each pass while the store holds
RAMP_MAX = 10_000


@dataclass(slots=True)
class SweepResult:
    """What a pass did: stages found expired, stages removed, events let out of parking by store."""

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
        stores: Mapping[str, Store],
        resilient_stores: Mapping[str, ResilientStore],
    ) -> None:
        self._db = db
        self._graph = graph
        self._vectors = vectors
        self._stores = stores
        self._guards = resilient_stores
        self._ramp: dict[str, int] = {}
        self._log = logger(component="sweeper")

    async def sweep(self) -> SweepResult:
        swept = SweepResult(expired=await self._expire())
        swept.removed = await self.remove_aborted()
        await self._unpark(swept)
        if swept.expired or swept.removed or swept.unparked:
            self._log.info(
                "swept", expired=swept.expired, removed=swept.removed, unparked=swept.unparked
            )
        return swept

    async def _expire(self) -> int:
        return await self._db.execute(
            """UPDATE stages SET state = 'aborted', ended_at = clock_timestamp(), error = 'the lease ran out'
               FROM (SELECT stage_id FROM stages WHERE state = 'staging' AND lease_until < clock_timestamp()
                     FOR UPDATE SKIP LOCKED) expired
               WHERE stages.stage_id = expired.stage_id"""
        )

    async def remove_aborted(self) -> int:
        """Delete aborted stages from the stores; they become reaped. A store that is away: next time."""
        rows = await self._db.fetch(
            "SELECT stage_id FROM stages WHERE state = 'aborted' ORDER BY lease_until LIMIT %s",
            (SWEEP_MAX,),
        )
        stages = [row["stage_id"] for row in rows]
        if not stages or not await remove_stages(stages, self._graph, self._vectors):
            return 0
        removed = await mark_reaped(self._db, stages, "aborted")
        STAGES_SWEPT.inc(removed)
        return removed

    async def _unpark(self, swept: SweepResult) -> None:
        """Half-open: one probe. Then a ramp: P0 first, the newest version of each document first."""
        rows = await self._db.fetch(
            "SELECT park_store, count(*) AS n FROM inbox WHERE state = 'parked' GROUP BY 1"
        )
        parked = {row["park_store"]: row["n"] for row in rows}
        for store in [store for store in self._ramp if store not in parked]:
            del self._ramp[store]
        for store, waiting in parked.items():
            swept.waiting[store] = waiting
            if not await self._answers(store):
                self._ramp[store] = RAMP_FIRST
                continue
            size = self._ramp.get(store, RAMP_FIRST)
            swept.unparked[store] = await self._release(store, size)
            self._ramp[store] = min(size * 10, RAMP_MAX)

    async def _answers(self, name: str) -> bool:
        guard, store = self._guards.get(name), self._stores.get(name)
        if guard and guard.breaker.state == "open":
            return False
        if (
            store is None
        ):  # not a store of ours (an embedding server): the probe is the event itself
            return True
        try:
            await store.ping()
        except (Unavailable, RetryLater):
            return False
        return True

    async def _release(self, store: str, size: int) -> int:
        return await self._db.execute(
            """WITH newest AS (
                 SELECT DISTINCT ON (doc_id) id, priority, seq FROM inbox WHERE state = 'parked' AND park_store = %s
                 ORDER BY doc_id, version DESC, event_id DESC
               ), next AS (
                 SELECT id FROM inbox WHERE id IN (SELECT id FROM newest ORDER BY priority, seq LIMIT %s) AND state = 'parked'
                 FOR NO KEY UPDATE SKIP LOCKED)
               UPDATE inbox SET state = CASE WHEN prepared_at IS NULL THEN 'received' ELSE 'prepared' END,
                                park_store = NULL, next_at = clock_timestamp()
               FROM next WHERE inbox.id = next.id""",
            (store, size),
        )


async def remove_stages(stages: Sequence[UUID], graph: GraphStore, vectors: VectorStore) -> bool:
    """Delete the stages' items from both stores; False when one is away (nothing is lost, it is done later)."""
    try:
        await graph.delete_stages(stages)
        await vectors.delete_stages(stages)
        await vectors.flush()
    except (Unavailable, RetryLater) as error:
        logger(component="sweeper").warning(
            "stages stay for now", stages=len(stages), reason=str(error)
        )
        return False
    return True


async def mark_reaped(db: Postgres, stages: Sequence[UUID], state: str) -> int:
    return await db.execute(
        """UPDATE stages SET state = 'reaped', ended_at = clock_timestamp()
           FROM (SELECT stage_id FROM stages WHERE stage_id = ANY(%s) AND state = %s FOR UPDATE SKIP LOCKED) gone
           WHERE stages.stage_id = gone.stage_id""",
        (list(stages), state),
    )
