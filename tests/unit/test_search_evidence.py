"""When the hits of a question are weak evidence for it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from apex_memory.search.evidence import JUDGED_HITS, STRONG_SCORE, evidence_of

ASKED = "yard gate code north"


def hit(text: str, *, title: str = "", score: float = 5.0, **legs: float) -> Any:
    return SimpleNamespace(title=title, snippet=text, score=score, legs={"dense": 0.8, **legs})


def evidence(*hits: Any, unknown: tuple[str, ...] = ()) -> str:
    def terms_of(text: str) -> list[int]:
        return [hash(word) for word in text.split()]

    return evidence_of(ASKED, hits, unknown, terms_of)


def test_a_first_hit_that_stands_out_is_strong() -> None:
    assert evidence(hit("something else", score=STRONG_SCORE)) == "strong"
    assert evidence(hit("something else", score=STRONG_SCORE - 0.1)) == "weak"


def test_hits_that_hold_the_words_of_the_question_are_strong() -> None:
    assert evidence(hit("the gate north of the yard")) == "strong"
    assert evidence(hit("the gate", title="north yard")) == "strong"
    assert evidence(hit("the gate"), hit("the yard"), hit("a code")) == "strong"
    assert evidence(hit("the gate"), hit("the yard")) == "weak"


def test_only_the_first_hits_count() -> None:
    others = [hit("nothing")] * (JUDGED_HITS - 1)
    assert evidence(hit("gate yard"), *others, hit("code north")) == "weak"


def test_a_record_that_the_question_identifies_is_strong() -> None:
    assert evidence(hit("nothing", identifier=1.0)) == "strong"
    assert evidence(hit("nothing", identifier=1.0), unknown=("SHP-1",)) == "strong"


@pytest.mark.parametrize("hits", [(), (hit("yard gate code north", score=30.0),)])
def test_nothing_found_and_unknown_identifiers_are_weak(hits: tuple[Any, ...]) -> None:
    assert evidence(*hits, unknown=("SHP-999998",)) == "weak"
    assert evidence() == "weak"
