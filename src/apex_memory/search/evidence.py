"""Whether the hits of a question are strong or weak evidence for it. A remark for the reader: no hit is withheld.

Measured on the busy month of `bench/memory`; docs/discussions/ranking.md has the figures.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Literal

from apex_memory.search.results import Hit

Evidence = Literal["strong", "weak"]

JUDGED_HITS = 5
STRONG_SCORE = (
    12.0  # a first hit with at least this fused score stands out from the other candidates
)
STRONG_SHARE = 0.7  # of the question's words that the first hits hold, title or passage


def evidence_of(
    question: str,
    hits: Sequence[Hit],
    unknown: Collection[str],
    terms_of: Callable[[str], Collection[int]],
) -> Evidence:
    """Return how well the first hits answer to the question.

    A hit that holds an identifier of the question is strong. Otherwise hits are weak if an identifier of the question is
    `unknown`, or if the first one does not stand out and the first `JUDGED_HITS` hold too few of the question's words.
    `terms_of` returns the terms of a text as the word legs have them.
    """
    if hits and "identifier" in hits[0].legs:
        return "strong"
    if not hits or unknown:
        return "weak"
    if hits[0].score >= STRONG_SCORE:
        return "strong"
    wanted = set(terms_of(question))
    held: set[int] = set()
    for hit in hits[:JUDGED_HITS]:
        held.update(wanted.intersection(terms_of(f"{hit.title} {hit.snippet}")))
    return "strong" if len(held) >= STRONG_SHARE * max(1, len(wanted)) else "weak"
