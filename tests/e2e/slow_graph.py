"""`apex` with a graph that is not ready before the file `loaded` is beside the data folder, as after a start that reads much."""

import asyncio

from apex_memory.cli import main
from apex_memory.engines.falkordb import FalkorDB

_ready = FalkorDB.ready


async def ready(self: FalkorDB) -> None:
    while not (self.data_dir.parent / "loaded").exists():
        await asyncio.sleep(0.05)  # a poll that the supervisor bounds, with `ready_seconds`
    await _ready(self)


FalkorDB.ready = ready  # type: ignore[method-assign] # slower than the real one

if __name__ == "__main__":
    main()
