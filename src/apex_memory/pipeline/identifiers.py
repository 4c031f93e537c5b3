"""Identifiers of the freight trade. Numbers with a check digit are checked; numbers without any mark need a label.

Every pattern starts at a word's border and repeats a bounded number of times, so that the time is
linear in the length of the text.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from itertools import chain

from apex_memory.pipeline.entities import Mention, canonical, phone_key
from apex_memory.pipeline.tables import cells_of_rows, cells_under_headers, with_colons
from apex_memory.pipeline.text import matches

_WORD = r"(?<![\w-])"
_END = r"(?![\w-])"
_OWN = r"(?!(?:SHP|LD|INV|PO|BOL|PRO|MC)[-\s]?\d)"  # `Load SHP-100045` names a shipment
UNITS = r"(?![ \t]?(?:lbs?|kgs?|tons?|pallets?|pcs|pieces|skids?|cases|cartons|miles?|mi|ft|hours|hrs|days?|weeks?|months?|years?|trucks?|loads?|drivers?|dollars?|usd|eur|[%'’])(?!\w))"
_DATE = r"(?!(?:19|20)\d\d(?:-\d\d-\d\d|/\d{1,2}/\d)|\d{1,2}-\d{1,2}-(?:19|20)\d\d(?![\w-]))"
_NO_AMOUNT = r"(?!\.\d\d(?!\d))"
# Of numbers with a slash only those of a year, `2026/0042`: `88121/88122` are two.
_CODE = (
    rf"{_OWN}{_DATE}(?=[A-Z0-9-]{{0,24}}\d{{3}})((?:19|20)\d\d/\d{{1,8}}|[A-Z0-9]{{1,24}}(?:-[A-Z0-9]{{1,24}}){{0,4}})"
    rf"{_END}{_NO_AMOUNT}{UNITS}"
)
# Between a label and its code: ` `, `: `, ` # `, `-`, ` No.: ` … The group is empty if only blanks are there. Printouts and
# plain texts align their values, by blanks or by dots.
_SIGN = (
    r"(?:'?s)?(?=[\s#:.-])\s{0,2}((?:#s?|nos?\.?|num\.?|number(?:s|\(s\))?|nbr\.?|ids?)?\s?[#:-]?)"
    r"(?:\s{0,2}|[ \t]{3,80}|\.{2,80}[ ]?)"
)
_PLURAL = re.compile(r"[a-z#]s\)?[\s:.#-]*\Z|\(s\)[\s:.#-]*\Z", re.IGNORECASE | re.ASCII)
"""The end of what stands before a code, if that begins a list."""
_FOLLOWING_CODE = re.compile(
    rf"([A-Z0-9]{{1,24}}(?:-[A-Z0-9]{{1,24}}){{0,4}}){_END}{_NO_AMOUNT}{UNITS}",
    re.IGNORECASE | re.ASCII,
)
_JOINT = re.compile(
    r"(?:\"?[ ]?[,;/&]|[ ](?:and|or)\b)\s?(?:(?:and|or|&)[ ])?[#\"]?", re.IGNORECASE
)


def _labelled(label: str, code: str = _CODE) -> re.Pattern[str]:
    return re.compile(f"{_WORD}(?:{label}){_SIGN}{code}", re.IGNORECASE | re.ASCII)


_LABELS: tuple[tuple[str, str, str], ...] = (
    ("shipment", "shipment", _CODE),
    ("load", "load", _CODE),
    ("pro", "pro", rf"(\d{{3}}-?\d{{5,7}}(?:-\d)?|\d{{7,11}}){_END}"),
    ("bol", "bol|b/l|bill of lading", _CODE),
    ("po", r"po|p\.o\.|purchase order", _CODE),
    ("invoice", "invoice|inv(?!-)", _CODE),
    ("mc", "mc", rf"(\d{{5,7}}){_END}"),
    ("usdot", "usdot|us dot|dot", rf"(\d{{5,8}}){_END}"),
    ("scac", "scac(?: code)?", rf"([A-Z]{{2,4}}){_END}"),
    (
        "vehicle",
        "unit|truck|tractor|trailer|vehicle",
        rf"{_OWN}([A-Z]{{0,3}}-?\d{{1,6}}[A-Z]?)(?![\w-]|[.,:/]\d){UNITS}",
    ),
)
_LABELLED = tuple((kind, _labelled(label, code)) for kind, label, code in _LABELS)
# Positions of any label, by its first two characters: one search instead of one per kind. A tenth of all words begin so.
_LABEL_FIRST = re.compile(
    r"[sSlLpPbBiImMuUdDtTvV](?<![\w-].)"
    r"(?i:(?<=s(?=[hc])|l(?=o)|p(?=[rou.])|b(?=[oi/])|i(?=n)|m(?=c)|u(?=[sn])|d(?=o)|t(?=r)|v(?=e)))",
    re.ASCII,
)
_LABEL = re.compile(
    rf"{_WORD}(?=(?:{'|'.join(label for _, label, _ in _LABELS)})(?:'?s)?[\s#:.-])",
    re.IGNORECASE | re.ASCII,
)
_LABEL_HEADER = re.compile(
    rf"(?:{'|'.join(label for _, label, _ in _LABELS)})[ ]?(?:#|no\.?|num\.?|number|nbr\.?|id)?:?\Z",
    re.IGNORECASE | re.ASCII,
)
_DIGIT = re.compile(r"\d")
_LONG = re.compile(r"\d{4}")  # without a sign, a label needs a number of this length
_BARE = frozenset({"shipment", "load", "bol", "po", "invoice"})

_SHIPMENT = re.compile(rf"{_WORD}SHP[-\s]?(\d{{4,12}}){_END}", re.IGNORECASE | re.ASCII)
_SHIPMENT_FIRST = re.compile(r"[sS](?<![\w-].)(?=[hH])", re.ASCII)
_LOAD = re.compile(rf"{_WORD}LD-(\d{{3,12}}){_END}", re.IGNORECASE | re.ASCII)
_LOAD_FIRST = re.compile(r"[lL](?<![\w-].)(?=[dD])", re.ASCII)
_INVOICE = re.compile(
    rf"{_WORD}(INV-?(?=[A-Z0-9-]{{0,24}}\d{{2}})[A-Z0-9]{{1,16}}(?:-[A-Z0-9]{{1,16}}){{0,3}}|INV/(?:19|20)\d\d(?:/\d{{2}})?/\d{{3,8}}){_END}",
    re.IGNORECASE | re.ASCII,
)
_INVOICE_FIRST = re.compile(r"[iI](?<![\w-].)(?=[nN])", re.ASCII)

# Well-known carriers, by their code in the SCAC directory. Only in capitals.
_SCACS = (
    "AACT|ABFS|CNWY|CTII|DAFG|EXLA|FXFE|FXNL|HJBT|JBHT|KNIG|ODFL|PITD|RDFS|RLCA|SCNN|SEFL|UPGF|USXI"
)
_KNOWN_SCAC = re.compile(rf"{_WORD}({_SCACS}){_END}")
_KNOWN_SCAC_FIRST = re.compile(r"[A-Z](?<![\w-].)(?=[A-Z])")
_CONTAINER = re.compile(rf"{_WORD}([A-Z]{{3}}[UJZ])[-\s]?(\d{{6}})[-\s]?(\d){_END}", re.ASCII)
_VIN = re.compile(rf"{_WORD}([A-HJ-NPR-Z0-9]{{13}}\d{{4}}){_END}", re.ASCII)
_EMAIL = re.compile(
    r"(?<![\w.%+'-])([\w%+][\w.%+'-]{0,63}@(?:[A-Z0-9-]{1,63}\.){1,8}[A-Z]{2,24})(?![\w-]|\.\w)",
    re.IGNORECASE | re.ASCII,
)
_PHONE = re.compile(
    r"(?<![\w.+-])((?:\+?1[\s.-]?)?(?:\([2-9]\d{2}\)\s?|[2-9]\d{2}[\s./-])[2-9]\d{2}[\s.-]\d{4})(?![\w-])",
    re.ASCII,
)
_INTERNATIONAL_PHONE = re.compile(
    r"(?<![\w.+-])(\+1[2-9]\d{9}|\+[2-9][\d ().-]{6,18}\d)(?![\w-])", re.ASCII
)
# Ten digits in one piece are a telephone number only after such a word.
_LABELLED_PHONE = re.compile(
    rf"{_WORD}(?:phone|tel|telephone|mobile|cell|fax)(?:[ ](?:no\.?|number))?[.:#]{{0,2}}\s?(1?[2-9]\d{{2}}[2-9]\d{{6}}){_END}",
    re.IGNORECASE | re.ASCII,
)


def find_identifiers(text: str, char_shape: bytes) -> Iterator[Mention]:
    """Yield every identifier in the text, in no order, some perhaps twice. `char_shape` is that of the text (`pipeline.text`)."""
    yield from _labelled_codes(with_colons(text))
    yield from _codes_in_columns(text)
    for find in (_prefixed, _checked, _addresses):
        yield from find(text, char_shape)


def _codes_in_columns(text: str) -> Iterator[Mention]:
    """Yield the codes in columns of tables whose header is a label, such as `PRO` or `PO Number`."""
    patterns: dict[str, list[tuple[str, re.Pattern[str]]]] = {}

    def label_patterns(header: str) -> list[tuple[str, re.Pattern[str]]]:
        if header not in patterns:
            is_label = _LABEL_HEADER.match(header) is not None
            patterns[header] = [
                (kind, pattern)
                for (kind, pattern), (_, label, _) in zip(_LABELLED, _LABELS, strict=True)
                if is_label and re.match(label, header, re.IGNORECASE)
            ]
        return patterns[header]

    for cell in chain(
        cells_under_headers(text), cells_of_rows(text, lambda header: bool(label_patterns(header)))
    ):
        for kind, pattern in label_patterns(cell.header):
            prefix = f"{cell.header}: "
            if match := pattern.match(prefix + cell.text[:100]):
                start = cell.start + match.start(2) - len(prefix)
                yield Mention(canonical(f"{kind}:{match[2]}"), match[2], start)
                break


def _labelled_codes(text: str) -> Iterator[Mention]:
    ends = dict.fromkeys((kind for kind, _ in _LABELLED), 0)
    for label in matches(_LABEL_FIRST, _LABEL, text):
        for kind, pattern in _LABELLED:
            if label.start() < ends[kind]:
                continue
            match = pattern.match(text, label.start())
            if match is None:
                continue
            ends[kind] = match.end()
            sign = match[1].strip()
            codes = [(match[2], match.start(2))]
            is_list = _PLURAL.search(match[0], 0, match.start(2) - match.start()) is not None
            if is_list:
                codes += _codes_after(match)
                ends[kind] = codes[-1][1] + len(codes[-1][0])
            if _is_code(kind, codes, has_sign=bool(sign), is_list=is_list):
                for code, start in codes:
                    yield Mention(canonical(f"{kind}:{code}"), code, start)


def _is_code(kind: str, codes: Sequence[tuple[str, int]], *, has_sign: bool, is_list: bool) -> bool:
    """Return whether what follows a label are codes: `load 12`, `loads 12000` and `trucks: 3` may count something."""
    is_long = _LONG.search(codes[0][0]) is not None
    if is_list:
        return len(codes) > 1 or (has_sign and is_long)
    return has_sign or kind not in _BARE or is_long


def _codes_after(first: re.Match[str]) -> Iterator[tuple[str, int]]:
    """Yield the codes, with their offsets, that follow the first one of a list (`PROs 223456789, 223456790`) and have its form."""
    text, end = first.string, first.end(2)
    form = _DIGIT.sub("0", first[2])
    while (joint := _JOINT.match(text, end)) and (code := _FOLLOWING_CODE.match(text, joint.end())):
        if _DIGIT.sub("0", code[1]) != form:
            return
        yield code[1], code.start(1)
        end = code.end(1)


def _prefixed(text: str, char_shape: bytes) -> Iterator[Mention]:
    lower = text.lower()
    for kind, may_occur, prefix, first, pattern in (
        ("shipment", "shp" in lower, "SHP-", _SHIPMENT_FIRST, _SHIPMENT),
        ("load", "ld-" in lower, "LD-", _LOAD_FIRST, _LOAD),
        ("invoice", "inv" in lower, "", _INVOICE_FIRST, _INVOICE),
        ("scac", b"AAAA" in char_shape, "", _KNOWN_SCAC_FIRST, _KNOWN_SCAC),
    ):
        for match in matches(first, pattern, text) if may_occur else ():
            yield Mention(canonical(f"{kind}:{prefix}{match[1]}"), match[0], match.start())


def _checked(text: str, char_shape: bytes) -> Iterator[Mention]:
    has_container = any(gap + b"000000" in char_shape for gap in (b"AAAA", b"AAAA-", b"AAAA "))
    for match in _CONTAINER.finditer(text) if has_container else ():
        number = "".join(match.groups())
        if container_digit(number[:10]) == int(number[10]):
            yield Mention(f"container:{number}", match[0], match.start())
    has_vin = b"0000" in char_shape and b"A" * 17 in char_shape.replace(b"0", b"A")
    for match in _VIN.finditer(text) if has_vin else ():
        if not match[1].isdigit() and vin_digit(match[1]) == match[1][8]:
            yield Mention(f"vin:{match[1]}", match[1], match.start())


def _addresses(text: str, char_shape: bytes) -> Iterator[Mention]:
    has_phone = any(b"000" + gap + b"0000" in char_shape for gap in (b"-", b".", b" "))
    patterns: tuple[tuple[str, bool, re.Pattern[str], Callable[[str], str]], ...] = (
        ("email", b"@" in char_shape, _EMAIL, str.lower),
        ("phone", has_phone, _PHONE, phone_key),
        ("phone", b"+0" in char_shape, _INTERNATIONAL_PHONE, phone_key),
        ("phone", b"0" * 10 in char_shape, _LABELLED_PHONE, phone_key),
    )
    for kind, may_occur, pattern, key in patterns:
        for match in pattern.finditer(text) if may_occur else ():
            if kind != "phone" or 8 <= sum(map(str.isdigit, match[1])) <= 15:
                yield Mention(f"{kind}:{key(match[1])}", match[1], match.start(1))


def container_digit(number: str) -> int:
    """Return the check digit of a container number's first ten characters (ISO 6346)."""
    total = sum(_container_value(character) << n for n, character in enumerate(number))
    return total % 11 % 10


def _container_value(character: str) -> int:
    """Return the value of a digit or letter. Letters count 10, 12, 13 … 38, without the multiples of 11."""
    if character.isdigit():
        return int(character)
    position = ord(character) - ord("A")
    return 10 + position + (position + 9) // 10


def vin_digit(vin: str) -> str:
    """Return the check digit of a vehicle identification number, its ninth character (49 CFR 565.15)."""
    values = dict(zip("ABCDEFGHJKLMNPRSTUVWXYZ", "12345678123457923456789", strict=True))
    weights = (8, 7, 6, 5, 4, 3, 2, 10, 0, 9, 8, 7, 6, 5, 4, 3, 2)
    total = sum(int(values.get(c, c)) * weight for c, weight in zip(vin, weights, strict=True))
    return "0123456789X"[total % 11]
