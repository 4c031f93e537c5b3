"""Sealing, indexing and merging of shards, while searches and deletes go on and processes die."""

from __future__ import annotations

import asyncio
import errno
import itertools
import os
import shutil
import signal
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, cast

import numpy as np
import pytest

from apex_memory.disk_space import DiskSpace
from apex_memory.edge import corpus, shard_list
from apex_memory.edge.builder import build
from apex_memory.edge.catalogue import to_place
from apex_memory.edge.corpus import Corpus, DiskNearlyFull, Row, open_corpus
from apex_memory.edge.shard import Shard, open_shard, to_point
from apex_memory.errors import RetryLater, Unavailable
from apex_memory.model import Tally, VectorPoint
from apex_memory.stores.edge import EdgeVectors
from tests.edge_process import DIMENSION, EdgeProcess, edge_client, edge_process
from tests.points import stage_points, tally_of, unit
from tests.vector_search import searched
from tests.waiting import until

SEAL = 60


class Expected:
    """What the store should hold, searched by plain arithmetic."""

    def __init__(self) -> None:
        self.points: dict[uuid.UUID, list[VectorPoint]] = {}
        self.vectors: dict[uuid.UUID, np.ndarray] = {}
        self._seeds = itertools.count()

    async def add(self, store: EdgeVectors, count: int) -> uuid.UUID:
        stage = uuid.uuid4()
        self.points[stage] = stage_points(stage, [f"truck {n % 7}" for n in range(count)])
        self.vectors[stage] = unit(count, DIMENSION, seed=next(self._seeds))
        await store.upsert(self.points[stage], self.vectors[stage])
        return stage

    async def delete(self, store: EdgeVectors, stage: uuid.UUID) -> None:
        await store.delete_stages([stage])
        del self.points[stage], self.vectors[stage]

    @property
    def tallies(self) -> dict[uuid.UUID, Tally]:
        return {stage: tally_of(points) for stage, points in self.points.items()}

    def nearest(self, question: np.ndarray, limit: int) -> list[uuid.UUID]:
        ids = [point.id for points in self.points.values() for point in points]
        scores = np.concatenate(list(self.vectors.values())) @ question
        return [ids[i] for i in np.argsort(-scores)[:limit]]

    async def check(self, store: EdgeVectors) -> None:
        assert await store.tally(list(self.points)) == self.tallies
        assert {row.stage: row.tally async for row in store.walk()} == self.tallies
        total = sum(map(len, self.points.values()))
        assert await store.points() == total
        question = unit(1, DIMENSION, seed=9999)[0]
        hits = await searched(store, dense=question, words="truck 3", limit=10)
        assert [hit.id for hit in hits["dense"]] == self.nearest(question, 10)
        every = (await searched(store, dense=None, words="truck", limit=total + 50))["words"]
        assert {hit.id for hit in every} == {p.id for ps in self.points.values() for p in ps}
        assert len(every) == total


async def indexed(store: EdgeVectors) -> None:
    """Wait until nothing is left to index."""

    async def nothing_left() -> bool:
        stats = await store.stats()
        assert not stats["failures"]
        return not stats["unindexed"]

    await until(nothing_left, "all is indexed", seconds=60)


async def test_results_stay_the_same_through_sealing_indexing_and_merging(tmp_path: Path) -> None:
    with edge_process(tmp_path / "edge", seal_points=SEAL, merge_shards=3) as process:
        store, expected = edge_client(process), Expected()
        await process.ready(store)
        for turn in range(6):
            stage = await expected.add(store, 35)
            if turn % 3 == 1:
                await expected.delete(store, stage)
            await expected.check(store)
        assert (await store.stats())["shards"] > 3

        async def merged() -> bool:
            await expected.check(store)
            return (await store.stats())["shards"] <= 2  # the merged one and the active one

        # The pause leaves the builder some of the processors.
        await until(merged, "the shards are merged", seconds=100, every=0.05)
        await expected.check(store)
        await expected.delete(store, next(iter(expected.points)))
        await expected.check(store)
        process.end(signal.SIGKILL)
        process.start()
        await process.ready(store)
        await expected.check(store)
        await store.close()


