"""Indexing, in a process of its own: it takes seconds of a processor, and the engine would stop everything for as long.

`python -m apex_memory.stores.embedded.edge_builder FOLDER DIMENSION` indexes the shard in that folder,
which is a copy that nobody else has open.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from pathlib import Path

from qdrant_edge import EdgeOptimizersConfig, EdgeShard, HnswIndexConfig

from apex_memory.errors import RetryLater
from apex_memory.stores.embedded.edge_shard import ENGINE, layout, sync_tree
from apex_memory.stores.embedded.process import die_with_parent

NICENESS = 10
THRESHOLD_KB = 1  # index whatever is there
LINKS, EFFORT, FULL_SCAN_KB = (
    16,
    100,
    10_000,
)  # the engine's own defaults, which it wants spelled out


async def build_copy(folder: Path, dimension: int) -> None:
    """Index the shard in the folder, by another process of low priority. Raises `RetryLater` when that failed."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", __name__, str(folder), str(dimension)),
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
            f"indexing ended with code {code}",
            after=60,
            remedy="see the log of the vector process; searches are right meanwhile, but slower",
        )


def index(folder: Path, dimension: int) -> None:
    """Index the shard in the folder and put it on the disk. About 0.5 ms of a processor a point."""
    path = str(folder / ENGINE)
    options = layout(
        dimension,
        hnsw_config=HnswIndexConfig(LINKS, EFFORT, FULL_SCAN_KB),
        optimizers=EdgeOptimizersConfig(
            indexing_threshold=THRESHOLD_KB,
            default_segment_number=1,
            deleted_threshold=0.01,
            vacuum_min_vector_number=100,
        ),
    )
    shard = EdgeShard.load(path, options)
    shard.optimize()
    shard.flush()
    shard.close()
    sync_tree(folder)


if __name__ == "__main__":
    os.nice(NICENESS)
    index(Path(sys.argv[1]), int(sys.argv[2]))
