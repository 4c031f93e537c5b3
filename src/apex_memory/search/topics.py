"""What kind of document a query is about: `bank` means Plaid, `invoice` and `overdue` mean invoices. A preference, never a limit.

Each source declares by which words people call it and its kinds (`Source.called`). Words match as the word legs match them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from apex_memory.stores.bm25 import Words

Kind = tuple[str, str]
"""A source and one of its kinds; the kind is empty for the source as a whole."""


@dataclass(frozen=True, slots=True)
class Topic:
    """What a query is about: for each source or kind that it names, how many of its words do, of `words` that name any."""

    named: Mapping[Kind, int]
    words: int

    @property
    def kinds(self) -> tuple[str, ...]:
        """The kinds that the query names best."""
        shares = {kind: self.share(source, kind) for source, kind in self.named if kind}
        best = max(shares.values(), default=0)
        return tuple(sorted(kind for kind, share in shares.items() if share == best))

    def share(self, source: str, kind: str) -> float:
        """Return the share of the naming words that name the kind or its source, 0 to 1."""
        matching = self.named.get((source, kind), 0) + self.named.get((source, ""), 0)
        return min(1.0, matching / self.words) if self.words else 0.0


class Topics:
    """Finds the topic of queries by the declarations of the sources."""

    def __init__(self, called: Mapping[str, Mapping[str, str]], words: Words) -> None:
        """`called` has for each source the words of each of its kinds, and under the empty kind those of the source."""
        self._words = words
        self._kinds: dict[int, set[Kind]] = {}
        for source, kinds in called.items():
            for kind, names in kinds.items():
                self._add(f"{kind.replace('_', ' ')} {names}", (source, kind))

    def of(self, query: str) -> Topic:
        """Return the topic of a query; it names nothing if no word is one of the declared."""
        terms = [term for term in self._terms(query) if term in self._kinds]
        named: dict[Kind, int] = {}
        for term in terms:
            for kind in self._kinds[term]:
                named[kind] = named.get(kind, 0) + 1
        return Topic(named, len(terms))

    def _add(self, names: str, kind: Kind) -> None:
        for term in self._terms(names):
            self._kinds.setdefault(term, set()).add(kind)

    def _terms(self, text: str) -> Iterable[int]:
        terms: list[int] = self._words.question(text).ids.tolist()
        return terms