async def test_large_shards_are_merged_when_little_is_written(tmp_path: Path) -> None:
    with edge_process(
        tmp_path / "edge", seal_points=20, merge_shards=3, quiet_seconds=1
    ) as process:
        store, expected = edge_client(process), Expected()
        await process.ready(store)
        for turn in range(10):
            stage = await expected.add(store, 20)
            if turn == 4:
                await expected.delete(store, stage)

        async def merged() -> bool:
            await expected.check(store)
            # The one of nine sealed shards or what deletes left of them, the tenth, and the active one.
            return (await store.stats())["shards"] <= 3

        await until(merged, "the merged shards are merged", seconds=100, every=0.05)
        await expected.check(store)
        await store.close()


class Sized(NamedTuple):
    """What the choice of shards to merge looks at."""

    points: int
    sealed: bool = True
    built: bool = True


@pytest.mark.parametrize(
    ("points", "quiet", "chosen"),
    [
        ([20, 20, 20], False, []),
        ([20, 80, 20, 20, 20], False, [20, 20, 20, 20]),
        ([80, 80, 80, 80], False, []),  # while much is written
        ([80, 80, 80, 80], True, [80, 80, 80, 80]),
        ([80, 320, 80, 20, 80, 80, 320, 320, 320], True, [80, 80, 80, 80]),
        (
            [100, 100, 100, 100, 41],
            True,
            [41, 100, 100, 100],
        ),  # more would be more than a quarter too many
        ([320, 320, 320, 320, 320], True, []),  # a build of more would take much memory
        ([0, 0, 0, 0], False, [0, 0, 0, 0]),
        ([80, 80, 80, 80, 20, 20, 20, 20], True, [20, 20, 20, 20]),
    ],
)
def test_shards_of_about_one_size_are_merged(
    tmp_path: Path, points: list[int], quiet: bool, chosen: list[int]
) -> None:
    shards = [Sized(count) for count in points]
    merging = Corpus(
        tmp_path,
        DIMENSION,
        cast(list[Shard], [*shards, Sized(5, sealed=False, built=False)]),
        seal_points=20,
        merge_shards=4,
        quiet_seconds=0 if quiet else 600,
    )
    assert [shard.points for shard in merging._next_work()] == chosen


@pytest.mark.parametrize(("work", "failures"), [(1, 1), (4, 0)])
async def test_a_merge_without_space_is_no_failure_of_indexing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, work: int, failures: int
) -> None:
    """Searches are slower without it, which needs no alert beside that of the disk."""
    tried = asyncio.Event()

    async def refuse(*_: object) -> None:
        tried.set()
        raise DiskNearlyFull("the disk is nearly full")

    shards = await open_corpus(tmp_path, DIMENSION, seal_points=20, merge_shards=4)
    monkeypatch.setattr(shards, "_next_work", lambda: [Sized(80)] * work)
    monkeypatch.setattr(shards, "_replace", refuse)
    building = asyncio.create_task(shards.build())
    await tried.wait()
    await asyncio.sleep(0)  # a turn of the loop
    assert shards._failures == failures
    building.cancel()
    await asyncio.gather(building, return_exceptions=True)
    await shards.close()


async def test_a_delete_during_indexing_holds_for_the_index(tmp_path: Path) -> None:
    with edge_process(tmp_path / "edge", seal_points=SEAL) as process:
        store, expected = edge_client(process), Expected()
        await process.ready(store)
        stages = [await expected.add(store, 10) for _ in range(7)]
        await builder_of(process)  # it reads a copy that still has these
        for stage in stages[:4]:
            await expected.delete(store, stage)
        assert (await store.stats())["unindexed"] > 0
        await indexed(store)
        await expected.check(store)
        assert await store.tally(stages[:4]) == {}
        await store.close()


async def test_an_upsert_of_what_was_sealed_replaces_it(tmp_path: Path) -> None:
    with edge_process(tmp_path / "edge", seal_points=SEAL) as process:
        store, expected = edge_client(process), Expected()
        await process.ready(store)
        stage = await expected.add(store, SEAL + 5)
        await indexed(store)
        await store.upsert(expected.points[stage], expected.vectors[stage])
        await expected.check(store)
        await store.close()


