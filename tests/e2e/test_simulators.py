"""Every source against its simulator: a day without faults, and days with all that can go wrong."""

from __future__ import annotations

import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from functools import partial
from pathlib import Path

import pytest
import pytest_asyncio

from apex_memory.app import open_app
from apex_memory.engines.base import free_port
from apex_memory.engines.edge import Edge
from apex_memory.fetching.pulls import PullResult
from apex_memory.sealing import new_key
from apex_memory.simulate.registry import simulator_classes
from apex_memory.simulate.server import serve_simulators
from apex_memory.simulate.turvo.simulator import Turvo
from apex_memory.simulate.vendor import Chaos, Simulator
from apex_memory.simulate.world import Clock, World
from apex_memory.sources.pages import ChangeHint
from tests.conftest import PASSWORD, running
from tests.e2e.conftest import HASHING_DIMENSION, MakeSettings
from tests.e2e.simulated import Day


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def crowded(engine_data: Path) -> AsyncIterator[str]:
    """A vector process for all these days: their documents would crowd the searches of other tests."""
    folder = Path(tempfile.mkdtemp(dir=engine_data))
    async with running(Edge(folder, free_port(), PASSWORD, HASHING_DIMENSION)) as engine:
        yield engine.url


@pytest.fixture
def make_day_settings(make_settings: MakeSettings, crowded: str) -> MakeSettings:
    return partial(make_settings, vectors=crowded)


SIMULATORS = simulator_classes()
NAMES = [kind.name for kind in SIMULATORS]


def rough(seed: int) -> Chaos:
    """A bad day: more faults than a vendor ever has."""
    return Chaos(
        seed=seed,
        errors=0.1,
        limits=0.1,
        expiries=0.05,
        duplicates=0.3,
        disorder=0.3,
        mutations=0.2,
    )


@asynccontextmanager
async def day(
    kind: type[Simulator], make_settings: MakeSettings, chaos: Chaos, *, kills: float = 0.0
) -> AsyncIterator[Day]:
    world = World.make(7, shipments=6)
    simulator = kind(world, Clock(world.start), chaos)
    async with serve_simulators([simulator]) as served:
        settings = make_settings(sources=served.settings(), secret_key=new_key())
        async with open_app(settings) as app:
            yield Day(app, simulator, kills=kills, seed=chaos.seed)


@pytest.mark.parametrize("kind", SIMULATORS, ids=NAMES)
async def test_a_day_without_faults(kind: type[Simulator], make_day_settings: MakeSettings) -> None:
    async with day(kind, make_day_settings, Chaos()) as simulated:
        await simulated.run()
        assert not simulated.failures
        await simulated.check(simulated.simulator.truth(simulated.simulator.clock.now))


@pytest.fixture
def seed(request: pytest.FixtureRequest) -> int:
    soak: int | None = request.config.getoption("--soak")
    return 1 if soak is None else soak


@pytest.mark.soak
@pytest.mark.parametrize("kind", SIMULATORS, ids=NAMES)
async def test_a_bad_day(kind: type[Simulator], seed: int, make_day_settings: MakeSettings) -> None:
    async with day(kind, make_day_settings, rough(seed), kills=0.1) as simulated:
        await simulated.run()
        await simulated.check(simulated.simulator.truth(simulated.simulator.clock.now))


async def test_a_change_hint_does_not_wait_for_a_long_list(
    make_day_settings: MakeSettings,
) -> None:
    async with day(Turvo, make_day_settings, Chaos()) as simulated:
        app, waiting = simulated.app, list[int]()
        simulator = simulated.simulator
        simulator.clock.advance_to(simulator.world.start + timedelta(hours=12))

        async def on_page(done: PullResult) -> None:
            if done.pages == 1:
                await app.fetcher.pulls.note("turvo", [ChangeHint("shipment:404")])
            row = await app.db.fetch_one(
                "SELECT count(*) AS n FROM change_hints WHERE source = 'turvo'"
            )
            assert row
            waiting.append(row["n"])

        await app.fetcher.pull("turvo", on_page=on_page)
        assert waiting[0] == 1, "it came while the list was read"
        assert not any(waiting[1:]), "and was fetched before the list's next shipment"
        assert len(waiting) > 5, "the list went on for long after it"
