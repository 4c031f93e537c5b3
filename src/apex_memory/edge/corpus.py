"""All shards as one corpus: where writes go, how searches merge, how shards are sealed and indexed.

One small active shard takes the writes. It is sealed when it is full; then a copy of it is indexed by
another process while the original still serves searches; the deletes made meanwhile are repeated on the
copy, and the shard list swaps the two. A start removes shards that the list does not name, so a crash at
any moment leaves one of them, never both.

One write at a time runs, in slices; searches run between two slices.
"""

from __future__ import annotations

import asyncio
import secrets
import shutil
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import accumulate
from pathlib import Path
from time import monotonic
from typing import NamedTuple, TypeVar
from uuid import UUID

from qdrant_edge import Point, UpdateOperation

from apex_memory.disk_space import disk_space, in_bytes
from apex_memory.durable_files import sync
from apex_memory.edge.builder import build
from apex_memory.edge.catalogue import Catalogue
from apex_memory.edge.shard import (
    Shard,
    breathe,
    copy_tree,
    create_shard,
    open_shard,
    size_on_disk,
    sync_log,
)
from apex_memory.edge.shard_list import Entry, read_shard_list, write_shard_list
from apex_memory.model import Tally
from apex_memory.telemetry import logger

REBUILD_SECONDS = 60  # until a failed indexing is retried
LEVELS = 2  # so often a point is merged: into a shard of `merge_shards` sealed ones, then of as many of these
QUIET_SECONDS = 600.0  # since a shard was sealed, before large ones are merged: the next one would wait for minutes
LOGGED_WRITES = 1000  # most writes that opening a shard repeats from its log
# Times the size of the shards that are indexed: their copies, the new points and the index.
BUILD_SPACE = 3
SLICE = 250  # points written, or stages deleted or counted, before waiting searches run


T = TypeVar("T")


class DiskNearlyFull(Exception):
    """The volume has no space beside the reserve, so nothing is written."""


class Row(NamedTuple):
    """A point to write, with its entry in the catalogue."""

    id: UUID
    stage: UUID
    place: bytes
    terms: list[int]
    point: Point


@dataclass(frozen=True, slots=True)
class BuildSpace:
    """The space that a build claims on the volume, in bytes, and the folder that it fills."""

    folder: Path
    claimed: int

    def left(self) -> int:
        """Return the bytes that the build may still take. Reads the sizes of its files, a millisecond or so."""
        taken = size_on_disk(self.folder) if self.folder.exists() else 0
        return max(0, self.claimed - taken)


