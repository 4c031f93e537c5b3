"""What memory knows of a query: the identifiers that documents hold, and those that none holds."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from apex_memory.model import Entity
from apex_memory.normalization import words_of
from apex_memory.search.own_ids import OwnIds
from apex_memory.search.ranking import IdentifierMatches
from apex_memory.search.results import Hit, RecognisedEntity
from apex_memory.search.snapshot import SnapshotReader

EXACT_MAX = 20  # identifiers of one query that are looked up in the exact index

# Types whose refs are names, not identifiers: for a query about Dallas, documents that merely name
# Dallas must not come before all others.
_NAMES = frozenset({"company", "person", "location"})

_NO_SYMBOL = re.compile(r"[\W_]+")


def identifiers_of(refs: Sequence[str]) -> list[str]:
    """Return those of the refs that identify a thing."""
    return [ref for ref in refs if Entity.parse(ref).type not in _NAMES]


async def identifier_matches(
    reader: SnapshotReader, exact_refs: Sequence[str], own_ids: OwnIds
) -> IdentifierMatches:
    """Return the identifiers of a query and the live documents that hold them."""
    identifiers = IdentifierMatches()
    refs = [*exact_refs[:EXACT_MAX], *own_ids.refs]
    matches = await reader.identified(refs, own_ids.documents)
    named = [Entity.parse(ref).key for ref, _ in matches if ref not in own_ids.all_refs]
    for ref, doc in matches:
        # `load 104277` names SHP-104277, not the deal of another vendor that has this number for its id.
        is_named = ref in own_ids.all_refs and any(
            _is_key_of(key, Entity.parse(ref).key) for key in named
        )
        if not is_named:
            identifiers.add(ref, doc)
    return identifiers


def _is_key_of(key: str, number: str) -> bool:
    """Return whether a key is a number, or one with a label: `SHP-107815` is of 107815, not of 815."""
    return key == number or key.endswith(f"-{number}")


def recognised(
    exact_refs: Sequence[str], identifiers: IdentifierMatches, known: Mapping[str, int]
) -> list[RecognisedEntity]:
    held = [ref for ref in identifiers.counts if ref not in exact_refs]
    exact_refs = [*exact_refs, *held]
    exact = [RecognisedEntity(ref, True, identifiers.counts[ref]) for ref in exact_refs]
    others = [
        RecognisedEntity(ref, False, count) for ref, count in known.items() if ref not in exact_refs
    ]
    return exact + others


def unknown_identifiers(
    exact_refs: Sequence[str], identifiers: IdentifierMatches, hits: Sequence[Hit]
) -> list[str]:
    """Return the identifiers of a query that no document has as an entity, and no hit in its text."""
    keys = [Entity.parse(ref).key for ref in exact_refs if not identifiers.counts[ref]]
    return [key for key in keys if not _holds(hits, key)]


def unknown_code(codes_text: str, hits: Sequence[Hit]) -> list[str]:
    """Return the query's only code if no hit holds it: passages that hold it would be the first hits.

    Of several codes one may be in passages that the limit leaves out, so nothing is said about them.
    """
    codes = codes_text.split()
    if len(codes) != 1 or _holds(hits, codes[0]):
        return []
    return codes


def _holds(hits: Sequence[Hit], code: str) -> bool:
    wanted = _NO_SYMBOL.sub("", words_of(code).casefold())
    texts = (f"{hit.title} {hit.snippet}" for hit in hits)
    return any(wanted in _NO_SYMBOL.sub("", words_of(text).casefold()) for text in texts)
