"""One spelling for each entity, whether a mail, a transport system, an invoice or a query names it."""

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
    """An entity in a text: its ref, its spelling there (`surface`), and the character offset of that."""

    ref: str
    surface: str
    start: int


def company_key(name: str) -> str:
    """`Northwind Trucking, LLC` → `northwind-trucking`: the key leaves legal forms out, because many texts do."""
    key = slug(name)
    return _LEGAL.sub("", key) or key


def phone_key(digits: str) -> str:
    """Return a number in E.164. Ten digits are taken for a North American number."""
    number = re.sub(r"\D", "", digits)
    return f"+1{number}" if len(number) == 10 else f"+{number}"


def canonical(ref: str) -> str:
    """Return the one spelling of a ref: identifiers in capitals, names as slugs, e-mail addresses in lower case.

    Other types keep their key as it is.
    """
    if ":" not in ref:
        return ref
    entity = Entity.parse(ref)
    kind, key = entity.type.strip().lower(), entity.key.strip()
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
