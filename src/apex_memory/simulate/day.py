"""A day of the world as Apex sees it: webhooks and API calls are sent as the world's time passes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from apex_memory.simulate.delivery import Delivery
from apex_memory.simulate.vendor import Simulator
from apex_memory.simulate.world import Clock, World


@dataclass(slots=True)
class DayPlayback:
    """Sends what falls due, simulator by simulator. `until` is the world time up to which all is sent."""

    simulators: Sequence[Simulator]
    delivery: Delivery
    clock: Clock
    until: datetime = field(init=False)

    def __post_init__(self) -> None:
        self.until = self.clock.now

    async def send_due(self) -> None:
        """Send everything that fell due since the last call."""
        since, now = self.until, self.clock.now
        for simulator in self.simulators:
            await self.delivery.deliver(simulator, list(simulator.pushes(since, now)))
        self.until = now


def yesterday() -> datetime:
    """Return six in the morning (UTC) of the day before: that day is over, and recent."""
    now = datetime.now(UTC)
    return now.replace(hour=6, minute=0, second=0, microsecond=0) - timedelta(days=1)


def end_of(world: World) -> datetime:
    """Return when the last thing of the world has happened, plus an hour for what follows from it."""
    return max(shipment.milestones[-1].at for shipment in world.shipments) + timedelta(hours=1)
