"""What a text says, by rules: identifiers, people, companies, places, amounts, dates; and what a question asks for."""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from apex_memory.model import Assertion, slug
from apex_memory.pipeline.chunk import units
from apex_memory.pipeline.entities import Mention, canonical, company_key
from apex_memory.pipeline.identifiers import find_identifiers
from apex_memory.pipeline.parties import find_companies, find_parties, find_places
from apex_memory.pipeline.regions import NAMES
from apex_memory.pipeline.stopwords import NOT_ASKED
from apex_memory.pipeline.text import char_shape
from apex_memory.pipeline.values import find_amounts, find_dates

MAX_MENTIONS = 5  # of one entity in one document: the first of a passage each
MAX_CANDIDATES = 60


def extract(text: str, passages: Sequence[tuple[int, int]]) -> list[Assertion]:
    """Assertions with their places: mentions, names, parties and postal codes, then amounts and dates.

    An empty subject stands for the document. In order of worth, so that a limit cuts the least.
    """
    shape = char_shape(text)
    parties = sorted(find_parties(text), key=lambda party: party.mention.start)
    places = sorted(find_places(text, shape), key=lambda place: place.mention.start)
    mentions = [
        *find_identifiers(text, shape),
        *find_companies(text),
        *(party.mention for party in parties),
        *(place.mention for place in places),
    ]
    mentions.sort(key=lambda mention: (mention.start, mention.ref))
    said = [
        *_mentions(mentions, [start for start, _ in units(len(text), passages)]),
        *(
            Assertion(predicate=p.role, object=p.mention.ref, start=p.mention.start)
            for p in parties
        ),
        *_names(mentions),
        *(
            Assertion(
                predicate="zip", subject=p.mention.ref, value=p.postal_code, start=p.mention.start
            )
            for p in places
            if p.postal_code
        ),
        *_values(text, shape),
    ]
    return list({(a.predicate, a.subject, a.object, a.value, a.start): a for a in said}.values())


def _mentions(mentions: Sequence[Mention], borders: Sequence[int]) -> Iterator[Assertion]:
    seen: dict[str, list[int]] = {}
    for mention in mentions:
        unit = bisect_right(borders, mention.start)
        units_seen = seen.setdefault(mention.ref, [])
        if unit not in units_seen and len(units_seen) < MAX_MENTIONS:
            units_seen.append(unit)
            yield Assertion(predicate="mentions", object=mention.ref, start=mention.start)


def _names(mentions: Sequence[Mention]) -> Iterator[Assertion]:
    """How the text spells an entity, where that is not its key."""
    named: set[str] = set()
    for mention in mentions:
        if mention.ref not in named and not mention.ref.endswith(f":{mention.surface}"):
            named.add(mention.ref)
            yield Assertion(
                predicate="name", subject=mention.ref, value=mention.surface, start=mention.start
            )


def _values(text: str, shape: bytes) -> Iterator[Assertion]:
    for predicate, found in (("amount", find_amounts(text)), ("date", find_dates(text, shape))):
        first: dict[str, int] = {}
        for value, start in found:
            first[value] = min(start, first.get(value, start))
        for value, start in sorted(first.items(), key=lambda item: item[1]):
            yield Assertion(predicate=predicate, value=value, start=start)


@dataclass(frozen=True, slots=True)
class QueryEntities:
    """What a question may be about. `certain` refs stand in it as such; `candidates` need looking up."""

    certain: tuple[str, ...]
    candidates: tuple[str, ...]


_QUERY_WORD = re.compile(r"[^\W_][\w&'’.-]{0,40}")


def extract_query(text: str) -> QueryEntities:
    """The entities that a question names, however it spells them, and refs that its words might be."""
    text = text[:2_000]
    shape, upper = char_shape(text), text.upper()
    found = [*find_identifiers(text, shape), *find_identifiers(upper, char_shape(upper))]
    mentions = [
        *found,
        *find_companies(text),
        *(place.mention for place in find_places(text, shape)),
    ]
    certain = dict.fromkeys(canonical(mention.ref) for mention in mentions)
    candidates = (ref for ref in dict.fromkeys(_candidates(text)) if ref not in certain)
    return QueryEntities(
        tuple(certain),
        tuple(ref for _, ref in zip(range(MAX_CANDIDATES), candidates, strict=False)),
    )


def _candidates(text: str) -> Iterator[str]:
    words = [word.rstrip(".'’-") for word in _QUERY_WORD.findall(text)]
    for word in words:
        if len(word) >= 4 and sum(map(str.isdigit, word)) >= 3 and "." not in word:
            yield from (
                f"{kind}:{word.upper()}"
                for kind in ("shipment", "load", "bol", "po", "pro", "invoice")
            )
    states = {name.lower(): code for name, code in NAMES.items()}
    for size in (2, 3, 1, 4):
        for first in range(len(words) - size + 1):
            gram = words[first : first + size]
            if gram[0].lower() in NOT_ASKED or gram[-1].lower() in NOT_ASKED:
                continue
            key = slug(name := " ".join(gram))
            if not key or any(sum(map(str.isdigit, word)) >= 3 for word in gram):
                continue
            yield f"company:{company_key(name)}"
            if size > 1:
                last = states.get(gram[-1].lower(), gram[-1])
                yield f"location:{slug(' '.join([*gram[:-1], last]))}"
            if size in (2, 3):
                yield f"person:{key}"
