"""Opens an embedder in a process of its own, and prints its id and dimension.

`apex up` needs only these two before it starts the engines. The model, which takes 280 MB, ends with this process.
"""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any

from apex_memory.errors import Misconfigured
from apex_memory.pipeline.embedders.selection import open_embedder


async def probe_embedder(spec: str, *, model: str = "", dimension: int = 0) -> tuple[str, int]:
    """Return id and dimension of the embedder that `open_embedder` opens for the same values. Raises `Misconfigured`."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", __name__, spec, model, str(dimension)),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
    )
    try:
        output, _ = await process.communicate()
    finally:
        if process.returncode is None:  # cancelled
            process.kill()
            await process.wait()
    try:
        answer: dict[str, Any] = json.loads(output)
    except ValueError:
        raise Misconfigured(
            f"embedder: loading it ended with code {process.returncode}",
            remedy="check the model and the free memory; its messages are above",
        ) from None
    if "error" in answer:
        raise Misconfigured(answer["error"], remedy=answer["remedy"])
    return answer["id"], answer["dimension"]


async def _probe(spec: str, model: str, dimension: str) -> dict[str, Any]:
    try:
        embedder = open_embedder(spec, model=model, dimension=int(dimension))
    except Misconfigured as error:
        return {"error": str(error), "remedy": error.remedy}
    await embedder.close()
    return {"id": embedder.id, "dimension": embedder.dimension}


if __name__ == "__main__":
    print(json.dumps(asyncio.run(_probe(*sys.argv[1:4]))))
