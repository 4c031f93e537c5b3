"""Progress of one run of a drain, as the Temporal UI shows it. Deterministic, as replay requires."""

from __future__ import annotations

from dataclasses import dataclass, field

from apex_memory.flows.drain.messages import SHOWN, ClaimedBatch, StepReport

SEVERITY = ("dead", "parked", "retry", "superseded", "done", "prepared")
"""Outcomes, the most severe first."""


@dataclass
class EventProgress:
    """One event of the run."""

    event_id: str = ""
    outcome: str = "claimed"


@dataclass
class RunProgress:
    """Batches processed since the run began. All events are counted; up to `SHOWN` are listed."""

    batches: int = 0
    events: int = 0
    counts: dict[str, int] = field(default_factory=dict)
    rows: dict[str, EventProgress] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    """Seconds by step, summed over batches, including the wait for a worker."""
    faults: list[str] = field(default_factory=list)

    def add_batch(self, batch: ClaimedBatch) -> None:
        self.batches += 1
        self.events += batch.count
        for event in batch.events:
            if event.id in self.rows or len(self.rows) < SHOWN:
                self.rows[event.id] = EventProgress(event.event_id)

    def add_outcomes(self, report: StepReport) -> None:
        for outcome, count in report.counts.items():
            self.counts[outcome] = self.counts.get(outcome, 0) + count
        for id, outcome in report.outcomes.items():
            if id in self.rows:
                self.rows[id].outcome = outcome
            elif len(self.rows) < SHOWN or outcome in SEVERITY[:3]:
                self.rows[id] = EventProgress(outcome=outcome)
        while len(self.rows) > SHOWN:
            self.rows.pop(max(self.rows, key=lambda id: _severity(self.rows[id].outcome)))

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
            lines += ["", f"Steps: {steps}", "", "| event | id | outcome |", "|---|---|---|"]
            lines += [
                f"| {_cell(row.event_id)} | `{id}` | {row.outcome} |"
                for id, row in self.rows.items()
            ]
            if self.events > len(self.rows):
                lines.append(f"| … {self.events - len(self.rows)} more | | |")
        lines += ["", *(f"- {fault}" for fault in self.faults)] if self.faults else []
        return "\n".join(lines)


def _severity(outcome: str) -> int:
    return SEVERITY.index(outcome) if outcome in SEVERITY else len(SEVERITY)


def _cell(text: str) -> str:
    return text[:60].replace("|", "\\|").replace("\n", " ")
