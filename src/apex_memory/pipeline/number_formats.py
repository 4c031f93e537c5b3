"""Numbers of spreadsheets as the sheet shows them: `0.185` under the format `0.00%` is `18.50%`.

The format codes are those of ECMA-376 part 1, section 18.8.31. Dates, times and fractions are left to the
office reader.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from decimal import ROUND_HALF_UP, Decimal, InvalidOperation, localcontext

BUILT_IN = {
    1: "0",
    2: "0.00",
    3: "#,##0",
    4: "#,##0.00",
    5: '"$"#,##0;-"$"#,##0',
    6: '"$"#,##0;-"$"#,##0',
    7: '"$"#,##0.00;-"$"#,##0.00',
    8: '"$"#,##0.00;-"$"#,##0.00',
    9: "0%",
    10: "0.00%",
    11: "0.00E+00",
    37: "#,##0;(#,##0)",
    38: "#,##0;(#,##0)",
    39: "#,##0.00;(#,##0.00)",
    40: "#,##0.00;(#,##0.00)",
    41: "#,##0;(#,##0);-",
    42: '"$"#,##0;("$"#,##0);-',
    43: "#,##0.00;(#,##0.00);-",
    44: '"$"#,##0.00;("$"#,##0.00);-',
    48: "##0.0E+0",
}
"""Format codes that files name by number alone (18.8.30). Dates are not here, so they are left as they are."""

_MAX_CODE = 255  # characters, as in Excel
_DIGITS = 15  # significant digits that a spreadsheet keeps
_TOKEN = re.compile(
    r'"(?P<quoted>[^"]*)"?|\\(?P<escaped>.)|_.|\*.|\[\$(?P<currency>[^\]-]*)[^\]]*\]|\[(?P<bracket>[^\]]*)\]'
    r"|(?P<exponent>[eE][+-][0#?]+)|(?P<place>[0#?])|(?P<mark>[.,%])|(?P<general>General)|(?P<literal>.)",
    re.DOTALL,
)
_CONDITION = re.compile(r"(<=|>=|<>|<|>|=)(-?\d+(?:\.\d+)?)\Z")
_DATE_LETTERS = re.compile(r"[ymdhsYMDHS]")


@dataclass(frozen=True, slots=True)
class _FormatToken:
    kind: str
    text: str


def show_number(value: str, code: str) -> str | None:
    """Return the number as the format shows it. None: show it as it is (general, a date, a fraction, no number)."""
    try:
        number = _rounded_to_precision(value)
    except InvalidOperation:
        return None
    if code in ("", "General"):
        return _general(value, number)
    if len(code) > _MAX_CODE or code == "@" or abs(number.adjusted()) > 100:
        return None
    chosen = _choose_section(_sections(code), number)
    if chosen is None:
        return None
    section, is_negative_section = chosen
    if _is_not_a_number(section):
        return None
    shown = _show(section, abs(number))
    if number < 0 and not is_negative_section and shown.strip("0., %"):
        shown = f"-{shown}"
    return shown.strip() or None


def _rounded_to_precision(value: str) -> Decimal:
    number = Decimal(value)
    if not number.is_finite():
        raise InvalidOperation
    with localcontext(prec=_DIGITS):
        return +number


def _general(value: str, number: Decimal) -> str | None:
    """Return a number without the noise of binary fractions: `3.3` for `3.3000000000000003`."""
    if len(value) <= _DIGITS or "." not in value or "e" in value.lower():
        return None
    return format(number.normalize(), "f")


def _sections(code: str) -> list[list[_FormatToken]]:
    """Return the tokens of each section. Sections are separated by `;` outside of quotes."""
    sections: list[list[_FormatToken]] = [[]]
    for match in _TOKEN.finditer(code):
        kind = match.lastgroup or "skipped"
        text = match[kind] if match.lastgroup else ""
        if kind == "literal" and text == ";":
            sections.append([])
        elif kind in ("quoted", "escaped", "currency"):
            sections[-1].append(_FormatToken("literal", text))
        else:
            sections[-1].append(_FormatToken("letter" if kind == "literal" else kind, text))
    return sections[:4]


def _choose_section(
    sections: list[list[_FormatToken]], number: Decimal
) -> tuple[list[_FormatToken], bool] | None:
    """Return the section for a number, and whether it shows negative numbers without a sign of its own."""
    conditions = [_condition(section) for section in sections]
    if any(conditions):
        for section, condition in zip(sections, conditions, strict=True):
            if condition is None or _holds(condition, number):
                return section, False
        return None
    if number < 0 and len(sections) > 1:
        return sections[1], True
    if number == 0 and len(sections) > 2:
        return sections[2], False
    return sections[0], False


def _condition(section: list[_FormatToken]) -> tuple[str, Decimal] | None:
    for token in section:
        match = _CONDITION.match(token.text) if token.kind == "bracket" else None
        if match:
            return match[1], Decimal(match[2])
    return None


def _holds(condition: tuple[str, Decimal], number: Decimal) -> bool:
    operator, bound = condition
    return {
        "<": number < bound,
        "<=": number <= bound,
        ">": number > bound,
        ">=": number >= bound,
        "=": number == bound,
        "<>": number != bound,
    }[operator]


def _is_not_a_number(section: list[_FormatToken]) -> bool:
    """Report whether a section shows a date, a duration, a fraction, a text or nothing but `General`."""
    for token in section:
        if token.kind == "general":
            return True
        if token.kind == "letter" and (token.text in "/@" or _DATE_LETTERS.match(token.text)):
            return True
        if (
            token.kind == "bracket"
            and _DATE_LETTERS.fullmatch(token.text[:1])
            and len(set(token.text.lower())) == 1
        ):
            return True
    return not any(token.kind == "place" for token in section)


def _show(section: list[_FormatToken], number: Decimal) -> str:
    """Return a number that is not negative under the tokens of a section."""
    last_place = max(n for n, token in enumerate(section) if token.kind == "place")
    first_place = min(n for n, token in enumerate(section) if token.kind == "place")
    point = next(
        (n for n, token in enumerate(section) if token.kind == "mark" and token.text == "."), None
    )
    grouped = False
    for n, token in enumerate(section):
        if token.kind != "mark":
            continue
        if token.text == "%":
            number *= 100
        elif token.text == "," and first_place < n < last_place:
            grouped = True
        elif token.text == "," and n > last_place:
            number /= 1000
    exponent = next((token.text for token in section if token.kind == "exponent"), "")
    decimals = 0
    if point is not None:
        decimals = sum(token.kind == "place" for token in section[point:])
    shown_exponent = ""
    if exponent:
        power = number.adjusted() if number else 0
        number = number.scaleb(-power)
        width = len(exponent) - 2
        sign = "+" if exponent[1] == "+" else ""
        if power < 0:
            sign = "-"
        shown_exponent = f"E{sign}{abs(power):0{width}d}"
    with localcontext(prec=120):
        digits = format(number.quantize(Decimal(1).scaleb(-decimals), ROUND_HALF_UP), "f")
    whole, _, fraction = digits.partition(".")
    before = section if point is None else section[:point]
    after = [] if point is None else section[point + 1 :]
    shown = _show_whole(before, whole, grouped=grouped)
    if point is not None:
        shown += _show_fraction(after, fraction)
    if shown_exponent:
        shown += shown_exponent
    return shown


def _show_whole(tokens: list[_FormatToken], digits: str, *, grouped: bool) -> str:
    """Return the digits before the decimal point, filled into their places from the right."""
    left = "" if digits == "0" else digits
    places = [n for n, token in enumerate(tokens) if token.kind == "place"]
    pieces: list[str] = []
    shown_digits = 0
    for n in range(len(tokens) - 1, -1, -1):
        token = tokens[n]
        if token.kind in ("literal", "letter"):
            pieces.append(token.text)
        elif token.kind == "mark" and token.text == "%":
            pieces.append("%")
        elif token.kind == "place":
            is_first = n == places[0]
            taken = left if is_first else left[-1:]
            left = "" if is_first else left[:-1]
            if not taken:
                taken = {"0": "0", "?": " ", "#": ""}[token.text]
            for digit in reversed(taken):
                if grouped and shown_digits and shown_digits % 3 == 0 and digit.isdigit():
                    pieces.append(",")
                pieces.append(digit)
                shown_digits += digit.isdigit()
    return "".join(reversed(pieces))


def _show_fraction(tokens: list[_FormatToken], digits: str) -> str:
    """Return the decimal point, the digits behind it and what follows. Zeros at the end show under `0` alone."""
    places = [token.text for token in tokens if token.kind == "place"]
    kept = len(digits)
    while kept and digits[kept - 1] == "0" and places[kept - 1] != "0":
        kept -= 1
    pieces = ["."] if kept else []
    position = 0
    for token in tokens:
        if token.kind in ("literal", "letter"):
            pieces.append(token.text)
        elif token.kind == "mark" and token.text == "%":
            pieces.append("%")
        elif token.kind == "place":
            if position < kept:
                pieces.append(digits[position])
            position += 1
    return "".join(pieces)
