"""Conversations with language models, pushed by agents and apps or imported from exports."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from io import BytesIO
from typing import Any, ClassVar
from urllib.parse import quote

from apex_memory.errors import Rejected
from apex_memory.model import Assertion, Document, Event, Priority, micros
from apex_memory.model import Turn as SpokenTurn
from apex_memory.sources.base import (
    InboundRequest,
    Received,
    Sample,
    Source,
    SourceSettings,
    content_id,
)
from apex_memory.sources.fields import RecordFields, labelled
from apex_memory.sources.llm.chats import anthropic_messages, as_pair, openai_chat
from apex_memory.sources.llm.documents import CONVERSATION_FIELDS, Conversation, Turn
from apex_memory.sources.llm.exports import chatgpt_export, claude_export
from apex_memory.sources.llm.responses import (
    conversation_of_items,
    is_item_list,
    is_responses,
    openai_responses,
)
from apex_memory.sources.llm.settings import LLMSettings
from apex_memory.sources.payloads import (
    as_mapping,
    as_string,
    canonical,
    check_metadata,
    check_value_count,
    line,
    parse_json,
    sample,
    sequence,
)

CONTENT_TYPE = "application/vnd.apex.conversation+json"
FORMATS: Mapping[str, Callable[[Mapping[str, Any], str], Conversation]] = {
    "openai.chat": openai_chat,
    "openai.responses": openai_responses,
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
AHEAD = timedelta(days=1)
"""How far a stated time may lie after the arrival: times of all zones differ by about a day."""


class LLM(Source[LLMSettings]):
    """Conversations of people and agents with language models: OpenAI, Anthropic, ChatGPT and Claude exports.

    A body holds one conversation, an array of them, or one per line (`application/x-ndjson`). The
    format is recognised, or given as `"format"` in the object or `?format=`. Each conversation is
    one document, `provider:conversation id`. A body holds the whole conversation so far: sending
    it again with more turns makes a new version, which replaces the one before.

    - Without a conversation id, the hash of agent, user and the first question and answer is the
      id. Send `conversation_id` for any conversation that continues.
    - Event id: the API key's name and the `Idempotency-Key` (`#1`, `#2` … for further ones). Else the stated time of the
      last change, the size and the hash of the content. So sending the same again is a duplicate,
      and any change is a new event.
    - Version: the stated time of the last change, else the latest turn's time, else the time of
      receipt, which also counts instead of a time more than a day after it. Of two states with one stated time the later arrival wins, and within one body the
      later one.
    """

    name: ClassVar[str] = "llm"
    title: ClassVar[str] = "LLM conversations"
    priority: ClassVar[Priority] = Priority.P0
    path: ClassVar[str] = "/v1/conversations"
    max_body_bytes: ClassVar[int] = 50_000_000  # exports come as one file
    Settings: ClassVar[type[SourceSettings]] = LLMSettings
    key_prefixes: ClassVar[Sequence[str]] = ("openai:", "anthropic:", "chatgpt:", "claude:")
    records: ClassVar[Sequence[RecordFields]] = (CONVERSATION_FIELDS,)
    called: ClassVar[Mapping[str, str]] = {
        "": "agent assistant bot",
        "conversation": "chat answer",
    }

    def receive(self, request: InboundRequest) -> Received:
        """Return one event per conversation. Raises `Rejected` for the whole body when one is malformed."""
        conversations = list(_conversations(request))
        if not conversations:
            raise _wrong_number(0)
        ids = request.named_ids(len(conversations))
        events: list[Event] = []
        before: Counter[str] = Counter()  # events of the same conversation earlier in this body
        for (place, body), event_id in zip(conversations, ids, strict=True):
            event = self._event(request, place, body, event_id)
            event = replace(event, version=event.version + before[event.doc_key])
            before[event.doc_key] += 1
            events.append(event)
        return Received(events)

    def _event(
        self, request: InboundRequest, place: str, body: Mapping[str, Any], key: str | None
    ) -> Event:
        pair = as_pair(body)
        form = _format(pair, place, request.query.get("format"))
        talk = FORMATS[form](pair, place)
        check_metadata(talk.metadata, f"{place}.metadata".lstrip("."), request.metadata_max_bytes)
        payload = canonical(body)
        digest = hashlib.sha256(payload).hexdigest()
        at = talk.last_at or request.received_at
        if talk.updated:
            # Turns and characters in fixed width: of two states with one version the longer has the
            # greater event id, and wins.
            characters = sum(len(turn.text) for turn in talk.turns)
            own = f"{talk.key}@{micros(at)}.{len(talk.turns):05d}.{characters:09d}#{digest[:24]}"
        else:
            own = f"{talk.key}#{digest}"
        return Event(
            source=self.name,
            event_id=key or content_id(own),
            doc_key=talk.key,
            version=_version(at, request.received_at),
            occurred_at=at,
            payload=payload,
            content_type=f"{CONTENT_TYPE}; format={form}",
            priority=self.priority,
        )

    def document(self, event: Event) -> Document:
        """Return a `conversation` with one passage per turn. Long tool calls and results are cut."""
        body = as_pair(as_mapping(parse_json(event.payload)))
        form = event.content_type.partition("format=")[2] or None
        talk = FORMATS[_format(body, "", form)](body, "")
        left_out = {
            "thinking": not self.settings.include_thinking,
            "system": not self.settings.include_system,
        }
        turns = [turn for turn in talk.turns if not left_out.get(turn.speaker)]
        text, passages = _render(turns)
        user = (talk.user and talk.user[1]) or ""
        text = "\n\n".join(filter(None, (text, _about(talk))))
        questions = [turn.text for turn in turns if turn.speaker == "user"]
        opening = questions or [turn.text for turn in turns]
        return Document(
            kind="conversation",
            title=line(talk.title, 200) or line("\n".join(opening)) or "Conversation",
            occurred_at=event.occurred_at,
            text=text,
            passages=passages,
            files=talk.files,
            assertions=tuple(_assertions(talk)),
            metadata=_metadata(talk, turns),
            turns=tuple(
                SpokenTurn(start, end, _speaker(turn, user), turn.at)
                for turn, (start, end) in zip(turns, passages, strict=True)
            ),
            link=_link(talk),
        )

    def samples(self) -> Sequence[Sample]:
        third_party = ("anthropic_exchange", "openai_completion", "chatgpt_export", "claude_export")
        own = parse_json(sample("llm", "own.json"))
        return [
            *(Sample(name, sample("llm", f"{name}.json")) for name in third_party),
            *(
                Sample(item["name"], canonical(item["body"]), events=item.get("events", 1))
                for item in own
            ),
            Sample("one_a_line", sample("llm", "lines.jsonl"), LINES[0], events=2),
        ]


def _conversations(request: InboundRequest) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield each conversation of the body with its place."""
    if request.content_type in LINES:
        check_value_count(request.body, "body")
        items: list[tuple[str, Any]] = []
        for n, row in enumerate(BytesIO(request.body), 1):
            if row.strip():
                items.append((f"line {n}", parse_json(row, f"line {n}")))
            if len(items) > MAX_CONVERSATIONS:
                raise _wrong_number(f"more than {MAX_CONVERSATIONS}")
    else:
        body = parse_json(request.body)
        listed = as_mapping(body).get("conversations", body)
        if as_mapping(body).get("object") == "list":
            listed = as_mapping(body).get("data")
            if is_item_list(listed):
                listed = conversation_of_items(as_mapping(body), "data")
        if isinstance(listed, list):
            if len(listed) > MAX_CONVERSATIONS:
                raise _wrong_number(len(listed))
            items = [(f"[{n}]", item) for n, item in enumerate(listed)]
        else:
            items = [("", listed)]
    for place, item in items:
        if not isinstance(item, dict):
            raise Rejected(
                f"{place or 'body'}: expected a conversation, an object", remedy=_EXPECTED
            )
        yield place, item


