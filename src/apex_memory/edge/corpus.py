"""All shards as one corpus: where writes go, how searches merge, how shards are sealed and indexed.

One small active shard takes the writes. It is sealed when it is full; then a copy of it is indexed by
another process while the original goes on answering, the deletes made meanwhile are repeated on the
copy, and the manifest swaps the two. What the manifest does not list is removed at start, so a
crash at any moment leaves one shard or the other, never both.

Writes are one at a time and in slices; searches run at once, between two slices.
"""

from __future__ import annotations

import asyncio
import secrets
import shutil
from collections.abc import Iterator, Sequence
from itertools import accumulate
from pathlib import Path
from typing import NamedTuple, TypeVar
from uuid import UUID

from qdrant_edge import Point, UpdateOperation

from apex_memory.edge.builder import build
from apex_memory.edge.catalogue import Catalogue
from apex_memory.edge.shard import (
    Shard,
    breathe,
    copy_tree,
    create_shard,
    open_shard,
    sync,
    sync_log,
)
from apex_memory.edge.shard_list import Entry, read_manifest, write_manifest
from apex_memory.model import Tally
from apex_memory.telemetry import logger

REBUILD_SECONDS = 60  # until an indexing that failed is tried again
LOGGED_WRITES = 1000  # writes that an opening may have to repeat from a shard's log
SLICE = 250  # points written, or stages deleted or counted, between two looks at what has arrived


T = TypeVar("T")


class Row(NamedTuple):
    """A point to write, with what the catalogue must know of it."""

    id: UUID
    stage: UUID
    place: bytes
    terms: list[int]
    point: Point


