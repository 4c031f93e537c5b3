"""The vocabulary of the system: events, documents, manifests, stages. Plain values without behaviour that needs a store.

Identity is derived, never generated: `event_uuid` and `document_uuid` are uuid5 of natural keys, so
a redelivery names the same row again. Only a stage id is random, because every id in the graph and
the vector store derives from it (docs/discussions/protocol.md).
"""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from enum import IntEnum, StrEnum
from typing import Any, NewType

import numpy as np
from numpy.typing import NDArray

from apex_memory.normalization import name_key

NAMESPACE = uuid.UUID("6f0d4f2c-9d0e-5b39-8f4b-3f6d0c1f7a11")

StageId = NewType("StageId", uuid.UUID)
Vectors = NDArray[np.float32]  # shape (chunks, dimension), rows of unit length

DEGRADED = "apex_degraded"
"""Key of the metadata of a document that is not whole: what limits left out, by the name of the limit.

The limits are `characters`, `entities` and `metadata_bytes` (`{"found": n, "kept": m}`), and `files` (`{"left_out": n}`).
"""

TURNS = "apex_turns"
"""Key of the metadata of a manifest whose document is spoken: `[[start, end, speaker, time or null], …]`, in order."""

LINK = "apex_link"
"""Key of the metadata of a manifest whose document has a page at its vendor: the address of that."""

RESERVED = frozenset({DEGRADED, TURNS, LINK})
"""Keys of the metadata that only the pipeline sets."""

TOMBSTONE = "application/vnd.apex.tombstone+json"
"""Content type of a delete that Apex itself lands, for any source: an event with an empty body."""

MALFORMED = "application/vnd.apex.broken+json"
"""Content type of a fetched record that could not be read: `{"reason", "remedy", "record"}`. It becomes a dead letter."""

UNFETCHED = "unfetched:"
"""What stands before the key of a change hint in the key of the dead letter of its record, which the vendor does not return."""


class Priority(IntEnum):
    """P0 is real time, P1 is soon, P2 is bulk. Lower is claimed first."""

    P0 = 0
    P1 = 1
    P2 = 2


class EventState(StrEnum):
    """Where an event is. The first three are open; `parked` waits for a store; the rest are final."""

    RECEIVED = "received"
    PREPARED = "prepared"
    STAGED = "staged"  # shown, not stored: prepared, and a stage of it is in `staging`
    DONE = "done"
    SUPERSEDED = "superseded"
    PARKED = "parked"
    DEAD = "dead"


class StageState(StrEnum):
    """`staging → committed → superseded → reaping → reaped` or `staging → aborted → reaped`. Dead never revives."""

    STAGING = "staging"
    COMMITTED = "committed"
    SUPERSEDED = "superseded"
    REAPING = "reaping"
    ABORTED = "aborted"
    REAPED = "reaped"


def event_uuid(source: str, event_id: str) -> uuid.UUID:
    """Return the public id of an event, the same for every redelivery of it."""
    return uuid.uuid5(NAMESPACE, f"event\x00{source}\x00{event_id}")


def document_uuid(source: str, key: str) -> uuid.UUID:
    """Return the id of the document that holds the natural thing `key` of `source`."""
    return uuid.uuid5(NAMESPACE, f"document\x00{source}\x00{key}")


def uuid_range(text: str) -> tuple[uuid.UUID | None, uuid.UUID | None]:
    """Return the first and the last UUID that begin with a text of 8 or more digits; (None, None) if none can."""
    digits = text.replace("-", "").lower()
    if not 8 <= len(digits) <= 32 or not set(digits) <= set("0123456789abcdef"):
        return None, None
    return uuid.UUID(digits.ljust(32, "0")), uuid.UUID(digits.ljust(32, "f"))


def now() -> datetime:
    return datetime.now(UTC)


def micros(moment: datetime) -> int:
    """Microseconds since 1970-01-01 UTC, exact: the usual version of an event."""
    delta = moment.astimezone(UTC) - datetime(1970, 1, 1, tzinfo=UTC)
    return (delta.days * 86_400 + delta.seconds) * 1_000_000 + delta.microseconds


