"""One shard of the corpus: a folder of Qdrant Edge with its catalogue beside it.

Every call into the engine holds the interpreter lock; nothing else in the process runs meanwhile. So the
event loop makes the calls itself, in pieces of a few milliseconds, with `breathe()` between them.

A point has a dense vector and one sparse vector for both word fields: terms of `nearby` have the
highest bit set. Two sparse vectors would double what an opening, a build and an upsert cost. The
payload holds what filters need (`stage`, `time`, `tags`) and `place`, one string for everything else,
because each further value costs some microseconds on its way into the engine.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import shutil
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import UUID

from qdrant_edge import (
    Distance,
    EdgeConfig,
    EdgeShard,
    EdgeSparseVectorParams,
    EdgeVectorParams,
    FieldCondition,
    Filter,
    IntegerIndexParams,
    KeywordIndexParams,
    MatchAny,
    Memory,
    Point,
    QueryBatchRequest,
    QueryRequest,
    ScrollRequest,
    UpdateOperation,
    UuidIndexParams,
)

from apex_memory.durable_files import sync
from apex_memory.edge.catalogue import (
    Catalogue,
    PackedCatalogue,
    to_place,
    to_uuid,
)

NEARBY = 1 << 31  # term ids have 31 bits; this bit marks a term of `nearby`
PAGE = 10_000  # points per page
TERMS = {"terms": EdgeSparseVectorParams(memory=Memory.Cached)}
SEARCH_THREADS = 1  # per shard: idle threads would take a third of the cost of a search
ENGINE = "engine"


async def breathe() -> None:
    """Let requests that arrived meanwhile run: one loop turn reads the socket, one wakes the reader, one starts the request."""
    for _ in range(4):
        await asyncio.sleep(0)


def of_stages(stages: Iterable[UUID]) -> FieldCondition:
    return FieldCondition("stage", match=MatchAny([str(stage) for stage in stages]))


@dataclass(eq=False)
class Shard:
    """An open shard. `built` means indexed; `sealed` means that it takes deletes only."""

    path: Path
    engine: Any
    """An `EdgeShard`. Its stubs allow many more kinds of ids and vectors than this project uses."""
    catalogue: Catalogue | PackedCatalogue
    sealed: bool = False
    built: bool = False
    dirty: bool = False
    """Has writes that are not yet on the disk."""
    logged: int = 0
    """Writes since the engine's own files were last written."""
    files: asyncio.Lock = field(default_factory=asyncio.Lock)
    """Held while its files are copied: no write may change them."""
    replay: list[UpdateOperation] | None = None
    """Deletes since its copy was taken, to repeat on the indexed shard that will replace it."""

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def points(self) -> int:
        return int(self.engine.info().points_count)

    def write(self, operation: UpdateOperation) -> None:
        self.dirty = True
        self.logged += 1
        self.engine.update(operation)

    async def delete(self, operation: UpdateOperation) -> None:
        """Apply a delete at once, or right after the files are copied."""
        async with self.files:
            self.write(operation)
            if self.replay is not None:
                self.replay.append(operation)

    async def delete_stages(self, stages: Sequence[UUID]) -> None:
        if held := self.catalogue.held(stages):
            only = Filter(must=[of_stages(held)])
            await self.delete(UpdateOperation.delete_points_by_filter(only))

    def existing(self, ids: Sequence[UUID]) -> list[Any]:
        """Return those of the points that the shard holds."""
        return [record.id for record in self.engine.retrieve(ids, False, False)]

    def query(self, requests: list[QueryRequest]) -> list[list[Any]]:
        return list(self.engine.query_batch(QueryBatchRequest(requests)))

    def hashes(self, stages: Sequence[UUID]) -> dict[UUID, tuple[str, int]]:
        """Return stage and hash of every point of the stages."""
        hashes: dict[UUID, tuple[str, int]] = {}
        if held := self.catalogue.held(stages):
            only = Filter(must=[of_stages(held)])
            for records in pages(self.engine, PAGE, payload=["stage", "place"], only=only):
                for record in records:
                    hash_text = record.payload["place"].rpartition(" ")[2]
                    hashes[record.id] = (record.payload["stage"], int(hash_text))
        return hashes

    def flush(self) -> None:
        """Make the engine write its files, so that the next opening does not read the log."""
        self.engine.flush()
        self.dirty, self.logged = False, 0

    async def checkpoint(self) -> None:
        """Flush, with most of the waiting for the disk in a thread, where it blocks nobody."""
        async with self.files:
            with contextlib.suppress(FileNotFoundError):  # the engine renames files of its log
                await asyncio.to_thread(sync_tree, self.path)
            self.flush()

    def close(self) -> None:
        self.engine.close()


def create_engine(path: Path, dimension: int, **options: Any) -> Any:
    """Return a new empty engine for the shard in the folder `path`, not on the disk yet."""
    (path / ENGINE).mkdir(parents=True)
    layout = EdgeConfig(
        vectors={"dense": EdgeVectorParams(size=dimension, distance=Distance.Cosine)},
        sparse_vectors=TERMS,
        max_search_threads=SEARCH_THREADS,
        **options,
    )
    return EdgeShard.create(str(path / ENGINE), layout)


