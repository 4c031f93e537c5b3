"""The inputs and results of the maintenance workflows: ids and counts. See `drain.messages`."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class RoundsInput:
    """Input of a workflow that works in rounds: seconds between rounds, and seconds of the run."""

    every_seconds: float
    run_seconds: float


@dataclass(frozen=True)
class SweepReport:
    """Result of a sweep: stages expired and removed, unparked events by store, and ready events by woken source."""

    expired: int
    removed: int
    unparked: dict[str, int]
    woken: dict[str, int]


@dataclass(frozen=True)
class ReconcileInput:
    """Input of `Reconcile`."""

    stores: list[str]


@dataclass(frozen=True)
class StoreInput:
    """Input of the activity `reconcile`."""

    store: str


@dataclass(frozen=True)
class ReconcileReport:
    """Result of comparing one store: stages checked, documents repaired, strays removed or left, errors."""

    store: str
    stages: int
    repaired: int
    removed: int
    left: int
    errors: int


@dataclass(frozen=True)
class SmokeTestReport:
    """Result of the smoke test: the worker's build, the version of each store, and why others are unavailable."""

    build: str
    stores: dict[str, str]
    away: dict[str, str]


@dataclass(frozen=True)
class RolloutGateInput:
    """Input of `RolloutGate`: how many of the newest runs of each type of workflow are replayed."""

    histories: int = 20


@dataclass(frozen=True)
class RolloutGateReport:
    """Result of the gate: the build, the version of each store, and the replayed histories by type of workflow.

    `failures` holds a line for each store that does not respond, model that does not work, and run that the build could
    not continue; it is empty when the build may process documents.
    """

    build: str
    stores: dict[str, str]
    replayed: dict[str, int]
    failures: list[str] = field(default_factory=list)
    complete: bool = True
    """False when the time did not suffice to replay all of them."""