def _wrong_number(count: int | str) -> Rejected:
    return Rejected(
        f"body: {count} conversations, expected 1 to {MAX_CONVERSATIONS}",
        remedy="send at least one, and long exports in parts",
    )


_EXPECTED = f"send `messages`, `input`, `mapping` or `chat_messages`, or name the format: {', '.join(FORMATS)}"
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
    known = "messages" in body or "choices" in body or body.get("type") == "message"
    if known or is_responses(body):
        return _chat_format(body)
    raise Rejected(f"{place or 'body'}: unknown conversation format", remedy=_EXPECTED)


def _chat_format(body: Mapping[str, Any]) -> str:
    """Return the format of a request, a response, or both: OpenAI's and Anthropic's chats differ by blocks, `system` and the model's name."""
    if is_responses(body):
        return "openai.responses"
    kinds: set[object] = set()
    for message in sequence(body.get("messages")):
        parts = sequence(as_mapping(message).get("content"))
        kinds.update(as_string(as_mapping(part).get("type")) for part in parts)
    anthropic = (
        "system" in body
        or body.get("type") == "message"
        or as_string(body.get("model")).startswith("claude")
        or not kinds.isdisjoint(_ANTHROPIC_BLOCKS)
    )
    return "anthropic.messages" if anthropic and "choices" not in body else "openai.chat"


