"""What travels between the maintenance workflows and their activities: ids and counts. See `drain.messages`."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class RoundsInput:
    """Work every so many seconds, for so many seconds."""

    every_seconds: float
    run_seconds: float


@dataclass(frozen=True)
class SweepReport:
    """Stages expired and removed, events by store let out of parking, and the sources that were woken."""

    expired: int
    removed: int
    unparked: dict[str, int]
    woken: dict[str, int]


@dataclass(frozen=True)
class ReconcileInput:
    stores: list[str]


@dataclass(frozen=True)
class StoreInput:
    store: str


@dataclass(frozen=True)
class ReconcileReport:
    """A check of one store: stages looked at, documents repaired, strays removed or left, errors met."""

    store: str
    stages: int
    repaired: int
    removed: int
    left: int
    errors: int


@dataclass(frozen=True)
class SmokeTestReport:
    """What the worker sees: its build, and each store's version or what keeps it away."""

    build: str
    stores: dict[str, str]
    away: dict[str, str]