async def test_a_killed_builder_is_reported_and_harms_nothing(tmp_path: Path) -> None:
    with edge_process(tmp_path / "edge", seal_points=SEAL) as process:
        store, expected = edge_client(process), Expected()
        await process.ready(store)
        await expected.add(store, SEAL)
        os.kill(await builder_of(process), signal.SIGKILL)

        async def failed() -> dict[str, int] | None:
            stats = await store.stats()
            return stats if stats["failures"] else None

        stats = await until(failed, "the failure is counted", seconds=30)
        assert stats and stats["unindexed"] == SEAL
        await expected.check(store)
        assert "indexing_failed" in process.log()
        process.end(signal.SIGKILL)
        process.start()  # it tries again
        await process.ready(store)
        await indexed(store)
        await expected.check(store)
        await store.close()


@pytest.mark.parametrize("milliseconds", [0, 150, 600])
async def test_kill_9_at_any_moment_leaves_one_whole_corpus(
    tmp_path: Path, milliseconds: int
) -> None:
    with edge_process(tmp_path / "edge", seal_points=SEAL) as process:
        store, expected = edge_client(process), Expected()
        await process.ready(store)
        for _ in range(3):
            await expected.add(store, 35)
        await store.flush()
        late = asyncio.create_task(trickle(store))
        await asyncio.sleep(milliseconds / 1000)  # the moment is the point of this test
        process.end(signal.SIGKILL)
        with pytest.raises(Unavailable):
            await late
        process.start()
        await process.ready(store)
        written = [row.stage async for row in store.walk() if row.stage not in expected.points]
        await store.delete_stages(written)  # what was never acknowledged may be there or not
        await expected.check(store)
        await indexed(store)
        await expected.check(store)
        # The last swapped shard goes after the swap.
        await until(lambda: not leftovers(process), "no leftovers", seconds=30)
        await store.close()


async def trickle(store: EdgeVectors) -> None:
    """Write without end, so that sealing and indexing are always under way."""
    unknown = Expected()
    while True:
        await unknown.add(store, 35)


def leftovers(process: EdgeProcess) -> set[str]:
    """Folders that the manifest does not list."""
    manifest = (process.folder / "corpus.json").read_text()
    return {
        path.name for path in (process.folder / "shards").iterdir() if path.name not in manifest
    }


async def builder_of(process: EdgeProcess) -> int:
    """Wait for the process that indexes; its id."""

    def running() -> int:
        for status in Path("/proc").glob("[0-9]*/cmdline"):
            try:
                words = status.read_bytes()
            except OSError:
                continue
            if b"edge.builder" in words and str(process.folder).encode() in words:
                return int(status.parent.name)
        return 0

    return await until(running, "a builder runs", seconds=30, every=0.01)


def one_point() -> Row:
    id, stage = uuid.uuid4(), uuid.uuid4()
    place = f"{uuid.uuid4()} 0 0 1 0"
    point = to_point({"dense": [1.0] * DIMENSION}, str(id), str(stage), place, 0, [])
    return Row(id, stage, to_place(stage, place), [], point)


async def test_writes_leave_the_space_that_a_build_still_needs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without it a write would take the blocks under the pages that the build has mapped, and SIGBUS would end it."""
    space = DiskSpace(total=10_000_000_000, free=9_000_000_000)
    monkeypatch.setattr(corpus, "disk_space", lambda _: space)
    begun, go_on = asyncio.Event(), asyncio.Event()

    async def held_build(sources: Sequence[Path], target: Path, dimension: int) -> None:
        begun.set()
        await go_on.wait()
        raise RetryLater("stopped by the test")

    monkeypatch.setattr(corpus, "build", held_build)
    shards = await open_corpus(tmp_path, DIMENSION, seal_points=1, merge_shards=8)
    await shards.upsert([one_point()])
    building = asyncio.create_task(shards.build())
    await begun.wait()
    space = DiskSpace(space.total, space.reserve + 1)
    with pytest.raises(DiskNearlyFull):
        await shards.upsert([one_point()])
    go_on.set()

    async def writes_again() -> bool:
        try:
            await shards.upsert([one_point()])
        except DiskNearlyFull:
            return False
        return True

    await until(writes_again, "the build has ended", seconds=5)
    building.cancel()
    await asyncio.gather(building, return_exceptions=True)
    await shards.close()


class FailingList:
    """`write_shard_list` of a disk that takes no list until `mend` is called."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._monkeypatch = monkeypatch
        self.calls = 0
        monkeypatch.setattr(corpus, "write_shard_list", self._fail)

    def _fail(self, *_: object) -> None:
        self.calls += 1
        raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))

    def mend(self) -> None:
        self._monkeypatch.setattr(corpus, "write_shard_list", shard_list.write_shard_list)


