"""Calendars (iCalendar, RFC 5545) and contacts (vCard, RFC 6350, and 2.1) as people read them.

Their lines are folded anywhere, also inside a word or a character, and escape commas, line ends and letters.
"""

from __future__ import annotations

import binascii
import re
from dataclasses import dataclass

from apex_memory.pipeline.charset import decode

_START = re.compile(rb"(?:\xef\xbb\xbf)?\s{0,100}BEGIN:(?:VCALENDAR|VCARD)\b", re.IGNORECASE)
_FOLD = re.compile(rb"\r?\n[ \t]")
# In vCard 2.1 a quoted-printable value goes on after `=` at the end of a line.
_SOFT_BREAK = re.compile(
    rb"(?<![^\n])([\w.-]{1,80};[^:\n]{0,500}QUOTED-PRINTABLE[^:\n]{0,500}:(?:[^\n]*=\r?\n)+)", re.I
)
_LINE = re.compile(
    r"(?P<name>[\w.-]{1,80})(?P<parameters>(?:;[^\":;]{0,200}+(?:\"[^\"]*+\")?+[^\":;]*+)*+):(?P<value>.*)\Z"
)
_PARAMETER = re.compile(r";(?:([\w-]{1,40})=)?(\"[^\"]*+\"|[^;\"]*+)")
_ESCAPE = re.compile(r"\\([\\;,:nN])")
_MOMENT = re.compile(r"(\d{4})(\d\d)(\d\d)(?:T(\d\d)(\d\d)(?:\d\d)?(Z?))?\Z", re.ASCII)
_DAY_NAMES = ("DT", "DUE", "BDAY", "RDATE", "EXDATE", "ANNIVERSARY")
_NOT_SHOWN = frozenset(
    {"CN", "TZID", "VALUE", "ENCODING", "CHARSET", "QUOTED-PRINTABLE", "LANGUAGE"}
)
_STRUCTURED = frozenset({"N", "ADR", "ORG"})
_TITLES = ("SUMMARY", "FN")


@dataclass(frozen=True, slots=True)
class ContentLines:
    """The text of a calendar or of contacts, a property a line, and the summary or name of the first of them."""

    text: str
    title: str


def read_content_lines(data: bytes, charset: str | None) -> ContentLines | None:
    """Return the properties without folds and escapes, and without pictures; None for any other text.

    Takes time linear in the size of the text.
    """
    if not _START.match(data):
        return None
    unfolded = _FOLD.sub(b"", data)
    unfolded = _SOFT_BREAK.sub(lambda value: re.sub(rb"=\r?\n", b"", value[1]), unfolded)
    shown: list[str] = []
    title = ""
    for line in decode(unfolded, charset).splitlines():
        match = _LINE.match(line)
        if match is None:
            shown.append(line)
            continue
        name = match["name"].rpartition(".")[2].upper()
        parameters = {
            (key or value).upper(): value.strip('"')
            for key, value in _PARAMETER.findall(match["parameters"])
        }
        value = _value(name, parameters, match["value"])
        if value:
            shown.append(f"{name}:{value}")
        if name in _TITLES and not title:
            title = value
    return ContentLines("\n".join(shown), title)


def _value(name: str, parameters: dict[str, str], raw: str) -> str:
    """Return a value for people, with what its parameters say about it; empty for binary data."""
    encodings = {parameters.get("ENCODING", "").upper(), *parameters}  # 2.1 leaves the key out
    if encodings & {"B", "BASE64"} or raw.startswith("data:"):
        return ""
    if "QUOTED-PRINTABLE" in encodings:
        raw = decode(binascii.a2b_qp(raw.encode("utf-8", "replace")), parameters.get("CHARSET"))
    if name in _STRUCTURED:
        raw = ", ".join(part for part in re.split(r"(?<!\\);", raw) if part.strip())
    value = _ESCAPE.sub(lambda escape: "\n" if escape[1] in "nN" else escape[1], raw).strip()
    if moment := _MOMENT.match(value):
        value = _moment(name, parameters, moment)
    address = re.sub(r"(?:mailto|tel):", "", value, count=1, flags=re.IGNORECASE)
    if parameters.get("CN"):
        value = f"{parameters['CN']} <{address}>"
    elif address != value and value.lower().startswith(("mailto:", "tel:")):
        value = address
    notes = ", ".join(text for key, text in parameters.items() if key not in _NOT_SHOWN and text)
    return f"{value} ({notes})" if notes and value else value


def _moment(name: str, parameters: dict[str, str], moment: re.Match[str]) -> str:
    """Return `2026-03-05 14:00 America/Chicago`; eight digits alone are a day only where the property is one."""
    year, month, day, hour, minute, is_utc = moment.groups()
    if hour is None:
        is_day = parameters.get("VALUE", "").upper() == "DATE" or name.startswith(_DAY_NAMES)
        return f"{year}-{month}-{day}" if is_day else moment[0]
    zone = "UTC" if is_utc else parameters.get("TZID", "")
    return f"{year}-{month}-{day} {hour}:{minute} {zone}".rstrip()
