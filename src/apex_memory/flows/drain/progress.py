"""Progress of one run of a drain, as the Temporal UI shows it. Deterministic, as replay requires."""

from __future__ import annotations

from dataclasses import dataclass, field

from apex_memory.flows.drain.messages import SHOWN, ClaimedBatch, StepReport

SEVERITY = ("dead", "parked", "retry", "superseded", "done", "prepared")
"""Outcomes, the most severe first."""


@dataclass
class RunProgress:
    """Batches processed since the run began. All events are counted; up to `SHOWN` are listed."""

    batches: int = 0
    events: int = 0
    counts: dict[str, int] = field(default_factory=dict)
    outcomes: dict[str, str] = field(default_factory=dict)
    """Outcome by event id, of up to `SHOWN` events."""
    seconds: dict[str, float] = field(default_factory=dict)
    """Seconds by step, summed over batches, including the wait for a worker."""
    faults: list[str] = field(default_factory=list)

    def add_batch(self, batch: ClaimedBatch) -> None:
        self.batches += 1
        self.events += batch.count
        for id in batch.events:
            if id in self.outcomes or len(self.outcomes) < SHOWN:
                self.outcomes[id] = "claimed"

    def add_outcomes(self, report: StepReport) -> None:
        for outcome, count in report.counts.items():
            self.counts[outcome] = self.counts.get(outcome, 0) + count
        for id, outcome in report.outcomes.items():
            if id in self.outcomes or len(self.outcomes) < SHOWN or outcome in SEVERITY[:3]:
                self.outcomes[id] = outcome
        while len(self.outcomes) > SHOWN:
            self.outcomes.pop(max(self.outcomes, key=lambda id: _severity(self.outcomes[id])))

    def add_time(self, step: str, seconds: float) -> None:
        self.seconds[step] = self.seconds.get(step, 0) + seconds

    def add_fault(self, reason: str) -> None:
        self.faults = [*self.faults, reason][-5:]

    @property
    def outcome(self) -> str:
        """The most severe outcome of the run: `dead`, `parked` or `done`; `idle` without events."""
        for outcome in ("dead", "parked"):
            if self.counts.get(outcome):
                return outcome
        return "done" if self.batches else "idle"

    def markdown(self, source: str, state: str) -> str:
        """Return the current details of the run, as the Temporal UI shows them."""
        lines = [f"**{source}**: {state}"]
        if self.batches:
            steps = ", ".join(f"{step} {took:.2f} s" for step, took in self.seconds.items())
            counts = ", ".join(f"{count} {name}" for name, count in self.counts.items())
            lines += [
                "",
                f"{self.events} events in {self.batches} batches: {counts or 'in progress'}",
            ]
            lines += ["", f"Steps: {steps}", "", "| event | outcome |", "|---|---|"]
            lines += [f"| `{id}` | {outcome} |" for id, outcome in self.outcomes.items()]
            if self.events > len(self.outcomes):
                lines.append(f"| … {self.events - len(self.outcomes)} more | |")
        lines += ["", *(f"- {fault}" for fault in self.faults)] if self.faults else []
        return "\n".join(lines)


def _severity(outcome: str) -> int:
    return SEVERITY.index(outcome) if outcome in SEVERITY else len(SEVERITY)
