"""The controller: looks at the gates of all rollouts every second, and carries out what they decide.

It runs in each worker process, without Temporal; a lease elects the one that decides. Two that decide at the same time
do no harm: a decision is void when the run has changed since its facts were read.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from time import monotonic
from uuid import UUID, uuid4

from apex_memory.errors import ApexError
from apex_memory.rollout.facts import facts_of
from apex_memory.rollout.gates import Copies, Decision, State, StepFacts, checks, decide
from apex_memory.rollout.runs import Change, Run, Runs
from apex_memory.stores.lease import acquire
from apex_memory.stores.postgres import Connection, Postgres
from apex_memory.telemetry import logger

LEASE = "rollout"
LEASE_SECONDS = 3.0
"""So long nobody decides after the elected process died."""

TICK_SECONDS = 1.0
LONGEST_TICK_SECONDS = 3.0
COST_RATIO = 10  # of a second's look at the facts, so many seconds pass before the next one

Applied = Callable[[Change], Awaitable[None]]
CopiesOf = Callable[[Connection, Run], Awaitable[Copies]]


class Controller:
    """Carries out the plans of all rollouts. `watch` runs for ever; `tick` looks once."""

    def __init__(
        self,
        db: Postgres,
        runs: Runs,
        *,
        copies_of: CopiesOf,
        lease_seconds: float = LEASE_SECONDS,
        tick_seconds: float = TICK_SECONDS,
    ) -> None:
        self._db = db
        self._runs = runs
        self._copies_of = copies_of
        self._lease_seconds = lease_seconds
        self._tick_seconds = tick_seconds
        self._owner: UUID = uuid4()
        self._applied: dict[str, Applied] = {}
        self._elected_until = float("-inf")
        self._log = logger(component="rollout")

    @property
    def elected(self) -> bool:
        """Whether this process decides at the moment."""
        return monotonic() < self._elected_until

    def on_change(self, subject: str, applied: Applied) -> None:
        """Call a function after each change of a subject's share, again every second until it succeeds.

        It is called with the share as it is then, not once for each change. It fails by raising an `ApexError`.
        """
        self._applied[subject] = applied

    async def watch(self) -> None:
        """Run for ever. Without PostgreSQL nothing is decided, and nothing is claimed either."""
        while True:
            began = monotonic()
            try:
                await self.tick()
            except ApexError as error:
                self._log.warning("rollouts not checked", reason=str(error)[:300])
            cost = monotonic() - began
            await asyncio.sleep(
                min(LONGEST_TICK_SECONDS, max(self._tick_seconds, COST_RATIO * cost))
            )

    async def tick(self) -> bool:
        """Look once at every rollout, if this process is elected. Return whether it is."""
        if not await self._elect():
            return False
        for run in await self._runs.going_on():
            try:
                await self._check(run)
            except ApexError as error:  # the other rollouts have their turn
                self._log.warning(
                    "rollout not checked", subject=run.subject, reason=str(error)[:300]
                )
        for run, change in await self._runs.unapplied(self._applied):
            await self._apply(run, change)
        return True

    async def _elect(self) -> bool:
        until = monotonic() + self._lease_seconds
        is_elected = await acquire(self._db, LEASE, self._owner, self._lease_seconds)
        self._elected_until = until if is_elected else float("-inf")
        return is_elected

    async def _check(self, run: Run) -> None:
        facts = await self._facts(run)
        decision = _decision(run, facts)
        if decision.kind == "promote" and (obstacle := await self._runs.obstacle(run)):
            decision = Decision("hold", obstacle)
        step = run.plan.steps[run.step]
        await self._runs.record(
            run,
            decision,
            checks(step, facts),
            baseline=facts.usual_p99,
            disturbed=bool(facts.disturbed),
        )
        if decision.kind == "hold" or not await self._runs.carry_out(run, decision):
            return
        log = self._log.warning if decision.kind == "back" else self._log.info
        log(
            f"rollout: {decision.kind}",
            subject=run.subject,
            step=step.name,
            reason=decision.reason,
        )

    async def _facts(self, run: Run) -> StepFacts:
        async with self._db.connection() as connection:
            step = run.plan.steps[run.step]
            copies = await self._copies_of(connection, run) if step.shadow else Copies()
            return await facts_of(connection, run, copies)

    async def _apply(self, run: Run, change: Change) -> None:
        try:
            await self._applied[run.subject](change)
        except ApexError as error:
            self._log.warning(
                "change of a rollout not applied; trying again",
                subject=run.subject,
                reason=str(error)[:300],
            )
            return
        await self._runs.mark_applied(run)


def _decision(run: Run, facts: StepFacts) -> Decision:
    state: State
    match run.state:
        case "running" | "held" | "rolled back":
            state = run.state
        case _:
            raise AssertionError(f"rollout {run.id} has ended")
    return decide(run.plan, run.step, state, facts, approved=run.approved)
