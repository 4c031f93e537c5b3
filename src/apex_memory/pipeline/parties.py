"""Companies, parties after a label, and cities. The rules prefer to miss a name over a wrong one."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain

from apex_memory.model import slug
from apex_memory.normalization import without_marks
from apex_memory.pipeline.entities import Mention, company_key
from apex_memory.pipeline.regions import CODES, NAMES
from apex_memory.pipeline.stopwords import NOT_NAMES, NOT_PARTIES
from apex_memory.pipeline.text import matches

_LEGAL = r"LLC|L\.L\.C\.|Inc|Incorporated|Corp|Corporation|Co|Company|Ltd|Limited|LP|LLP"
_TRADE = (
    "Trucking|Logistics|Freight|Transport|Transportation|Lines|Carriers|Express|Foods|Haulers|Hauling|"
    "Cartage|Drayage|Brokerage|Warehousing|Distribution|Distributors|Motor|Truckers|Xpress|Freightways"
)
_SUFFIX = re.compile(
    rf"(?<![\w-])(?:{_LEGAL}|{_TRADE}|{_LEGAL.upper()}|{_TRADE.upper()})(?![\w-])", re.ASCII
)
_SUFFIX_FIRST = re.compile(r"[LICTFEHDBWMX](?<![\w-].)", re.ASCII)
_SUFFIX_RUN = re.compile(
    rf"(?:,? (?:{_LEGAL}|{_TRADE}|Line|{_LEGAL.upper()}|{_TRADE.upper()}|LINE)(?![\w-])){{1,3}}"
)
_NAME_WORD = re.compile(r"(?:[A-Z0-9][\w&'’.-]{0,30}|&|of|and|de|la)\Z")
_BREAK = re.compile(r"[.:;!?|)(\]\[\"/]\Z|\A[\"(\[]")

_ROLES = {
    "shipper": "shipper", "ship from": "shipper", "consignor": "shipper",
    "consignee": "consignee", "ship to": "consignee", "deliver to": "consignee",
    "carrier": "carrier", "broker": "broker", "bill to": "bill_to", "customer": "customer",
    "vendor": "vendor", "remit to": "remit_to", "notify party": "notify_party",
    "driver": "driver", "dispatcher": "dispatcher", "contact": "contact", "attn": "contact",
}  # fmt: skip
_PEOPLE = frozenset({"driver", "dispatcher", "contact"})
_PARTY_LABEL = rf"({'|'.join(_ROLES)})(?: name)?[*]{{0,2}}[ \t]{{0,3}}"
_LABEL = re.compile(
    rf"^[ \t|*>-]{{0,6}}{_PARTY_LABEL}(?::[ \t]?\||[:|])[*]{{0,2}}[ \t]{{0,60}}(?:\n[ \t]{{0,8}})?([^\n|]{{2,80}})",
    re.IGNORECASE | re.MULTILINE,
)
# Forms have several columns. Without a colon it may be a header.
_COLUMN_LABEL = re.compile(
    rf"[ \t](?:(?<=[ ]{{2}})|(?<=\t)|(?<=\|[ ])){_PARTY_LABEL}:[ \t]?\|?[ \t]{{0,60}}([^\n|]{{2,80}})",
    re.IGNORECASE,
)
_PARTY_END = re.compile(
    rf",(?! ?(?:{_LEGAL}|{_LEGAL.upper()})\b)|[;(<\t]| {{2}}| - | #"
    # What stands behind a name in one line: numbers of a carrier, a telephone.
    r"| (?:MC|US ?DOT|DOT|PRO|PO|BOL|Load|LOAD|(?:Tele)?[Pp]hone|PHONE|Tel|TEL|Cell|CELL|Mobile|MOBILE|Fax|FAX)\b[ :#.]{0,3}[\d(+]"
    r"| SCAC[ :#]{0,3}[A-Z]{2,4}\b| (?=\+?1?[ .-]?\d{3}[ .-]\d{3}[ .-]\d{4})"
)
# On names without their marks (accents, vowels of Thai), which are no `\w`.
_PERSON = re.compile(r"[^\W\d_][\w'’-]{0,20}\.?(?: [^\W\d_][\w'’-]{0,20}\.?){1,3}\Z")
_COMPANY = re.compile(r"(?=.*[^\W\d_]{2})[\w&'’.,/ -]{2,80}\Z")

_CAPITAL = "A-ZÀ-ÖØ-ÞŁŚŠŽ"
_CITY_WORD = rf"(?:d')?[{_CAPITAL}](?:[^\W\d_]|[.'-]){{1,20}}"
_CITY = re.compile(
    rf"(?<![\w.'-])((?:{_CITY_WORD} ){{0,3}}{_CITY_WORD}), ?"
    rf"({'|'.join(sorted(CODES))}|{'|'.join(sorted(NAMES, key=len, reverse=True))})(?![\w'-])(?: {{1,2}}(\d{{5}}(?:-\d{{4}})?|[A-Z]\d[A-Z] ?\d[A-Z]\d)\b)?"
)
_CITY_FIRST = re.compile(rf"[{_CAPITAL}d](?<![\w.'-].)")
_PREPOSITIONS = frozenset({"to", "from", "at", "near", "via"})
_CODES_AND_WORDS = frozenset(
    {"OR", "IN", "OK", "ME", "HI", "ON", "OH", "MA", "PA", "LA", "CO", "AL", "DE", "ID", "MS"}
)


@dataclass(frozen=True, slots=True)
class Party:
    """A company or person in the role that a label names: `Consignee: Harbor Foods`."""

    role: str
    mention: Mention


@dataclass(frozen=True, slots=True)
class City:
    """A city with its state or province, and its postal code if there is one."""

    mention: Mention
    postal_code: str | None


def find_companies(text: str) -> Iterator[Mention]:
    """Yield names that end like a company's (`Northwind Trucking LLC`)."""
    done = 0
    for match in matches(_SUFFIX_FIRST, _SUFFIX, text):
        if match.start() < done:
            continue
        run = _SUFFIX_RUN.match(text, match.end())
        end = run.end() if run else match.end()
        start = _name_start(text, max(done, match.start() - 60), match.start())
        done = end
        if start < match.start():
            surface = text[start:end]
            yield Mention(f"company:{company_key(surface)}", surface, start)


