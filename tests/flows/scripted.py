"""Steps that a test scripts, for what the workflows themselves decide. What steps do is tested with the real ones."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import TypeVar

from temporalio import activity

from apex_memory.flows.drain.messages import (
    SHOWN,
    BatchInput,
    ClaimedBatch,
    ClaimInput,
    GiveUpInput,
    StepReport,
)

T = TypeVar("T")


@dataclass
class Steps:
    """An inbox of numbered events, and the result of each step for them."""

    limit: int = 10
    outcome: str = "done"
    refused: int = 0
    """Events of each batch that preparing makes dead letters."""
    fail: dict[str, list[Exception]] = field(default_factory=dict)
    """Errors by step, raised one a call."""
    land_more: int = 0
    """Events that the next publish lands by itself."""
    gate: asyncio.Event | None = None
    """Publishing waits for it."""
    ready: list[str] = field(default_factory=list)
    prepared: list[int] = field(default_factory=list)
    """Events of each batch that was prepared."""
    published: list[str] = field(default_factory=list)
    batches: list[int] = field(default_factory=list)
    claims: int = 0
    claimed: list[str] = field(default_factory=list)
    """Ids of the batches that had events."""
    behind: list[str] = field(default_factory=list)
    """The batch that each publishing was told to keep beside its own."""
    given_up: list[str] = field(default_factory=list)
    held: dict[str, list[str]] = field(default_factory=dict)
    landed: int = 0
    trace_parents: list[str] = field(default_factory=list)
    """Of the events of every batch."""

    def land(self, count: int) -> None:
        self.ready += [f"e{self.landed + n}" for n in range(count)]
        self.landed += count

    def _maybe_fail(self, step: str) -> None:
        if self.fail.get(step):
            raise self.fail[step].pop(0)

    @activity.defn
    async def claim(self, input: ClaimInput) -> ClaimedBatch:
        self._maybe_fail("claim")
        taken, self.ready = self.ready[: self.limit], self.ready[self.limit :]
        batch = input.batch
        self.held[batch] = taken
        self.claims += 1
        if taken:
            self.batches.append(len(taken))
            self.claimed.append(batch)
        names = [f"id-{name}" for name in taken[:SHOWN]]
        parents = self.trace_parents if taken else []
        return ClaimedBatch(batch, len(taken), len(taken) >= self.limit, names, parents)

    @activity.defn
    async def prepare(self, input: BatchInput) -> StepReport:
        self._maybe_fail("prepare")
        events = self.held[input.batch]
        self.prepared.append(len(events))
        dead, self.held[input.batch] = events[: self.refused], events[self.refused :]
        outcomes = {f"id-{name}": "dead" for name in dead[:SHOWN]}
        return StepReport({"prepared": len(events) - len(dead), "dead": len(dead)}, outcomes)

    @activity.defn
    async def publish(self, input: BatchInput) -> StepReport:
        self.behind.append(input.behind)
        if self.gate:
            await self.gate.wait()
        self._maybe_fail("publish")
        events = self.held[input.batch]
        self.published += events
        landed, self.land_more = self.land_more, 0
        self.land(landed)
        named = {f"id-{name}": self.outcome for name in events[:SHOWN]}
        return StepReport({self.outcome: len(events)}, named, landed)

    @activity.defn
    async def give_up(self, input: GiveUpInput) -> None:
        self.given_up.append(input.step)
        self.ready = self.held.pop(input.batch) + self.ready

    @property
    def activities(self) -> list[Callable[..., Awaitable[object]]]:
        return [self.claim, self.prepare, self.publish, self.give_up]
