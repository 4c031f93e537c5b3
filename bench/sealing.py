"""`python -m bench.sealing`: what sealed payloads cost, with plain and sealed ones in alternating runs.

Landing is one INSERT for a group of events, as the gateway makes it; loading is what a batch reads before it is prepared.
"""

from __future__ import annotations

import asyncio
import os
import statistics
import tempfile
import time
from pathlib import Path

from apex_memory.engines.base import free_port
from apex_memory.engines.postgres import PostgreSQL
from apex_memory.inbox import Inbox
from apex_memory.inbox.payload_store import PayloadStore
from apex_memory.model import Event, now
from apex_memory.sealing import Keyring, new_key, read_keys
from apex_memory.stores.postgres import Postgres
from apex_memory.stores.schema import migrate
from tests.conftest import running

ROUNDS = 7
SIZES = ((200, 2_000), (1, 2_000), (20, 50_000))  # events of a group, bytes of each payload
BYTES = 20_000_000  # most bytes of one run
GROUPS = 150  # most groups of one run


def events(count: int, size: int) -> list[Event]:
    """Return events whose payloads cannot be compressed."""
    return [
        Event(
            source="bench",
            event_id=os.urandom(8).hex(),
            doc_key=os.urandom(8).hex(),
            version=1,
            occurred_at=now(),
            payload=os.urandom(size),
        )
        for _ in range(count)
    ]


async def landed_and_loaded(
    db: Postgres, payloads: PayloadStore, count: int, size: int
) -> tuple[float, float]:
    """Return how many events land in a second, and how many are loaded."""
    inbox = Inbox(db, payloads)
    number = min(GROUPS, max(1, BYTES // (count * size)))
    groups = [events(count, size) for _ in range(number)]
    began = time.perf_counter()
    for group in groups:
        await inbox.land(await payloads.offload(group))
    landing = time.perf_counter() - began
    stored = [await inbox.event(event.id) for event in groups[-1]]
    repeated = max(1, 1_000 // count)
    began = time.perf_counter()
    for _ in range(repeated):
        await payloads.load(stored)
    loading = time.perf_counter() - began
    await db.execute("TRUNCATE inbox CASCADE")
    return number * count / landing, repeated * count / loading


async def main() -> None:
    """Print a line for each size."""
    keys = Keyring(read_keys([new_key()]))
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        async with running(PostgreSQL(Path(folder), free_port(), "pw")) as engine:
            await migrate(engine.url)
            db = Postgres(engine.url)
            await db.open()
            stores = {
                "plain": PayloadStore(db),
                "sealed": PayloadStore(db, keys=keys, seals=True),
            }
            for count, size in SIZES:
                rates: dict[str, list[tuple[float, float]]] = {name: [] for name in stores}
                for _ in range(ROUNDS):
                    for name, store in stores.items():
                        rates[name].append(await landed_and_loaded(db, store, count, size))
                ratios = [
                    sealed[0] / plain[0]
                    for plain, sealed in zip(rates["plain"], rates["sealed"], strict=True)
                ]
                opened = statistics.median(rate for _, rate in rates["sealed"])
                landed = {
                    name: statistics.median(rate for rate, _ in pairs)
                    for name, pairs in rates.items()
                }
                print(
                    f"{count} events of {size} bytes: {landed['plain']:.0f} plain, {landed['sealed']:.0f} sealed events/s land,"
                    f" ratio {statistics.median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f});"
                    f" {opened:.0f} are opened in a second"
                )
            await db.close()


if __name__ == "__main__":
    asyncio.run(main())
