"""The documents in a request: JSON, a file as the body, or a form with files; and how they are kept in the inbox."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import msgpack
from pydantic import Field

from apex_memory.errors import Rejected
from apex_memory.sources.base import InboundRequest
from apex_memory.sources.forms import FormPart, form_parts
from apex_memory.sources.payloads import (
    ListOf,
    as_mapping,
    canonical,
    checked,
    parse_json,
    parse_object,
    storable,
)
from apex_memory.strict_models import StrictModel

UNKNOWN = "application/octet-stream"
Ref = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*:[^\x00-\x1f]+$", max_length=400)]


class Fields(StrictModel):
    """What may be said about a document, in JSON, in the query or in a form."""

    key: str | None = None
    name: str | None = Field(None, max_length=400)
    title: str | None = Field(None, max_length=400)
    kind: str | None = Field(None, pattern=r"^[a-z][a-z0-9_-]{0,39}$")
    occurred_at: float | str | None = None
    version: int | None = Field(None, ge=0, lt=2**63)
    metadata: dict[str, Any] | None = None
    entities: ListOf[Ref] | None = None


class Post(Fields):
    """A document as JSON: its text, or a file in base 64."""

    text: str | None = None
    content_base64: str | None = None
    content_type: str | None = Field(None, max_length=200)


@dataclass(frozen=True, slots=True)
class Upload:
    """One document of a request. `media_type` is empty for a text that needs no parsing."""

    fields: Fields
    data: bytes
    media_type: str


def read_uploads(request: InboundRequest) -> Iterator[Upload]:
    for upload in _split(request):
        if not upload.data.strip():
            raise Rejected(
                f"{upload.fields.name or 'document'}: empty", remedy="send a text or a file"
            )
        yield upload


def _split(request: InboundRequest) -> Iterator[Upload]:
    if request.content_type == "multipart/form-data":
        yield from _form(form_parts(request.body, request.headers["content-type"]))
    elif "name" in request.query or request.content_type != "application/json":
        fields = checked(Fields, _from_texts(request.query), "")
        kind = request.content_type
        yield Upload(
            fields,
            request.body,
            # What `curl --data-binary` says of anything.
            UNKNOWN if kind in ("", "application/x-www-form-urlencoded") else kind,
        )
    else:
        yield _posted(checked(Post, parse_object(request.body), ""))


def _posted(post: Post) -> Upload:
    fields = Fields.model_validate(
        post.model_dump(exclude={"text", "content_base64", "content_type"})
    )
    if (post.text is None) == (post.content_base64 is None):
        raise Rejected(
            "text: expected either `text` or `content_base64`", remedy="send just one of them"
        )
    if post.text is not None:
        return Upload(fields, post.text.encode(), "")
    try:
        data = base64.b64decode(post.content_base64 or "", validate=True)
    except (binascii.Error, ValueError):
        raise Rejected("content_base64: not base 64", remedy="correct content_base64") from None
    return Upload(fields, data, post.content_type or UNKNOWN)


def _form(parts: Sequence[FormPart]) -> Iterator[Upload]:
    files = [part for part in parts if part.filename is not None]
    given: dict[str, list[str]] = {}
    for part in parts:
        if part.filename is None:
            given.setdefault(part.name, []).append(part.text)
    if not files:
        raise Rejected("body: no file in the form", remedy="send a part with a file name")
    for name, values in given.items():
        shared = len(values) == 1 and (name != "key" or len(files) == 1)
        if not shared and len(values) != len(files):
            raise Rejected(
                f"{name}: {len(values)} values for {len(files)} files",
                remedy="send it once per file, in their order",
            )
    for n, file in enumerate(files):
        mine = {name: values[n if len(values) > 1 else 0] for name, values in given.items()}
        mine = {"name": file.filename or "", **mine}
        yield Upload(
            checked(Fields, _from_texts(mine), ""), file.data, file.content_type or UNKNOWN
        )


def _from_texts(values: Mapping[str, str]) -> dict[str, Any]:
    """Fields of a form or query: all are texts there, and `metadata` and `entities` JSON texts."""
    held: dict[str, Any] = storable(dict(values))
    for name in ("metadata", "entities"):
        if name in held:
            held[name] = parse_json(held[name].encode(), name)
    return held


def pack_upload(upload: Upload) -> bytes:
    # msgpack keeps the file's bytes as they are. The fields are JSON inside it, because their
    # numbers may be larger than msgpack's.
    fields = canonical(upload.fields.model_dump(exclude_none=True))
    sealed: bytes = msgpack.packb([fields, upload.media_type, upload.data])
    return sealed


def unpack_upload(payload: bytes) -> tuple[Fields, str, bytes]:
    try:
        fields, media_type, data = msgpack.unpackb(payload)
    except (ValueError, TypeError, msgpack.UnpackException):
        raise Rejected("payload: not a document as kept here", remedy="send it again") from None
    if not isinstance(fields, bytes) or not isinstance(media_type, str):
        raise Rejected("payload: not a document as kept here", remedy="send it again")
    if not isinstance(data, bytes):
        raise Rejected("payload: not a document as kept here", remedy="send it again")
    return checked(Fields, as_mapping(parse_json(fields)), "payload"), media_type, data
