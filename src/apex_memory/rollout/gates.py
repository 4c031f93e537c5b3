"""The gates of a rollout: what follows from the facts of a step. Pure functions, without a clock or a database.

A gate has checks. Each is passed, still open (too little is known) or violated. A rollout leaves its step for the next
one only when every check is passed, and goes back when one is violated for which the new side is to blame.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Literal

from apex_memory.rollout_settings import Gate, Plan, Step

LEAST_COMPARED = 20
"""The other side's p99 is known from so many events on; with fewer it is chance."""


@dataclass(frozen=True, slots=True)
class Side:
    """What one side did with the events that were received since the step began."""

    events: int = 0
    """Events of which the time is known: those received in a calm time, see `StepFacts.disturbed`."""
    ended: int = 0
    """Events that are final: done, superseded or dead."""
    dead: int = 0
    retrying: int = 0
    """Open events of which an attempt failed."""
    waiting: int = 0
    """Events that are not final, whenever they were received."""
    oldest: float = 0
    """Longest that one of them has waited on this side (seconds)."""
    p99: float | None = None
    """Seconds from received to final of `events`; one that is not final counts with its age. None without events."""

    @property
    def failed(self) -> int:
        return self.dead + self.retrying

    @property
    def known(self) -> int:
        """Events of which it is known whether they failed."""
        return self.ended + self.retrying

    @property
    def failure_rate(self) -> float:
        return self.failed / max(1, self.known)


@dataclass(frozen=True, slots=True)
class Copies:
    """What was compared of the copies that the new side processed in shadow since the step began."""

    compared: int = 0
    different: int = 0
    """Copies that differ in a way that is not accepted."""
    failed: int = 0
    """Copies that failed where the other side did not."""


@dataclass(frozen=True, slots=True)
class StepFacts:
    """What is known of a step."""

    seconds: float
    """Since the step began."""
    new: Side = Side()
    other: Side = Side()
    copies: Copies = Copies()
    baseline: float | None = None
    """p99 of the other side when it was last known, in this step or an earlier one (seconds)."""
    disturbed: str = ""
    """Why times say nothing of the new side at the moment: the source is paused, or a store is away. Empty if they do."""

    @property
    def usual_p99(self) -> float | None:
        """p99 of the other side now or, where it processes too little, when it was last known (seconds)."""
        if self.other.events >= LEAST_COMPARED and self.other.p99 is not None:
            return self.other.p99
        return self.baseline


class CheckResult(StrEnum):
    PASSED = "passed"
    OPEN = "open"  # too little is known: hold
    BLOCKED = "blocked"  # violated, and the new side alone is not to blame, or harms nobody: hold
    VIOLATED = "violated"  # go back


@dataclass(frozen=True, slots=True)
class Check:
    """The result of one check, and the figures behind it for people."""

    name: str
    result: CheckResult
    detail: str


def checks(step: Step, facts: StepFacts) -> list[Check]:
    """Return every check of a step's gate."""
    results = [_duration(step, facts), _volume(step, facts)]
    if step.shadow:
        results += [_mismatches(step, facts.copies), _failed_copies(step, facts.copies)]
    if step.share:
        results += [_failures(step, facts), _latency(step, facts), _backlog(step, facts)]
    return results


def _duration(gate: Gate, facts: StepFacts) -> Check:
    result = CheckResult.PASSED if facts.seconds >= gate.min_seconds else CheckResult.OPEN
    return Check("duration", result, f"{facts.seconds:.0f} of {gate.min_seconds:g} s")


def _volume(step: Step, facts: StepFacts) -> Check:
    """Return the check of the number of events: those that the new side ended, and in shadow those that were compared."""
    counts: list[tuple[int, str]] = []
    if step.share:
        counts.append((facts.new.ended, "events"))
    if step.shadow:
        counts.append((facts.copies.compared, "compared copies"))
    enough = all(count >= step.min_events for count, _ in counts)
    detail = ", ".join(f"{count} of {step.min_events} {what}" for count, what in counts)
    return Check("events", CheckResult.PASSED if enough else CheckResult.OPEN, detail)


def _mismatches(step: Step, copies: Copies) -> Check:
    detail = f"{copies.different} of {copies.compared} compared copies differ"
    return _rate(
        step, "mismatches", copies.different, copies.compared, step.max_mismatch_rate, detail
    )


def _failed_copies(step: Step, copies: Copies) -> Check:
    detail = f"{copies.failed} of {copies.compared} copies failed"
    return _rate(
        step, "failed copies", copies.failed, copies.compared, step.max_failure_rate, detail
    )


def _rate(step: Step, name: str, bad: int, total: int, highest: float, detail: str) -> Check:
    """Return the check of a rate of copies. In shadow alone a violation does no harm: the step holds until the cause is settled."""
    if _exceeds(bad, total, step.min_events, highest):
        result = CheckResult.VIOLATED if step.share else CheckResult.BLOCKED
        return Check(name, result, f"{detail}; allowed are {_per_cent(highest)}")
    return Check(name, CheckResult.PASSED if total else CheckResult.OPEN, detail)


def _exceeds(bad: int, total: int, least: int, highest: float) -> bool:
    """Return whether a rate is over its limit, and stays so when all others of the least number of events are good.

    So a single early failure is no evidence, and many need not wait for the least number.
    """
    return bad > highest * max(total, least)


