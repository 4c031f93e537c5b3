"""Bytes to text: by mark, by name, by trying."""

from __future__ import annotations

import codecs

# The longer mark first: UTF-32's begins with UTF-16's.
_MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)


def decode(data: bytes, charset: str | None = None) -> str:
    """The text, whatever happens: byte order mark, then the charset named, UTF-8, and Windows' Western."""
    for mark, encoding in _MARKS:
        if data.startswith(mark):
            return data[len(mark) :].decode(encoding, "replace")
    for named in (charset, "utf-8"):
        try:
            if named:
                return data.decode(named)
        except (LookupError, ValueError):
            continue  # an unknown name or the wrong one: try the next
    return data.decode("cp1252", "replace")