def create_indexes(engine: Any) -> Iterator[None]:
    """Create the payload indexes, one per step."""
    options: dict[str, Any] = {
        "enable_hnsw": False,  # no extra links in the vector index per value: half the time to build it
        "memory": Memory.Cold,  # mapped: a built shard of 160,000 points opens in 0.1 s, not 0.6
    }
    indexes: dict[str, Any] = {
        "stage": UuidIndexParams(**options),
        "tags": KeywordIndexParams(**options),
        "time": IntegerIndexParams(lookup=False, range=True, **options),
    }
    for name, index in indexes.items():
        yield engine.update(UpdateOperation.create_field_index(name, index))


async def create_shard(path: Path, dimension: int) -> Shard:
    """Create an empty shard, on the disk when this returns. Searches run between its steps of up to 50 ms."""
    engine = create_engine(path, dimension)
    try:
        for _ in create_indexes(engine):
            await breathe()
        await asyncio.to_thread(sync_tree, path)
        engine.flush()
        sync(path.parent)
    except BaseException:  # also when cancelled: nobody would close or remove it
        with contextlib.suppress(Exception):  # the engine raises no narrower type
            engine.close()
        shutil.rmtree(path, ignore_errors=True)
        raise
    return Shard(path, engine, Catalogue())


async def open_shard(path: Path, *, sealed: bool, built: bool) -> Shard:
    """Open an existing shard. The engine first applies the part of its log that is not in its files."""
    # Settings that are not named stay as the shard has them; the engine requires one kind of vector.
    config = EdgeConfig(sparse_vectors=TERMS, max_search_threads=SEARCH_THREADS)
    engine: Any = EdgeShard.load(str(path / ENGINE), config)
    catalogue = PackedCatalogue.load(path) if sealed else None
    return Shard(path, engine, catalogue or _read_catalogue(engine), sealed=sealed, built=built)


def _read_catalogue(engine: Any) -> Catalogue:
    """Build the catalogue from the points themselves: 40 µs a point."""
    catalogue = Catalogue()
    for records in pages(engine, PAGE, payload=["stage", "place"], vectors=["terms"]):
        for record in records:
            catalogue.add(*catalogue_entry(record))
    return catalogue


def catalogue_entry(record: Any) -> tuple[UUID, UUID, bytes, list[int]]:
    """Return the arguments of `Catalogue.add` for a point that was read with its terms."""
    terms, stage = record.vector.get("terms"), to_uuid(record.payload["stage"])
    place = to_place(stage, record.payload["place"])
    return record.id, stage, place, terms.indices if terms else []


def pages(
    engine: Any,
    size: int,
    *,
    payload: bool | list[str] = True,
    vectors: bool | list[str] = False,
    only: Filter | None = None,
) -> Iterator[list[Any]]:
    """Yield all points, or those that match the filter, `size` at a time."""
    page: Any = None
    while True:
        records, page = engine.scroll(
            ScrollRequest(
                offset=page, limit=size, filter=only, with_payload=payload, with_vector=vectors
            )
        )
        yield records
        if page is None:
            return


def to_point(
    vectors: dict[str, Any], identity: str, stage: str, place: str, time: int, tags: list[str]
) -> Point:
    return Point(identity, vectors, {"stage": stage, "place": place, "time": time, "tags": tags})


def sync_log(path: Path) -> None:
    """Sync the engine's log to the disk. All earlier writes are then durable, though not yet in the engine's own files.

    It may run in a thread beside the engine. The engine's own flush holds the interpreter lock, for 20 ms
    usually and 300 at times. Blocks; raises `OSError`.
    """
    for attempt in range(5):
        try:
            sync_tree(path / ENGINE / "wal")
            return
        except FileNotFoundError:  # the engine renamed a file meanwhile: list the folder again
            if attempt == 4:
                raise


def copy_tree(source: Path, target: Path) -> None:
    """Copy a folder and keep the holes of sparse files: most of a log is a hole. Blocks; raises `OSError`."""
    shutil.copytree(
        source, target, copy_function=_copy_data if sys.platform == "linux" else shutil.copy2
    )


def _copy_data(source: str, target: str) -> None:
    with Path(source).open("rb") as origin, Path(target).open("wb") as copy:
        end, place = os.fstat(origin.fileno()).st_size, 0
        copy.truncate(end)
        while place < end:
            try:
                place = os.lseek(origin.fileno(), place, os.SEEK_DATA)
                stop = os.lseek(origin.fileno(), place, os.SEEK_HOLE)
            except OSError as error:
                if error.errno != errno.ENXIO:  # only a hole is left
                    raise
                return
            os.lseek(copy.fileno(), place, os.SEEK_SET)
            while place < stop:
                place += os.sendfile(copy.fileno(), origin.fileno(), place, stop - place)


def size_on_disk(path: Path) -> int:
    """Return the bytes that a folder's files take, without the holes of sparse files. Blocks; raises `OSError`."""
    blocks = 0
    for folder, _, names in os.walk(path):
        for name in names:
            with contextlib.suppress(FileNotFoundError):  # the engine removed it meanwhile
                blocks += (Path(folder) / name).stat().st_blocks
    return blocks * 512  # the unit of `st_blocks`, see stat(2)


def sync_tree(path: Path) -> None:
    """Sync a folder with all its files to the disk. Blocks; raises `OSError`."""
    for folder, _, names in os.walk(path):
        for name in names:
            sync(Path(folder) / name)
        sync(Path(folder))
