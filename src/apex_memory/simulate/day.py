"""A day of the world, told by all its vendors: their APIs answer on loopback, their webhooks go out as time passes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from apex_memory.simulate.served import Delivery
from apex_memory.simulate.vendor import Simulator
from apex_memory.simulate.world import Clock, World


@dataclass(slots=True)
class Telling:
    """Sends what falls due, simulator by simulator. `until` is how far the day has been told."""

    simulators: Sequence[Simulator]
    delivery: Delivery
    clock: Clock
    until: datetime = field(init=False)

    def __post_init__(self) -> None:
        self.until = self.clock.now

    async def go_on(self) -> None:
        """Send everything that fell due since the last time."""
        since, now = self.until, self.clock.now
        for simulator in self.simulators:
            await self.delivery.deliver(simulator, list(simulator.pushes(since, now)))
        self.until = now


def yesterday() -> datetime:
    """Six in the morning (UTC) of the day before: a day that is over whatever the clock says, and not long ago."""
    now = datetime.now(UTC)
    return now.replace(hour=6, minute=0, second=0, microsecond=0) - timedelta(days=1)


def end_of(world: World) -> datetime:
    """When the last thing of the world has happened, with an hour for what follows from it."""
    return max(one.milestones[-1].at for one in world.shipments) + timedelta(hours=1)
