"""Conversations in the formats of OpenAI's Chat Completions and Anthropic's Messages APIs: requests, responses, pairs of both."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, model_validator

from apex_memory.errors import Rejected
from apex_memory.sources.llm.documents import (
    Conversation,
    Speaker,
    Turn,
    call_text,
    cited_sources,
    limited,
    other_lines,
    parts_of,
    short,
    turns_of,
)
from apex_memory.sources.payloads import (
    ListOf,
    as_mapping,
    as_string,
    checked,
    parse_datetime,
    parse_identifier,
    parse_json,
    sequence,
)


class Loose(BaseModel):
    """Names the fields that are read; further fields are accepted, and null stands for a field that is not there."""

    model_config = ConfigDict(extra="ignore")

    @model_validator(mode="before")
    @classmethod
    def _without_nulls(cls, value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        return {name: given for name, given in value.items() if given is not None}


class _Function(Loose):
    name: str = ""
    arguments: str | dict[str, Any] = ""
    input: str = ""


class _Call(Loose):
    id: str = ""
    function: _Function | None = None
    custom: _Function | None = None


class _Message(Loose):
    role: Literal["developer", "system", "user", "assistant", "tool", "function"]
    content: str | ListOf[str | dict[str, Any]] | None = None
    name: str | None = None
    refusal: str | None = None
    audio: dict[str, Any] | None = None
    tool_calls: ListOf[_Call] | None = None
    function_call: _Function | None = None
    tool_call_id: str | None = None
    annotations: Any = None


MAX_NAME = 60  # characters of a speaker's name

_SPEAKERS: Mapping[str, Speaker] = {
    "developer": "system",
    "system": "system",
    "user": "user",
    "assistant": "assistant",
    "tool": "tool",
    "function": "tool",
}


class _Choice(Loose):
    message: _Message
    finish_reason: str | None = None


class _Chat(Loose):
    """The fields of both vendors' bodies, and of the wrapper around them."""

    conversation_id: str | int | None = None
    id: str | int | None = None
    title: str | None = None
    model: str | None = None
    agent: str | dict[str, Any] | None = None
    user: str | dict[str, Any] | None = None
    messages: ListOf[_Message] = []
    choices: ListOf[_Choice] = []
    system: str | ListOf[str | dict[str, Any]] | None = None
    created_at: float | str | None = None
    updated_at: float | str | None = None
    update_time: float | str | None = None
    created: float | str | None = None
    metadata: dict[str, Any] | None = None
    response_id: str | None = None
    stop_reason: str | None = None


def openai_chat(
    body: Mapping[str, Any], place: str, *, whole: Mapping[str, Any] | None = None
) -> Conversation:
    """Read a chat request, a completion, or both: `messages`, then the first of `choices`. `whole` is the body as it was sent."""
    whole = body if whole is None else whole
    body, exchanged = _joined(body, place)
    chat = checked(_Chat, body, place)
    tools: dict[str, str] = {}
    messages = chat.messages + [choice.message for choice in chat.choices[:1]]
    turns: list[Turn] = []
    for message in messages:
        turns += _openai_turns(message, tools)
    branches = max(0, len(chat.choices) - 1)
    talk = _conversation("openai", chat, turns, place, exchanged=exchanged, branches=branches)
    reason = next((choice.finish_reason or "" for choice in chat.choices[:1]), "")
    return replace(talk, stop_reason=reason or talk.stop_reason, other_lines=other_lines(whole))


def anthropic_messages(body: Mapping[str, Any], place: str) -> Conversation:
    """Read a Messages request, a response, or both. The response may be the recorded event stream."""
    whole = body
    body, exchanged = _joined(body, place)
    if body.get("type") == "message" and "messages" not in body:
        body = {
            "response_id": body.get("id"),
            **body,
            "messages": [{"role": body.get("role"), "content": body.get("content")}],
        }
    chat = checked(_Chat, body, place)
    tools: dict[str, str] = {}
    turns = turns_of("system", parts_of(chat.system), tools)
    for message in chat.messages:
        turns += _named(
            message, turns_of(_SPEAKERS[message.role], parts_of(message.content), tools)
        )
    if chat.stop_reason == "refusal" and not any(
        turn.speaker == "assistant" for turn in turns[-1:]
    ):
        turns.append(Turn("assistant", "[refuses]"))
    talk = _conversation("anthropic", chat, turns, place, exchanged=exchanged)
    return replace(talk, other_lines=other_lines(whole))


