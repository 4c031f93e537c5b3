"""Extraction by rules: identifiers, people, companies, cities, amounts and dates of a text, and the entities of a query."""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from itertools import islice

from apex_memory.dates import DateOrder
from apex_memory.model import DATE, Assertion, slug
from apex_memory.normalization import NormalizedText
from apex_memory.pipeline.chunk import split_at_passages
from apex_memory.pipeline.entities import (
    Mention,
    canonical,
    company_key,
    with_label,
    with_one_spelling,
)
from apex_memory.pipeline.identifiers import UNITS, find_identifiers
from apex_memory.pipeline.parties import City, Party, find_cities, find_companies, find_parties
from apex_memory.pipeline.regions import NAMES
from apex_memory.pipeline.stopwords import NOT_AT_EDGE
from apex_memory.pipeline.text import char_shape
from apex_memory.pipeline.values import ValueAt, find_amounts, find_dates

Statement = tuple[str, str, str | None, str | None, int | None]
"""Predicate, subject, object, value and offset of an assertion. Those that are extracted always have an offset."""

MAX_MENTIONS = 5  # of one entity in one document: the first in each passage
MAX_CANDIDATES = 60
MAX_IDENTIFIERS = 12
_STRUCK = re.compile(r"~~(?=[^\s~])[^\n]{1,500}?~~")
"""Text that is struck through: `~~$1,200~~ $1,350`."""


def statements(
    text: str,
    passages: Sequence[tuple[int, int]],
    own_refs: Collection[str] = (),
    *,
    at: date | None = None,
    date_order: DateOrder = "auto",
) -> list[Statement]:
    """Return statements with their offsets: mentions, roles of parties, names, postal codes, amounts and dates.

    They are plain tuples: a table of 60,000 rows has 100,000, of which few are kept. They are recognised in the normal form
    of the text (`normalization`), without marks of Markdown, and their offsets are those of the original. An empty subject
    means the document itself. The most useful come first, so that a limit cuts the least. `own_refs` are the canonical refs
    that the source of the document gave: the same identifier in another spelling of the text gets them. `at` is the day of
    the text: a day that it names without a year is the one nearest to that, and is left out where `at` is not known.
    """
    normalized = NormalizedText(text)
    borders = [start for start, _ in split_at_passages(len(text), passages)]
    struck = _struck(text)
    if normalized.text == text:
        return _statements(text, borders, own_refs, at, date_order, struck)
    moved_borders = [normalized.offset_of(border) for border in borders]
    moved_struck = [(normalized.offset_of(start), normalized.offset_of(end)) for start, end in struck]  # fmt: skip
    moved = _statements(normalized.text, moved_borders, own_refs, at, date_order, moved_struck)
    return [_moved(statement, normalized) for statement in moved]


def _moved(statement: Statement, normalized: NormalizedText) -> Statement:
    predicate, subject, object_ref, value, start = statement
    assert start is not None
    return predicate, subject, object_ref, value, normalized.original_offset(start)


def assertion_of(statement: Statement) -> Assertion:
    """Return a statement as an assertion. An empty subject means the document itself."""
    predicate, subject, object_ref, value, start = statement
    return Assertion(
        predicate=predicate, subject=subject, object=object_ref, value=value, start=start
    )


def _statements(
    text: str,
    borders: Sequence[int],
    own_refs: Collection[str],
    at: date | None,
    date_order: DateOrder,
    struck: Sequence[tuple[int, int]],
) -> list[Statement]:
    shape = char_shape(text)
    parties = sorted(find_parties(text), key=lambda party: party.mention.start)
    cities = sorted(find_cities(text, shape), key=lambda city: city.mention.start)
    mentions = [
        *with_one_spelling(list(find_identifiers(text, shape)), own_refs),
        *find_companies(text),
        *(party.mention for party in parties),
        *(city.mention for city in cities),
    ]
    mentions.sort(key=lambda mention: (mention.start, mention.ref))
    repeated = [
        *_mentions(mentions, borders),
        *_roles(parties),
        *_names(mentions),
        *_postal_codes(cities),
        *_first_of_each("amount", _still_valid(find_amounts(text), struck)),
        *_days(_still_valid(find_dates(text, shape, at, date_order), struck), borders),
    ]
    return list(dict.fromkeys(repeated))


def _mentions(mentions: Sequence[Mention], borders: Sequence[int]) -> Iterator[Statement]:
    """Yield the first mention of an entity in each passage, `MAX_MENTIONS` at most."""
    passages_by_ref: dict[str, list[int]] = {}
    for mention in mentions:
        passage = bisect_right(borders, mention.start)
        passages = passages_by_ref.setdefault(mention.ref, [])
        if passage not in passages and len(passages) < MAX_MENTIONS:
            passages.append(passage)
            yield "mentions", "", mention.ref, None, mention.start


def _struck(text: str) -> list[tuple[int, int]]:
    """Return where text is struck through, by offsets."""
    return [match.span() for match in _STRUCK.finditer(text)] if "~~" in text else []


def _still_valid(values: Iterable[ValueAt], struck: Sequence[tuple[int, int]]) -> Iterable[ValueAt]:
    """Return the values that are not struck through. Names that are remain mentions."""
    starts = [start for start, _ in struck]

    def is_struck(position: int) -> bool:
        n = bisect_right(starts, position) - 1
        return n >= 0 and position < struck[n][1]

    return (value for value in values if not is_struck(value[1])) if struck else values


def _roles(parties: Sequence[Party]) -> Iterator[Statement]:
    for party in parties:
        mention = party.mention
        yield party.role, "", mention.ref, None, mention.start