class Corpus:
    """The shards in one folder that this process owns. Open it with `open_corpus`."""

    def __init__(
        self,
        folder: Path,
        dimension: int,
        shards: list[Shard],
        *,
        seal_points: int,
        merge_shards: int,
        quiet_seconds: float,
    ) -> None:
        self.folder = folder
        self.dimension = dimension
        self.shards = shards
        self._seal_points = seal_points
        self._merge_shards = merge_shards
        self._quiet_seconds = quiet_seconds
        self._quiet_since = monotonic()
        self._writing = asyncio.Lock()
        self._syncing = asyncio.Lock()
        self._sealed = asyncio.Event()
        self._failures = 0
        self._build: BuildSpace | None = None
        self._sealed.set()  # a shard may wait for its index since the last run

    @property
    def active(self) -> Shard:
        return self.shards[-1]

    @property
    def points(self) -> int:
        return sum(shard.points for shard in self.shards)

    def stats(self) -> dict[str, int]:
        """Return the numbers of points, shards, sealed points without index, points to merge, and failed indexings in a row."""
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
        """Write points. They are durable after `flush`. Raises `DiskNearlyFull`; a part may be written then."""
        async with self._writing:
            for part in slices(rows):
                self._check_space()
                await self._write(part)
                await breathe()
                # Deleted points count too: they still take space in the shard.
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
        """Return count and sum of hashes of each stage that has points."""
        # By id: between a write and a delete a point may be in two shards.
        hashes: dict[UUID, tuple[str, int]] = {}
        for shard in self.shards:
            hashes |= shard.hashes(stages)
        sums: dict[str, tuple[int, int]] = {}
        for stage, value in hashes.values():
            count, checksum = sums.get(stage, (0, 0))
            sums[stage] = (count + 1, checksum + value)
        return {UUID(stage): Tally(*numbers) for stage, numbers in sums.items()}

    def stages_after(self, cursor: int, limit: int) -> list[UUID]:
        """Return the next stages by their high 64 bits, above `cursor`; empty at the end. Some may be deleted already."""
        stages: set[UUID] = set()
        for shard in self.shards:
            stages.update(shard.catalogue.after(cursor, limit))
        return sorted(stages, key=lambda stage: stage.int)[:limit]

    async def flush(self) -> None:
        """Sync all writes to the disk while searches continue. Raises `OSError`."""
        async with (
            self._syncing
        ):  # so that the second of two calls does not return before the first
            for shard in list(self.shards):
                await self._sync(shard)

    async def close(self) -> None:
        """Write everything and close the engines."""
        async with self._writing:
            for shard in self.shards:
                shard.flush()
                shard.close()

    async def build(self) -> None:
        """Index sealed shards and merge small ones, one after the other, for ever."""
        while True:
            self._sealed.clear()
            work = self._next_work()
            if not work:
                # Large shards are merged when nothing was sealed for long.
                with suppress(TimeoutError):
                    async with asyncio.timeout(self._quiet_seconds):
                        await self._sealed.wait()
                continue
            try:
                await self._replace(work)
                self._failures = 0
            except Exception as error:  # noqa: BLE001 (outermost loop; the engine raises no narrower type)
                self._quiet_since = monotonic()  # a large merge is not tried again at once
                if isinstance(error, DiskNearlyFull) and len(work) > 1:  # searches are only slower
                    logger(store="vectors").warning("shards_not_merged", reason=str(error))
                    await asyncio.sleep(REBUILD_SECONDS)
                    continue
                self._failures += 1
                logger(store="vectors").error(
                    "indexing_failed", error=str(error), failures=self._failures
                )
                await asyncio.sleep(REBUILD_SECONDS)

    def _next_work(self) -> list[Shard]:
        """Return the shards to turn into one indexed shard: the oldest without an index, else enough of about one size.

        Large ones only while little is written: a shard that is sealed meanwhile waits for its index, and searches are
        slower until then.
        """
        for shard in self.shards:
            if shard.sealed and not shard.built:
                return [shard]
        is_quiet = monotonic() - self._quiet_since >= self._quiet_seconds
        built = sorted((s for s in self.shards if s.built), key=lambda shard: shard.points)
        least, full = 0, self._seal_points
        for _ in range(LEVELS if is_quiet else 1):
            full *= self._merge_shards
            alike = [shard for shard in built if least <= shard.points < full // 2]
            if len(alike) >= self._merge_shards:
                sizes = accumulate(shard.points for shard in alike)
                return [s for s, size in zip(alike, sizes, strict=True) if size <= full * 5 // 4]
            least = full // 2
        return []

    def _check_space(self, needed: int = 0) -> None:
        """Raise `DiskNearlyFull` unless the volume has that many bytes beside its reserve and what a build still needs.

        The engine maps its files: a page without a block on the disk would end the process with SIGBUS.
        """
        space = disk_space(self.folder)
        needed += space.reserve
        if self._build and space.free - needed < self._build.claimed:
            needed += self._build.left()
        if space.free < needed:
            raise DiskNearlyFull(
                f"the disk is nearly full ({space} are free, and {in_bytes(needed)} are needed)"
            )

    async def _write(self, rows: Sequence[Row]) -> None:
        catalogue = self.active.catalogue
        assert isinstance(catalogue, Catalogue)
        stages, ids = {row.stage for row in rows}, [row.id for row in rows]
        held = {s: s.existing(ids) for s in self.shards if s.catalogue.held(stages)}
        known = set(held.pop(self.active, []))
        self.active.write(UpdateOperation.upsert_points([row.point for row in rows]))
        for row in rows:
            if row.id not in known:
                catalogue.add(row.id, row.stage, row.place, row.terms)
        for shard, duplicates in held.items():
            if (
                duplicates
            ):  # deleted last, so that a crash leaves a point twice rather than not at all
                await shard.delete(UpdateOperation.delete_points(duplicates))

    async def _sync(self, shard: Shard) -> None:
        if not shard.dirty:
            return
        shard.dirty = False
        try:
            await asyncio.to_thread(sync_log, shard.path)
        except OSError:
            if shard not in self.shards:  # replaced by its indexed copy, which is on the disk
                return
            shard.dirty = True
            raise
        if shard.logged >= LOGGED_WRITES:
            await shard.checkpoint()

    async def _seal(self) -> None:
        """Start a new active shard. The full one waits for its index.

        Raises `OSError` when the disk takes no new list. Then the full one stays active, and the next write seals it.
        """
        full = self.active
        assert isinstance(full.catalogue, Catalogue)
        packed = full.catalogue.packed()
        await asyncio.to_thread(packed.save, full.path)
        await full.checkpoint()
        new = await create_shard(self._new_path(), self.dimension)
        try:
            *others, active = [_entry(shard) for shard in self.shards]
            self._write_list([*others, replace(active, sealed=True), _entry(new)])
        except SystemExit:  # the list may name the new shard already
            raise
        except BaseException:  # also when cancelled, and whatever the disk raises: no list names it
            await _discard(new)
            raise
        # Only now, as nothing in memory may be ahead of the list on the disk.
        full.catalogue, full.sealed = packed, True
        self.shards.append(new)
        self._quiet_since = monotonic()
        self._sealed.set()

    async def _replace(self, shards: Sequence[Shard]) -> None:
        """Index copies of the shards as one shard, and replace them by it."""
        target = self._new_path()
        copies = [target / f"copy-{shard.name}" for shard in shards]
        used = [await asyncio.to_thread(size_on_disk, shard.path) for shard in shards]
        space = BuildSpace(target, BUILD_SPACE * sum(used))
        self._check_space(space.claimed)
        self._build = space  # writes leave it free from now on
        try:
            for shard, copy in zip(shards, copies, strict=True):
                async with shard.files:
                    await asyncio.to_thread(copy_tree, shard.path, copy)
                    shard.replay = []
            await build(copies, target, self.dimension)
            async with self._writing:
                await self._swap(shards, target)
        except SystemExit:  # the list may name the indexed shard already
            raise
        except BaseException:  # also when cancelled, and whatever the engine raises
            # No shard may keep recording deletes for a copy that no longer exists
            for shard in shards:
                shard.replay = None
            await asyncio.to_thread(shutil.rmtree, target, ignore_errors=True)
            raise
        finally:
            self._build = None
        for shard in shards:
            await _discard(shard)

    async def _swap(self, shards: Sequence[Shard], target: Path) -> None:
        """Repeat the deletes on the indexed shard, and put it in place of the others. On any error these stay in use."""
        built = await open_shard(target, sealed=True, built=True)
        kept = [shard for shard in self.shards if shard not in shards]
        try:
            for shard in shards:
                for operation in shard.replay or ():
                    built.write(operation)
            await asyncio.to_thread(sync_log, target)
            await asyncio.to_thread(sync, target.parent)
            self._write_list([_entry(shard) for shard in [built, *kept]])
        except SystemExit:  # the list may name it already
            raise
        except BaseException:  # also when cancelled, whatever the engine raises: no list names it
            await _discard(built)
            raise
        self.shards[:] = [built, *kept]

    def _new_path(self) -> Path:
        return self.folder / "shards" / secrets.token_hex(4)

    def _write_list(self, entries: Sequence[Entry]) -> None:
        write_shard_list(self.folder, self.dimension, entries)


def _entry(shard: Shard) -> Entry:
    return Entry(shard.name, shard.sealed, shard.built)


async def _discard(shard: Shard) -> None:
    """Close a shard that the list does not name, and remove its files. What cannot be removed goes at the next start."""
    try:
        shard.close()
    except Exception as error:  # noqa: BLE001 (the engine raises no narrower type)
        logger(store="vectors").warning("shard_not_closed", shard=shard.name, error=str(error))
    await asyncio.to_thread(shutil.rmtree, shard.path, ignore_errors=True)


async def open_corpus(
    folder: Path,
    dimension: int,
    *,
    seal_points: int,
    merge_shards: int,
    quiet_seconds: float = QUIET_SECONDS,
) -> Corpus:
    """Open the corpus in a folder that this process owns. Raises `Misconfigured` when it has another dimension.

    A shard is sealed at `seal_points` points; `merge_shards` small shards become one, so that a search
    does not have to read too many, and so do large ones after `quiet_seconds` in which none was sealed.
    """
    entries = read_shard_list(folder, dimension)
    (folder / "shards").mkdir(exist_ok=True)
    listed = {entry.name for entry in entries}
    for path in (folder / "shards").iterdir():
        if path.name not in listed:  # unfinished or replaced
            shutil.rmtree(path)
    shards = [
        await open_shard(folder / "shards" / e.name, sealed=e.sealed, built=e.built)
        for e in entries
    ]
    corpus = Corpus(
        folder,
        dimension,
        shards,
        seal_points=seal_points,
        merge_shards=merge_shards,
        quiet_seconds=quiet_seconds,
    )
    if not shards:
        shards.append(await create_shard(corpus._new_path(), dimension))
        corpus._write_list([_entry(shard) for shard in shards])
    for shard in shards:
        shard.flush()  # so that the next start does not read the log again
    return corpus


def slices(items: Sequence[T]) -> Iterator[Sequence[T]]:
    return (items[first : first + SLICE] for first in range(0, len(items), SLICE))
