"""The settings of rollouts: what they mean, and what a wrong one is told to be."""

from __future__ import annotations

from typing import Any

import pytest

from apex_memory.rollout_settings import RolloutSettings, first_problem


def shares(settings: RolloutSettings, subject: str) -> list[str]:
    return [step.name for step in settings.plan_settings(subject).plan().steps]


def test_the_default_plan_is_shadow_10_50_100() -> None:
    plan = RolloutSettings().plan_settings("source:frontapp").plan()
    assert [(step.share, step.shadow) for step in plan.steps] == [
        (0, True),
        (10, False),
        (50, False),
        (100, False),
    ]
    assert plan.promotion == "automatic"
    assert {(step.min_seconds, step.min_events) for step in plan.steps} == {(3600, 100)}


def test_a_source_and_the_build_override_what_is_common() -> None:
    settings = RolloutSettings(
        min_events=50,
        sources={"plaid": {"steps": ["shadow", {"share": 25, "min_events": 5}, "100 %"]}},
        build={"promotion": "manual"},
    )
    plan = settings.plan_settings("source:plaid").plan()
    assert [(step.name, step.min_events) for step in plan.steps] == [
        ("shadow", 50),
        ("25 %", 5),
        ("100 %", 50),
    ]
    assert shares(settings, "source:edi") == ["shadow", "10 %", "50 %", "100 %"]
    assert settings.plan_settings("build").promotion == "manual"
    assert settings.plan_settings("source:edi").promotion == "automatic"


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        ({"steps": []}, "steps: Tuple should have at least 1 item"),
        ({"steps": [10, 5]}, "steps: shares must rise from step to step, and are [10, 5]"),
        ({"steps": [10, 10]}, "must rise"),
        ({"steps": ["half"]}, "steps.0: 'half' is neither \"shadow\" nor a share in per cent"),
        ({"steps": ["shadow", 101]}, "steps.1: share: Input should be less than or equal to 100"),
        ({"steps": [0]}, 'steps.0: a step needs a share above 0, or is "shadow"'),
        ({"steps": [{"share": 10, "min_event": 5}]}, "steps.0: min_event: Extra inputs"),
        ({"steps": [{"share": 1, "min_events": 501}]}, "can see 500 events"),
        ({"max_failure_rate": 1.5}, "max_failure_rate: Input should be less than or equal to 1"),
        ({"max_latency_ratio": float("nan")}, "max_latency_ratio: Input should be a finite number"),
        ({"promotion": "never"}, "promotion: Input should be 'automatic' or 'manual'"),
        ({"sources": {"plaid": {"min_event": 5}}}, "sources.plaid: min_event: Extra inputs"),
        ({"build": {"steps": [50, 10]}}, "build: steps: shares must rise"),
        ({"flags_provider": "flags"}, "flags_provider: expected `module:name`"),
    ],
)
def test_a_wrong_setting_is_named(given: dict[str, Any], problem: str) -> None:
    with pytest.raises(ValueError) as error:
        RolloutSettings.model_validate(given)
    assert problem in first_problem(error.value)