def _openai_turns(message: _Message, tools: dict[str, str]) -> list[Turn]:
    if message.role in ("tool", "function"):
        name = message.name or tools.get(message.tool_call_id or "", "")
        text = short(message.content if message.content is not None else "")
        return [Turn("tool", text, name)] if text else []
    parts = [*parts_of(message.content)]
    if message.refusal:
        parts.append({"type": "refusal", "refusal": message.refusal})
    if message.audio:  # a spoken answer has no content
        parts.append({"type": "audio", "audio": message.audio})
    for call in message.tool_calls or ():
        function = call.function or call.custom or _Function()
        tools[call.id] = function.name
        parts.append(call_text(function.name, function.arguments or function.input))
    if function_call := message.function_call:  # the older form
        parts.append(call_text(function_call.name, function_call.arguments))
    turns = _named(message, turns_of(_SPEAKERS[message.role], parts, tools))
    if turns and (cited := cited_sources(message.annotations)):
        turns[-1] = replace(turns[-1], cited=turns[-1].cited + cited)
    return turns


def _named(message: _Message, turns: list[Turn]) -> list[Turn]:
    """Return a message's turns with the name that the message gives its person or agent; a tool's turns keep the tool's."""
    name = " ".join((message.name or "").replace(":", " ").split())[:MAX_NAME]
    return [
        replace(turn, name=name) if name and turn.speaker in ("user", "assistant") else turn
        for turn in turns
    ]


def _conversation(
    provider: str,
    chat: _Chat,
    turns: list[Turn],
    place: str,
    *,
    exchanged: bool,
    branches: int = 0,
) -> Conversation:
    if not turns:
        raise Rejected(
            f"{place}.messages: expected at least one message".lstrip("."),
            remedy="send `messages`, a list of {role, content}",
        )
    # A response's own id names one response, not its conversation.
    own = None if exchanged or ("choices" in chat.model_fields_set and chat.messages) else chat.id
    id = chat.conversation_id if chat.conversation_id is not None else own
    updated = chat.updated_at or chat.update_time or chat.created
    return Conversation(
        provider=provider,
        id=None if id is None else parse_identifier(id, f"{place}.conversation_id".lstrip(".")),
        turns=limited(turns, place),
        title=chat.title or "",
        model=chat.model or "",
        started=_moment(chat.created_at, place, "created_at"),
        updated=_moment(updated, place, "updated_at"),
        branches=branches,
        agent=_party(chat.agent),
        user=_party(chat.user or as_string(as_mapping(chat.metadata).get("user_id")) or None),
        metadata=chat.metadata,
        response_id=chat.response_id or ("" if own is not None else str(chat.id or "")),
        stop_reason=chat.stop_reason or "",
    )


# What says of a conversation what it is, beside a request and its response or among the fields of the request.
_OF_CONVERSATION = frozenset(
    [
        "format",
        "conversation_id",
        "title",
        "agent",
        "user",
        "created_at",
        "updated_at",
        "update_time",
        "metadata",
    ]
)

_ANSWERS = frozenset(("choices", "output", "content", "body"))
"""A response of a vendor, or recorded HTTP, has one of these."""


