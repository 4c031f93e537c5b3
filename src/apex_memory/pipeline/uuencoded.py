"""Files that stand in the text of a mail, as programs sent them before MIME: `begin 644 invoice.csv` to `end`."""

from __future__ import annotations

import binascii
import re

from apex_memory.model import File

_BLOCK = re.compile(
    r"^begin [0-7]{3,4} (?P<name>\S[^\r\n]{0,200}?)[ \t]*\r?\n(?P<lines>(?:[ -`]{1,62}\r?\n)+)end[ \t\r]*$",
    re.MULTILINE,
)


def split_uuencoded(text: str) -> tuple[str, list[File]]:
    """Return the text without the files that stand in it, and those files. What cannot be decoded stays in the text."""
    files: list[File] = []

    def taken(block: re.Match[str]) -> str:
        try:
            data = b"".join(map(binascii.a2b_uu, block["lines"].splitlines()))
        except binascii.Error:
            return block[0]
        files.append(File(block["name"], "application/octet-stream", data))
        return ""

    return _BLOCK.sub(taken, text), files