@dataclass(frozen=True, slots=True)
class SealedPayload:
    """A payload that is sealed under a data key: nonce, ciphertext and tag."""

    data_key: uuid.UUID
    body: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """One raw inbound item, as a source hands it to the inbox.

    `event_id` is the natural id of the delivery (unique within the source), `doc_key` the natural
    key of the thing it is about, `version` orders the versions of that thing (microseconds, or the
    source's own counter). `payload` is kept byte for byte.

    `payload_object` names the object outside PostgreSQL that holds the payload, if one does, and `sealed` is the payload as
    PostgreSQL holds it, where it is sealed there. `payload` is then empty in what is read from the inbox, until
    `PayloadStore.load` fills it.
    """

    source: str
    event_id: str
    doc_key: str
    version: int
    occurred_at: datetime
    payload: bytes
    content_type: str = "application/json"
    priority: Priority = Priority.P0
    trace_parent: str | None = None
    payload_object: str | None = None
    sealed: SealedPayload | None = field(default=None, repr=False)

    @property
    def id(self) -> uuid.UUID:
        return event_uuid(self.source, self.event_id)

    @property
    def doc_id(self) -> uuid.UUID:
        return document_uuid(self.source, self.doc_key)


@dataclass(frozen=True, slots=True)
class LandResult:
    """What landing returns for an event: its ids, and whether it had landed before."""

    id: uuid.UUID
    source: str
    event_id: str
    doc_id: uuid.UUID
    duplicate: bool


@dataclass(frozen=True, slots=True, order=True)
class Entity:
    """Something that documents mention. `ref` (`type:key`) is its id in the graph and in filters."""

    type: str
    key: str

    @property
    def ref(self) -> str:
        return f"{self.type}:{self.key}"

    @classmethod
    def parse(cls, ref: str) -> Entity:
        kind, _, key = ref.partition(":")
        return cls(kind, key)


def slug(name: str) -> str:
    """Return a name as a stable key: NFKC, case-folded, words joined by `-` (`Northwind Trucking` → `northwind-trucking`).

    Letters of every script are kept (`山田運輸`, `łódź-transport`). Only a blank name has an empty key.
    """
    return name_key(name)


CONVERSATION = "conversation"
"""Kind of a document whose passages are turns of speakers."""

DATE = "date"
"""Predicate of the assertion that a text names a day. Its value is the day, `2024-01-23`."""

DAY = "day"
"""Type of the refs by which the passages of a day are found. They exist in the vector store alone."""


def day_ref(day: date) -> str:
    """Return the ref of the passages of a day (`day:2024-01-23`): those spoken or written then, and those that name it."""
    return f"{DAY}:{day.isoformat()}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Assertion:
    """One statement of a document: `subject predicate object` or `subject predicate value`.

    Entities in the graph hold only their key; names, attributes, relations and mentions are
    assertions, tagged with stage and document, so that one delete by stage removes them all.
    `subject` and `object` are entity refs; a mention has the document itself as subject
    (`document:<doc_id>`, filled in by the pipeline where it is empty). `start` is the character
    offset of the evidence in the document's text, where there is one.
    """

    predicate: str
    subject: str = ""
    object: str | None = None
    value: str | None = None
    start: int | None = None


@dataclass(frozen=True, slots=True)
class File:
    """A file inside a payload, for the pipeline to parse."""

    name: str
    content_type: str
    data: bytes


@dataclass(frozen=True, slots=True)
class Turn:
    """What one speaker says at a time. `start` and `end` are character offsets in the document's text."""

    start: int
    end: int
    speaker: str
    at: datetime | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Document:
    """What a source makes of one payload: readable text, and assertions from its structure.

    `passages` are natural units of `text` as (start, end) character offsets (the turns of a
    conversation, say); chunks never cross them. `files` are parsed by the pipeline and their text
    follows `text`. `parent` is the natural key of the document that contains this one: deleting
    the parent deletes it. `deleted` makes the version a tombstone; all else is then ignored.
    """

    kind: str
    title: str
    occurred_at: datetime
    text: str = ""
    passages: tuple[tuple[int, int], ...] = ()
    files: tuple[File, ...] = ()
    assertions: tuple[Assertion, ...] = ()
    metadata: Mapping[str, Any] = field(default_factory=dict)
    parent: str | None = None
    deleted: bool = False
    about: str | None = None
    """Ref of the entity whose own record this document is (`shipment:SHP-100045`). Other documents' references to that
    entity stay unresolved until this document exists (`apex unresolved`)."""
    turns: tuple[Turn, ...] = ()
    """The turns of a conversation in order, or a message as one turn: hits in them are cited with speaker and time."""
    link: str = ""
    """The address of its page at the vendor, if it has one."""


