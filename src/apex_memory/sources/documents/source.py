"""Documents and plain texts: posted one by one, uploaded as files, or sent by `apex ingest`."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import ClassVar

from apex_memory.model import Assertion, Document, Event, File, Priority, micros
from apex_memory.sources.base import InboundRequest, Received, Sample, Source, content_id
from apex_memory.sources.documents.uploads import Upload, pack_upload, read_uploads, unpack_upload
from apex_memory.sources.payloads import (
    canonical,
    check_metadata,
    line,
    parse_datetime,
    parse_identifier,
    parse_json,
    sample,
)

CONTENT_TYPE = "application/vnd.apex.document+msgpack"


class Documents(Source):
    """Texts and files of any kind the parser reads: PDF, Office, HTML, mail, Markdown, CSV and more.

    Three ways in:

    - JSON: `text` or `content_base64`, with `key`, `name`, `title`, `kind`, `occurred_at`,
      `version`, `metadata`, `entities` (refs like `shipment:SHP-100045`).
    - The file itself as body, the same fields in the query. `?name=` says that the body is a file,
      even if its type is JSON.
    - `multipart/form-data` with one or more files. A form field stands once, for all files (but for `key`), or
      once per file, in their order; `metadata` and `entities` are JSON texts.

    Its time is `occurred_at`, else the time of receipt. A mail's is the `Date` in it, unless that is later.

    Identity. The document is `key`; without one `sha256:` of the content, so equal files are one
    document. Its version is `version`, else `occurred_at`, else the time of receipt; keep to one of
    them for a key. The event id, which makes a repetition a duplicate, is

    - the API key's name and the `Idempotency-Key` (`#1`, `#2` … for further files), if sent;
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
        uploads = list(read_uploads(request))
        for upload in uploads:
            check_metadata(upload.fields.metadata, "metadata", request.metadata_max_bytes)
        ids = request.named_ids(len(uploads))
        return Received(
            [self._event(request, upload, id) for upload, id in zip(uploads, ids, strict=True)]
        )

    def document(self, event: Event) -> Document:
        """A `document`, or what `kind` says. A file is handed on for parsing; a text is the text."""
        fields, media_type, data = unpack_upload(event.payload)
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
        payload = pack_upload(upload)
        digest = hashlib.sha256(payload).hexdigest()
        if fields.key is None:
            doc_key = f"sha256:{hashlib.sha256(upload.data).hexdigest()}"
            own = f"{doc_key}#{digest}"
        else:
            doc_key = parse_identifier(fields.key, "key")
            own = f"{doc_key}@{version}#{digest}"
        return Event(
            source=self.name,
            event_id=given or content_id(own),
            doc_key=doc_key,
            version=version,
            occurred_at=at,
            payload=payload,
            content_type=CONTENT_TYPE,
            priority=self.priority,
        )
