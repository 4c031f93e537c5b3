import pytest
from collections import Counter
from apex_memory.simulate.sonar import Sonar
from apex_memory.simulate.turvo import Turvo
from tests.e2e.test_simulators import day, rough
from tests.e2e.conftest import MakeSettings

@pytest.mark.parametrize(("kind", "seed"), [(Sonar, n) for n in range(3, 9)] + [(Turvo, n) for n in (3, 4, 5)])
async def test_more(kind, seed, make_settings: MakeSettings) -> None:
    async with day(kind, make_settings, rough(seed), kills=0.15) as told:
        await told.run()
        if kind is Turvo:
            print("CALLS", Counter(told.simulator.calls), "remarks", len(told.simulator.remarks), "failures", len(told.failures))
        else:
            print("BILLED", len(told.simulator.billed), "hammered", told.simulator.hammered, "restated", told.simulator.restated, len(told.failures))
        await told.check(told.simulator.truth(told.simulator.clock.now))
