"""The tables of the month: recall by type, half and leg, identifiers at rank 1, and the scores of what has no answer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from statistics import quantiles

from bench.memory.measure import FUSED, HALVES, LEGS, Outcome, recall
from bench.memory.month.questions import TYPES

NO_ANSWER = "no-answer"
CUTS = (5, 10)
INTENT_CUTS = (1, 3, 5)
PERCENTILES = (5, 25, 50, 75, 95)


def report(outcomes: Sequence[Outcome]) -> Iterator[str]:
    """Yield the lines of the report, as Markdown."""
    yield from _recalls(outcomes)
    yield ""
    yield from _legs(outcomes)
    yield ""
    yield from _first_ranks(outcomes)
    yield ""
    yield from _scores(outcomes)


def misses(outcomes: Sequence[Outcome], half: str, at: int = 5) -> Iterator[str]:
    """Yield the questions of one half whose evidence is not whole among the first hits, with the ranks."""
    for outcome in outcomes:
        question = outcome.question
        missed = outcome.leg == FUSED and question.evidence and outcome.recall(at) < 1
        if missed and question.half == half:
            ranks = [str(rank or "-") for rank in outcome.ranks[:4]]
            yield f"{question.type}: {question.text} ({', '.join(ranks)})"


def _recalls(outcomes: Sequence[Outcome]) -> Iterator[str]:
    yield "| fused | questions | @5 | @10 | tuned @5 | tuned @10 | held @5 | held @10 |"
    yield f"|{'---|' * 8}"
    for type in ("", *TYPES):
        if type == NO_ANSWER:
            continue
        values = [recall(outcomes, FUSED, at=at, type=type) for at in CUTS]
        for half in HALVES:
            values += [recall(outcomes, FUSED, at=at, type=type, half=half) for at in CUTS]
        yield _line(type or "all", str(_count(outcomes, type)), *map(_figure, values))


def _legs(outcomes: Sequence[Outcome]) -> Iterator[str]:
    types = [type for type in TYPES if type != NO_ANSWER]
    yield _line("leg @5", "all", "tuned", "held", *types)
    yield f"|{'---|' * (4 + len(types))}"
    asked = {outcome.leg for outcome in outcomes}
    for leg in (*LEGS, FUSED):
        if leg not in asked:
            continue
        values = [recall(outcomes, leg)]
        values += [recall(outcomes, leg, half=half) for half in HALVES]
        values += [recall(outcomes, leg, type=type) for type in types]
        yield _line(leg, *map(_figure, values))


def _first_ranks(outcomes: Sequence[Outcome]) -> Iterator[str]:
    for half in HALVES:
        first = recall(outcomes, FUSED, at=1, type="identifier", half=half)
        cuts = [recall(outcomes, FUSED, at=at, type="intent", half=half) for at in INTENT_CUTS]
        text = ", ".join(
            f"@{at} {_figure(value)}" for at, value in zip(INTENT_CUTS, cuts, strict=True)
        )
        yield f"{half}: identifiers at rank 1 {_figure(first)}; intents {text}"


def _scores(outcomes: Sequence[Outcome]) -> Iterator[str]:
    """Yield the score of the first hit: of questions with an answer that is found, and of those without one."""
    yield _line("score of the first hit", "questions", *(f"p{n}" for n in PERCENTILES))
    yield f"|{'---|' * (2 + len(PERCENTILES))}"
    fused = [outcome for outcome in outcomes if outcome.leg == FUSED and outcome.score is not None]
    for half in HALVES:
        own = [outcome for outcome in fused if outcome.question.half == half]
        groups = {
            "answer at rank 1 to 3": [
                outcome.score for outcome in own if outcome.question.evidence and outcome.recall(3)
            ],
            "no answer": [outcome.score for outcome in own if not outcome.question.evidence],
        }
        for name, scores in groups.items():
            known = [score for score in scores if score is not None]
            if len(known) > 1:
                points = quantiles(known, n=100, method="inclusive")
                figures = [f"{points[n - 1]:.2f}" for n in PERCENTILES]
                yield _line(f"{half}: {name}", str(len(known)), *figures)


def _count(outcomes: Sequence[Outcome], type: str) -> int:
    return sum(
        outcome.leg == FUSED and bool(outcome.question.evidence)
        for outcome in outcomes
        if type in ("", outcome.question.type)
    )


def _figure(value: float) -> str:
    return f"{value:.3f}".removeprefix("0")


def _line(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"
