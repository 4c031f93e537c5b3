"""Conversations in the formats of OpenAI's and Anthropic's APIs: requests, responses, pairs of both, item lists."""

from __future__ import annotations

from collections.abc import Mapping
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
    limited,
    other_lines,
    parts_of,
    short,
    turns_of,
)
from apex_memory.sources.payloads import (
    as_mapping,
    as_string,
    canonical,
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
    content: str | list[str | dict[str, Any]] | None = None
    name: str | None = None
    refusal: str | None = None
    audio: dict[str, Any] | None = None
    tool_calls: list[_Call] | None = None
    function_call: _Function | None = None
    tool_call_id: str | None = None


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
    messages: list[_Message] = []
    choices: list[_Choice] = []
    system: str | list[str | dict[str, Any]] | None = None
    created_at: float | str | None = None
    updated_at: float | str | None = None
    update_time: float | str | None = None
    created: float | str | None = None
    metadata: dict[str, Any] | None = None
    response_id: str | None = None
    stop_reason: str | None = None


def openai_chat(body: Mapping[str, Any], place: str) -> Conversation:
    """Read a chat request, a completion, or both: `messages`, then the first of `choices`."""
    whole = body
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
    return replace(talk, stop_reason=reason, other_lines=other_lines(whole))


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
    return _named(message, turns_of(_SPEAKERS[message.role], parts, tools))


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


def _joined(body: Mapping[str, Any], place: str) -> tuple[Mapping[str, Any], bool]:
    """Return a `{request, response}` pair as one body, and whether it was a pair. Both may be recorded HTTP, with `body` inside."""
    if not isinstance(body.get("request"), dict):
        return body, False
    request = as_mapping(body["request"])
    context = as_mapping(request.get("body", request))
    answer = body.get("response")
    if isinstance(answer, dict):
        answer = answer.get("body", answer)
    if isinstance(answer, str):
        answer = _recorded(answer, f"{place}.response.body".lstrip("."))
    acknowledged = as_mapping(answer)
    outer = {name: value for name, value in body.items() if name not in ("request", "response")}
    own = {
        name: acknowledged[name]
        for name in ("choices", "created", "model", "stop_reason")
        if name in acknowledged
    }
    own["response_id"] = as_string(acknowledged.get("id")) or None
    messages = [*sequence(context.get("messages"))]
    if acknowledged.get("type") == "message":
        messages.append({"role": "assistant", "content": acknowledged.get("content")})
    return {**context, **own, **outer, "messages": messages}, True


def _recorded(answer: str, place: str) -> Any:
    """Return a response recorded as text: JSON, or the whole that the events of a vendor's stream add up to.

    Lines end at LF alone (with or without CR): the JSON in them may hold U+2028 and U+0085, which `splitlines` splits at.
    """
    if answer.lstrip().startswith("{"):
        return parse_json(answer.encode(), place)
    message: dict[str, Any] = {}
    blocks: dict[int, dict[str, Any]] = {}
    completion: dict[str, Any] = {}
    for row in answer.split("\n"):
        if not row.startswith("data:") or row.strip() == "data: [DONE]":
            continue
        event = as_mapping(parse_json(row.removeprefix("data:").encode(), place))
        if "choices" in event:
            _add_chunk(completion, event)
            continue
        index, delta = event.get("index", 0), as_mapping(event.get("delta"))
        if not isinstance(index, int):
            continue
        if event.get("type") == "message_start":
            message = dict(as_mapping(event.get("message")))
        elif event.get("type") == "message_delta":
            message.update({name: value for name, value in delta.items() if name in _DELTAS})
        elif event.get("type") == "content_block_start":
            blocks[index] = dict(as_mapping(event.get("content_block")))
        elif index in blocks:
            _extend(blocks[index], delta)
    if completion:
        return completion
    if not message:
        raise Rejected(
            f"{place}: expected JSON or the server-sent events of OpenAI or Anthropic",
            remedy="send the stream as recorded, or the final message",
        )
    for block in blocks.values():
        block["input"] = as_string(block.pop("partial_json", "")) or block.get("input")
    return {**message, "content": [blocks[index] for index in sorted(blocks)]}


def _add_chunk(completion: dict[str, Any], chunk: Mapping[str, Any]) -> None:
    """Add a chunk of OpenAI's stream to the completion, of which only the first choice is read."""
    message: dict[str, Any] = {"role": "assistant", "content": "", "tool_calls": []}
    for name in ("id", "created", "model"):
        completion.setdefault(name, chunk.get(name))
    [choice] = completion.setdefault("choices", [{"message": message}])
    message, calls = choice["message"], choice["message"]["tool_calls"]
    for given in map(as_mapping, sequence(chunk.get("choices"))):
        if given.get("index", 0) != 0:
            continue
        choice["finish_reason"] = given.get("finish_reason") or choice.get("finish_reason")
        delta = as_mapping(given.get("delta"))
        message["content"] += as_string(delta.get("content"))
        message["refusal"] = as_string(message.get("refusal")) + as_string(delta.get("refusal"))
        if spoken := as_string(as_mapping(delta.get("audio")).get("transcript")):
            message["audio"] = {
                "transcript": as_string(as_mapping(message.get("audio")).get("transcript")) + spoken
            }
        for part in map(as_mapping, sequence(delta.get("tool_calls"))):
            function = as_mapping(part.get("function"))
            if part.get("id") or not calls:
                calls.append({"id": "", "function": {"name": "", "arguments": ""}})
            call = calls[-1]
            call["id"] += as_string(part.get("id"))
            for name in call["function"]:
                call["function"][name] += as_string(function.get(name))


_DELTAS = ("stop_reason", "stop_sequence")
"""Fields of a message that the end of its stream states."""


def _extend(block: dict[str, Any], delta: Mapping[str, Any]) -> None:
    for name in ("text", "thinking", "partial_json"):
        if isinstance(delta.get(name), str):
            block[name] = as_string(block.get(name)) + delta[name]


def _party(value: str | dict[str, Any] | None) -> tuple[str, str] | None:
    """Return an agent or user as (id, name): a text is its id, an object has `id` or `name`."""
    given = {"id": value} if isinstance(value, str) else as_mapping(value)
    name = " ".join(as_string(given.get("name")).split())
    own = " ".join((as_string(given.get("id")) or name).split())
    return (own[:300], name[:300]) if own else None


def _moment(value: float | str | None, place: str, field: str) -> datetime | None:
    return None if value in (None, "") else parse_datetime(value, f"{place}.{field}".lstrip("."))


_ITEM_TYPES = ("message", "function_call", "function_call_output", "reasoning")
_ARGUMENTS = ("arguments", "input", "action", "queries", "code")
"""Fields of a call of a tool of OpenAI's or of another server, of which each type has one."""
_RESULTS = ("output", "results", "outputs", "error")


def is_item_list(value: object) -> bool:
    """Return whether a value is a list of OpenAI's conversation items (Responses and Conversations APIs).

    Each item has a type, at least one a type known here: there are many more for the calls of OpenAI's own tools.
    """
    items = [as_mapping(item) for item in sequence(value)]
    types = [as_string(item.get("type")) for item in items]
    whole = any("messages" in item or "choices" in item for item in items)
    return all(types) and not whole and not set(types).isdisjoint(_ITEM_TYPES)


def conversation_of_items(body: Mapping[str, Any], field: str) -> dict[str, Any]:
    """Return a list of OpenAI's items as one chat body: an item is a turn, not a conversation.

    `web_search_call`, `mcp_call`, `mcp_approval_request` and others are calls of tools, most with their result. Another item has
    the words of its summary, if any.
    """
    messages: list[dict[str, Any]] = []
    for item in map(as_mapping, sequence(body.get(field))):
        kind = as_string(item.get("type"))
        call_id = as_string(item.get("call_id")) or as_string(item.get("id"))
        if kind == "message":
            messages.append({"role": item.get("role"), "content": item.get("content")})
        elif kind.endswith(("_call", "_request")):
            arguments = next((item[name] for name in _ARGUMENTS if item.get(name)), "")
            function = {
                "name": as_string(item.get("name")) or kind.removesuffix("_call"),
                "arguments": arguments if isinstance(arguments, str | dict) else _text(arguments),
            }
            call = {"id": call_id, "function": function}
            messages.append({"role": "assistant", "content": None, "tool_calls": [call]})
            result = next((item[name] for name in _RESULTS if item.get(name)), None)
            if result is not None:
                messages.append({"role": "tool", "content": _text(result), "tool_call_id": call_id})
        elif kind.endswith("_call_output"):
            text = _text(item.get("output"))
            messages.append({"role": "tool", "content": text, "tool_call_id": call_id})
        else:
            summary = [
                {**as_mapping(part), "type": "thinking"} for part in sequence(item.get("summary"))
            ]
            messages.append({"role": "assistant", "content": summary})
    outer = {name: value for name, value in body.items() if name not in ("object", field)}
    return {**outer, "format": "openai.chat", "messages": messages}


def _text(value: object) -> str:
    return value if isinstance(value, str) else canonical(value).decode()
