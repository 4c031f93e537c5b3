"""Conversations with language models, pushed by agents and apps or imported from exports."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, ClassVar

from apex_memory.errors import Rejected
from apex_memory.model import Assertion, Document, Event, Priority, micros
from apex_memory.sources.base import InboundRequest, Received, Sample, Source, SourceSettings
from apex_memory.sources.llm.chats import anthropic_messages, openai_chat
from apex_memory.sources.llm.documents import Conversation, Turn
from apex_memory.sources.llm.exports import chatgpt_export, claude_export
from apex_memory.sources.llm.settings import LLMSettings
from apex_memory.sources.payloads import (
    as_mapping,
    as_string,
    canonical,
    line,
    parse_identifier,
    parse_json,
    sample,
    sequence,
)

CONTENT_TYPE = "application/vnd.apex.conversation+json"
FORMATS: Mapping[str, Callable[[Mapping[str, Any], str], Conversation]] = {
    "openai.chat": openai_chat,
    "anthropic.messages": anthropic_messages,
    "chatgpt.export": chatgpt_export,
    "claude.export": claude_export,
}
LINES = (
    "application/x-ndjson",
    "application/ndjson",
    "application/jsonl",
    "application/x-jsonlines",
)
MAX_CONVERSATIONS = 10_000


class LLM(Source[LLMSettings]):
    """Conversations of people and agents with language models: OpenAI, Anthropic, ChatGPT and Claude exports.

    A body holds one conversation, an array of them, or one a line (`application/x-ndjson`). The
    format is found out, or given as `"format"` in the object or `?format=`. Each conversation is
    one document, `provider:conversation id`. A body holds the whole talk so far: sending it again
    with more turns makes a new version, which takes the place of the one before.

    - Without a conversation id the hash of agent, user and the first question and answer stands
      for it. Send `conversation_id` for anything that goes on.
    - Event id: the `Idempotency-Key` (`key#n` for the n-th of many). Else the stated time of the
      last change and the number of turns; where no time is stated, the hash of the content. So
      sending the same again is a duplicate.
    - Version: the stated time of the last change, else the latest turn's time, else the time of
      receipt.
    """

    name: ClassVar[str] = "llm"
    title: ClassVar[str] = "LLM conversations"
    priority: ClassVar[Priority] = Priority.P0
    path: ClassVar[str] = "/v1/conversations"
    max_body_bytes: ClassVar[int] = 50_000_000  # exports come as one file
    Settings: ClassVar[type[SourceSettings]] = LLMSettings

    def receive(self, request: InboundRequest) -> Received:
        """One event a conversation; all of them or, when one is malformed, none."""
        found = list(_conversations(request))
        if not 0 < len(found) <= MAX_CONVERSATIONS:
            raise Rejected(
                f"body: {len(found)} conversations, expected 1 to {MAX_CONVERSATIONS}",
                remedy="send at least one, and long exports in parts",
            )
        key = request.idempotency_key
        if key:
            parse_identifier(key, "Idempotency-Key")
        many = len(found) > 1
        return Received(
            [
                self._event(request, place, body, key and (f"{key}#{n}" if many else key))
                for n, (place, body) in enumerate(found)
            ]
        )

    def _event(
        self, request: InboundRequest, place: str, body: Mapping[str, Any], key: str | None
    ) -> Event:
        form = _format(body, place, request.query.get("format"))
        talk = FORMATS[form](body, place)
        payload = canonical(body)
        at = talk.last_at or request.received_at
        if talk.updated:
            # The number of turns, in fixed width: of two snapshots of the same second the longer
            # is a new event, and as the greater event id it wins.
            own = f"{talk.key}@{micros(at)}.{len(talk.turns):05d}"
        else:
            own = f"{talk.key}#{hashlib.sha256(payload).hexdigest()}"
        return Event(
            source=self.name,
            event_id=key or own,
            doc_key=talk.key,
            version=micros(at),
            occurred_at=at,
            payload=payload,
            content_type=f"{CONTENT_TYPE}; format={form}",
            priority=self.priority,
        )

    def document(self, event: Event) -> Document:
        """A `conversation`, one passage a turn. Tool calls and results are cut short."""
        body = as_mapping(parse_json(event.payload))
        form = event.content_type.partition("format=")[2] or None
        talk = FORMATS[_format(body, "", form)](body, "")
        left_out = {
            "thinking": not self.settings.include_thinking,
            "system": not self.settings.include_system,
        }
        turns = [turn for turn in talk.turns if not left_out.get(turn.speaker)]
        text, passages = _told(turns)
        said = [turn.text for turn in turns if turn.speaker == "user"] or [t.text for t in turns]
        return Document(
            kind="conversation",
            title=line(talk.title, 200) or line("\n".join(said)) or "Conversation",
            occurred_at=event.occurred_at,
            text=text,
            passages=passages,
            files=talk.files,
            assertions=tuple(_assertions(talk)),
            metadata=_metadata(talk, turns),
        )

    def samples(self) -> Sequence[Sample]:
        real = ("anthropic_exchange", "openai_completion", "chatgpt_export", "claude_export")
        own = parse_json(sample("llm", "own.json"))
        return [
            *(Sample(name, sample("llm", f"{name}.json")) for name in real),
            *(
                Sample(item["name"], canonical(item["body"]), events=item.get("events", 1))
                for item in own
            ),
            Sample("one_a_line", sample("llm", "lines.jsonl"), LINES[0], events=2),
        ]


def _conversations(request: InboundRequest) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Each conversation of the body with its place in it."""
    if request.content_type in LINES:
        rows = enumerate(request.body.splitlines(), 1)
        found: list[tuple[str, Any]] = [
            (f"line {n}", parse_json(row, f"line {n}")) for n, row in rows if row.strip()
        ]
    else:
        body = parse_json(request.body)
        several = as_mapping(body).get("conversations")
        if as_mapping(body).get("object") == "list":
            several = as_mapping(body).get("data")
        several = several if isinstance(several, list) else body
        found = (
            [(f"[{n}]", item) for n, item in enumerate(several)]
            if isinstance(several, list)
            else [("", body)]
        )
    for place, item in found:
        if not isinstance(item, dict):
            raise Rejected(
                f"{place or 'body'}: expected a conversation, an object", remedy=_EXPECTED
            )
        yield place, item