def _version(at: datetime, received_at: datetime) -> int:
    """Return the version of a state: its time in microseconds, with digits below its resolution for the arrival.

    Times come in seconds or milliseconds, so two states may have the same one, such as a conversation and its redaction.
    The unused digits grow with the time from the statement to the arrival, so that the later arrival is the newer version:
    by its square root in seconds, by its cube root in milliseconds, which leaves room for 30 years.

    Instead of a time more than `AHEAD` after the arrival the arrival counts, so that a wrong clock does not hide all later
    states. Within it the stated times keep their order: a clock may run ahead a little, or state another zone's time.
    """
    if at > received_at + AHEAD:
        return micros(received_at)
    stated = micros(at)
    elapsed = max(0.0, (received_at - at).total_seconds())
    if stated % 1_000_000 == 0:
        return stated + min(int((elapsed * 1000) ** (1 / 2)), 999_999)
    if stated % 1_000 == 0:
        return stated + min(int(elapsed ** (1 / 3)), 999)
    return stated


def _render(turns: Sequence[Turn]) -> tuple[str, tuple[tuple[int, int], ...]]:
    """Return the turns as text with blank lines between them, and the offsets of each turn."""
    texts: list[str] = []
    passages: list[tuple[int, int]] = []
    start = 0
    for turn in turns:
        text = f"{turn.label}: {turn.shown}"
        texts.append(text)
        passages.append((start, start + len(text)))
        start += len(text) + 2
    return "\n\n".join(texts), tuple(passages)


def _speaker(turn: Turn, user: str) -> str:
    """Return who speaks: a person or agent by name where it is known, a tool with its name."""
    if turn.name and turn.speaker in ("user", "assistant"):
        return turn.name
    if turn.speaker == "user" and user:
        return user
    return f"{turn.speaker} {turn.name}".strip()


_PAGES = {"chatgpt": "https://chatgpt.com/c/", "claude": "https://claude.ai/chat/"}


def _link(talk: Conversation) -> str:
    """Return the address of an exported conversation; empty for one that an agent sent."""
    page = _PAGES.get(talk.provider)
    return f"{page}{quote(talk.id, safe='')}" if page and talk.id else ""


_USUAL_ENDS = ("", "stop", "end_turn", "tool_use", "tool_calls", "stop_sequence", "function_call")


def _about(talk: Conversation) -> str:
    """Return the lines about a conversation that follow its turns, outside their passages: its ids, so that they find it."""
    ids = {
        "Conversation id": talk.id or "",
        "Response id": talk.response_id,
        "Stopped because of": "" if talk.stop_reason in _USUAL_ENDS else talk.stop_reason,
    }
    return "\n".join(filter(None, (labelled(ids), *talk.other_lines)))


def _assertions(talk: Conversation) -> Iterator[Assertion]:
    for predicate, party in (("agent", talk.agent), ("user", talk.user)):
        if party is None:
            continue
        own, name = party
        ref = f"email:{own.lower()}" if "@" in own else f"{predicate}:{own}"
        yield Assertion(predicate=predicate, object=ref)
        if name:
            yield Assertion(subject=ref, predicate="name", value=name)


def _participant(turn: Turn) -> str:
    """Return the name of a turn's person or agent, or its role where it has no name."""
    return turn.label if turn.name and turn.speaker != "tool" else turn.speaker


def _metadata(talk: Conversation, turns: Sequence[Turn]) -> dict[str, Any]:
    known = {
        **(talk.metadata or {}),
        "provider": talk.provider,
        "conversation_id": talk.id,
        "response_id": talk.response_id,
        "stop_reason": talk.stop_reason,
        "model": talk.model,
        "turns": len(turns),
        "participants": sorted({_participant(turn) for turn in turns}),
        "tools": sorted({turn.name for turn in turns if turn.name and turn.speaker == "tool"}),
        "agent": talk.agent and talk.agent[0],
        "user": talk.user and talk.user[0],
        "branches": talk.branches,
        "started_at": talk.started and talk.started.isoformat(),
        "updated_at": talk.updated and talk.updated.isoformat(),
    }
    return {name: value for name, value in known.items() if value not in (None, "", [], 0)}
