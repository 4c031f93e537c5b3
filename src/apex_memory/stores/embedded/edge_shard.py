"""One shard of the corpus: a folder of Qdrant Edge with its catalogue beside it.

Every call into the engine holds the interpreter; nothing else of the process runs meanwhile. So calls
are made straight from the event loop, in pieces of some milliseconds, with `breathe()` between.

A point has a dense vector and one sparse vector for both word fields: terms of `nearby` have the
highest bit set. Two sparse vectors would double what an opening, a build and an upsert cost. The
payload is what filters need (`stage`, `time`, `tags`) and `place`, one string for all else, because
each further value costs some microseconds on its way into the engine.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Iterable, Sequence
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
    Point,
    QueryBatchRequest,
    QueryRequest,
    ScrollRequest,
    UpdateOperation,
    UuidIndexParams,
)

from apex_memory.stores.embedded.edge_catalogue import Catalogue, PackedCatalogue

NEARBY = 1 << 31  # term ids have 31 bits; this one says that the term is from `nearby`
PAGE = 10_000  # points read at a time
CATALOGUE = "catalogue.npz"
ENGINE = "engine"


async def breathe() -> None:
    """Let requests that have arrived meanwhile go first: one turn reads the socket, one wakes the reader, one starts the request."""
    for _ in range(4):
        await asyncio.sleep(0)


def layout(dimension: int, **options: Any) -> EdgeConfig:
    """The vectors of a point, with further options of the engine."""
    return EdgeConfig(
        vectors={"dense": EdgeVectorParams(size=dimension, distance=Distance.Cosine)},
        sparse_vectors={"terms": EdgeSparseVectorParams()},
        **options,
    )


def of_stages(stages: Iterable[UUID]) -> FieldCondition:
    return FieldCondition("stage", match=MatchAny([str(stage) for stage in stages]))


@dataclass
class Shard:
    """An open shard. `built` means indexed; `sealed` means that it takes deletes only."""

    path: Path
    engine: Any
    """An `EdgeShard`. Its stubs allow for far more kinds of ids and vectors than ours."""
    catalogue: Catalogue | PackedCatalogue
    sealed: bool = False
    built: bool = False
    dirty: bool = False
    """Holds writes that are not yet on the disk."""
    settled: asyncio.Lock = field(default_factory=asyncio.Lock)
    """Held while its files are copied: nothing may be written then."""
    replay: list[UpdateOperation] | None = None
    """Deletes since its copy was taken, for the built shard that will replace it."""

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def points(self) -> int:
        return int(self.engine.info().points_count)

    def write(self, operation: UpdateOperation) -> None:
        self.dirty = True
        self.engine.update(operation)

    async def delete(self, operation: UpdateOperation) -> None:
        """Apply a delete, now or, if the files are being copied, right after."""
        async with self.settled:
            self.write(operation)
            if self.replay is not None:
                self.replay.append(operation)

    async def delete_stages(self, stages: Sequence[UUID]) -> None:
        if held := self.catalogue.held(stages):
            only = Filter(must=[of_stages(held)])
            await self.delete(UpdateOperation.delete_points_by_filter(only))

    def have(self, ids: Sequence[str]) -> list[Any]:
        """Those of the points that are here."""
        return [record.id for record in self.engine.retrieve(ids, False, False)]

    def query(self, requests: list[QueryRequest]) -> list[list[Any]]:
        return list(self.engine.query_batch(QueryBatchRequest(requests)))

    def places(self, ids: list[UUID]) -> dict[UUID, tuple[str, str]]:
        """Stage and place of each point."""
        records = self.engine.retrieve(ids, ["stage", "place"], False)
        return {r.id: (r.payload["stage"], r.payload["place"]) for r in records}

    def hashes(self, stages: Sequence[UUID]) -> dict[UUID, tuple[str, int]]:
        """Stage and hash of every point of the stages."""
        held = self.catalogue.held(stages)
        found: dict[UUID, tuple[str, int]] = {}
        page: UUID | None = None
        while held:
            records, page = self.engine.scroll(
                ScrollRequest(
                    offset=page,
                    limit=PAGE,
                    filter=Filter(must=[of_stages(held)]),
                    with_payload=["stage", "place"],
                )
            )
            for r in records:
                found[r.id] = (r.payload["stage"], int(r.payload["place"].rpartition(" ")[2]))
            if page is None:
                break
        return found

    def flush(self) -> None:
        """Let the engine write its files, so that the next opening need not read the log. Up to some 100 ms."""
        self.engine.flush()

    def close(self) -> None:
        self.engine.close()


async def create_shard(path: Path, dimension: int) -> Shard:
    """A new empty shard, on the disk when this returns. Two calls of it take some 50 ms."""
    (path / ENGINE).mkdir(parents=True)
    engine: Any = EdgeShard.create(str(path / ENGINE), layout(dimension))
    indexes: dict[str, Any] = {
        # Links in the vector index for each value would double the time to build it.
        "stage": UuidIndexParams(enable_hnsw=False),
        "tags": KeywordIndexParams(enable_hnsw=False),
        "time": IntegerIndexParams(lookup=False, range=True, enable_hnsw=False),
    }
    for name, index in indexes.items():
        await breathe()
        engine.update(UpdateOperation.create_field_index(name, index))
    await asyncio.to_thread(sync_tree, path)
    engine.flush()
    sync(path.parent)
    return Shard(path, engine, Catalogue())


async def open_shard(path: Path, *, sealed: bool, built: bool) -> Shard:
    """Open a shard that exists. What its log holds beyond its files is applied first."""
    engine: Any = EdgeShard.load(str(path / ENGINE))
    if sealed and (path / CATALOGUE).exists():
        catalogue: Catalogue | PackedCatalogue = PackedCatalogue.load(path / CATALOGUE)
    else:
        catalogue = _read_catalogue(engine)
    return Shard(path, engine, catalogue, sealed=sealed, built=built)


def _read_catalogue(engine: Any) -> Catalogue:
    """Make the catalogue from the points themselves: 35 µs a point."""
    catalogue = Catalogue()
    page: UUID | None = None
    while True:
        records, page = engine.scroll(
            ScrollRequest(offset=page, limit=PAGE, with_payload=["stage"], with_vector=["terms"])
        )
        for record in records:
            terms = record.vector.get("terms")
            catalogue.add(UUID(record.payload["stage"]), terms.indices if terms else ())
        if page is None:
            return catalogue


def to_point(
    vectors: dict[str, Any], identity: str, stage: str, place: str, time: int, tags: list[str]
) -> Point:
    return Point(identity, vectors, {"stage": stage, "place": place, "time": time, "tags": tags})


def sync_log(path: Path) -> None:
    """Put the engine's log on the disk. All that was written before is then safe, though the engine's own files are not.

    It may run in a thread, beside the engine: that is why it is here, for the engine's own flush
    holds the interpreter, for 20 ms as a rule and 300 at times. Blocks; raises `OSError`.
    """
    for attempt in range(5):
        try:
            sync_tree(path / ENGINE / "wal")
            return
        except FileNotFoundError:  # the engine renamed a file of it meanwhile: look again
            if attempt == 4:
                raise


def sync_tree(path: Path) -> None:
    """Put a folder with all it holds on the disk. Blocks; raises `OSError`."""
    for folder, _, names in os.walk(path):
        for name in names:
            sync(Path(folder) / name)
        sync(Path(folder))


def sync(path: Path) -> None:
    """Put one file or folder on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_whole(path: Path, text: str) -> None:
    """Write a file so that a crash at any moment leaves the old text or the new."""
    draft = path.with_name(f"{path.name}.new")
    with contextlib.suppress(FileNotFoundError):
        draft.unlink()
    draft.write_text(text, encoding="utf-8")
    sync(draft)
    draft.replace(path)
    sync(path.parent)
