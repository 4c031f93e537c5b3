"""What a shadow costs the live path: its rate with copies beside it in the same process, against its rate alone."""

from __future__ import annotations

import asyncio

from apex_memory.app import App
from bench.corpus import CHUNKS, Corpus, GivenEmbedder, random_pool
from bench.engines import opened, running_engines
from bench.rows import Row, at_least
from bench.writing import land_and_drain

DOCUMENTS = 1_500
TURNS = 3
SUBJECT = "source:documents"
LEAST = 0.85


async def cost() -> list[Row]:
    """Measure documents/s with and without a shadow, in turn, because the speed of a machine varies."""
    corpus = Corpus()
    alone: list[float] = []
    beside: list[float] = []
    async with running_engines() as engines:
        urls = await engines.fresh()
        async with opened(urls, engines.folder, GivenEmbedder(random_pool())) as app:
            await land_and_drain(app, corpus, 256, "warm")
            for turn in range(TURNS):
                await _switch(app, shadow=False)
                alone.append(await land_and_drain(app, corpus, DOCUMENTS, f"off{turn}"))
                await _switch(app, shadow=True)
                carrying = asyncio.create_task(_carry(app))
                beside.append(await land_and_drain(app, corpus, DOCUMENTS, f"on{turn}"))
                compared = await _compared(app)
                carrying.cancel()
                await asyncio.gather(carrying, return_exceptions=True)
            share = app.settings.shadow_busy_share
    without = TURNS / sum(1 / rate for rate in alone)
    with_copies = TURNS / sum(1 / rate for rate in beside)
    return [
        at_least(
            "shadow's cost",
            with_copies / without,
            "×",
            LEAST,
            f"documents/s of the direct path with copies beside it ({with_copies:.0f}) of those without ({without:.0f}), {TURNS} × {DOCUMENTS} documents of {CHUNKS} chunks each way in turn, vectors given, all landed first, in one process; {compared} copies were staged, verified and compared by the end of the last turn (`shadow_busy_share` {share:g})",
        )
    ]


async def _switch(app: App, *, shadow: bool) -> None:
    await app.db.execute(
        """INSERT INTO rollouts (subject, share, shadow) VALUES (%s, 0, %s)
           ON CONFLICT (subject) DO UPDATE SET shadow = excluded.shadow""",
        (SUBJECT, shadow),
    )
    await app.db.execute("DELETE FROM shadows WHERE state = 'waiting'")


async def _carry(app: App) -> None:
    while True:
        if await app.shadow.process(SUBJECT) is None:
            await asyncio.sleep(0.1)


async def _compared(app: App) -> int:
    row = await app.db.fetch_one("SELECT count(*) AS n FROM shadows WHERE state = 'compared'")
    return int(row["n"]) if row else 0
