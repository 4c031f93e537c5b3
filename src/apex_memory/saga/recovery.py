"""Recovery: a store that came back is not believed until what it should hold has been checked.

When a store's incarnation changes it is `recovering`: readers call its leg degraded until every stage
committed since the last good mark has been counted there, and what is missing staged again from its
manifest, under a new stage. `reconcile` does the same for everything, and removes what nobody knows.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from uuid import UUID

from apex_memory.errors import ApexError, RetryLater, Unavailable
from apex_memory.model import Tally, now
from apex_memory.saga.publication import Publication
from apex_memory.saga.stage import Stage
from apex_memory.stores.base import GraphStore, Store, VectorStore
from apex_memory.stores.postgres import Postgres
from apex_memory.telemetry import REPAIRED, logger

PAGE = 500  # stages checked in one call to a store
MARGIN = timedelta(minutes=15)  # checked again before the last good mark
UNKNOWN_AGE = timedelta(
    hours=24
)  # a stage nobody knows is left alone this long: its journal row may be restoring
UNKNOWN_SHARE = 0.01  # more unknown stages than this: wrong database, delete nothing

STATE_SECONDS = 1.0  # below what a search waits for the states of all stores

LONG_AGO = datetime(2000, 1, 1).astimezone()


@dataclass(slots=True)
class ReconcileResult:
    """What a check of a store found: stages looked at, documents repaired, stray stages removed or left."""

    store: str
    stages: int = 0
    repaired: int = 0
    removed: int = 0
    left: int = 0
    errors: list[str] = field(default_factory=list)


class Recovery:
    def __init__(
        self, db: Postgres, graph: GraphStore, vectors: VectorStore, publication: Publication
    ) -> None:
        self._db = db
        self._stores: Mapping[str, GraphStore | VectorStore] = {"graph": graph, "vectors": vectors}
        self._publication = publication
        self._gating = asyncio.Lock()
        self._log = logger(component="recovery")

    async def prepare(self) -> None:
        """Before anything is written: indexes, and a look whether each store fits. What it holds is for `gate` to check.

        Raises `Misconfigured` for one that does not fit; one that is away is prepared when it is there.
        """
        for name, store in self._stores.items():
            try:
                await store.prepare()
            except (Unavailable, RetryLater) as error:
                self._log.warning("store not prepared yet", store=name, reason=str(error))

    async def check_restarted_stores(self) -> list[ReconcileResult]:
        """Look at each store's incarnation; check a store that is another one than last time.

        One at a time: what comes while a long check goes on waits, and finds it done.
        """
        checked = []
        async with self._gating:
            for name, store in self._stores.items():
                try:
                    found = await self._check_restarted_store(name, store)
                except (Unavailable, RetryLater) as error:
                    self._log.warning("store not checked yet", store=name, reason=str(error))
                    continue
                if found:
                    checked.append(found)
        return checked

    async def _check_restarted_store(
        self, name: str, store: GraphStore | VectorStore
    ) -> ReconcileResult | None:
        began = now()
        incarnation = await store.incarnation()
        row = await self._db.fetch_one("SELECT * FROM store_state WHERE store = %s", (name,))
        if row and row["incarnation"] == incarnation and row["state"] == "ready":
            await self._mark(name, incarnation, "ready", began, "")
            return None
        await store.prepare()  # a server that lost everything lost its indexes too
        since = row["verified_at"] - MARGIN if row else LONG_AGO
        await self._mark(
            name,
            incarnation,
            "recovering",
            row["verified_at"] if row else began,
            "the server is another one than before",
        )
        checked = await self.check(name, since=since)
        if (
            checked.repaired and since != LONG_AGO
        ):  # it has lost something: trust nothing older either
            everything = await self.check(name, since=LONG_AGO)
            checked.stages += everything.stages
            checked.repaired += everything.repaired
        if checked.errors:
            self._log.error("store still recovering", store=name, errors=checked.errors[:3])
            return checked
        if await store.incarnation() == incarnation:
            await self._mark(name, incarnation, "ready", began, "")
        self._log.info(
            "store checked after its start",
            store=name,
            stages=checked.stages,
            repaired=checked.repaired,
        )
        return checked

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
        """Count every stage committed since a moment in one store; stage again what is not whole there."""
        checked = ReconcileResult(name)
        async for page in self._committed(since):
            checked.stages += len(page)
            expected = await self._publication.journal.expected(page)
            found = await self._stores[name].tally(page)
            side = 0 if name == "vectors" else 1
            broken = [
                stage
                for stage in page
                if stage in expected and found.get(stage, Tally()) != expected[stage][side]
            ]
            if broken:
                repaired, errors = await self.repair(broken)
                checked.repaired += repaired
                checked.errors += errors
                REPAIRED.labels(name).inc(repaired)
        return checked

    async def _committed(self, since: datetime) -> AsyncIterator[list[UUID]]:
        """Committed stages since a moment, oldest first, a page at a time."""
        position = (since, UUID(int=0))
        while True:
            rows = await self._db.fetch(
                """SELECT stage_id, committed_at FROM stages WHERE state = 'committed' AND committed_at >= %s
                   AND (committed_at, stage_id) > (%s, %s) ORDER BY committed_at, stage_id LIMIT %s""",
                (position[0], *position, PAGE),
            )
            if not rows:
                return
            yield [row["stage_id"] for row in rows]
            position = (rows[-1]["committed_at"], rows[-1]["stage_id"])

    async def repair(self, stages: Sequence[UUID]) -> tuple[int, list[str]]:
        """Publish the manifests of live stages again under new stages; answers (repaired, errors)."""
        owner = uuid.uuid4()
        old_of: dict[UUID, UUID] = {}
        fresh: list[Stage] = []
        rows = await self._db.fetch(
            "SELECT * FROM stages WHERE stage_id = ANY(%s) AND state = 'committed' ORDER BY doc_id",
            (list(stages),),
        )
        manifests = await self._publication.manifests.load(row["manifest_id"] for row in rows)
        for row in rows:
            stage = Stage(
                uuid.uuid4(), manifests[row["manifest_id"]], row["version"], row["event_id"]
            )
            old_of[stage.id] = row["stage_id"]
            fresh.append(stage)
        if not fresh:
            return 0, []
        async with self._db.transaction() as connection:
            await self._publication.journal.insert(connection, owner, fresh)
        errors = await self._publication.stage_and_verify(fresh)
        good = [stage for stage in fresh if stage.id not in errors]
        swapped = await self._swap([(old_of[stage.id], stage.id) for stage in good], owner)
        await self._publication.journal.abort(
            owner, [stage for stage in fresh if stage.id not in swapped], "repair did not finish"
        )
        return len(swapped), [str(error) for error in errors.values()]

    async def _swap(self, pairs: Sequence[tuple[UUID, UUID]], owner: UUID) -> set[UUID]:
        """Point documents from an old stage to its copy, where the old one is still what readers see."""
        async with self._db.transaction() as connection:
            await connection.execute(
                "SELECT FROM stages WHERE stage_id = ANY(%s) ORDER BY doc_id FOR UPDATE",
                ([new for _, new in pairs],),
            )
            await connection.execute(
                "SELECT FROM documents WHERE stage_id = ANY(%s) ORDER BY doc_id FOR UPDATE",
                ([old for old, _ in pairs],),
            )
            rows = await (
                await connection.execute(
                    """UPDATE documents d SET stage_id = p.new FROM unnest(%s::uuid[], %s::uuid[]) AS p (old, new), stages s
                       WHERE d.stage_id = p.old AND s.stage_id = p.new AND s.state = 'staging' AND s.owner = %s
                       RETURNING p.old, p.new""",
                    ([old for old, _ in pairs], [new for _, new in pairs], owner),
                )
            ).fetchall()
            await connection.execute(
                """UPDATE stages SET state = 'committed', committed_at = clock_timestamp(), graph_at = clock_timestamp(),
                   vectors_at = clock_timestamp() WHERE stage_id = ANY(%s)""",
                ([row["new"] for row in rows],),
            )
            await connection.execute(
                "UPDATE stages SET state = 'superseded', ended_at = clock_timestamp() WHERE stage_id = ANY(%s)",
                ([row["old"] for row in rows],),
            )
        return {row["new"] for row in rows}

    async def reconcile(self, name: str, *, prune_unknown: bool = False) -> ReconcileResult:
        """Compare one store with PostgreSQL, both ways. Unknown stages go only after a day, or when asked for by name."""
        checked = await self.check(name, since=LONG_AGO)
        walked, strays = 0, []
        async for item in self._stores[name].walk():
            walked += 1
            strays.append(item.stage)
            if len(strays) >= PAGE:
                await self._remove_strays(name, strays, checked, walked, prune_unknown)
                strays = []
        await self._remove_strays(name, strays, checked, walked, prune_unknown)
        if not checked.left:
            await self._db.execute("DELETE FROM flags WHERE name = %s", (f"unknown-stages:{name}",))
        return checked

    async def _remove_strays(
        self, name: str, seen: Sequence[UUID], checked: ReconcileResult, walked: int, prune: bool
    ) -> None:
        if not seen:
            return
        rows = await self._db.fetch(
            "SELECT stage_id, state FROM stages WHERE stage_id = ANY(%s)", (list(seen),)
        )
        state = {row["stage_id"]: row["state"] for row in rows}
        reaped = [stage for stage in seen if state.get(stage) == "reaped"]
        unknown = [stage for stage in seen if stage not in state]
        if unknown and not (prune or await self._unknown_for_long(name, unknown, walked)):
            checked.left += len(unknown)
            self._log.warning("stages nobody knows, left alone", store=name, stages=len(unknown))
            unknown = []
        if reaped or unknown:
            await self._stores[name].delete_stages(reaped + unknown)
            if name == "vectors":
                await self._stores[name].flush()  # type: ignore[union-attr]
            checked.removed += len(reaped) + len(unknown)

    async def _unknown_for_long(self, name: str, unknown: Sequence[UUID], walked: int) -> bool:
        """True once the strays were first seen a day ago and are few; remembers when they were first seen."""
        row = await self._db.fetch_one(
            """INSERT INTO flags (name, value, actor) VALUES (%s, to_jsonb(now()), 'reconcile')
               ON CONFLICT (name) DO UPDATE SET name = excluded.name RETURNING changed_at""",
            (f"unknown-stages:{name}",),
        )
        first_seen = row["changed_at"] if row else now()
        few = len(unknown) <= max(1, walked * UNKNOWN_SHARE)
        return few and now() - first_seen > UNKNOWN_AGE


async def states(db: Postgres, stores: Sequence[Store]) -> dict[str, str]:
    """`ready`, `recovering` or `unavailable` by store, comparing what is there with what was verified.

    The stores are asked side by side, each for `STATE_SECONDS` at most: one that hangs is not taken for all.
    """
    rows = await db.fetch("SELECT store, state, incarnation FROM store_state")
    verified = {row["store"]: row["incarnation"] for row in rows if row["state"] == "ready"}
    found = await asyncio.gather(*map(_incarnation, stores))
    return {
        store.name: "unavailable"
        if incarnation is None
        else "ready"
        if incarnation == verified.get(store.name)
        else "recovering"
        for store, incarnation in zip(stores, found, strict=True)
    }


async def _incarnation(store: Store) -> str | None:
    try:
        async with asyncio.timeout(STATE_SECONDS):
            return await store.incarnation()
    except (ApexError, TimeoutError):
        return None
