"""The settings of rollouts: the steps that a rollout takes, and the gates between them. Table `[rollout]`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

WINDOW_EVENTS = 50_000
"""Most events of a step that its gates look at, the newest ones, so that looking stays cheap."""

SHADOW = "shadow"


class Gate(BaseModel):
    """What must hold before a rollout leaves a step. Rates are of 0 to 1."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    min_seconds: float = Field(3600, ge=0, description="Least duration of a step (seconds).")
    min_events: int = Field(
        100,
        ge=1,
        le=WINDOW_EVENTS,
        description="Least number of events that the new side processes in a step; in `shadow`, of copies compared.",
    )
    max_mismatch_rate: float = Field(
        0,
        ge=0,
        le=1,
        description="Highest share of compared copies that differ, without the differences that are accepted.",
    )
    max_failure_rate: float = Field(
        0.01,
        ge=0,
        le=1,
        description="Highest share of events that failed: dead letters, and failed attempts that are to be repeated.",
    )
    max_latency_ratio: float = Field(
        3,
        ge=1,
        description="Highest p99 of the time from received to final, as a multiple of the other side's.",
    )
    latency_floor_seconds: float = Field(
        1, ge=0, description="A p99 up to this (seconds) is never too high."
    )
    max_backlog_ratio: float = Field(
        3,
        ge=1,
        description="Most events that wait, for each per cent of the share, as a multiple of the other side's.",
    )
    backlog_floor: int = Field(100, ge=0, description="A backlog up to this is never too long.")


class Step(Gate):
    """One step of a plan: the share that it gives to the new side, and the gate that ends it."""

    share: int = Field(ge=0, le=100)
    """Per cent of the documents that the new side processes."""
    shadow: bool = False
    """The new side processes copies of the other documents, which no reader sees."""

    @model_validator(mode="after")
    def _processes_something(self) -> Step:
        if self.share == 0 and not self.shadow:
            raise ValueError('a step needs a share above 0, or is "shadow"')
        if self.share and self.min_events > self.most_events:
            raise ValueError(
                f"min_events is {self.min_events}; the gate of a share of {self.share} % can see {self.most_events} events"
            )
        return self

    @property
    def most_events(self) -> int:
        """About how many events of the new side are among the newest `WINDOW_EVENTS`."""
        return WINDOW_EVENTS * self.share // 100

    @property
    def name(self) -> str:
        """`shadow`, `10 %`, or `10 % with shadow`."""
        if self.share == 0:
            return SHADOW
        return f"{self.share} %" + (" with shadow" if self.shadow else "")


class Plan(BaseModel):
    """The steps of a rollout, in order. The last one leads to its end: the new side processes its share for good."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    steps: tuple[Step, ...] = Field(min_length=1, max_length=20)
    promotion: Literal["automatic", "manual"] = "automatic"
    """`manual`: a person approves each promotion, and the gate must hold as well."""

    @model_validator(mode="after")
    def _rises(self) -> Plan:
        shares = [step.share for step in self.steps]
        if shares != sorted(set(shares)):
            raise ValueError(f"steps: shares must rise from step to step, and are {shares}")
        return self


class PlanSettings(Gate):
    """A plan as people write it. What stands here holds for every step that does not set it itself."""

    steps: tuple[str | int | dict[str, Any], ...] = Field(
        ("shadow", 10, 50, 100),
        min_length=1,
        description="Steps, in order: `shadow`, a share in per cent, or a table with a share and gates of its own: `{ share = 10, shadow = true, min_events = 500 }`.",
    )
    promotion: Literal["automatic", "manual"] = Field(
        "automatic",
        description="`manual`: `apex rollout approve` must allow each promotion, and the gate must hold as well.",
    )

    @model_validator(mode="after")
    def _makes_a_plan(self) -> PlanSettings:
        self.plan()
        return self

    def plan(self) -> Plan:
        """Return the plan. Raises `ValueError` for one that cannot work."""
        gate = {name: getattr(self, name) for name in Gate.model_fields}
        steps: list[Step] = []
        for n, step in enumerate(self.steps):
            try:
                steps.append(Step(**{**gate, **_step_fields(step)}))
            except ValueError as error:
                raise ValueError(f"steps.{n}: {first_problem(error)}") from None
        return Plan(steps=tuple(steps), promotion=self.promotion)

    def overridden(self, changes: dict[str, Any]) -> PlanSettings:
        """Return these settings with some replaced. Raises `ValidationError` for what cannot work."""
        return PlanSettings.model_validate({**_plan_fields(self), **changes})


def _step_fields(step: str | int | dict[str, Any]) -> dict[str, Any]:
    """Return the fields of a step. Raises `ValueError` for what is none."""
    if isinstance(step, dict):
        return {"share": 0, **step}
    if step == SHADOW:
        return {"share": 0, "shadow": True}
    text = str(step).removesuffix("%").strip()
    if not (text.isascii() and text.isdecimal()):
        raise ValueError(f'{step!r} is neither "shadow" nor a share in per cent')
    return {"share": int(text)}


def _plan_fields(settings: PlanSettings) -> dict[str, Any]:
    return {name: getattr(settings, name) for name in PlanSettings.model_fields}


class RolloutSettings(PlanSettings):
    """The table `[rollout]`: the plan of every rollout, and what differs for a source or for the candidate build."""

    sources: dict[str, dict[str, Any]] = Field(
        default_factory=dict,
        description="What differs for a source: `[rollout.sources.plaid]` with settings of this table.",
    )
    build: dict[str, Any] = Field(
        default_factory=dict,
        description="What differs for the rollout of a build: `[rollout.build]` with settings of this table.",
    )
    flags_provider: str = Field(
        "",
        description="OpenFeature provider that decides the shares of the sources: `module:name` of a provider, or of a function that returns it (extra `flags`). Empty: people and plans decide.",
    )
    flags_seconds: float = Field(
        1, ge=0.1, description="Seconds between two looks at the provider's flags."
    )

    @field_validator("flags_provider")
    @classmethod
    def _names_an_object(cls, value: str) -> str:
        module, _, name = value.partition(":")
        if value and not (module and name):
            raise ValueError("expected `module:name`")
        return value

    @model_validator(mode="after")
    def _every_plan_works(self) -> RolloutSettings:
        for name in self.sources:
            self.plan_settings(f"source:{name}")
        self.plan_settings("build")
        return self

    def plan_settings(self, subject: str) -> PlanSettings:
        """Return the plan of a subject, `source:NAME` or `build`, as the settings write it."""
        common = PlanSettings.model_construct(**_plan_fields(self))
        if subject == "build":
            changes, place = self.build, "build"
        else:
            name = subject.removeprefix("source:")
            changes, place = self.sources.get(name, {}), f"sources.{name}"
        try:
            return common.overridden(changes)
        except ValueError as error:
            raise ValueError(f"{place}: {first_problem(error)}") from None


def first_problem(error: ValueError) -> str:
    """Return what is wrong, in one line, of an error of validation: the place and the message of the first problem."""
    problems: Sequence[Any] = getattr(error, "errors", list)()
    if not problems:
        return str(error)
    place = ".".join(str(part) for part in problems[0]["loc"])
    message = str(problems[0]["msg"]).removeprefix("Value error, ")
    return f"{place}: {message}" if place else message
