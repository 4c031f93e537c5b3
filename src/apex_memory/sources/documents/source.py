"""Documents and plain texts: posted one by one, uploaded as files, or sent by `apex ingest`."""

from __future__ import annotations

import base64
import binascii
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import msgpack
from pydantic import BaseModel, ConfigDict, Field

from apex_memory.errors import Rejected
from apex_memory.model import Assertion, Document, Event, File, Priority, micros
from apex_memory.sources.base import InboundRequest, Received, Sample, Source
from apex_memory.sources.forms import Part, form_parts
from apex_memory.sources.payloads import (
    as_mapping,
    canonical,
    checked,
    line,
    parse_datetime,
    parse_identifier,
    parse_json,
    parse_object,
    sample,
    storable,
)

CONTENT_TYPE = "application/vnd.apex.document+msgpack"
UNKNOWN = "application/octet-stream"
Ref = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*:[^\x00-\x1f]+$", max_length=400)]


class Fields(BaseModel):
    """What may be said about a document, in JSON, in the query or in a form."""

    model_config = ConfigDict(extra="forbid")

    key: str | None = None
    name: str | None = Field(None, max_length=400)
    title: str | None = Field(None, max_length=400)
    kind: str | None = Field(None, pattern=r"^[a-z][a-z0-9_-]{0,39}$")
    occurred_at: float | str | None = None
    version: int | None = Field(None, ge=0, lt=2**63)
    metadata: dict[str, Any] | None = None
    entities: list[Ref] | None = None


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


class Documents(Source):
    """Texts and files of any kind the parser reads: PDF, Office, HTML, mail, Markdown, CSV and more.

    Three ways in:

    - JSON: `text` or `content_base64`, with `key`, `name`, `title`, `kind`, `occurred_at`,
      `version`, `metadata`, `entities` (refs like `shipment:SHP-100045`).
    - The file itself as body, the same fields in the query. `?name=` says that the body is a file,
      even if its type is JSON.
    - `multipart/form-data` with one or more files. A form field stands once, for all files, or
      once per file, in their order; `metadata` and `entities` are JSON texts.

    Identity. The document is `key`; without one `sha256:` of the content, so equal files are one
    document. Its version is `version`, else `occurred_at`, else the time of receipt; keep to one of
    them for a key. The event id, which makes a repetition a duplicate, is

    - the `Idempotency-Key` (`key#n` for the n-th of many files), if sent;
    - without `key`: the hash of content and fields. Posting the same again is a duplicate; the same
      file under another title is a new version of it;
    - with `key` and `version` or `occurred_at`: key, version and hash. Sending an unchanged file
      again is a duplicate, a changed one a new version;
    - with `key` alone: key, time of receipt and hash. Every post is a new version, even of equal
      content, because A, B, A must end with A. A caller that repeats requests sends one of the above.
    """

    name: ClassVar[str] = "documents"
    title: ClassVar[str] = "Documents"
    priority: ClassVar[Priority] = Priority.P1
    path: ClassVar[str] = "/v1/documents"
    max_body_bytes: ClassVar[int] = 50_000_000

    def receive(self, request: InboundRequest) -> Received:
        """One event a document; all of them or, when one is malformed, none."""
        uploads = list(_uploads(request))
        many = len(uploads) > 1
        if key := request.idempotency_key:
            parse_identifier(key, "Idempotency-Key")
        return Received(
            [
                self._event(request, upload, key and (f"{key}#{n}" if many else key))
                for n, upload in enumerate(uploads)
            ]
        )

    def document(self, event: Event) -> Document:
        """A `document`, or what `kind` says. A file is handed on for parsing; a text is the text."""
        fields, media_type, data = _opened(event.payload)
        text = "" if media_type else data.decode("utf-8", "replace")
        name = fields.name or ""
        files = (File(name or "document", media_type, data),) if media_type else ()
        about = {"name": name, "content_type": media_type, "bytes": len(data), "key": fields.key}
        digest = hashlib.sha256(data).hexdigest()
        return Document(
            kind=fields.kind or "document",
            title=fields.title or name or line(text) or line(fields.key or "", 200) or "Document",
            occurred_at=event.occurred_at,
            text=text,
            files=files,
            assertions=tuple(
                Assertion(predicate="mentions", object=ref)
                for ref in dict.fromkeys(fields.entities or ())
            ),
            metadata={
                **(fields.metadata or {}),
                "file": {name: value for name, value in about.items() if value}
                | {"sha256": digest},
            },
        )

    def samples(self) -> Sequence[Sample]:
        posts = [
            Sample(item["name"], canonical(item["body"]))
            for item in parse_json(sample("documents", "own.json"))
        ]
        note = sample("documents", "detention-policy.md")
        boundary = "example-boundary"
        form = b"".join(
            f'--{boundary}\r\nContent-Disposition: form-data; name="file"; filename="{name}"\r\n'
            f"Content-Type: {kind}\r\n\r\n".encode()
            + sample("documents", name)
            + b"\r\n"
            for name, kind in (("lanes.csv", "text/csv"), ("pod-SHP-100045.html", "text/html"))
        )
        query = {
            "name": "detention-policy.md",
            "key": "handbook/detention-policy.md",
            "occurred_at": "2025-10-01T00:00:00Z",
        }
        return [
            *posts,
            Sample("raw_file", note, "text/markdown", query),
            Sample(
                "two_files",
                form + f"--{boundary}--\r\n".encode(),
                f"multipart/form-data; boundary={boundary}",
                events=2,
            ),
        ]

    def _event(self, request: InboundRequest, upload: Upload, given: str | None) -> Event:
        fields, stated = upload.fields, upload.fields.occurred_at
        at = request.received_at if stated is None else parse_datetime(stated, "occurred_at")
        version = micros(at) if fields.version is None else fields.version
        payload = _sealed(upload)
        digest = hashlib.sha256(payload).hexdigest()
        if fields.key is None:
            doc_key = f"sha256:{hashlib.sha256(upload.data).hexdigest()}"
            own = f"{doc_key}#{digest}"
        else:
            doc_key = parse_identifier(fields.key, "key")
            own = f"{doc_key}@{version}#{digest}"
        return Event(
            source=self.name,
            event_id=given or own,
            doc_key=doc_key,
            version=version,
            occurred_at=at,
            payload=payload,
            content_type=CONTENT_TYPE,
            priority=self.priority,
        )


def _uploads(request: InboundRequest) -> Iterator[Upload]:
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


def _form(parts: Sequence[Part]) -> Iterator[Upload]:
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


def _sealed(upload: Upload) -> bytes:
    # msgpack keeps the file's bytes as they are. The fields are JSON inside it, because their
    # numbers may be larger than msgpack's.
    fields = canonical(upload.fields.model_dump(exclude_none=True))
    sealed: bytes = msgpack.packb([fields, upload.media_type, upload.data])
    return sealed


def _opened(payload: bytes) -> tuple[Fields, str, bytes]:
    try:
        fields, media_type, data = msgpack.unpackb(payload)
    except (ValueError, TypeError, msgpack.UnpackException):
        raise Rejected("payload: not a document as kept here", remedy="send it again") from None
    if not isinstance(fields, bytes) or not isinstance(media_type, str):
        raise Rejected("payload: not a document as kept here", remedy="send it again")
    if not isinstance(data, bytes):
        raise Rejected("payload: not a document as kept here", remedy="send it again")
    return checked(Fields, as_mapping(parse_json(fields)), "payload"), media_type, data