def _postal_codes(cities: Sequence[City]) -> Iterator[Statement]:
    for city in cities:
        if city.postal_code:
            mention = city.mention
            yield "zip", mention.ref, None, city.postal_code, mention.start


def _names(mentions: Sequence[Mention]) -> Iterator[Statement]:
    """Yield the text's first spelling of each entity, if it differs from the key."""
    named: set[str] = set()
    for mention in mentions:
        if mention.ref not in named and not mention.ref.endswith(f":{mention.surface}"):
            named.add(mention.ref)
            yield "name", mention.ref, None, mention.surface, mention.start


def _first_of_each(predicate: str, values: Iterable[ValueAt]) -> Iterator[Statement]:
    first: dict[str, int] = {}
    for value, start in values:
        first[value] = min(start, first.get(value, start))
    for value, start in sorted(first.items(), key=lambda item: item[1]):
        yield predicate, "", None, value, start


def _days(days: Iterable[ValueAt], borders: Sequence[int]) -> Iterator[Statement]:
    """Yield the first mention of a day in each passage, `MAX_MENTIONS` at most: a search finds the passages of a day."""
    passages_by_day: dict[str, set[int]] = {}
    for day, start in sorted(days, key=lambda item: item[1]):
        passage = bisect_right(borders, start)
        passages = passages_by_day.setdefault(day, set())
        if passage not in passages and len(passages) < MAX_MENTIONS:
            passages.add(passage)
            yield DATE, "", None, day, start


@dataclass(frozen=True, slots=True)
class QueryEntities:
    """The entities of a query: `certain` refs are spelled out in it, `candidates` are refs that its words may mean."""

    certain: tuple[str, ...]
    candidates: tuple[str, ...]
    identifiers: tuple[str, ...] = ()
    """Refs that are identifiers only if a document holds them: a word after the name of its type (`shipment ABCXXXX`)."""


# How a query may name the type of an identifier, and the type in refs.
_TYPE_NAMES = {
    "shipment": "shipment", "load": "load", "pro": "pro", "bol": "bol", "bill of lading": "bol", "po": "po",
    "purchase order": "po", "invoice": "invoice", "mc": "mc", "usdot": "usdot", "dot": "usdot", "scac": "scac",
    "container": "container", "vin": "vin", "unit": "vehicle", "truck": "vehicle", "tractor": "vehicle",
    "trailer": "vehicle", "vehicle": "vehicle", "account": "account", "payment": "payment", "bill": "bill",
    "transaction": "transaction", "deal": "deal", "contact": "contact", "conversation": "conversation",
}  # fmt: skip
# A number with the label of its type and any number of digits: `SHP-42`.
_LABELLED_NUMBER = re.compile(
    r"(?<![\w-])(SHP|LD|INV)[- ]?(\d{1,12})(?![\w-])", re.IGNORECASE | re.ASCII
)
_LABEL_TYPES = {"SHP": "shipment", "LD": "load", "INV": "invoice"}
_QUERY_WORD = re.compile(r"[^\W_][\w&'’.-]{0,40}")


class QueryReader:
    """Finds the entities of queries.

    `numbered` holds for each source the words before a number of a kind (`Source.numbered`): `load 104277` may be a shipment.
    """

    def __init__(self, numbered: Iterable[Mapping[str, str]] = ()) -> None:
        types = {name: {kind} for name, kind in _TYPE_NAMES.items()}
        for kinds in numbered:
            for kind, words in kinds.items():
                for word in words.split():
                    types.setdefault(word, set()).add(kind)
        self._types = {name: sorted(kinds) for name, kinds in types.items()}
        names = "|".join(sorted(types, key=len, reverse=True))
        self._typed_word = re.compile(
            rf"(?<![\w-])({names})(?=[ #:])(?:[ ](?:no\.?|number|id))?[ ]?[#:]?[ ]?"
            rf"(?=[^\s]{{2}}|\d)([A-Z0-9][A-Z0-9_-]{{0,39}})(?![\w-]|[.,:/]\d){UNITS}",
            re.IGNORECASE | re.ASCII,
        )

    def __call__(self, text: str) -> QueryEntities:
        """Return the entities that a query names, in any case, and refs that its words may mean."""
        text = NormalizedText(text[:2_000]).text
        shape, upper = char_shape(text), text.upper()
        mentions = [
            *find_identifiers(text, shape),
            *find_identifiers(upper, char_shape(upper)),
            *find_companies(text),
            *(city.mention for city in find_cities(text, shape)),
        ]
        certain = dict.fromkeys(canonical(mention.ref) for mention in mentions)
        candidates = (ref for ref in dict.fromkeys(_candidates(text)) if ref not in certain)
        possible = dict.fromkeys(self._possible_identifiers(text))
        identifiers = (ref for ref in possible if ref not in certain)
        return QueryEntities(
            tuple(certain),
            tuple(islice(candidates, MAX_CANDIDATES)),
            tuple(islice(identifiers, MAX_IDENTIFIERS)),
        )

    def _possible_identifiers(self, text: str) -> Iterator[str]:
        """Yield refs that are identifiers if a document holds them."""
        for match in self._typed_word.finditer(text):
            word = match[2].rstrip("-")
            if word.lower() in NOT_AT_EDGE:
                continue
            for kind in self._types[match[1].lower()]:
                ref = canonical(f"{kind}:{word}")
                yield from (ref, canonical(f"{kind}:{word.upper()}"), with_label(ref))
        for match in _LABELLED_NUMBER.finditer(text):
            label = match[1].upper()
            yield canonical(f"{_LABEL_TYPES[label]}:{label}-{match[2]}")


extract_query = QueryReader()
"""Finds the entities of a query where no source is known."""


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
            if gram[0].lower() in NOT_AT_EDGE or gram[-1].lower() in NOT_AT_EDGE:
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
