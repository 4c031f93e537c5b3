"""X12 as carriers' software writes it, with the deviations of real files, and the 997s that come back."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime

QUIRKS = (
    "none",
    "lines",  # a line end after each segment
    "mark",  # a UTF-8 byte order mark
    "newline",  # segments end with the line
    "short",  # an ISA without padding
    "wrapped",  # lines of 80 characters
    "unclosed",  # neither GE nor IEA
    "count",  # SE01 is wrong
    "interchange",  # IEA02 is not ISA13
    "function",  # IN for statuses and invoices
    "bars",  # other separators
    "indented",
    "ellipsis",  # a terminator of three bytes
    "blank",  # a blank before an element
    "remark",  # text after SE02
    "trailing",  # GS with a ninth element
)
_FUNCTIONS = {"SM": "204", "GF": "990", "QM": "214", "IM": "210", "FA": "997"}


@dataclass(frozen=True, slots=True)
class Group:
    """A group with one set in it. `intended` is its GS01 by the standard."""

    sender: str
    intended: str
    number: str
    quirk: str

    @property
    def function(self) -> str:
        """GS01 as the sender writes it."""
        is_wrong = self.quirk == "function" and self.intended in ("QM", "IM")
        return "IN" if is_wrong else self.intended

    @property
    def outcome(self) -> str:
        """AK9-01 of the 997 that it must get."""
        return "E" if self.quirk in ("unclosed", "count") else "A"


def encode(
    group: Group,
    receiver: str,
    at: datetime,
    body: Sequence[tuple[str, ...]],
    *,
    first: bool,
) -> bytes:
    """Return an interchange with one group and one set.

    `body` begins with an ST without its number, and has no SE. `first`: nothing stands before it in the file.
    """
    quirk, number = group.quirk, group.number
    element, terminator = ("|", "'") if quirk == "bars" else ("*", "~")
    if quirk in ("newline", "ellipsis"):
        terminator = {"newline": "\n", "ellipsis": "…"}[quirk]
    control = number.zfill(9)
    isa = _isa(group, receiver, at, control)
    gs = ("GS", group.function, group.sender, receiver, f"{at:%Y%m%d}", f"{at:%H%M}", number, "X", "004010")  # fmt: skip
    segments = [
        (*gs, "") if quirk == "trailing" else gs,
        (*body[0], "0001"),
        *(_with_blank(segment) if quirk == "blank" else segment for segment in body[1:]),
        (
            "SE",
            str(len(body) + (2 if quirk == "count" else 1)),
            "0001 N/L" if quirk == "remark" else "0001",
        ),
    ]
    if quirk != "unclosed":
        segments.append(("GE", "1", number))
        segments.append(("IEA", "1", "000000001" if quirk == "interchange" else control))
    gap = {"lines": "\n", "indented": "\r\n    "}.get(quirk, "")
    written = [element.join(segment).rstrip(element) for segment in [isa, *segments]]
    if quirk == "trailing":
        written[1] += element
    text = "".join(f"{segment}{terminator}{gap}" for segment in written)
    if quirk == "wrapped":
        text = "\n".join(text[n : n + 80] for n in range(0, len(text), 80)) + "\n"
    return (b"\xef\xbb\xbf" if quirk == "mark" and first else b"") + text.encode()


def _isa(group: Group, receiver: str, at: datetime, control: str) -> tuple[str, ...]:
    width = 1 if group.quirk == "short" else 15
    blanks = " " * (1 if group.quirk == "short" else 10)
    return (
        *("ISA", "00", blanks, "00", blanks),
        *("02", group.sender.ljust(width), "ZZ", receiver.ljust(width)),
        *(f"{at:%y%m%d}", f"{at:%H%M}", "U", "00401", control, "0", "P", ":"),
    )


def _with_blank(segment: tuple[str, ...]) -> tuple[str, ...]:
    if segment[0] not in ("B1", "B10", "N1"):
        return segment
    return (segment[0], f" {segment[1]}", *segment[2:])


GroupId = tuple[str, str, str]
"""Sender, function (GS01) and control number (GS06) of a group."""


def parse_reply(text: str) -> Iterator[tuple[GroupId, str]]:
    """Yield each group that a 997 interchange acknowledges, and AK9-01. Fails if the interchange is malformed."""
    segments = [segment.split("*") for segment in text.split("~") if segment]
    assert len(text.split("~", maxsplit=1)[0]) == 105, "ISA must be padded"
    assert [segments[n][0] for n in (0, 1, -2, -1)] == ["ISA", "GS", "GE", "IEA"]
    assert segments[0][13] == segments[-1][2]
    assert segments[1][6] == segments[-2][2]
    group, set_start = ("", ""), 0
    for n, segment in enumerate(segments):
        if segment[0] == "ST":
            set_start = n
        elif segment[0] == "AK1":
            group = (segment[1], segment[2])
        elif segment[0] == "AK9":
            yield (segments[0][8].strip(), *group), segment[1]
        elif segment[0] == "SE":
            assert int(segment[1]) == n - set_start + 1
            assert segment[2] == segments[set_start][2]
