"""The gates of a rollout decide by facts alone: tables of cases, and properties over all facts."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from apex_memory.rollout.gates import (
    CheckResult,
    Copies,
    Decision,
    Side,
    State,
    StepFacts,
    checks,
    decide,
)
from apex_memory.rollout_settings import Plan, PlanSettings, Step

PLAN = PlanSettings(min_seconds=60, min_events=100).plan()
SHADOW, TEN, FIFTY, ALL = range(4)
MANUAL = PlanSettings(min_seconds=60, min_events=100, promotion="manual").plan()

GOOD = Side(events=200, ended=200, waiting=3, oldest=0.1, p99=0.12)
OTHER = Side(events=1800, ended=1800, waiting=30, oldest=0.1, p99=0.06)
HEALTHY = StepFacts(seconds=61, new=GOOD, other=OTHER, copies=Copies(compared=150))


def decision(
    step: int,
    facts: StepFacts,
    *,
    plan: Plan = PLAN,
    state: State = "running",
    approved: bool = False,
) -> Decision:
    return decide(plan, step, state, facts, approved=approved)


def new(**figures: Any) -> StepFacts:
    return replace(HEALTHY, new=replace(GOOD, **figures))


@pytest.mark.parametrize(
    ("step", "facts", "kind", "why"),
    [
        (SHADOW, HEALTHY, "promote", "the gate holds"),
        (TEN, HEALTHY, "promote", "p99 is 120 ms"),
        (FIFTY, HEALTHY, "promote", "the gate holds"),
        (ALL, HEALTHY, "finish", "the gate holds"),
        # Too little is known.
        (TEN, StepFacts(seconds=9e9), "hold", "0 of 100 events"),
        (SHADOW, replace(HEALTHY, copies=Copies()), "hold", "0 of 100 compared copies"),
        (TEN, replace(HEALTHY, seconds=59), "hold", "59 of 60 s"),
        (TEN, new(ended=99), "hold", "99 of 100 events"),
        (TEN, new(p99=None, events=0), "hold", "p99 is not known yet"),
        (TEN, new(events=99), "hold", "latency: p99 is 120 ms"),
        # Failures: as soon as the least number of events cannot bring the rate down any more.
        (TEN, new(dead=2), "promote", "2 of 200 events failed"),
        (TEN, new(dead=3), "back", "failures: 3 of 200 events failed; allowed are 1 %"),
        (TEN, new(ended=5, dead=1), "hold", "5 of 100 events"),
        (TEN, new(ended=5, dead=2), "back", "2 of 5 events failed"),
        (TEN, new(ended=0, retrying=2), "back", "2 of 2 events failed"),
        (ALL, new(dead=3), "back", "3 of 200"),
        # Where both sides fail, the events are to blame.
        (TEN, replace(new(dead=20), other=replace(OTHER, dead=180)), "hold", "other side has 10 %"),
        (TEN, replace(new(dead=40), other=replace(OTHER, dead=180)), "back", "40 of 200"),
        (TEN, replace(new(dead=20), other=Side(ended=19, dead=19)), "back", "20 of 200"),
        # Copies. In shadow alone they harm nobody: hold, so that a person can look at them.
        (
            SHADOW,
            replace(HEALTHY, copies=Copies(150, different=1)),
            "hold",
            "mismatches: 1 of 150 compared copies differ; allowed are 0 %",
        ),
        (SHADOW, replace(HEALTHY, copies=Copies(150, failed=2)), "hold", "failed copies: 2 of 150"),
        (SHADOW, replace(HEALTHY, copies=Copies(150, failed=1)), "promote", "1 of 150 copies"),
        (TEN, replace(HEALTHY, copies=Copies(150, different=9)), "promote", "the gate holds"),
        # Latency, relative to the other side.
        (TEN, new(p99=0.99), "promote", "p99 is 990 ms"),
        (TEN, new(p99=1.01), "back", "p99 is 1.0 s; allowed are 1.0 s"),
        (TEN, replace(new(p99=29.0), other=replace(OTHER, p99=10.0)), "promote", "10.0 s"),
        (TEN, replace(new(p99=31.0), other=replace(OTHER, p99=10.0)), "back", "allowed are 30.0 s"),
        (TEN, replace(new(p99=31.0), other=Side(events=19, p99=1.0)), "hold", "is not known"),
        (TEN, replace(new(p99=31.0), other=Side(), baseline=1.0), "back", "allowed are 3.0 s"),
        (ALL, replace(new(p99=31.0), other=Side(), baseline=1.0), "back", "allowed are 3.0 s"),
        (ALL, replace(new(p99=31.0), other=Side()), "finish", "is not known"),
        (TEN, new(p99=31.0, events=99), "hold", "allowed are"),
        (TEN, replace(new(p99=31.0), disturbed="the source is paused"), "hold", "is paused"),
        # Backlog, for each per cent of the share, with an oldest event to show for it.
        (TEN, new(waiting=100, oldest=9), "promote", "100 events wait"),
        (TEN, new(waiting=101, oldest=9), "back", "101 events wait; allowed are 100, as 30 wait"),
        (TEN, new(waiting=101, oldest=0.9), "hold", "the oldest 900 ms"),
        (
            TEN,
            replace(new(waiting=300, oldest=9), other=replace(OTHER, waiting=900)),
            "promote",
            "300 events wait, 900 on the other side",
        ),
        (
            TEN,
            replace(new(waiting=301, oldest=9), other=replace(OTHER, waiting=900)),
            "back",
            "allowed are 300",
        ),
        (ALL, new(waiting=9999, oldest=9), "finish", "the gate holds"),
        (
            TEN,
            replace(new(waiting=301, oldest=9), disturbed="5 events wait for a store"),
            "hold",
            "wait for a store",
        ),
    ],
)
def test_what_follows_from_the_facts(step: int, facts: StepFacts, kind: str, why: str) -> None:
    outcome = decision(step, facts)
    assert (outcome.kind, why in outcome.reason) == (kind, True), outcome


def test_a_step_with_shadow_goes_back_for_mismatches() -> None:
    plan = PlanSettings(steps=({"share": 10, "shadow": True},), min_seconds=0).plan()
    outcome = decide(
        plan, 0, "running", replace(HEALTHY, copies=Copies(150, different=1)), approved=False
    )
    assert outcome == Decision(
        "back", "mismatches: 1 of 150 compared copies differ; allowed are 0 %"
    )


@pytest.mark.parametrize("state", ["held", "rolled back"])
def test_what_is_held_stays_and_is_watched(state: State) -> None:
    assert decision(TEN, HEALTHY, state=state).kind == "hold"
    assert decision(TEN, HEALTHY, state=state, approved=True).kind == "hold"
    assert decision(TEN, new(dead=3), state=state).kind == "back"


def test_a_manual_plan_waits_for_approval_and_for_its_gate() -> None:
    waiting = decision(TEN, HEALTHY, plan=MANUAL)
    assert waiting == Decision("hold", "the gate holds; waiting for approval")
    assert decision(TEN, HEALTHY, plan=MANUAL, approved=True).kind == "promote"
    assert decision(TEN, new(ended=99), plan=MANUAL, approved=True).kind == "hold"
    assert decision(TEN, new(dead=3), plan=MANUAL, approved=True).kind == "back"


counts = st.integers(0, 5_000)
seconds = st.floats(0, 10_000)
sides = st.builds(
    Side,
    events=counts,
    ended=counts,
    dead=counts,
    retrying=counts,
    waiting=counts,
    oldest=seconds,
    p99=st.none() | seconds,
)
facts = st.builds(
    StepFacts,
    seconds=seconds,
    new=sides,
    other=sides,
    copies=st.builds(Copies, compared=counts, different=counts, failed=counts),
    baseline=st.none() | seconds,
    disturbed=st.sampled_from(["", "the source is paused"]),
)
steps = st.lists(st.integers(1, 100), min_size=1, max_size=5, unique=True).map(sorted)
gates = st.fixed_dictionaries(
    {
        "min_seconds": seconds,
        "min_events": st.integers(1, 500),
        "max_mismatch_rate": st.floats(0, 1),
        "max_failure_rate": st.floats(0, 1),
        "max_latency_ratio": st.floats(1, 10),
        "latency_floor_seconds": st.floats(0, 10),
        "max_backlog_ratio": st.floats(1, 10),
        "backlog_floor": st.integers(0, 1_000),
        "promotion": st.sampled_from(["automatic", "manual"]),
    }
)
plans = st.builds(
    lambda shadow, shares, gate: PlanSettings(
        steps=(*(["shadow"] if shadow else []), *shares), **gate
    ).plan(),
    st.booleans(),
    steps,
    gates,
)


@given(plans, facts, st.integers(0, 5), st.booleans())
def test_no_step_is_left_past_a_check_that_does_not_pass(
    plan: Plan, known: StepFacts, n: int, approved: bool
) -> None:
    step = min(n, len(plan.steps) - 1)
    results = checks(plan.steps[step], known)
    kind = decide(plan, step, "running", known, approved=approved).kind
    if any(check.result is CheckResult.VIOLATED for check in results):
        assert kind == "back"
    elif any(check.result is not CheckResult.PASSED for check in results):
        assert kind == "hold"


@given(plans, facts, st.integers(0, 5))
def test_without_data_a_rollout_holds(plan: Plan, known: StepFacts, n: int) -> None:
    step = min(n, len(plan.steps) - 1)
    empty = StepFacts(seconds=known.seconds, other=known.other, baseline=known.baseline)
    assert decide(plan, step, "running", empty, approved=True).kind == "hold"


@given(plans, st.lists(facts, max_size=60))
def test_without_a_person_a_rollout_always_comes_to_rest(
    plan: Plan, series: list[StepFacts]
) -> None:
    """It moves at most once up each step and once down each, whatever the facts are."""
    step, moves = 0, 0
    state: State = "running"
    for known in series:
        kind = decide(plan, step, state, known, approved=True).kind
        if kind == "hold":
            continue
        moves += 1
        if kind == "finish":
            break
        step += 1 if kind == "promote" else -1
        state = "rolled back" if kind == "back" else state
        if step < 0:
            break
    assert moves <= 2 * len(plan.steps)


def test_a_step_shows_every_check_of_its_gate() -> None:
    names = {step.name: [c.name for c in checks(step, HEALTHY)] for step in PLAN.steps}
    processed = ["duration", "events", "failures", "latency", "backlog"]
    assert names == {
        "shadow": ["duration", "events", "mismatches", "failed copies"],
        "10 %": processed,
        "50 %": processed,
        "100 %": processed,
    }
    assert Step(share=10, shadow=True).name == "10 % with shadow"
