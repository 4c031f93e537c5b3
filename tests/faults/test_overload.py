"""Too much at once, too much that is broken, and no room left: it is reported, it is bounded, and it passes."""

from __future__ import annotations

import contextlib
import os
import secrets
import sys
import uuid
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path

import pytest
import pytest_asyncio

from apex_memory.app import App, open_app
from apex_memory.config import Settings
from apex_memory.engines.base import free_port
from apex_memory.engines.postgres import PostgreSQL
from apex_memory.engines.process import Process, child_of
from apex_memory.errors import Unavailable
from apex_memory.model import LandResult
from apex_memory.stores.schema import migrate
from tests.conftest import PASSWORD
from tests.e2e.conftest import live, state, text_event
from tests.e2e.stack import Stack, running_stack
from tests.faults.overload import ROOM, overload
from tests.faults.storm import storm
from tests.faults.volumes import small_volume
from tests.soaking import only_in_soak
from tests.waiting import until

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="reads /proc"),
    pytest.mark.timeout(300),
]

OVERLOAD_SECONDS = 10.0
LITTLE = 3_000_000  # bytes


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def stack() -> AsyncIterator[Stack]:
    async with running_stack(**ROOM) as stack:
        yield stack


@pytest.mark.alone(reason="loads the machine, and compares rates")
async def test_overload_is_refused_with_a_time_to_come_back_and_then_caught_up(
    stack: Stack,
) -> None:
    """Some seconds of it, of which each client has but a few tries; ten times for a minute is `make faults ARGS=overload`."""
    result = await overload(stack, OVERLOAD_SECONDS)
    print(result)
    assert result.wrong(times=3) == []


@pytest.mark.soak
@pytest.mark.long
@pytest.mark.alone(reason="compares how long the same takes with and without the storm")
async def test_a_storm_of_poison_leaves_its_neighbours_their_share(
    stack: Stack, request: pytest.FixtureRequest
) -> None:
    """Broken files beside messages of another source, with and without them in one run.

    A backlog, which the worker alone works on, may take a third longer. What a message waits is compared with that beside as
    many sound documents: broken ones must cost it less. Against a machine with nothing else to do the bound is 2: there a
    process that only counts, at the lowest priority, makes a message wait 1.3 times as long on its own, for two processors
    share what one core has.
    """
    only_in_soak(request)
    result = await storm(stack)
    processing, waiting, waiting_of_sound = result.slower()
    print(
        f"beside poison: a backlog takes {processing:.2f} times as long, a message {waiting:.2f},"
        f" and {waiting_of_sound:.2f} times as long as beside sound documents"
    )
    assert processing < 4 / 3 and waiting < 2 and waiting_of_sound < 1, result


async def test_a_full_disk_is_reported_and_nothing_acknowledged_is_lost(
    engine_data: Path, falkordb_url: str, valkey_url: str, own_vectors_url: str, tmp_path: Path
) -> None:
    folder = engine_data / "small"
    with small_volume(folder, 220):
        engine = PostgreSQL(folder, free_port(), PASSWORD)
        engine.prepare()
        process = Process(child_of(engine), tmp_path / "postgres.log")
        try:
            await process.until_ready()
            await migrate(engine.url)
            settings = Settings(
                documents=engine.url,
                graph=falkordb_url.rpartition("/")[0] + f"/t{uuid.uuid4().hex[:8]}",
                vectors=own_vectors_url,
                cache=valkey_url,
                embedder="hashing",
                data_dir=tmp_path,
                call_timeout_seconds=3,
            )
            async with open_app(settings) as app:
                await app.recovery.check_restarted_stores()
                [before] = await app.inbox.land(
                    [text_event(app, "before", "SHP-100045.", version=1)]
                )
                await app.direct.drain("documents")
                ballast = folder / "ballast"
                filled(ballast)
                kept = []
                with pytest.raises(Unavailable) as refused:
                    for n in range(400):
                        event = text_event(app, f"k{n}", secrets.token_hex(100_000), version=1)
                        kept += await app.inbox.land([event])
                print(f"{len(kept)} landed, then: {refused.value}")
                assert kept, "full from the start: this proves little"
                ballast.unlink()
                if process._popen.poll() is not None:  # it ends itself when its log cannot grow
                    process = Process(child_of(engine), tmp_path / "postgres.log")
                    await process.until_ready()
                [after] = await until(partial(landed_at_last, app), seconds=30, every=0.1)
                assert [await state(app, item) for item in kept] == ["received"] * len(kept)
                assert await state(app, before) == "done" and await live(app, "before")
                await app.db.execute(
                    "DELETE FROM inbox WHERE id = ANY(%s)", ([item.id for item in kept],)
                )
                await app.direct.drain("documents")
                assert await state(app, after) == "done"
                stages = await app.db.fetch("SELECT stage_id FROM stages")
                await app.vectors.delete_stages([row["stage_id"] for row in stages])
        finally:
            await process.kill()


async def landed_at_last(app: App) -> list[LandResult]:
    with contextlib.suppress(Unavailable):
        return await app.inbox.land([text_event(app, "after", "Door 4.", version=1)])
    return []


def filled(ballast: Path) -> None:
    """Write until there is no more room, then leave a little."""
    with contextlib.suppress(OSError), ballast.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(1 << 20))
    os.truncate(ballast, ballast.stat().st_size - LITTLE)
