"""Rebuild: write all that readers see to one store again, from the manifests, while everything works.

The graph and the vectors are rewritten page by page under the stage ids that the documents have, so the other store is
not touched, nothing is embedded again, and at any moment only the documents of one page are missing. The store counts
as recovering meanwhile, so searches report it as degraded. It is verified by tallies before readers trust it again.

Progress stands in PostgreSQL. A process that dies leaves the store recovering: the next check of restarted stores
completes it, and so does another rebuild.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal
from uuid import UUID

from psycopg.types.json import Jsonb

from apex_memory.errors import ApexError, Conflict
from apex_memory.model import now
from apex_memory.saga.publication import Publication
from apex_memory.saga.recovery import (
    CHECK_LEASE_SECONDS,
    LONG_AGO,
    CommittedStage,
    Recovery,
    check_lease,
)
from apex_memory.saga.stage import Stage
from apex_memory.stores.base import GraphStore, VectorStore
from apex_memory.stores.cache import Cache
from apex_memory.stores.lease import leased_if_free
from apex_memory.stores.postgres import Postgres
from apex_memory.telemetry import logger

GROUP_STAGES = 100  # stages written at once, so many at most
GROUP_BYTES = 16_000_000  # of their texts and vectors as PostgreSQL stores them, unless a single one is larger

State = Literal["idle", "running", "done", "failed", "interrupted"]


@dataclass(slots=True)
class RebuildProgress:
    """How far the last rebuild of a store is: documents written, of so many, and those that a check repaired after it.

    Of the cache: entries removed. `interrupted` means that its process died: the store is completed by the workers.
    """

    store: str
    state: State = "idle"
    done: int = 0
    total: int = 0
    repaired: int = 0
    started_at: str | None = None
    ended_at: str | None = None
    error: str = ""
    remedy: str = ""


@dataclass(frozen=True, slots=True)
class _RecordedProgress:
    value: dict[str, Any]
    """The fields of `RebuildProgress`, as JSON."""
    runs: bool
    """A process holds the lease."""


@dataclass(frozen=True, slots=True)
class _SizedStage(CommittedStage):
    """A live stage, and the bytes of its text and vectors as PostgreSQL stores them."""

    bytes: int


class Rebuild:
    def __init__(
        self,
        db: Postgres,
        graph: GraphStore,
        vectors: VectorStore,
        cache: Cache,
        publication: Publication,
        recovery: Recovery,
    ) -> None:
        self._db = db
        self._stores: Mapping[str, GraphStore | VectorStore] = {"graph": graph, "vectors": vectors}
        self._cache = cache
        self._publication = publication
        self._recovery = recovery
        self._log = logger(component="rebuild")

    async def progress(self, name: str) -> RebuildProgress:
        """Return how far the last rebuild of a store is, whichever process runs it."""
        recorded = await self._db.fetch_row(
            _RecordedProgress,
            """SELECT value, EXISTS (SELECT FROM leases WHERE leases.name = %s AND until > clock_timestamp()) AS runs
               FROM flags WHERE name = %s""",
            (check_lease(name), _flag(name)),
        )
        if recorded is None:
            return RebuildProgress(name)
        progress = RebuildProgress(**recorded.value)
        if progress.state == "running" and not recorded.runs:
            progress.state = "interrupted"
        return progress

    async def run(self, name: str, *, began: Callable[[], None] = lambda: None) -> RebuildProgress:
        """Rebuild one store and return how it went; `began` is called when the rebuild is recorded.

        Raises `Conflict` while the store is rebuilt or checked already, and what the stores raise.
        """
        progress = RebuildProgress(name, "running", started_at=now().isoformat())
        async with leased_if_free(
            self._db, check_lease(name), seconds=CHECK_LEASE_SECONDS
        ) as is_held:
            if not is_held:
                raise Conflict(
                    f"{name} is being rebuilt or checked already",
                    remedy="see `apex status`, and repeat it when that has ended",
                )
            try:
                await self._write(progress)
                began()
                if name == "cache":
                    progress.done = progress.total = await self._cache.clear()
                else:
                    await self._rebuild(self._stores[name], progress)
                progress.state = "done"
            except ApexError as error:
                progress.state = "failed"
                progress.error, progress.remedy = str(error), error.remedy
                raise
            finally:
                # Still running means cancelled: another process sees that nobody holds the lease.
                if progress.state != "running":
                    progress.ended_at = now().isoformat()
                    await self._write(progress)
        self._log.info("store rebuilt", store=name, documents=progress.done)
        return progress

    async def _rebuild(self, store: GraphStore | VectorStore, progress: RebuildProgress) -> None:
        began_at = now()
        name = progress.store
        incarnation = await store.incarnation()
        await store.prepare()
        await self._recovery.distrust(name, incarnation, "it is being rebuilt")
        progress.total = await self._count()
        # What is committed from now on is written to both stores anyway. The check at the end covers it too.
        async for page in self._recovery.committed(LONG_AGO, until=await self._recovery.clock()):
            async for group in self._groups(page):
                await self._rewrite(name, group)
                progress.done += len(group)
                await self._write(progress)
        progress.total = progress.done  # what was replaced meanwhile is not written
        result = await self._recovery.check(name, since=LONG_AGO)
        progress.repaired = result.repaired
        if result.errors:
            raise Conflict(
                f"{name}: {len(result.errors)} documents are incomplete after the rebuild ({result.errors[0]})",
                remedy="it stays degraded, and is checked again by itself; see the worker's log",
            )
        if not await self._recovery.trust(name, incarnation, began_at):
            raise Conflict(
                f"{name}: the server restarted during the rebuild",
                remedy="it is checked by itself now; searches report it as degraded until then",
            )

    async def _count(self) -> int:
        row = await self._db.fetch_one("SELECT count(*) FROM stages WHERE state = 'committed'")
        return int(row["count"]) if row else 0

    async def _groups(self, stages: Sequence[UUID]) -> AsyncIterator[list[Stage]]:
        """Yield the stages that are still committed, with their manifests, in groups of bounded size."""
        live = await self._db.fetch_rows(
            _SizedStage,
            """SELECT s.stage_id, s.manifest_id, s.version, s.event_id,
                      pg_column_size(m.text) + pg_column_size(m.vectors) AS bytes
               FROM stages s JOIN manifests m ON m.id = s.manifest_id
               WHERE s.stage_id = ANY(%s) AND s.state = 'committed' ORDER BY s.stage_id""",
            (list(stages),),
        )
        group: list[_SizedStage] = []
        held = 0
        for stage in live:
            if group and (len(group) >= GROUP_STAGES or held + stage.bytes > GROUP_BYTES):
                yield await self._load(group)
                group, held = [], 0
            group.append(stage)
            held += stage.bytes
        if group:
            yield await self._load(group)

    async def _load(self, group: Sequence[CommittedStage]) -> list[Stage]:
        async with self._db.connection() as connection:
            manifests = await self._publication.manifests.load(
                connection, [stage.manifest_id for stage in group]
            )
        return [
            Stage(stage.stage_id, manifests[stage.manifest_id], stage.version, stage.event_id)
            for stage in group
        ]

    async def _rewrite(self, name: str, stages: Sequence[Stage]) -> None:
        """Replace what the store holds of the stages. Raises the first error of the store."""
        store = self._stores[name]
        ids = [stage.id for stage in stages]
        if held := list(await store.tally(ids)):
            await store.delete_stages(held)
        errors = await self._publication.write_again(name, stages)
        if errors:
            raise next(iter(errors.values()))
        # The collector marks a stage before it deletes what the stores hold of it. So a stage that is not marked yet
        # is deleted after this; one that is may have been deleted before it was written here.
        rows = await self._db.fetch(
            "SELECT stage_id FROM stages WHERE stage_id = ANY(%s) AND state IN ('reaping', 'reaped')",
            (ids,),
        )
        if ended := [row["stage_id"] for row in rows]:
            await store.delete_stages(ended)

    async def _write(self, progress: RebuildProgress) -> None:
        await self._db.execute(
            """INSERT INTO flags (name, value, actor) VALUES (%s, %s, 'rebuild')
               ON CONFLICT (name) DO UPDATE SET value = excluded.value, changed_at = now()""",
            (_flag(progress.store), Jsonb(asdict(progress))),
        )


def _flag(store: str) -> str:
    return f"rebuild:{store}"