def shard_folders(folder: Path) -> set[str]:
    return {path.name for path in (folder / "shards").iterdir()}


def points_of(shards: Corpus, rows: Sequence[Row]) -> int:
    return sum(tally.count for tally in shards.tally([row.stage for row in rows]).values())


async def points_after_a_restart(folder: Path, copy: Path, rows: Sequence[Row]) -> int:
    """Return how many of the points a corpus has that is opened from the files as they are now."""
    shutil.copytree(folder, copy)
    shards = await open_corpus(copy, DIMENSION, seal_points=100, merge_shards=8)
    try:
        return points_of(shards, rows)
    finally:
        await shards.close()


async def test_a_list_that_cannot_be_written_leaves_the_full_shard_active(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, rows = tmp_path / "edge", [one_point() for _ in range(5)]
    folder.mkdir()
    shards = await open_corpus(folder, DIMENSION, seal_points=3, merge_shards=8)
    failing = FailingList(monkeypatch)
    with pytest.raises(OSError, match="quota"):
        await shards.upsert(rows[:3])
    with pytest.raises(OSError, match="quota"):
        await shards.upsert(rows[:4])
    assert [shard.sealed for shard in shards.shards] == [False]
    assert shard_folders(folder) == {shards.active.name}
    assert await points_after_a_restart(folder, tmp_path / "copy", rows) == 4
    failing.mend()
    await shards.upsert(rows[:4])
    await shards.upsert(rows[4:])
    assert [shard.sealed for shard in shards.shards] == [True, False]
    assert points_of(shards, rows) == 5
    await shards.close()


async def test_a_list_that_cannot_be_written_leaves_the_shards_that_were_indexed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A delete that ran meanwhile must hold for the shard that stays, and for the next index of it."""
    folder, rows = tmp_path / "edge", [one_point() for _ in range(3)]
    folder.mkdir()
    shards = await open_corpus(folder, DIMENSION, seal_points=3, merge_shards=8)
    await shards.upsert(rows)
    former = list(shards.shards)
    opened: list[Shard] = []

    async def build_during_a_delete(sources: Sequence[Path], target: Path, dimension: int) -> None:
        await build(sources, target, dimension)
        await shards.delete_stages([rows[0].stage])

    async def open_and_keep(path: Path, *, sealed: bool, built: bool) -> Shard:
        opened.append(await open_shard(path, sealed=sealed, built=built))
        return opened[-1]

    monkeypatch.setattr(corpus, "build", build_during_a_delete)
    monkeypatch.setattr(corpus, "open_shard", open_and_keep)
    monkeypatch.setattr(corpus, "REBUILD_SECONDS", 0.2)
    failing = FailingList(monkeypatch)
    building = asyncio.create_task(shards.build())
    await until(lambda: failing.calls == 2, "the build was begun anew", seconds=30)
    assert shards.shards == former
    assert points_of(shards, rows) == 2
    with pytest.raises(Exception, match="not initialized"):
        opened[0].engine.info()  # the indexed shard was closed
    failing.mend()
    await until(lambda: not shards.stats()["unindexed"], "all is indexed", seconds=30)
    assert points_of(shards, rows) == 2
    await until(lambda: len(shard_folders(folder)) == 2, "no leftovers", seconds=10)
    building.cancel()
    await asyncio.gather(building, return_exceptions=True)
    await shards.close()


@pytest.mark.parametrize("change", ["seal", "replace"])
async def test_a_list_that_may_be_the_new_one_keeps_the_files_of_both(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    """Where the folder cannot be synced, nobody knows which list a power cut leaves: the process ends, and removes nothing."""
    folder, rows = tmp_path / "edge", [one_point() for _ in range(3)]
    folder.mkdir()
    shards = await open_corpus(folder, DIMENSION, seal_points=3, merge_shards=8)
    if change == "replace":
        await shards.upsert(rows)

    def failing_sync(path: Path) -> None:
        if path == folder:
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(shard_list, "sync", failing_sync)
    with pytest.raises(SystemExit):
        await (shards.upsert(rows) if change == "seal" else shards.build())
    monkeypatch.undo()
    assert await points_after_a_restart(folder, tmp_path / "copy", rows) == 3
    await shards.close()
