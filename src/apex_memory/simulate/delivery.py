"""Webhooks on their way to Apex, sent as vendors send them."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime

import httpx2

from apex_memory.simulate.vendor import Push, Simulator

MOST_ATTEMPTS = 8  # a vendor repeats a webhook until it gets a 2xx
FIRST_PAUSE, LONGEST_PAUSE = 0.1, 2.0  # seconds between two attempts, doubled each time


@dataclass(slots=True)
class Delivery:
    """Sends webhooks and API calls to Apex at `url`, repeated until 2xx, with each simulator's chaos.

    `sent` counts what was accepted, by source; `refused` describes what was not.
    """

    url: str
    key: str
    """API key of Apex, for pushes that are `keyed`."""
    http: httpx2.AsyncClient
    sent: dict[str, int] = field(default_factory=dict)
    refused: list[str] = field(default_factory=list)
    _held: list[tuple[Simulator, Push]] = field(default_factory=list)

    async def deliver(self, simulator: Simulator, pushes: Sequence[Push]) -> None:
        """Send these now. Chaos loses some, doubles some, and holds some back until the next call."""
        chaos = simulator.chaos
        overdue = [push for owner, push in self._held if owner is simulator]
        self._held = [(owner, push) for owner, push in self._held if owner is not simulator]
        for push in pushes:
            if chaos.strikes(chaos.lost) and not push.keyed:
                continue
            if chaos.strikes(chaos.disorder):
                self._held.append((simulator, push))
                continue
            for _ in range(2 if chaos.strikes(chaos.duplicates) else 1):
                await self._send(simulator.name, push)
        for push in overdue:
            await self._send(simulator.name, push)

    async def flush(self) -> None:
        """Send all that was held back."""
        held, self._held = self._held, []
        for simulator, push in held:
            await self._send(simulator.name, push)

    async def _send(self, name: str, push: Push) -> None:
        status = 0
        for attempt in range(MOST_ATTEMPTS):
            response = await self._post(push)
            status = response.status_code if response is not None else 0
            if 200 <= status < 300:
                self.sent[name] = self.sent.get(name, 0) + 1
                return
            if 400 <= status < 500 and status != 429:
                break
            await asyncio.sleep(min(LONGEST_PAUSE, FIRST_PAUSE * 2**attempt))
        self.refused.append(f"{name}: {push.path} returned {status or 'nothing'}")

    async def _post(self, push: Push) -> httpx2.Response | None:
        """Send once; None where no response came."""
        signature: Mapping[str, str] = push.sign(push.body, datetime.now(UTC))
        headers = {"Content-Type": push.content_type, **signature}
        if push.keyed:
            headers["Authorization"] = f"Bearer {self.key}"
        try:
            return await self.http.post(self.url + push.path, content=push.body, headers=headers)
        except httpx2.TransportError:
            return None
