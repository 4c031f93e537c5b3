"""Indexing in a process of its own: it takes seconds of CPU, during which the engine would block everything else.

`python -m apex_memory.edge.builder DIMENSION TARGET SOURCE...` builds one indexed shard from the
shards in the source folders, which are copies that no other process has open, and removes these.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from qdrant_edge import (
    EdgeOptimizersConfig,
    EdgeShard,
    HnswIndexConfig,
    Point,
    UpdateOperation,
)

from apex_memory.edge.catalogue import Catalogue
from apex_memory.edge.shard import (
    ENGINE,
    catalogue_entry,
    create_engine,
    create_indexes,
    pages,
    sync_tree,
)
from apex_memory.errors import RetryLater
from apex_memory.parent_death import die_with_parent

NICENESS = 10
SLICE = 1000  # points read and written together
THRESHOLD_KB = 1  # so low that every shard is indexed
# The engine's own defaults, which it requires to be given.
HNSW_LINKS = 16
HNSW_EFFORT = 100
FULL_SCAN_KB = 10_000


async def build(sources: Sequence[Path], target: Path, dimension: int) -> None:
    """Build one indexed shard from copies of shards, in another process of low priority. Raises `RetryLater` when it fails."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", __name__, str(dimension), str(target), *map(str, sources)),
        stdin=asyncio.subprocess.DEVNULL,
        preexec_fn=die_with_parent(signal.SIGKILL),
    )
    try:
        code = await process.wait()
    except asyncio.CancelledError:
        process.kill()
        await process.wait()
        raise
    if code:
        raise RetryLater(
            f"indexing ended with exit code {code}",
            remedy="see the log of the vector process; searches stay correct, but are slower",
        )


def index(sources: Sequence[Path], target: Path, dimension: int) -> None:
    """Write the live points of the sources to a new shard, index it and sync it to the disk. About 0.7 CPU-ms per point."""
    catalogue = Catalogue()
    shard = create_engine(
        target,
        dimension,
        hnsw_config=HnswIndexConfig(HNSW_LINKS, HNSW_EFFORT, FULL_SCAN_KB),
        optimizers=EdgeOptimizersConfig(indexing_threshold=THRESHOLD_KB, default_segment_number=1),
    )
    list(create_indexes(shard))
    for source in sources:
        origin = EdgeShard.load(str(source / ENGINE))
        for records in pages(origin, SLICE, vectors=True):
            points = [Point(r.id, r.vector, r.payload) for r in records]
            if points:
                shard.update(UpdateOperation.upsert_points(points))
            for record in records:
                catalogue.add(*catalogue_entry(record))
        origin.close()
        shutil.rmtree(source)
    shard.optimize()
    shard.flush()
    shard.close()
    catalogue.packed().save(target)
    sync_tree(target)


if __name__ == "__main__":
    os.nice(NICENESS)
    index([Path(name) for name in sys.argv[3:]], Path(sys.argv[2]), int(sys.argv[1]))
