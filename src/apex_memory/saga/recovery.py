"""Recovery: a store that restarted is checked before readers trust it again.

When a store's incarnation changes it becomes `recovering`, and readers report its leg as degraded. Recovery
then compares every stage committed since the last verified time, and stages what is missing again from its
manifest, under a new stage. `reconcile` does the same for all stages, and removes stages that PostgreSQL
does not know.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from uuid import UUID

from apex_memory.errors import ApexError, RetryLater, Unavailable
from apex_memory.inbox import leases
from apex_memory.model import Tally, now
from apex_memory.saga.publication import Publication
from apex_memory.saga.stage import Stage
from apex_memory.stores.base import GraphStore, Store, VectorStore
from apex_memory.stores.lease import leased_if_free
from apex_memory.stores.postgres import Postgres, fetch_rows
from apex_memory.telemetry import REPAIRED, logger

PAGE = 500  # stages checked in one call to a store
# Stages of any age that are checked beside the latest ones, so that an empty or another store is noticed.
SAMPLE = 500
CHECK_LEASE_SECONDS = 10.0  # how long others wait after the process that checked a store died
# A stage may show as committed so long after its time of commit.
COMMIT_TIME = timedelta(seconds=10)
# Stages committed so long before the last verified time are checked too.
MARGIN = timedelta(minutes=15)
# An unknown stage stays this long, because its journal row may be in a backup that is being restored.
UNKNOWN_AGE = timedelta(hours=24)
# A larger share of unknown stages means that the store belongs to another database: nothing is deleted.
UNKNOWN_SHARE = 0.01
# Patience with one store; below what a search waits for the states of all stores.
STATE_SECONDS = 1.0
STRAYS_MAX = 100_000  # unknown stages that one walk removes: all of them may be in memory
RESTARTED = "the server restarted, or is another one"
LONG_AGO = datetime(2000, 1, 1).astimezone()


@dataclass(slots=True)
class ReconcileResult:
    """Counts of a check of one store: stages checked, documents repaired, unknown stages removed or left alone."""

    store: str
    stages: int = 0
    repaired: int = 0
    removed: int = 0
    left: int = 0
    errors: list[str] = field(default_factory=list)


@dataclass(slots=True)
class _Strays:
    """What a walk over one store met: the numbers of all stages and of those that PostgreSQL does not know.

    Of these the first `STRAYS_MAX` by id, too; others are removed by the next walk.
    """

    walked: int = 0
    unknown: int = 0
    first: list[UUID] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class CommittedStage:
    """A row of `stages` that readers see, and the manifest that it publishes."""

    stage_id: UUID
    manifest_id: UUID
    version: int
    event_id: str


@dataclass(frozen=True, slots=True)
class _StagePosition:
    """A row of `stages`, by its place in the order of commits."""

    stage_id: UUID
    committed_at: datetime


@dataclass(frozen=True, slots=True)
class _SwappedStage:
    """A stage that was live, and the copy that took its place."""

    old: UUID
    new: UUID


def check_lease(store: str) -> str:
    """Return the name of the lease of the process that checks or rebuilds a store."""
    return f"check:{store}"


class Recovery:
    def __init__(
        self, db: Postgres, graph: GraphStore, vectors: VectorStore, publication: Publication
    ) -> None:
        self._db = db
        self._stores: Mapping[str, GraphStore | VectorStore] = {"graph": graph, "vectors": vectors}
        self._publication = publication
        self._checking = asyncio.Lock()
        self._log = logger(component="recovery")

    async def prepare(self) -> None:
        """Create the indexes of each store, and check that its schema fits, before anything is written.

        Raises `Misconfigured` for a store that does not fit. One that is unavailable is prepared when it
        answers. `check_restarted_stores` checks what the stores hold.
        """
        for name, store in self._stores.items():
            try:
                await store.prepare()
            except (Unavailable, RetryLater) as error:
                self._log.warning("store not prepared yet", store=name, reason=str(error))

    async def check_restarted_stores(self) -> list[ReconcileResult]:
        """Check each store whose incarnation is not the verified one; return what each check found.

        One call at a time: a call during a long check waits for it, and then has nothing to do.
        """
        results = []
        async with self._checking:
            for name, store in self._stores.items():
                try:
                    result = await self._check_restarted_store(name, store)
                except (Unavailable, RetryLater) as error:
                    self._log.warning("store not checked yet", store=name, reason=str(error))
                    continue
                except (
                    ApexError
                ) as error:  # another dimension, say: the other store is checked none the less
                    self._log.error(
                        "store cannot be checked",
                        store=name,
                        reason=str(error),
                        remedy=error.remedy,
                    )
                    continue
                if result:
                    results.append(result)
        return results

    async def _check_restarted_store(
        self, name: str, store: GraphStore | VectorStore
    ) -> ReconcileResult | None:
        began = now()
        incarnation = await store.incarnation()
        if await self._confirm(name, incarnation, began):
            return None
        async with leased_if_free(
            self._db, check_lease(name), seconds=CHECK_LEASE_SECONDS
        ) as is_held:
            # Another process checks the store, or rebuilds it.
            return await self._check_unverified(name, store) if is_held else None

    async def _check_unverified(
        self, name: str, store: GraphStore | VectorStore
    ) -> ReconcileResult | None:
        await store.prepare()  # a server that lost everything lost its indexes too
        # After it: tables that are made anew are another incarnation.
        began = now()
        incarnation = await store.incarnation()
        if await self._confirm(name, incarnation, began):
            return None  # another process checked it meanwhile
        row = await self._db.fetch_one(
            "SELECT verified_at FROM store_state WHERE store = %s", (name,)
        )
        verified_at: datetime = row["verified_at"] if row else LONG_AGO
        since = max(verified_at - MARGIN, LONG_AGO)
        await self._mark(name, incarnation, "recovering", verified_at, RESTARTED)
        result = await self.check(name, since=since)
        if since != LONG_AGO and (result.repaired or not await self._sample_is_whole(name)):
            # The store lost acknowledged data, so what was verified earlier may be gone too. Recorded first: whoever
            # goes on after a crash here checks everything too.
            await self._mark(name, incarnation, "recovering", LONG_AGO, RESTARTED)
            everything = await self.check(name, since=LONG_AGO)
            result.stages += everything.stages
            result.repaired += everything.repaired
            result.errors += everything.errors
        if result.errors:
            self._log.error("store still recovering", store=name, errors=result.errors[:3])
            return result
        await self.trust(name, incarnation, began)
        self._log.info(
            "store checked after its start",
            store=name,
            stages=result.stages,
            repaired=result.repaired,
        )
        return result

    async def _sample_is_whole(self, name: str) -> bool:
        """Return whether the store holds the newest stages, and others of any age, as PostgreSQL has them.

        A store that was replaced by an empty one, or by an older copy of itself, lacks some of them: also when
        nothing was committed shortly before.
        """
        rows = await self._db.fetch(
            """(SELECT stage_id FROM stages WHERE state = 'committed' ORDER BY committed_at DESC LIMIT %(limit)s)
               UNION
               (SELECT stage_id FROM stages WHERE state = 'committed' AND stage_id >= %(random)s
                ORDER BY stage_id LIMIT %(limit)s)""",
            # Stage ids are random, so those that follow one of them are a random sample.
            {"limit": SAMPLE // 2, "random": uuid.UUID(int=uuid.uuid4().int // 2)},
        )
        return not await self._incomplete(name, [row["stage_id"] for row in rows])

    async def _incomplete(self, name: str, stages: Sequence[UUID]) -> list[UUID]:
        """Return those of the stages of which the store does not hold what PostgreSQL has."""
        side = 0 if name == "vectors" else 1
        expected = await self._publication.journal.expected(stages)
        held = await self._stores[name].tally(stages)
        return [
            stage
            for stage in stages
            if stage in expected and held.get(stage, Tally()) != expected[stage][side]
        ]

    async def distrust(self, store: str, incarnation: str, reason: str) -> None:
        """Mark a store `recovering` until all of it is checked."""
        await self._mark(store, incarnation, "recovering", LONG_AGO, reason)

    async def trust(self, store: str, incarnation: str, verified_at: datetime) -> bool:
        """Mark a store `ready` that was verified; return False if its server restarted meanwhile."""
        if await self._stores[store].incarnation() != incarnation:
            return False
        await self._mark(store, incarnation, "ready", verified_at, "")
        return True

    async def _confirm(self, store: str, incarnation: str, at: datetime) -> bool:
        """Record that the store is still the verified one; return whether it is."""
        return bool(
            await self._db.execute(
                "UPDATE store_state SET verified_at = %s WHERE store = %s AND state = 'ready' AND incarnation = %s",
                (at, store, incarnation),
            )
        )

    async def _mark(
        self, store: str, incarnation: str, state: str, verified_at: datetime, reason: str
    ) -> None:
        await self._db.execute(
            """INSERT INTO store_state AS s (store, state, incarnation, verified_at, reason) VALUES (%s, %s, %s, %s, %s)
               ON CONFLICT (store) DO UPDATE SET state = excluded.state, incarnation = excluded.incarnation,
                 verified_at = excluded.verified_at, reason = excluded.reason,
                 changed_at = CASE WHEN s.state = excluded.state THEN s.changed_at ELSE now() END""",
            (store, state, incarnation, verified_at, reason),
        )

    async def check(self, name: str, *, since: datetime) -> ReconcileResult:
        """Compare every stage committed since `since` with one store; repair those that are incomplete there.

        Returns what was found. A second pass covers what was committed during the first. What comes later was written
        after the store responded to this check; it is not waited for, or writers that never rest would keep the check
        from its end.
        """
        result = ReconcileResult(name)
        for behind in (COMMIT_TIME, timedelta()):
            until = await self.clock() - behind
            async for page in self.committed(since, until=until):
                result.stages += len(page)
                if incomplete := await self._incomplete(name, page):
                    repaired, errors = await self.repair(incomplete)
                    result.repaired += repaired
                    result.errors += errors
                    REPAIRED.labels(name).inc(repaired)
            since = max(since, until)
        return result

    async def clock(self) -> datetime:
        """Return the time of PostgreSQL, which is that of the commits."""
        row = await self._db.fetch_one("SELECT clock_timestamp() AS at")
        assert row is not None
        at: datetime = row["at"]
        return at

    async def committed(self, since: datetime, *, until: datetime) -> AsyncIterator[list[UUID]]:
        """Yield pages of the stages committed since `since`, and before `until`, oldest first."""
        last = _StagePosition(UUID(int=0), since)
        while True:
            page = await self._db.fetch_rows(
                _StagePosition,
                """SELECT stage_id, committed_at FROM stages WHERE state = 'committed' AND committed_at >= %s
                   AND (committed_at, stage_id) > (%s, %s) AND committed_at < %s
                   ORDER BY committed_at, stage_id LIMIT %s""",
                (last.committed_at, last.committed_at, last.stage_id, until, PAGE),
            )
            if not page:
                return
            yield [stage.stage_id for stage in page]
            last = page[-1]

    async def repair(self, stages: Sequence[UUID]) -> tuple[int, list[str]]:
        """Publish the manifests of live stages again under new stages; return the number repaired, and errors."""
        owner = uuid.uuid4()
        old_of: dict[UUID, UUID] = {}
        fresh: list[Stage] = []
        async with self._db.connection() as connection:
            live = await fetch_rows(
                connection,
                CommittedStage,
                """SELECT stage_id, manifest_id, version, event_id FROM stages
                   WHERE stage_id = ANY(%s) AND state = 'committed' ORDER BY doc_id""",
                (list(stages),),
            )
            manifests = await self._publication.manifests.load(
                connection, [old.manifest_id for old in live]
            )
        for old in live:
            stage = Stage(uuid.uuid4(), manifests[old.manifest_id], old.version, old.event_id)
            old_of[stage.id] = old.stage_id
            fresh.append(stage)
        if not fresh:
            return 0, []
        async with self._db.transaction() as connection:
            await self._publication.journal.insert(connection, owner, fresh)
        # A page of large documents, or a slow store, takes longer than one lease.
        async with leases.keeping(self._db, [owner], lease=self._publication.lease):
            failed = await self._publication.stage_and_verify(fresh)
            good = [stage for stage in fresh if stage.id not in failed]
            swapped = await self._swap([(old_of[stage.id], stage.id) for stage in good], owner)
        errors = [str(error) for error in failed.values()]
        missed = [old_of[stage.id] for stage in good if stage.id not in swapped]
        if missed and (still_live := await self._still_live(missed)):
            errors.append(
                f"{still_live} repaired documents were not published: their lease ran out"
            )
        await self._publication.journal.abort(
            owner, [stage for stage in fresh if stage.id not in swapped], "repair did not finish"
        )
        return len(swapped), errors

    async def _still_live(self, stages: Sequence[UUID]) -> int:
        """Return how many of the stages readers see."""
        row = await self._db.fetch_one(
            "SELECT count(*) AS live FROM stages WHERE stage_id = ANY(%s) AND state = 'committed'",
            (list(stages),),
        )
        return int(row["live"]) if row else 0

    async def _swap(self, pairs: Sequence[tuple[UUID, UUID]], owner: UUID) -> set[UUID]:
        """Point documents from an old stage to its copy, where the old one is still live; return the new stages."""
        async with self._db.transaction() as connection:
            await connection.execute(
                "SELECT FROM stages WHERE stage_id = ANY(%s) ORDER BY doc_id FOR UPDATE",
                ([new for _, new in pairs],),
            )
            await connection.execute(
                "SELECT FROM documents WHERE stage_id = ANY(%s) ORDER BY doc_id FOR UPDATE",
                ([old for old, _ in pairs],),
            )
            swapped = await fetch_rows(
                connection,
                _SwappedStage,
                """UPDATE documents d SET stage_id = p.new FROM unnest(%s::uuid[], %s::uuid[]) AS p (old, new), stages s
                   WHERE d.stage_id = p.old AND s.stage_id = p.new AND s.state = 'staging' AND s.owner = %s
                   RETURNING p.old, p.new""",
                ([old for old, _ in pairs], [new for _, new in pairs], owner),
            )
            await connection.execute(
                """UPDATE stages SET state = 'committed', committed_at = clock_timestamp(), graph_at = clock_timestamp(),
                   vectors_at = clock_timestamp() WHERE stage_id = ANY(%s)""",
                ([stage.new for stage in swapped],),
            )
            await connection.execute(
                "UPDATE stages SET state = 'superseded', ended_at = clock_timestamp() WHERE stage_id = ANY(%s)",
                ([stage.old for stage in swapped],),
            )
        return {stage.new for stage in swapped}

    async def states(self) -> dict[str, str]:
        """Return `ready`, `recovering` or `unavailable` for the graph and the vectors; see `states`."""
        return await states(self._db, list(self._stores.values()))

    async def reconcile(self, name: str, *, prune_unknown: bool = False) -> ReconcileResult:
        """Compare one store with PostgreSQL in both directions; return what was found and done.

        Unknown stages are removed only after a day and when they are few, or at once with `prune_unknown`.
        """
        result = await self.check(name, since=LONG_AGO)
        strays = _Strays()
        page: list[UUID] = []
        async for item in self._stores[name].walk():
            page.append(item.stage)
            if len(page) >= PAGE:
                await self._sort_out(name, page, result, strays, prune_unknown)
                page = []
        await self._sort_out(name, page, result, strays, prune_unknown)
        await self._remove_unknown(name, result, strays)
        return result

    async def _sort_out(
        self, name: str, held: Sequence[UUID], result: ReconcileResult, strays: _Strays, prune: bool
    ) -> None:
        """Remove from one store those of the stages it holds that are reaped, and with `prune` those that are unknown.

        Adds unknown stages to `strays` otherwise.
        """
        if not held:
            return
        rows = await self._db.fetch(
            "SELECT stage_id, state FROM stages WHERE stage_id = ANY(%s)", (list(held),)
        )
        state_of = {row["stage_id"]: row["state"] for row in rows}
        removed = [stage for stage in held if state_of.get(stage) == "reaped"]
        unknown = [stage for stage in held if stage not in state_of]
        strays.walked += len(held)
        if prune:
            removed += unknown
        else:
            strays.unknown += len(unknown)
            strays.first += unknown[: STRAYS_MAX - len(strays.first)]
        await self._delete(name, removed, result)

    async def _remove_unknown(self, name: str, result: ReconcileResult, strays: _Strays) -> None:
        """Remove the unknown stages of a whole walk, if they are few and unknown for long enough.

        Decided at the end: the share of one page says nothing of the store.
        """
        flag = f"unknown-stages:{name}"
        result.left = strays.unknown
        if strays.unknown:
            if await self._unknown_for_long(flag, strays):
                for start in range(0, len(strays.first), PAGE):
                    await self._delete(name, strays.first[start : start + PAGE], result)
                result.left -= len(strays.first)
            else:
                self._log.warning("unknown stages left alone", store=name, stages=result.left)
        if not result.left:
            await self._db.execute("DELETE FROM flags WHERE name = %s", (flag,))

    async def _delete(self, name: str, stages: Sequence[UUID], result: ReconcileResult) -> None:
        if not stages:
            return
        await self._stores[name].delete_stages(stages)
        if name == "vectors":
            await self._stores[name].flush()  # type: ignore[union-attr]
        result.removed += len(stages)

    async def _unknown_for_long(self, flag: str, strays: _Strays) -> bool:
        """Return whether unknown stages are few and first appeared a day ago; records when they first appeared."""
        row = await self._db.fetch_one(
            """INSERT INTO flags (name, value, actor) VALUES (%s, to_jsonb(now()), 'reconcile')
               ON CONFLICT (name) DO UPDATE SET name = excluded.name RETURNING changed_at""",
            (flag,),
        )
        first_seen = row["changed_at"] if row else now()
        few = strays.unknown <= max(1, strays.walked * UNKNOWN_SHARE)
        return few and now() - first_seen > UNKNOWN_AGE


async def states(db: Postgres, stores: Sequence[Store]) -> dict[str, str]:
    """Return `ready`, `recovering` or `unavailable` by store, from its incarnation and the verified one.

    The stores are queried concurrently, each for `STATE_SECONDS` at most, so that one that hangs does not
    hide the others.
    """
    rows = await db.fetch("SELECT store, incarnation FROM store_state WHERE state = 'ready'")
    verified = {row["store"]: row["incarnation"] for row in rows}
    incarnations = await asyncio.gather(*map(_incarnation, stores))
    by_store = {}
    for store, incarnation in zip(stores, incarnations, strict=True):
        if incarnation is None:
            by_store[store.name] = "unavailable"
        elif incarnation == verified.get(store.name):
            by_store[store.name] = "ready"
        else:
            by_store[store.name] = "recovering"
    return by_store


async def _incarnation(store: Store) -> str | None:
    """Return the store's incarnation; None when it does not answer in time."""
    try:
        async with asyncio.timeout(STATE_SECONDS):
            return await store.incarnation()
    except (ApexError, TimeoutError):
        return None
