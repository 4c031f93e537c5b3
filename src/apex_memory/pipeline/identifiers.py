"""Identifiers of the trade, exact or not at all: numbers with a check digit are checked, bare ones need a label.

Every pattern starts at a word's border and repeats a bounded number of times, so that the time
grows with the length of the text and nothing else.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

from apex_memory.pipeline.entities import Mention, canonical, phone_key

_NUMBER = r"(?:\s?(?:#|no\.?|num\.?|number|nbr\.?|ids?\b)\s?[:.]?|\s?:)?\s{0,2}#?\s?"  # `Load # `, `PO No.: `, `BOL: `
_CODE = r"(?=[A-Z0-9-]{0,24}\d{3})([A-Z0-9]{1,24}(?:-[A-Z0-9]{1,24}){0,4})(?![\w-])"
_WORD = r"(?<![\w-])"


def _labelled(label: str, code: str = _CODE) -> re.Pattern[str]:
    return re.compile(f"{_WORD}(?:{label}){_NUMBER}{code}", re.IGNORECASE)


_SHIPMENT = re.compile(rf"{_WORD}(SHP|SHIP|SHPT)[-\s]?(\d{{4,12}})(?![\w-])", re.IGNORECASE)
_LOAD = re.compile(rf"{_WORD}(LD|LOAD)-(\d{{3,12}})(?![\w-])", re.IGNORECASE)
_INVOICE = re.compile(
    rf"{_WORD}(INV-[A-Z0-9]{{1,16}}(?:-[A-Z0-9]{{1,16}}){{0,3}})(?![\w-])", re.IGNORECASE
)
_OWN_FORM = re.compile(r"(?:SHP|SHIP|SHPT|LD|LOAD|INV|PO|BOL|PRO|MC)-?\d", re.IGNORECASE)

_LABELLED: tuple[tuple[str, re.Pattern[str]], ...] = (
    ("shipment", _labelled(r"shipment")),
    ("load", _labelled(r"load")),
    ("pro", _labelled(r"pro", r"(\d{3}-?\d{5,7}(?:-\d)?|\d{7,11})(?![\w-])")),
    ("bol", _labelled(r"bol|b/l|bill of lading")),
    ("po", _labelled(r"po|p\.o\.|purchase order")),
    ("invoice", _labelled(r"invoice|inv")),
    ("mc", _labelled(r"mc", r"-?(\d{5,7})(?![\w-])")),
    ("usdot", _labelled(r"usdot|us dot|dot", r"-?(\d{5,8})(?![\w-])")),
    ("scac", re.compile(rf"{_WORD}(?:SCAC)(?: code)?{_NUMBER}\b([A-Z]{{2,4}})(?![\w-])")),
    (
        "vehicle",
        _labelled(
            r"unit|truck|tractor|trailer|vehicle", r"([A-Z]{0,3}-?\d{1,6}[A-Z]?)(?![\w-]|[.,:/]\d)"
        ),
    ),
)

# Carriers met daily, by the code of the trade's directory. Only in capitals, and only these.
_SCACS = (
    "AACT|ABFS|CNWY|CTII|DAFG|EXLA|FXFE|FXNL|HJBT|JBHT|KNIG|ODFL|PITD|RDFS|RLCA|SCNN|SEFL|UPGF|USXI"
)
_KNOWN_SCAC = re.compile(rf"{_WORD}({_SCACS})(?![\w-])")
_CONTAINER = re.compile(rf"{_WORD}([A-Z]{{3}}[UJZ])[-\s]?(\d{{6}})[-\s]?(\d)(?![\w-])")
_VIN = re.compile(rf"{_WORD}([A-HJ-NPR-Z0-9]{{13}}\d{{4}})(?![\w-])")
_EMAIL = re.compile(
    r"(?<![\w.%+'-])([\w.%+'-]{1,64}@(?:[A-Za-z0-9-]{1,63}\.){1,8}[A-Za-z]{2,24})(?![\w-]|\.\w)"
)
_PHONE = re.compile(
    r"(?<![\w.+-])((?:\+?1[\s.-]?)?(?:\([2-9]\d{2}\)\s?|[2-9]\d{2}[\s.-])[2-9]\d{2}[\s.-]\d{4})(?![\w-])"
)
_FOREIGN_PHONE = re.compile(r"(?<![\w.+-])(\+[2-9]\d{0,2}(?:[\s.-]?\(?\d{1,4}\)?){2,5})(?![\w-])")


def find_identifiers(text: str) -> Iterator[Mention]:
    """Every identifier in the text, some perhaps twice, in no order."""
    yield from _prefixed(text)
    for kind, pattern in _LABELLED:
        for match in pattern.finditer(text):
            if not _OWN_FORM.match(match[1]) or kind in ("bol", "po", "pro"):
                yield Mention(canonical(f"{kind}:{match[1]}"), match[1], match.start(1))
    for find in (_checked, _addresses):
        yield from find(text)


def _prefixed(text: str) -> Iterator[Mention]:
    for match in _SHIPMENT.finditer(text):
        yield Mention(f"shipment:SHP-{match[2]}", match[0], match.start())
    for match in _LOAD.finditer(text):
        yield Mention(f"load:LD-{match[2]}", match[0], match.start())
    for match in _INVOICE.finditer(text):
        if any(letter.isdigit() for letter in match[1]):
            yield Mention(canonical(f"invoice:{match[1]}"), match[1], match.start())
    for match in _KNOWN_SCAC.finditer(text):
        yield Mention(f"scac:{match[1]}", match[1], match.start())


def _checked(text: str) -> Iterator[Mention]:
    for match in _CONTAINER.finditer(text):
        number = "".join(match.groups())
        if container_digit(number[:10]) == int(number[10]):
            yield Mention(f"container:{number}", match[0], match.start())
    for match in _VIN.finditer(text):
        if not match[1].isdigit() and vin_digit(match[1]) == match[1][8]:
            yield Mention(f"vin:{match[1]}", match[1], match.start())


def _addresses(text: str) -> Iterator[Mention]:
    patterns: tuple[tuple[str, re.Pattern[str], Callable[[str], str]], ...] = (
        ("email", _EMAIL, str.lower),
        ("phone", _PHONE, phone_key),
        ("phone", _FOREIGN_PHONE, phone_key),
    )
    for kind, pattern, key in patterns:
        for match in pattern.finditer(text):
            if kind != "phone" or 8 <= sum(map(str.isdigit, match[1])) <= 15:
                yield Mention(f"{kind}:{key(match[1])}", match[1], match.start(1))


def container_digit(number: str) -> int:
    """The check digit of a container number's first ten characters (ISO 6346)."""
    # Letters count 10, 12, 13 … 38: multiples of 11 are left out.
    values = (int(c) if c.isdigit() else (n := ord(c) - 55) + (n - 1) // 10 for c in number)
    return sum(value << place for place, value in enumerate(values)) % 11 % 10


def vin_digit(vin: str) -> str:
    """The check digit of a vehicle identification number, at its ninth place (49 CFR 565.15)."""
    values = dict(zip("ABCDEFGHJKLMNPRSTUVWXYZ", "12345678123457923456789", strict=True))
    weights = (8, 7, 6, 5, 4, 3, 2, 10, 0, 9, 8, 7, 6, 5, 4, 3, 2)
    total = sum(int(values.get(c, c)) * weight for c, weight in zip(vin, weights, strict=True))
    return "0123456789X"[total % 11]
