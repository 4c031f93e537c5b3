import pytest
from apex_memory.simulate.plaid import PlaidSimulator
from apex_memory.simulate.frontapp import FrontSimulator
from apex_memory.simulate.llm import LLMSimulator
from tests.e2e.test_simulators import day, rough

@pytest.mark.parametrize("seed", [3, 4, 5])
@pytest.mark.parametrize("kind", [PlaidSimulator, FrontSimulator, LLMSimulator], ids=["plaid", "frontapp", "llm"])
async def test_seed(kind, seed, make_settings):
    chaos = rough(seed)
    if kind is FrontSimulator: chaos.lost = 0.3
    async with day(kind, make_settings, chaos, kills=0.1) as told:
        await told.run()
        await told.check(told.simulator.truth(told.simulator.clock.now))