class Corpus:
    """The shards in one folder, owned by this process. Open with `open_corpus`."""

    def __init__(
        self,
        folder: Path,
        dimension: int,
        shards: list[Shard],
        *,
        seal_points: int,
        merge_shards: int,
    ) -> None:
        self.folder = folder
        self.dimension = dimension
        self.shards = shards
        self._seal_points = seal_points
        self._merge_shards = merge_shards
        self._writing = asyncio.Lock()
        self._syncing = asyncio.Lock()
        self._sealed = asyncio.Event()
        self._failures = 0
        self._sealed.set()  # a shard may be waiting since the last run

    @property
    def active(self) -> Shard:
        return self.shards[-1]

    @property
    def points(self) -> int:
        return sum(shard.points for shard in self.shards)

    def stats(self) -> dict[str, int]:
        """Points, shards, sealed points that await indexing or merging, and indexings that failed in a row."""
        waiting = [shard for shard in self.shards if shard.sealed and not shard.built]
        merging = [] if waiting else self._next_work()
        return {
            "points": self.points,
            "shards": len(self.shards),
            "unindexed": sum(shard.points for shard in waiting),
            "unmerged": sum(shard.points for shard in merging),
            "failures": self._failures,
        }

    async def upsert(self, rows: Sequence[Row]) -> None:
        """Write points. Not durable before `flush`."""
        async with self._writing:
            for part in slices(rows):
                await self._write(part)
                await breathe()
                # All that were ever written count: deleted points too take their place in it.
                if self.active.catalogue.passages >= self._seal_points:
                    await self._seal()

    async def delete_stages(self, stages: Sequence[UUID]) -> None:
        """Remove all points of the stages. Durable on return."""
        async with self._writing:
            for part in slices(stages):
                for shard in list(self.shards):
                    await shard.delete_stages(part)
                    await breathe()
        await self.flush()

    def tally(self, stages: Sequence[UUID]) -> dict[UUID, Tally]:
        """Count and sum of hashes of each stage that has points."""
        # By id: a point may be in two shards, for the moment between a write and a delete.
        found: dict[UUID, tuple[str, int]] = {}
        for shard in self.shards:
            found |= shard.hashes(stages)
        sums: dict[str, tuple[int, int]] = {}
        for stage, value in found.values():
            count, checksum = sums.get(stage, (0, 0))
            sums[stage] = (count + 1, checksum + value)
        return {UUID(stage): Tally(*numbers) for stage, numbers in sums.items()}

    def stages_after(self, cursor: int, limit: int) -> list[UUID]:
        """The next stages in order of their high 64 bits, from above `cursor` on; some may be gone. Empty at the end."""
        found = {stage for shard in self.shards for stage in shard.catalogue.after(cursor, limit)}
        return sorted(found, key=lambda stage: stage.int)[:limit]

    async def flush(self) -> None:
        """Put all that was written on the disk. Searches go on meanwhile. Raises `OSError`."""
        async with self._syncing:  # so that the second of two returns no sooner than the first
            for shard in list(self.shards):
                await self._sync(shard)

    async def close(self) -> None:
        """Write everything and release the folder's engines."""
        async with self._writing:
            for shard in self.shards:
                shard.flush()
                shard.close()

    async def build(self) -> None:
        """Index sealed shards and merge small ones, one piece of work after another, for ever."""
        while True:
            self._sealed.clear()
            work = self._next_work()
            if not work:
                await self._sealed.wait()
                continue
            try:
                await self._replace(work)
                self._failures = 0
            except Exception as error:  # noqa: BLE001 (outermost loop; the engine raises no narrower type)
                self._failures += 1
                logger(store="vectors").error(
                    "indexing_failed", error=str(error), failures=self._failures
                )
                await asyncio.sleep(REBUILD_SECONDS)

    def _next_work(self) -> list[Shard]:
        """Shards to make one indexed shard of: the oldest that has no index, else enough small ones."""
        for shard in self.shards:
            if shard.sealed and not shard.built:
                return [shard]
        full = self._seal_points * self._merge_shards
        small = sorted(
            (shard for shard in self.shards if shard.built and shard.points < full // 2),
            key=lambda shard: shard.points,
        )
        if len(small) < self._merge_shards:
            return []
        sizes = accumulate(shard.points for shard in small)
        return [shard for shard, size in zip(small, sizes, strict=True) if size <= full * 5 // 4]

    async def _write(self, rows: Sequence[Row]) -> None:
        catalogue = self.active.catalogue
        assert isinstance(catalogue, Catalogue)
        stages, ids = {row.stage for row in rows}, [row.id for row in rows]
        held = {s: s.have(ids) for s in self.shards if s.catalogue.held(stages)}
        here = set(held.pop(self.active, []))
        self.active.write(UpdateOperation.upsert_points([row.point for row in rows]))
        for row in rows:
            if row.id not in here:
                catalogue.add(row.id, row.stage, row.place, row.terms)
        for shard, again in held.items():
            if again:  # deleted last, so that a crash leaves a point twice rather than not at all
                await shard.delete(UpdateOperation.delete_points(again))

    async def _sync(self, shard: Shard) -> None:
        if not shard.dirty:
            return
        shard.dirty = False
        try:
            await asyncio.to_thread(sync_log, shard.path)
        except OSError:
            if shard not in self.shards:  # swapped for its indexed copy, which is on the disk
                return
            shard.dirty = True
            raise
        if shard.logged >= LOGGED_WRITES:
            await shard.settle()

    async def _seal(self) -> None:
        """Start a new active shard. The old one waits for its index."""
        full = self.active
        fresh = await create_shard(self._new_path(), self.dimension)
        assert isinstance(full.catalogue, Catalogue)
        packed = full.catalogue.packed()
        await asyncio.to_thread(packed.save, full.path)
        await full.settle()
        await asyncio.to_thread(sync, full.path.parent)
        full.catalogue, full.sealed = packed, True
        self._list([*self.shards, fresh])
        self.shards.append(fresh)
        self._sealed.set()

    async def _replace(self, shards: Sequence[Shard]) -> None:
        """Make one indexed shard of copies of the shards, and put it in their place."""
        target = self._new_path()
        copies = [target / f"copy-{shard.name}" for shard in shards]
        try:
            for shard, copy in zip(shards, copies, strict=True):
                async with shard.settled:
                    await asyncio.to_thread(copy_tree, shard.path, copy)
                    shard.replay = []
            await build(copies, target, self.dimension)
            async with self._writing:
                await self._swap(shards, target)
        except BaseException:
            # cancelled or not: no shard is left noting changes for a copy that is gone
            for shard in shards:
                shard.replay = None
            await asyncio.to_thread(shutil.rmtree, target, ignore_errors=True)
            raise
        for shard in shards:
            shard.close()
            await asyncio.to_thread(shutil.rmtree, shard.path)

    async def _swap(self, shards: Sequence[Shard], target: Path) -> None:
        built = await open_shard(target, sealed=True, built=True)
        for shard in shards:
            for operation in shard.replay or ():
                built.write(operation)
        await asyncio.to_thread(sync_log, target)
        await asyncio.to_thread(sync, target.parent)
        kept = [shard for shard in self.shards if shard not in shards]
        self._list([built, *kept])
        self.shards[:] = [built, *kept]

    def _new_path(self) -> Path:
        return self.folder / "shards" / secrets.token_hex(4)

    def _list(self, shards: Sequence[Shard]) -> None:
        entries = [Entry(shard.name, shard.sealed, shard.built) for shard in shards]
        write_manifest(self.folder, self.dimension, entries)


async def open_corpus(
    folder: Path, dimension: int, *, seal_points: int, merge_shards: int
) -> Corpus:
    """The corpus in a folder that this process owns. Raises `Misconfigured` when it has another dimension.

    A shard is sealed at `seal_points`; so many small ones as `merge_shards` become one, so that
    searches need not ask too many.
    """
    entries = read_manifest(folder, dimension)
    (folder / "shards").mkdir(exist_ok=True)
    listed = {entry.name for entry in entries}
    for path in (folder / "shards").iterdir():
        if path.name not in listed:  # unfinished, or replaced
            shutil.rmtree(path)
    shards = [
        await open_shard(folder / "shards" / e.name, sealed=e.sealed, built=e.built)
        for e in entries
    ]
    corpus = Corpus(folder, dimension, shards, seal_points=seal_points, merge_shards=merge_shards)
    if not shards:
        shards.append(await create_shard(corpus._new_path(), dimension))
        corpus._list(shards)
    for shard in shards:
        shard.flush()  # what the log held need not be read again next time
    return corpus


def slices(items: Sequence[T]) -> Iterator[Sequence[T]]:
    return (items[first : first + SLICE] for first in range(0, len(items), SLICE))
