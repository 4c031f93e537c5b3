"""The one fault wrapper: any store, with failures by plan. What it did is in `counts`."""

from __future__ import annotations

import asyncio
import inspect
import random
from collections import Counter
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from enum import Enum
from typing import Any

from apex_memory.errors import Unavailable


class Fault(Enum):
    """What goes wrong with a call."""

    FAIL = "fail"
    """It fails and nothing happened."""
    LOSE_REPLY = "lose reply"
    """It takes effect, then fails."""
    DELAY = "delay"
    """It takes effect, late."""
    DROP = "drop"
    """It is acknowledged and does nothing: for negative controls. Answers None, or nothing when iterated."""


@dataclass
class Plan:
    """A fault for some methods: the next `times` calls (None: all), each with `probability`."""

    fault: Fault
    methods: frozenset[str]
    times: int | None
    probability: float
    seconds: float
    error: Callable[[], Exception]


class Faulty:
    """Behaves as `store` but for the plans; the first plan that fits a call decides it.

    `faulty.plan(Fault.LOSE_REPLY, "upsert", times=1)`. `counts["upsert", Fault.LOSE_REPLY]` counts how
    often that happened. The same seed and calls give the same faults.
    """

    def __init__(self, store: Any, *, seed: int = 0) -> None:
        self.store = store
        self.counts: Counter[tuple[str, Fault]] = Counter()
        self._plans: list[Plan] = []
        self._random = random.Random(seed)

    def plan(
        self,
        fault: Fault,
        *methods: str,
        times: int | None = None,
        probability: float = 1.0,
        seconds: float = 0.0,
        error: Callable[[], Exception] | None = None,
    ) -> None:
        """Add a plan. `error` makes what is raised; `Unavailable` for this store if not given."""
        for method in methods:
            if not callable(getattr(self.store, method)):
                raise TypeError(f"{method} is not a method of {type(self.store).__name__}")
        self._plans.append(
            Plan(fault, frozenset(methods), times, probability, seconds, error or self._gone)
        )

    def heal(self) -> None:
        """Forget all plans."""
        self._plans.clear()

    def __getattr__(self, name: str) -> Any:
        attribute = getattr(self.store, name)
        if inspect.iscoroutinefunction(attribute):
            return self._call(name, attribute)
        if inspect.isasyncgenfunction(attribute):
            return self._iteration(name, attribute)
        return attribute

    def _call(self, name: str, method: Callable[..., Any]) -> Callable[..., Any]:
        async def call(*args: Any, **kwargs: Any) -> Any:
            plan = self._next(name)
            if await self._before(plan):
                return None
            answer = await method(*args, **kwargs)
            self._after(plan)
            return answer

        return call

    def _iteration(self, name: str, method: Callable[..., Any]) -> Callable[..., Any]:
        async def iterate(*args: Any, **kwargs: Any) -> AsyncIterator[Any]:
            plan = self._next(name)
            if await self._before(plan):
                return
            async for item in method(*args, **kwargs):
                yield item
            self._after(plan)

        return iterate

    def _next(self, name: str) -> Plan | None:
        for plan in self._plans:
            if name not in plan.methods or plan.times == 0:
                continue
            if self._random.random() >= plan.probability:
                continue
            if plan.times is not None:
                plan.times -= 1
            self.counts[name, plan.fault] += 1
            return plan
        return None

    @staticmethod
    async def _before(plan: Plan | None) -> bool:
        """Return whether to leave the call out."""
        if plan is None:
            return False
        if plan.fault is Fault.FAIL:
            raise plan.error()
        if plan.fault is Fault.DELAY:
            await asyncio.sleep(plan.seconds)  # the fault itself
        return plan.fault is Fault.DROP

    @staticmethod
    def _after(plan: Plan | None) -> None:
        if plan is not None and plan.fault is Fault.LOSE_REPLY:
            raise plan.error()

    def _gone(self) -> Exception:
        return Unavailable(self.store.name, "a planned fault")