@dataclass(frozen=True, slots=True)
class Chunk:
    """A passage of a document's text: the unit of search. Offsets are characters (code points)."""

    n: int
    start: int
    end: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """The immutable result of the pipeline for one event. Stored before anything is staged."""

    id: uuid.UUID
    inbox_id: uuid.UUID
    doc_id: uuid.UUID
    source: str
    doc_key: str
    pipeline: str
    kind: str
    title: str
    text: str
    occurred_at: datetime
    metadata: Mapping[str, Any]
    parent_id: uuid.UUID | None
    deleted: bool
    chunks: tuple[Chunk, ...]
    vectors: Vectors
    assertions: tuple[Assertion, ...]
    entities: tuple[str, ...]
    """Refs of all entities named, sorted: the exact index and the filter."""
    about: str | None = None
    """Ref of the entity whose record this document is."""

    def chunk_text(self, chunk: Chunk) -> str:
        return self.text[chunk.start : chunk.end]

    def content_hash(self) -> bytes:
        """sha256 over everything that readers see, whatever the event: equal content has an equal hash."""
        digest = hashlib.sha256()
        for part in (
            self.kind,
            self.title,
            self.text,
            str(self.deleted),
            repr(self.chunks),
            repr(self.assertions),
            self.about or "",
        ):
            digest.update(part.encode("utf-8", "surrogatepass"))
            digest.update(b"\x00")
        digest.update(np.ascontiguousarray(self.vectors, dtype=np.float32).tobytes())
        return digest.digest()


@dataclass(frozen=True, slots=True)
class Tally:
    """How many items of a stage a store holds, and the sum of their content hashes."""

    count: int = 0
    checksum: int = 0


def content_hash31(*parts: object) -> int:
    """31-bit hash of an item's content. A sum of up to 2^22 of them is exact in a double."""
    body = "\x1f".join(map(str, parts)).encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.blake2b(body, digest_size=4).digest()) & 0x7FFFFFFF


def chunk_point(stage: uuid.UUID, n: int) -> uuid.UUID:
    """Return the id of the point of a stage's n-th chunk in the vector store, `uuid5(stage, "c" n)`."""
    return uuid.UUID(bytes=chunk_point_bytes(stage, n))


def chunk_point_bytes(stage: uuid.UUID, n: int) -> bytes:
    """Return the 16 bytes of that id. A search names hundreds of points, and a `UUID` takes five times as long."""
    digest = bytearray(hashlib.sha1(stage.bytes + b"c%d" % n, usedforsecurity=False).digest()[:16])
    digest[6] = digest[6] & 0x0F | 0x50  # version 5
    digest[8] = digest[8] & 0x3F | 0x80  # the variant of RFC 9562
    return bytes(digest)


@dataclass(frozen=True, slots=True, kw_only=True)
class VectorPoint:
    """A chunk as the vector store holds it. `id` is uuid5(stage, n); `hash` covers text and offsets."""

    id: uuid.UUID
    stage: uuid.UUID
    doc: uuid.UUID
    n: int
    start: int
    end: int
    text: str
    """The passage: the words of the word leg. Not stored in the payload."""
    nearby: str
    """The passage with its neighbours, for the second word field. Not stored in the payload."""
    source: str
    kind: str
    time: int  # seconds since 1970
    entities: Sequence[str]
    """Refs of the entities by which it is found, and of its speakers."""
    continues: bool = False
    """It continues the turn of the passage before."""
    asks: bool = False
    """It ends as a question."""
    hash: int


@dataclass(frozen=True, slots=True, kw_only=True)
class GraphAssertion:
    """An assertion as the graph holds it. `id` is uuid5(stage, n)."""

    id: uuid.UUID
    stage: uuid.UUID
    doc: uuid.UUID
    predicate: str
    subject: str
    object: str | None
    value: str | None
    start: int | None
    hash: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Filters:
    """Limits of a search. An empty field limits nothing. `since` is inclusive, `until` exclusive."""

    sources: tuple[str, ...] = ()
    kinds: tuple[str, ...] = ()
    since: datetime | None = None
    until: datetime | None = None
    entities: tuple[str, ...] = ()
    """Refs; a document must name at least one of them."""
    people: tuple[str, ...] = ()
    """Refs; a document must also name at least one of these."""
    stages: tuple[uuid.UUID, ...] = ()
    """Versions of documents. `search.scope` makes them of the documents and conversations that a caller names."""
