"""Parser for `multipart/form-data` (RFC 7578)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from python_multipart import MultipartParser
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import parse_options_header

from apex_memory.errors import Rejected

if TYPE_CHECKING:
    from python_multipart.multipart import MultipartCallbacks

MAX_PARTS = 1_000
MAX_FIELD_BYTES = 100_000


@dataclass(slots=True)
class FormPart:
    """One part of a form: a file if it has a file name, else a field."""

    headers: dict[bytes, bytes] = field(default_factory=dict)
    chunks: list[bytes] = field(default_factory=list)

    @property
    def name(self) -> str:
        return self._option(b"name") or ""

    @property
    def filename(self) -> str | None:
        return self._option(b"filename")

    @property
    def content_type(self) -> str:
        return self.headers.get(b"content-type", b"").decode("latin-1").strip()[:200]

    @property
    def data(self) -> bytes:
        return b"".join(self.chunks)

    @property
    def text(self) -> str:
        """The value of a field. Raises `Rejected` when it is not UTF-8 or too long."""
        try:
            value = self.data.decode()
        except UnicodeDecodeError:
            raise Rejected(f"{self.name}: not UTF-8", remedy=f"correct {self.name}") from None
        if len(value) > MAX_FIELD_BYTES:
            raise Rejected(
                f"{self.name}: longer than {MAX_FIELD_BYTES} characters",
                remedy="send it as a file",
            )
        return value

    def _option(self, option: bytes) -> str | None:
        disposition = self.headers.get(b"content-disposition", b"")
        value = parse_options_header(disposition)[1].get(option)
        # Browsers and curl send UTF-8 here, contrary to the standard for headers.
        return None if value is None else value.decode("utf-8", "replace").replace("\x00", "")


def form_parts(body: bytes, content_type: str) -> Sequence[FormPart]:
    """Return all parts of a form in order. Raises `Rejected` when the form is malformed or truncated."""
    try:
        boundary = parse_options_header(content_type)[1].get(b"boundary")
        if not boundary:
            raise Rejected(
                "Content-Type: multipart without boundary", remedy="let the client set it"
            )
        reader = _PartCollector()
        MultipartParser(boundary, reader.callbacks()).write(body)
    except (FormParserError, UnicodeError) as error:
        raise Rejected(
            f"body: not well-formed multipart ({error})", remedy="correct the form"
        ) from None
    if not reader.ended:
        raise Rejected("body: the form is truncated", remedy="send the whole body")
    return reader.parts


class _PartCollector:
    """Collects the parts from the parser's callbacks."""

    def __init__(self) -> None:
        self.parts: list[FormPart] = []
        self.ended = False
        self._header = bytearray()
        self._value = bytearray()

    def callbacks(self) -> MultipartCallbacks:
        return {
            "on_part_begin": self._begin,
            "on_part_data": lambda data, start, end: self.parts[-1].chunks.append(data[start:end]),
            "on_header_field": lambda data, start, end: self._header.extend(data[start:end]),
            "on_header_value": lambda data, start, end: self._value.extend(data[start:end]),
            "on_header_end": self._keep_header,
            "on_end": self._end,
        }

    def _begin(self) -> None:
        if len(self.parts) == MAX_PARTS:
            raise Rejected(f"body: more than {MAX_PARTS} parts", remedy="send fewer files at once")
        self.parts.append(FormPart())

    def _keep_header(self) -> None:
        self.parts[-1].headers[bytes(self._header).lower()] = bytes(self._value)
        self._header.clear()
        self._value.clear()

    def _end(self) -> None:
        self.ended = True
