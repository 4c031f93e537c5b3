"""Time of a backup, of its restore into an empty installation, and of the rebuild of the stores beside PostgreSQL."""

from __future__ import annotations

import time
from pathlib import Path

from apex_memory.app import App
from apex_memory.backup import back_up
from apex_memory.backup import restore as restore_backup
from bench.corpus import Corpus, GivenEmbedder, random_pool
from bench.engines import opened, running_engines
from bench.rows import Row, at_most, stated
from bench.writing import land_and_drain

DOCUMENTS = 20_000
RESTORE_SECONDS = 300.0  # until searches are complete again


async def restore() -> list[Row]:
    """Fill an installation, back it up, restore it on other engines, and rebuild the graph and the vectors there."""
    corpus = Corpus()
    async with running_engines() as engines:
        urls = await engines.fresh()
        async with opened(urls, engines.folder, GivenEmbedder(random_pool())) as app:
            await land_and_drain(app, corpus, DOCUMENTS, "r")
        folder = engines.folder / "backup"
        began = time.perf_counter()
        backup = await back_up(urls["documents"], folder)
        written = time.perf_counter() - began
        rows = [
            stated(
                f"backup of {DOCUMENTS:,} documents",
                written,
                "s",
                f"{backup.bytes / 1e6:.0f} MB in {len(backup.tables)} files, 5 chunks a document, vectors and raw events included",
            )
        ]
        return rows + await _restored(folder)


async def _restored(folder: Path) -> list[Row]:
    async with running_engines() as engines:
        urls = await engines.fresh()
        began = time.perf_counter()
        await restore_backup(urls["documents"], folder)
        loaded = time.perf_counter() - began
        # Opening it is what a worker does at its start: it fills both stores from the manifests, and verifies them.
        async with opened(urls, engines.folder, GivenEmbedder(random_pool())) as app:
            total = time.perf_counter() - began
            await _require_complete(app)
            took = {}
            for store in ("graph", "vectors"):
                began = time.perf_counter()
                result = await app.rebuild.run(store)
                took[store] = time.perf_counter() - began
                assert (result.state, result.done) == ("done", DOCUMENTS), result
            await _require_complete(app)
    return [
        at_most(
            f"restore of {DOCUMENTS:,} documents until searches are complete",
            total,
            "s",
            RESTORE_SECONDS,
            f"PostgreSQL loaded from the backup in {loaded:.0f} s, then graph and vectors filled from it and verified; other, empty engines",
        ),
        *(
            stated(
                f"rebuild of the {store}, {DOCUMENTS:,} documents",
                took[store],
                "s",
                f"{DOCUMENTS / took[store]:.0f} documents/s, written again under the same stages and verified, nothing else running",
            )
            for store in took
        ),
    ]


async def _require_complete(app: App) -> None:
    states = await app.recovery.states()
    assert set(states.values()) == {"ready"}, states
    held = await app.db.fetch_one("SELECT count(*) AS n FROM documents")
    assert held and held["n"] == DOCUMENTS
    answer = await app.search.search("SHP-100042 late at the dock")
    assert answer.hits and not answer.degraded
