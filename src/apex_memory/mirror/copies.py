"""Copies of webhooks: what of a request is kept, and the only INSERT into `mirror_copies`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from apex_memory.inbox.routing import BUCKETS, bucket_of
from apex_memory.model import Event
from apex_memory.stores.postgres import Connection

Headers = list[tuple[bytes, bytes]]

LOCKS = 0x4D495252
"""First half of the advisory locks that order the copies of a source; the second half is a hash of its name."""

# Fields for one connection (RFC 9110, 7.6.1), and those that the new connection sets itself.
NOT_FORWARDED = frozenset(
    (
        b"connection",
        b"content-length",
        b"expect",
        b"host",
        b"keep-alive",
        b"proxy-authenticate",
        b"proxy-authorization",
        b"proxy-connection",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
    )
)


@dataclass(frozen=True, slots=True)
class MirrorCopy:
    """An accepted webhook, as it came, for the mirror of its source.

    `bucket` is None where every webhook is mirrored. Otherwise the webhook is kept if the bucket is not rolled over.
    """

    source: str
    query: bytes
    headers: bytes
    body: bytes
    bucket: int | None = None


def end_to_end(headers: Iterable[tuple[bytes, bytes]]) -> Headers:
    """Return the headers to forward, in their order: without those for one connection, `Host` and the length."""
    given = [(name.lower(), value) for name, value in headers]
    left_out = set(NOT_FORWARDED)
    for name, value in given:
        if name == b"connection":
            left_out.update(item.strip().lower() for item in value.split(b","))
    return [(name, value) for name, value in given if name not in left_out]


def pack_headers(headers: Iterable[tuple[bytes, bytes]]) -> bytes:
    """Return headers as the lines of an HTTP message."""
    return b"\r\n".join(b"%b:%b" % (name, value) for name, value in headers)


def unpack_headers(packed: bytes) -> Headers:
    """Return the headers in the lines that `pack_headers` made."""
    if not packed:
        return []
    pairs = (line.partition(b":") for line in packed.split(b"\r\n"))
    return [(name, value) for name, _, value in pairs]


def last_bucket(events: Sequence[Event]) -> int:
    """Return the bucket that decides whether a webhook is still mirrored: the highest of its documents.

    So a webhook is mirrored until all its documents are rolled over. One that names no document, because the vendor
    sends hints only, is mirrored until the whole source is.
    """
    return max((bucket_of(event.doc_id) for event in events), default=BUCKETS - 1)


async def insert(connection: Connection, copies: Sequence[MirrorCopy]) -> None:
    """Store copies in the caller's transaction, in this order.

    The transaction holds a lock for each source until it ends, so that the ids of a source's copies are in the order
    of their commits: the forwarder sees no copy appear before one that it has sent.
    """
    if not copies:
        return
    await connection.execute(
        "SELECT pg_advisory_xact_lock(%s, hashtext(name)) FROM unnest(%s::text[]) AS name",
        (LOCKS, sorted({copy.source for copy in copies})),
    )
    await connection.execute(
        """INSERT INTO mirror_copies (source, query, headers, body, bytes)
           SELECT t.source, t.query, t.headers, t.body, octet_length(t.body)
           FROM unnest(%b::text[], %b::bytea[], %b::bytea[], %b::bytea[], %b::integer[])
             WITH ORDINALITY AS t (source, query, headers, body, bucket, n)
           LEFT JOIN rollouts r ON r.subject = 'source:' || t.source
           WHERE t.bucket IS NULL OR t.bucket >= coalesce(r.share, 100)
           ORDER BY t.n""",
        (
            [copy.source for copy in copies],
            [copy.query for copy in copies],
            [copy.headers for copy in copies],
            [copy.body for copy in copies],
            [copy.bucket for copy in copies],
        ),
    )
