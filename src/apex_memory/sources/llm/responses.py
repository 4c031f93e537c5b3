"""Conversations in the format of OpenAI's Responses API: requests, responses, pairs of both, and lists of items."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from apex_memory.sources.llm.chats import openai_chat, request_and_response
from apex_memory.sources.llm.documents import Conversation, parts_of
from apex_memory.sources.payloads import as_mapping, as_string, canonical, sequence

_ITEM_TYPES = ("message", "function_call", "function_call_output", "reasoning")
_ARGUMENTS = ("arguments", "input", "action", "queries", "code")
"""Fields of a call of a tool of OpenAI's or of another server, of which each type has one."""
_RESULTS = ("output", "results", "outputs", "error")
_READ = ("input", "output", "instructions", "id", "object", "created_at")
"""Fields that `openai_responses` reads. A chat's `created_at` is another one, the time of its first message."""
_NOT_SHOWN = frozenset(
    [
        "object",
        "input",
        "output",
        "instructions",
        "created_at",
        "completed_at",
        "status",
        "error",
        "incomplete_details",
        "background",
        "include",
        "max_output_tokens",
        "max_tool_calls",
        "prompt",
        "prompt_cache_key",
        "prompt_cache_retention",
        "reasoning",
        "safety_identifier",
        "text",
        "truncation",
    ]
)
"""Fields of a request or a response that have no line of their own: what is read, and settings of the call."""


def is_responses(body: Mapping[str, Any]) -> bool:
    """Return whether a body is a request or a response of this API; `messages` and `choices` are of other ones."""
    return body.get("object") == "response" or (
        ("input" in body or "output" in body) and not ("messages" in body or "choices" in body)
    )


def openai_responses(body: Mapping[str, Any], place: str) -> Conversation:
    """Read `instructions`, `input`, and the `output` of a response, whose `id` is the conversation's unless one is stated.

    OpenAI keeps the conversation that a response continues (`conversation`, `previous_response_id`), so that a body has its newest
    turns alone. Under the conversation's id it would take the place of those before.
    """
    request, response, outer = request_and_response(body, place)
    instructions = response.get("instructions") or request.get("instructions")
    messages: list[dict[str, Any]] = [
        {"role": "system", "content": part} for part in parts_of(instructions)
    ]
    given = request.get("input")
    if isinstance(given, str):
        messages.append({"role": "user", "content": given})
    messages += _messages_of(map(as_mapping, sequence(given)))
    messages += _messages_of(map(as_mapping, sequence(response.get("output"))))
    incomplete = as_mapping(response.get("incomplete_details"))
    given_fields = {**request, **response}
    kept = {name: value for name, value in given_fields.items() if name not in _READ}
    kept.update(outer)
    own = {
        "id": response.get("id"),
        "response_id": response.get("id") if kept.get("conversation_id") is not None else None,
        "created": response.get("created_at"),
        "messages": messages,
        "stop_reason": as_string(incomplete.get("reason"))
        or as_string(as_mapping(response.get("error")).get("message")),
    }
    return openai_chat({**kept, **own}, place, whole=_with_lines(body))


def _with_lines(body: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of a body that may have a line in the text, in the places where they were."""
    parts = {
        name: _with_lines(value)
        for name, value in body.items()
        if name in ("request", "response", "body") and isinstance(value, dict)
    }
    return {name: value for name, value in {**body, **parts}.items() if name not in _NOT_SHOWN}


def is_item_list(value: object) -> bool:
    """Return whether a value is a list of OpenAI's conversation items (Responses and Conversations APIs).

    Each item has a type, at least one a type known here: there are many more for the calls of OpenAI's own tools.
    """
    items = [as_mapping(item) for item in sequence(value)]
    types = [as_string(item.get("type")) for item in items]
    whole = any("messages" in item or "choices" in item for item in items)
    return all(types) and not whole and not set(types).isdisjoint(_ITEM_TYPES)


def conversation_of_items(body: Mapping[str, Any], field: str) -> dict[str, Any]:
    """Return a list of OpenAI's items as one chat body: an item is a turn, not a conversation."""
    messages = _messages_of(map(as_mapping, sequence(body.get(field))))
    outer = {name: value for name, value in body.items() if name not in ("object", field)}
    return {**outer, "format": "openai.chat", "messages": messages}


def _messages_of(items: Iterable[Mapping[str, Any]]) -> Sequence[dict[str, Any]]:
    """Return items as messages of a chat.

    `web_search_call`, `mcp_call`, `mcp_approval_request` and others are calls of tools, most with their result. Another item has
    the words of its summary, if any. A message needs no type.
    """
    messages: list[dict[str, Any]] = []
    for item in items:
        kind = as_string(item.get("type")) or "message"
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
    return messages


def _text(value: object) -> str:
    return value if isinstance(value, str) else canonical(value).decode()
