"""One spelling for each entity, whether a mail, a transport system, an invoice or a query names it."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

from apex_memory.model import slug
from apex_memory.normalization import NormalizedText

IDENTIFIERS = frozenset(
    {"shipment", "load", "pro", "bol", "po", "invoice", "mc", "usdot", "scac", "container", "vin"}
)
_NAMES = frozenset({"person", "location"})
_LEGAL = re.compile(
    r"(?:-(?:llc|l-l-c|inc|incorporated|corp|corporation|co|company|ltd|limited|lp|llp))+$"
)
_VEHICLE = re.compile(
    r"^(?:truck|unit|tractor|trailer|vehicle)[\s#:.-]{0,3}(?=\S*\d)", re.IGNORECASE
)
_NO_DIGITS = re.compile(r"\D+")
_NO_DASH = frozenset({"pro", "mc", "usdot", "container", "vin"})
# How keys of a type begin with the type's own label, and what the canonical key has instead: `INV55048` and `INV 55048`
# are `INV-55048`, and `PO-7781` is the number 7781 of a PO.
_OWN_LABELS: Mapping[str, tuple[re.Pattern[str], str]] = {
    "shipment": (re.compile(r"^SHP-?(?=\d)"), "SHP-"),
    "load": (re.compile(r"^LD-?(?=\d)"), "LD-"),
    "invoice": (re.compile(r"^INV-?(?=\d)"), "INV-"),
    "po": (re.compile(r"^P\.?O\.?[#:-]?(?=\d)"), ""),
    "bol": (re.compile(r"^(?:BOL|B/L)[#:-]?(?=\d)"), ""),
    "pro": (re.compile(r"^PRO[#:]?(?=\d)"), ""),
    "mc": (re.compile(r"^MC[#:]?(?=\d)"), ""),
    "usdot": (re.compile(r"^(?:US)?DOT[#:]?(?=\d)"), ""),
}


@dataclass(frozen=True, slots=True)
class Mention:
    """An entity in a text: its ref, its spelling there (`surface`), and the character offset of that."""

    ref: str
    surface: str
    start: int


def with_label(ref: str) -> str:
    """Return the ref of a number with the label of its type: `shipment:104277` → `shipment:SHP-104277`; others as they are."""
    kind, _, key = ref.partition(":")
    form = _OWN_LABELS[kind][1] if kind in _OWN_LABELS else ""
    return f"{kind}:{form}{key}" if form and key[:1].isdigit() else ref


@lru_cache(maxsize=4_096)  # the rows of a table name the same companies
def company_key(name: str) -> str:
    """`Northwind Trucking, LLC` → `northwind-trucking`: the key leaves legal forms out, because many texts do."""
    key = slug(name)
    return _LEGAL.sub("", key) or key


def phone_key(digits: str) -> str:
    """Return a number in E.164. Ten digits without a country code are taken for a North American number.

    The zero in `+49 (0)30 …` is dialled within the country only.
    """
    number = _NO_DIGITS.sub("", digits.replace("(0)", ""))
    if digits.lstrip().startswith("+"):
        return f"+{number}"
    return f"+1{number}" if len(number) == 10 else f"+{number}"


def canonical(ref: str) -> str:
    """Return the one spelling of a ref: identifiers in capitals, names as slugs, e-mail addresses in lower case.

    An identifier has no blanks, its hyphens are `-`, and a label of its type at its beginning has one form. Other
    types keep their key as it is.
    """
    if ":" not in ref:
        return ref
    kind, _, key = ref.partition(":")
    kind, key = kind.strip().lower(), key.strip()
    if kind in IDENTIFIERS:
        key = _identifier_key(kind, key)
    elif kind == "company":
        key = company_key(key)
    elif kind in _NAMES:
        key = slug(key)
    elif kind == "email":
        key = key.lower()
    elif kind == "phone":
        key = phone_key(key)
    elif kind == "vehicle":
        key = _VEHICLE.sub("", key).upper()
    return f"{kind}:{key}"


def _identifier_key(kind: str, key: str) -> str:
    if not key.isascii():
        key = NormalizedText(key).text
    key = "".join(key.split()).upper()
    if kind in _NO_DASH:
        key = key.replace("-", "")
    if kind in _OWN_LABELS:
        label, form = _OWN_LABELS[kind]
        key = label.sub(form, key)
    return key


def with_one_spelling(mentions: Sequence[Mention], own_refs: Collection[str]) -> list[Mention]:
    """Return mentions in which each identifier of a document has one ref, though the text spells it in several ways.

    Two refs of one type mean the same identifier if they differ only by hyphens or by the label of their type. Of two
    refs with hyphens in different places neither is changed: they are different numbers. The spelling of `own_refs`,
    which the source of the document gave, is kept; without one the labelled spelling, then the one with hyphens.
    """
    own_refs = frozenset(own_refs)
    refs = dict.fromkeys([*sorted(own_refs), *(mention.ref for mention in mentions)])
    groups: dict[tuple[str, str], list[str]] = {}
    for ref in refs:
        kind = ref.partition(":")[0]
        if kind in IDENTIFIERS and kind not in _NO_DASH:
            groups.setdefault((kind, _number(ref).replace("-", "")), []).append(ref)
    replaced: dict[str, str] = {}
    for spellings in groups.values():
        if len(spellings) > 1:
            replaced |= _replacements(spellings, own_refs)
    if not replaced:
        return list(mentions)
    return [
        Mention(replaced.get(mention.ref, mention.ref), mention.surface, mention.start)
        for mention in mentions
    ]


def _replacements(spellings: Sequence[str], own_refs: Collection[str]) -> dict[str, str]:
    """Return the spellings of one identifier that give way to another one, each with that."""
    own = [ref for ref in spellings if ref in own_refs]
    hyphenated = {_number(ref) for ref in spellings if "-" in _number(ref)}
    if len(own) > 1 or len(hyphenated) > 1:
        return {}
    kept = own[0] if own else max(spellings, key=_explicitness)
    return {ref: kept for ref in spellings if ref != kept}


def _number(ref: str) -> str:
    """Return the key of an identifier without the label of its type."""
    kind, _, key = ref.partition(":")
    label = _OWN_LABELS.get(kind)
    return label[0].sub("", key) if label else key


def _explicitness(ref: str) -> tuple[bool, bool]:
    """Return whether a ref has the label of its type, and whether its number has hyphens."""
    number = _number(ref)
    return ref.partition(":")[2] != number, "-" in number
