"""Vendors' own ids in a question (`cnv_51a`, `1000104288`): the ids of the documents that have one in their key, and refs.

Ids of documents derive from their keys, so that no index is needed.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from uuid import UUID

from apex_memory.model import document_uuid

WORDS_MAX = 3  # of one question that may be such ids
_WORD = re.compile(r"(?<![\w$€£.,:/@-])(?=[\w-]{0,63}\d)\w[\w-]{0,63}(?![\w/@-]|[.,:]\d)")
_LONG_NUMBER = (
    6  # digits; a shorter number is an id only if the question says so or is nothing else
)
_SHORT = 4  # characters; a shorter word is an id under the same conditions
_BEFORE = re.compile(
    r"(?:(?!(?:id|number|no|record)\b)(\w+)\s+)?((?:(?:id|number|record|no)\b\.?|#)[\s:#]{0,2})?\Z",
    re.IGNORECASE,
)
_BEFORE_CHARS = 40


@dataclass(frozen=True, slots=True)
class OwnIds:
    """What a question's words may be as vendors' own ids."""

    documents: Mapping[UUID, str]
    """Ids of documents, each with the ref (`id:WORD`) that led to it."""
    refs: Sequence[str]
    """Refs by which documents would name such a thing."""

    @property
    def all_refs(self) -> frozenset[str]:
        """Return `refs` and those that led to documents."""
        return frozenset((*self.refs, *self.documents.values()))


def pairs_of(key_prefixes: Mapping[str, Sequence[str]]) -> list[tuple[str, str]]:
    """Return each source with what may stand before a vendor's own id in its keys: nothing, or one of its prefixes."""
    pairs: list[tuple[str, str]] = []
    for source, prefixes in key_prefixes.items():
        pairs += [(source, prefix) for prefix in ("", *prefixes)]
    return pairs


class OwnIdFinder:
    """Finds vendors' own ids by the declarations of the sources: `key_prefixes` by source, and `id_refs` of all."""

    def __init__(self, key_prefixes: Mapping[str, Sequence[str]], id_refs: Sequence[str]) -> None:
        self._prefixes = pairs_of(key_prefixes)
        self._id_refs = ("id:", *id_refs)

    def of(self, query: str) -> OwnIds:
        """Return what the words of a query may be as ids; for most queries, which have no such word, nothing.

        Where the word before is the kind of record in a key (`deal 48100200301`), only such records are meant.
        """
        documents: dict[UUID, str] = {}
        refs: dict[str, None] = {}
        words = 0
        for match in _WORD.finditer(query):
            word = match[0]
            kind, is_called_id = _words_before(query, match.start())
            of_kind = self._of_kind(kind)
            is_short = len(word) < _SHORT or (word.isdigit() and len(word) < _LONG_NUMBER)
            if is_short and not (of_kind or is_called_id or word == query.strip(" ?#")):
                continue
            words += 1
            if words > WORDS_MAX:
                break
            for source, prefix in of_kind or self._prefixes:
                documents[document_uuid(source, f"{prefix}{word}")] = f"id:{word}"
            if not of_kind:
                refs |= dict.fromkeys(f"{prefix}{word}" for prefix in self._id_refs)
                refs |= {f"id:{word.lstrip('0')}": None}
        return OwnIds(documents, list(refs))

    def _of_kind(self, kind: str) -> list[tuple[str, str]]:
        """Return the prefixes that name a kind: `9130:Invoice:` for `invoice`."""
        if not kind:
            return []
        return [pair for pair in self._prefixes if kind in pair[1].lower().split(":")[:-1]]


def _words_before(query: str, start: int) -> tuple[str, bool]:
    """Return the word before a position, and whether `id`, `number` or `#` stands between."""
    match = _BEFORE.search(query[max(0, start - _BEFORE_CHARS) : start])
    if match is None:
        return "", False
    return (match[1] or "").lower(), bool(match[2])