def as_pair(body: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return a body whose `response` stands among the fields of its request as a `{request, response}` pair.

    Any other body is returned as it is. A response that is plain words becomes the last message.
    """
    answer = body.get("response")
    if "request" in body or not answer or not ("messages" in body or "input" in body):
        return body
    rest = {name: value for name, value in body.items() if name != "response"}
    if isinstance(answer, str) and not _is_recorded(answer):
        turns = "messages" if "messages" in body else "input"
        asked = sequence(rest[turns]) or [{"role": "user", "content": rest[turns]}]
        return {**rest, turns: [*asked, {"role": "assistant", "content": answer}]}
    if isinstance(answer, dict) and answer.keys().isdisjoint(_ANSWERS):
        return body
    outer = {name: value for name, value in rest.items() if name in _OF_CONVERSATION}
    if "id" in rest:  # it stands beside the messages, so it is the conversation's
        outer.setdefault("conversation_id", rest["id"])
    request = {name: value for name, value in rest.items() if name not in (*_OF_CONVERSATION, "id")}
    return {**outer, "request": request, "response": answer}


def _is_recorded(answer: str) -> bool:
    """Return whether a response that is text is JSON, or a stream of server-sent events."""
    return answer.lstrip().startswith(("{", "data:", "event:", "id:", ":"))


def _joined(body: Mapping[str, Any], place: str) -> tuple[Mapping[str, Any], bool]:
    """Return a `{request, response}` pair as one body, and whether it was a pair."""
    if not isinstance(body.get("request"), dict):
        return body, False
    context, answer, outer = request_and_response(body, place)
    own = {
        name: answer[name]
        for name in ("choices", "created", "model", "stop_reason")
        if name in answer
    }
    own["response_id"] = as_string(answer.get("id")) or None
    messages = [*sequence(context.get("messages"))]
    if answer.get("type") == "message":
        messages.append({"role": "assistant", "content": answer.get("content")})
    return {**context, **own, **outer, "messages": messages}, True


def request_and_response(
    body: Mapping[str, Any], place: str
) -> tuple[Mapping[str, Any], Mapping[str, Any], Mapping[str, Any]]:
    """Return the request, the response, and what stands beside them in a `{request, response}` pair; any other body is both.

    Request and response may be recorded HTTP, with `body` inside, and the response a recorded stream.
    """
    if not isinstance(body.get("request"), dict):
        return body, body, {}
    request = as_mapping(body["request"])
    answer = body.get("response")
    if isinstance(answer, dict):
        answer = answer.get("body", answer)
    if isinstance(answer, str):
        answer = _recorded(answer, f"{place}.response.body".lstrip("."))
    outer = {name: value for name, value in body.items() if name not in ("request", "response")}
    return as_mapping(request.get("body", request)), as_mapping(answer), outer


def _recorded(answer: str, place: str) -> Any:
    """Return a response recorded as text: JSON, or the whole that the events of a vendor's stream add up to.

    Lines end at LF alone (with or without CR): the JSON in them may hold U+2028 and U+0085, which `splitlines` splits at.
    """
    if answer.lstrip().startswith("{"):
        return parse_json(answer.encode(), place)
    events = [
        as_mapping(parse_json(row.removeprefix("data:").encode(), place))
        for row in answer.split("\n")
        if row.startswith("data:") and row.strip() != "data: [DONE]"
    ]
    whole = _whole_response(events) or _whole_completion(events) or _whole_message(events)
    if not whole:
        raise Rejected(
            f"{place}: expected JSON or the server-sent events of OpenAI or Anthropic",
            remedy="send the stream as recorded, or the final message",
        )
    return whole


def _whole_response(events: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the response of a stream of OpenAI's Responses API. One that was cut has the items that were done."""
    response: dict[str, Any] = {}
    items: list[object] = []
    for event in events:
        kind = as_string(event.get("type"))
        if kind.startswith("response."):
            response.update(as_mapping(event.get("response")))
        if kind == "response.output_item.done":
            items.append(event.get("item"))
    return {**response, "output": response.get("output") or items} if response or items else {}


def _whole_completion(events: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the completion of a stream of OpenAI's Chat Completions API, of which only the first choice is read."""
    chunks = [event for event in events if "choices" in event]
    if not chunks:
        return {}
    finish_reason: object = None
    deltas: list[Mapping[str, Any]] = []
    for chunk in chunks:
        for given in map(as_mapping, sequence(chunk.get("choices"))):
            if given.get("index", 0) == 0:
                finish_reason = given.get("finish_reason") or finish_reason
                deltas.append(as_mapping(given.get("delta")))
    annotations: list[object] = []
    for delta in deltas:
        annotations += sequence(delta.get("annotations"))
    message: dict[str, Any] = {
        "role": "assistant",
        "content": _texts(deltas, "content"),
        "refusal": _texts(deltas, "refusal"),
        "annotations": annotations,
        "tool_calls": _calls(deltas),
    }
    spoken = [as_mapping(delta.get("audio")) for delta in deltas]
    if transcript := _texts(spoken, "transcript"):
        message["audio"] = {"transcript": transcript}
    return {
        **{name: chunks[0].get(name) for name in ("id", "created", "model")},
        "choices": [{"message": message, "finish_reason": finish_reason}],
    }


def _texts(deltas: Iterable[Mapping[str, Any]], field: str) -> str:
    """Return a field's text over all deltas, joined once: a stream may have 100,000 of them."""
    return "".join(as_string(delta.get(field)) for delta in deltas)


def _calls(deltas: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the tool calls in the deltas of a message; a part with an id begins the next call."""
    calls: list[list[Mapping[str, Any]]] = []
    for delta in deltas:
        for part in map(as_mapping, sequence(delta.get("tool_calls"))):
            if part.get("id") or not calls:
                calls.append([])
            calls[-1].append(part)
    whole: list[dict[str, Any]] = []
    for parts in calls:
        functions = [as_mapping(part.get("function")) for part in parts]
        function = {name: _texts(functions, name) for name in ("name", "arguments")}
        whole.append({"id": _texts(parts, "id"), "function": function})
    return whole


def _whole_message(events: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the message of a stream of Anthropic's Messages API."""
    message: dict[str, Any] = {}
    blocks: dict[int, Mapping[str, Any]] = {}
    deltas: dict[int, list[Mapping[str, Any]]] = {}
    for event in events:
        index, delta = event.get("index", 0), as_mapping(event.get("delta"))
        if not isinstance(index, int):
            continue
        if event.get("type") == "message_start":
            message = dict(as_mapping(event.get("message")))
        elif event.get("type") == "message_delta":
            message.update({name: value for name, value in delta.items() if name in _DELTAS})
        elif event.get("type") == "content_block_start":
            blocks[index], deltas[index] = as_mapping(event.get("content_block")), []
        elif index in blocks:
            deltas[index].append(delta)
    content = [_whole_block(blocks[n], deltas[n]) for n in sorted(blocks)]
    return {**message, "content": content} if message else {}


_DELTAS = ("stop_reason", "stop_sequence")
"""Fields of a message that the end of its stream states."""


def _whole_block(block: Mapping[str, Any], deltas: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return a content block of Anthropic's format with the deltas that followed its start."""
    whole = dict(block)
    for name in ("text", "thinking", "partial_json"):
        if any(isinstance(delta.get(name), str) for delta in deltas):
            whole[name] = as_string(block.get(name)) + _texts(deltas, name)
    cited = [delta.get("citation") for delta in deltas if delta.get("type") == "citations_delta"]
    if cited:
        whole["citations"] = [*sequence(block.get("citations")), *cited]
    whole["input"] = as_string(whole.pop("partial_json", "")) or whole.get("input")
    return whole


def _party(value: str | dict[str, Any] | None) -> tuple[str, str] | None:
    """Return an agent or user as (id, name): a text is its id, an object has `id` or `name`."""
    given = {"id": value} if isinstance(value, str) else as_mapping(value)
    name = " ".join(as_string(given.get("name")).split())
    own = " ".join((as_string(given.get("id")) or name).split())
    return (own[:300], name[:300]) if own else None


def _moment(value: float | str | None, place: str, field: str) -> datetime | None:
    return None if value in (None, "") else parse_datetime(value, f"{place}.{field}".lstrip("."))