def _failures(step: Step, facts: StepFacts) -> Check:
    """Return the check of the failures. Where the other side fails as often, the events are to blame: the step holds."""
    new, other, highest = facts.new, facts.other, step.max_failure_rate
    detail = f"{new.failed} of {new.known} events failed"
    if not _exceeds(new.failed, new.known, step.min_events, highest):
        return Check("failures", CheckResult.PASSED if new.known else CheckResult.OPEN, detail)
    detail += f"; allowed are {_per_cent(highest)}"
    if other.known >= LEAST_COMPARED and new.failure_rate <= other.failure_rate + highest:
        detail += f", and the other side has {_per_cent(other.failure_rate)}"
        return Check("failures", CheckResult.BLOCKED, detail)
    return Check("failures", CheckResult.VIOLATED, detail)


def _latency(step: Step, facts: StepFacts) -> Check:
    """Return the check of the p99, relative to the other side's."""
    if facts.disturbed:
        return Check("latency", CheckResult.OPEN, facts.disturbed)
    p99, usual = facts.new.p99, facts.usual_p99
    if p99 is None:
        return Check("latency", CheckResult.OPEN, "p99 is not known yet")
    enough = facts.new.events >= step.min_events
    passed = CheckResult.PASSED if enough else CheckResult.OPEN
    detail = f"p99 is {_seconds(p99)}"
    if p99 <= step.latency_floor_seconds:
        return Check("latency", passed, detail)
    if usual is None:
        # At 100 % there is no other side; if there never was one, there is nothing to compare with.
        result = passed if step.share == 100 else CheckResult.OPEN
        return Check("latency", result, f"{detail}; the other side's is not known")
    highest = max(step.latency_floor_seconds, step.max_latency_ratio * usual)
    if p99 <= highest:
        return Check("latency", passed, f"{detail}, the other side's {_seconds(usual)}")
    detail += f"; allowed are {_seconds(highest)}, as the other side's is {_seconds(usual)}"
    return Check("latency", CheckResult.VIOLATED if enough else CheckResult.OPEN, detail)


def _backlog(step: Step, facts: StepFacts) -> Check:
    """Return the check of the events that wait, for each per cent of the share, relative to the other side's.

    A long backlog is no evidence while its oldest event has not waited longer than is usual on the other side:
    of two sides that work off the same load, one is done first.
    """
    waiting, others = facts.new.waiting, facts.other.waiting
    detail = f"{waiting} events wait"
    if step.share == 100 or waiting <= step.backlog_floor:
        return Check("backlog", CheckResult.PASSED, detail)
    fair = others * step.share / (100 - step.share)
    highest = max(step.backlog_floor, step.max_backlog_ratio * fair)
    if waiting <= highest:
        return Check("backlog", CheckResult.PASSED, f"{detail}, {others} on the other side")
    detail += f"; allowed are {highest:.0f}, as {others} wait on the other side"
    if facts.disturbed:
        return Check("backlog", CheckResult.OPEN, f"{detail}; {facts.disturbed}")
    longest = max(step.latency_floor_seconds, step.max_latency_ratio * (facts.usual_p99 or 0))
    if facts.new.oldest <= longest:
        return Check(
            "backlog", CheckResult.OPEN, f"{detail}; the oldest {_seconds(facts.new.oldest)}"
        )
    detail += f", and the oldest for {_seconds(facts.new.oldest)}"
    return Check("backlog", CheckResult.VIOLATED, detail)


def _per_cent(rate: float) -> str:
    return f"{rate * 100:.3g} %"


def _seconds(seconds: float) -> str:
    return f"{seconds * 1000:.0f} ms" if seconds < 1 else f"{seconds:.1f} s"


Kind = Literal["hold", "promote", "finish", "back"]
State = Literal["running", "held", "rolled back"]
"""Of a rollout that goes on. `held`: by a person. `rolled back`: a gate was violated, or a person went back.
Both stay until a person approves, and their gates are watched all the same."""


@dataclass(frozen=True, slots=True)
class Decision:
    """What to do now, and why."""

    kind: Kind
    reason: str


def decide(plan: Plan, step: int, state: State, facts: StepFacts, *, approved: bool) -> Decision:
    """Return what follows from the facts for a rollout at the step with this number.

    `approved` says that a person allowed to leave the step; a plan with automatic promotion needs none.
    The decision never is to leave the step while a check is not passed.
    """
    gate = checks(plan.steps[step], facts)
    if violated := [check for check in gate if check.result is CheckResult.VIOLATED]:
        return Decision("back", _reasons(violated))
    if state != "running":
        return Decision("hold", f"{state}; `apex rollout approve` lets it go on")
    if blocked := [check for check in gate if check.result is CheckResult.BLOCKED]:
        return Decision("hold", _reasons(blocked))
    if still_open := [check for check in gate if check.result is CheckResult.OPEN]:
        return Decision("hold", f"waiting: {_reasons(still_open)}")
    if plan.promotion == "manual" and not approved:
        return Decision("hold", "the gate holds; waiting for approval")
    kind: Kind = "promote" if step + 1 < len(plan.steps) else "finish"
    return Decision(kind, f"the gate holds: {_reasons(gate)}")


def _reasons(gate: Sequence[Check]) -> str:
    return "; ".join(f"{check.name}: {check.detail}" for check in gate)
