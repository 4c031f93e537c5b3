"""One spelling for an entity, whoever names it: a mail, a transport system, an invoice or a question."""

from __future__ import annotations

import re
from dataclasses import dataclass

from apex_memory.model import Entity, slug

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
_NO_DASH = frozenset({"pro", "mc", "usdot", "container", "vin"})


@dataclass(frozen=True, slots=True)
class Mention:
    """An entity as it stands in a text: its ref, the words there, and their character offset."""

    ref: str
    surface: str
    start: int


def company_key(name: str) -> str:
    """`Northwind Trucking, LLC` → `northwind-trucking`: legal forms come and go, the name stays."""
    key = slug(name)
    return _LEGAL.sub("", key) or key


def phone_key(digits: str) -> str:
    """E.164 as far as it can be known: ten digits are North American."""
    plain = re.sub(r"\D", "", digits)
    return f"+1{plain}" if len(plain) == 10 else f"+{plain}"


def canonical(ref: str) -> str:
    """The one spelling of a ref: identifiers in capitals, names as slugs, e-mail in lower case.

    Types that are not known here keep their key, case and all.
    """
    if ":" not in ref:
        return ref
    entity = Entity.parse(ref)
    kind, key = entity.type, entity.key.strip()
    if kind in IDENTIFIERS:
        key = re.sub(r"\s+|-+" if kind in _NO_DASH else r"\s+", "", key).upper()
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