_EXPECTED = (
    f"send `messages`, `mapping` or `chat_messages`, or name the format: {', '.join(FORMATS)}"
)
_ANTHROPIC_BLOCKS = ("tool_use", "tool_result", "thinking", "redacted_thinking", "server_tool_use")


def _format(body: Mapping[str, Any], place: str, given: str | None) -> str:
    stated = body.get("format", given)
    if stated is not None:
        if isinstance(stated, str) and stated in FORMATS:
            return stated
        raise Rejected(
            f"{place}.format: expected one of {', '.join(FORMATS)}".lstrip("."), remedy=_EXPECTED
        )
    if "mapping" in body:
        return "chatgpt.export"
    if "chat_messages" in body:
        return "claude.export"
    if "request" in body:
        context = as_mapping(as_mapping(body["request"]).get("body", body["request"]))
        answer = as_mapping(body.get("response"))
        return _chat_format({**context, **as_mapping(answer.get("body", answer))})
    if "messages" in body or "choices" in body or body.get("type") == "message":
        return _chat_format(body)
    raise Rejected(f"{place or 'body'}: no conversation format known here", remedy=_EXPECTED)


def _chat_format(body: Mapping[str, Any]) -> str:
    """OpenAI's and Anthropic's requests look alike; blocks, `system` and the model's name tell them apart."""
    blocks = (
        as_mapping(part).get("type")
        for message in sequence(body.get("messages"))
        for part in sequence(as_mapping(message).get("content"))
    )
    anthropic = (
        "system" in body
        or body.get("type") == "message"
        or as_string(body.get("model")).startswith("claude")
        or any(kind in _ANTHROPIC_BLOCKS for kind in blocks)
    )
    return "anthropic.messages" if anthropic and "choices" not in body else "openai.chat"


def _told(turns: Sequence[Turn]) -> tuple[str, tuple[tuple[int, int], ...]]:
    """The turns as text, a blank line between, and the offsets of each."""
    said = [
        f"{' '.join([turn.speaker.capitalize(), turn.name]).strip()}: {turn.text.strip()}"
        for turn in turns
    ]
    passages: list[tuple[int, int]] = []
    start = 0
    for text in said:
        passages.append((start, start + len(text)))
        start += len(text) + 2
    return "\n\n".join(said), tuple(passages)


def _assertions(talk: Conversation) -> Iterator[Assertion]:
    for predicate, party in (("agent", talk.agent), ("user", talk.user)):
        if party is None:
            continue
        own, name = party
        ref = f"email:{own.lower()}" if "@" in own else f"{predicate}:{own}"
        yield Assertion(predicate=predicate, object=ref)
        if name:
            yield Assertion(subject=ref, predicate="name", value=name)


def _metadata(talk: Conversation, turns: Sequence[Turn]) -> dict[str, Any]:
    known = {
        **(talk.metadata or {}),
        "provider": talk.provider,
        "conversation_id": talk.id,
        "model": talk.model,
        "turns": len(turns),
        "participants": sorted({turn.speaker for turn in turns}),
        "tools": sorted({turn.name for turn in turns if turn.name}),
        "agent": talk.agent and talk.agent[0],
        "user": talk.user and talk.user[0],
        "branches": talk.branches,
        "started_at": talk.started and talk.started.isoformat(),
        "updated_at": talk.updated and talk.updated.isoformat(),
    }
    return {name: value for name, value in known.items() if value not in (None, "", [], 0)}