def _name_start(text: str, floor: int, end: int) -> int:
    """Return the start of the name before a suffix, which starts at `end`; `end` if there is no name."""
    window = text[floor:end]
    window = window[window.rfind("\n") + 1 :]
    if not window.endswith(" "):
        return end
    words: list[str] = []
    for word in reversed(window.rstrip(", ").split(" ")):
        if len(words) == 4 or not _NAME_WORD.match(word) or (_BREAK.search(word) and len(word) > 2):
            break
        words.insert(0, word)
    while words and (words[0].lower().rstrip(".,") in NOT_NAMES or words[0] == "&"):
        words.pop(0)
    if all(word.lower() in NOT_NAMES or word.isdigit() for word in words):
        return end
    return text.rindex(" ".join(words), floor, end)


def find_parties(text: str) -> Iterator[Party]:
    """Yield companies and persons after a label at the start of a line or table cell."""
    for match in chain(_LABEL.finditer(text), _COLUMN_LABEL.finditer(text)):
        label = match[1].lower()
        role = _ROLES[label]
        name = match[2]
        name_end = _PARTY_END.search(name)
        if name_end:
            name = name[: name_end.start()]
        name = name.strip(" .*_|,\t")
        kind = "person" if role in _PEOPLE else "company"
        key = slug(name) if kind == "person" else company_key(name)
        if key and _is_name(name, kind) and not set(key.split("-")) <= NOT_PARTIES:
            start = match.start(2) + match[2].index(name)
            if not _is_city(text, start, start + len(name), label):
                yield Party(role, Mention(f"{kind}:{key}", name, start))


def _is_city(text: str, start: int, end: int, label: str) -> bool:
    """Return whether a name is a city and no company: `Ship to: Columbus, OH`, `Consignee: Columbus, OH 43215`."""
    city = _CITY.match(text, start)
    if city is None or city.end(1) != end:
        return False
    return city[3] is not None or label.endswith((" to", " from"))


def _after_preposition(words: list[str]) -> list[str]:
    """Return the words of a city in a text in capitals: `DELIVER TO ST. LOUIS` → `ST. LOUIS`."""
    for n in range(len(words) - 1, -1, -1):
        if words[n].lower() in _PREPOSITIONS:
            return words[n + 1 :]
    return words


def _is_name(text: str, kind: str) -> bool:
    """Return whether a text is a name in any script: of letters, and with capitals where its script has them."""
    bare = without_marks(text)
    if kind == "person":
        is_capital = not any(word[0].islower() for word in bare.split())
        return is_capital and _PERSON.match(bare) is not None
    first = next((character for character in bare if character.isalnum()), "")
    return not first.islower() and _COMPANY.match(bare) is not None


def find_cities(text: str, char_shape: bytes) -> Iterator[City]:
    """Yield cities with a state of the US or a province of Canada: `Columbus, OH 43215` → `location:columbus-oh`."""
    may_occur = b", A" in char_shape or b",A" in char_shape
    for match in matches(_CITY_FIRST, _CITY, text) if may_occur else ():
        code = NAMES.get(match[2], match[2])
        words = _after_preposition(match[1].split(" "))
        while words and words[0].lower().rstrip(".") in NOT_NAMES:
            words.pop(0)
        city = " ".join(words)
        # In a text in capitals, `CALL US, OR …` looks like a city with its state.
        is_doubtful = city.isupper() and match[2] in _CODES_AND_WORDS and not match[3]
        next_character = text[match.end() : match.end() + 1]
        if not words or (is_doubtful and next_character not in {"", "\n", ".", ",", ";", ")", "|"}):
            continue
        start = match.end(1) - len(city)
        surface = text[start : match.end(2)]
        yield City(Mention(f"location:{slug(f'{city} {code}')}", surface, start), match[3])
