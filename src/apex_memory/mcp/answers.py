"""What the tools return. The output schemas of the tools are made from these classes."""

from __future__ import annotations

from datetime import datetime
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from apex_memory.mcp.quoting import NOTICE


class AnswerPart(BaseModel):
    """Base of all parts of an answer."""

    model_config = ConfigDict(frozen=True)


class SourceFreshness(AnswerPart):
    """How current a source is."""

    source: str
    state: str = Field(
        description="idle and working are normal; paused, disabled, failing and stalled are not."
    )
    last_event_at: datetime | None = Field(description="When its newest event arrived.")
    pulled_at: datetime | None = Field(
        description="When it was last fetched without an error; null for a source that sends its events."
    )
    waiting: int = Field(description="Events that have arrived and are not searchable yet.")
    behind: bool = Field(
        description="True if newer events than the searchable ones may exist: do not call the answer up to date."
    )
    reason: str | None = Field(description="Why it is behind.")


class Origin(AnswerPart):
    """Where a version of a document came from."""

    event: str = Field(description="Id of the event that brought it.")
    source_event: str = Field(description="The source's own id for that event.")
    version: int
    received_at: datetime


class Answer(AnswerPart):
    """Base of all answers."""

    notice: str = NOTICE
    degraded: list[str] = Field(
        description="Stores that could not take part in full, so that something may be missing; `reranker` changes the order only. Empty is good."
    )
    freshness: list[SourceFreshness] = Field(
        description="The sources that this answer rests on, and every source that is behind."
    )


class Passage(AnswerPart):
    """A passage of a document."""

    rank: int
    document_id: str
    uri: str = Field(description="The document as a resource.")
    title: str
    source: str
    kind: str
    occurred_at: datetime
    text: str
    score: float = Field(description="Higher is better; comparable within this answer only.")
    about: list[str] = Field(description="Entities of the question that led to this passage.")
    speaker: str | None = Field(description="Who says it, in a conversation or a message.")
    said_at: datetime | None = Field(description="When it was said, if that is known.")
    link: str = Field(
        description="The document's page at its vendor, or its path in the API: to cite, not to open."
    )
    origin: Origin


class Citation(AnswerPart):
    """The document of a piece of a context."""

    number: int = Field(description="The number in brackets above the piece.")
    document_id: str
    uri: str = Field(description="The document as a resource.")
    title: str
    source: str
    kind: str
    occurred_at: datetime
    speaker: str | None = Field(description="Who says it, in a conversation or a message.")
    said_at: datetime | None = Field(description="When it was said, if that is known.")
    link: str = Field(
        description="The document's page at its vendor, or its path in the API: to cite, not to open."
    )
    cut: bool = Field(description="True if it is only a part of a sentence.")


class Context(AnswerPart):
    """The best passages in one text, in whole sentences."""

    text: str = Field(
        description="The passages, each under a line with its number, title, kind, source and time."
    )
    tokens: int = Field(description="An estimate of the tokens of `text`.")
    citations: list[Citation]
    left_out: int = Field(description="Passages that were found and are not in it whole.")


class SearchResult(Answer):
    """Passages, best first, or with `max_tokens` a context."""

    passages: list[Passage] = Field(description="Empty if `context` is there.")
    context: Context | None = Field(description="Present if `max_tokens` was given.")
    unknown: list[str] = Field(
        description="Identifiers of the question that no document holds: the passages do not concern them."
    )
    evidence: Literal["strong", "weak"] | None = Field(
        description="`weak`: the passages hardly answer the question, memory may have no answer. Say so, or search in other words."
    )
    next_offset: int | None = Field(description="`offset` of the next page; null on the last.")


class DocumentText(Answer):
    """A document, or a part of it."""

    document_id: str
    uri: str
    title: str
    source: str
    kind: str
    occurred_at: datetime
    text: str
    start: int = Field(description="Offset of `text` in the whole text, in characters.")
    end: int
    total_chars: int
    next_offset: int | None = Field(description="`offset` of the next part; null on the last.")
    entities: list[str] = Field(description="Entities that it names, as `type:key` for get_entity.")
    versions: int = Field(description="How many versions are known.")
    left_out: list[str] = Field(
        description="What limits left out of the document; empty if it is whole."
    )
    origin: Origin


class Fact(AnswerPart):
    """`subject predicate value`, and the document that states it."""

    subject: str
    predicate: str
    value: str
    document_id: str


class Happening(AnswerPart):
    """A document in a timeline."""

    document_id: str
    uri: str
    occurred_at: datetime
    source: str
    kind: str
    title: str
    committed_at: datetime


class EntityAnswer(Answer):
    """What current documents say about an entity, and its timeline over all sources, the latest occurrence first."""

    ref: str
    uri: str
    names: list[str]
    attributes: list[Fact]
    relations: list[Fact]
    related: dict[str, int] = Field(
        description="Related entities, with the number of relations to each."
    )
    facts_left_out: int = Field(
        description="Attributes and relations beyond those shown; the timeline's documents hold them."
    )
    timeline: list[Happening]
    next_cursor: str | None = Field(
        description="`cursor` of the next page of the timeline, also of a page that is short or empty; null on the last."
    )


class RecentEvent(AnswerPart):
    """An event: something that a source sent."""

    event: str
    document_id: str
    uri: str
    source: str
    kind: str | None
    title: str | None
    state: str = Field(
        description="done is searchable; superseded: a newer version is; dead: it could not be processed; others are on their way."
    )
    deletion: bool = Field(description="True if it removed its document.")
    occurred_at: datetime
    received_at: datetime
    problem: str | None


class RecentEvents(Answer):
    """Events, newest first."""

    events: list[RecentEvent]
    next_cursor: str | None = Field(description="`cursor` of the next page; null on the last.")


class MemoryStatus(Answer):
    """Whether the memory is complete and current. `degraded` names the stores that are not ready."""

    current: bool = Field(
        description="True if every store is ready, and the state of the sources is known and none is behind."
    )
    freshness_known: bool = Field(
        description="False: how current the sources are could not be read just now. Ask again before you call an answer up to date."
    )
    unfinished_events: int | None
    waiting_for_a_store: int | None
    dead_letters: int | None = Field(
        description="Events that could not be processed and need a person."
    )


class Remembered(Answer):
    """A text that is stored durably."""

    document_id: str
    uri: str
    event: str
    searchable: bool = Field(
        description="False: it is stored, and will be searchable shortly. Do not store it again."
    )
    already_known: bool = Field(description="True if the same text was stored before.")
