"""Conversations in ChatGPT's and Claude's exports: full snapshots with ids and times."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime
from typing import Any, Literal

from apex_memory.errors import Rejected
from apex_memory.model import File
from apex_memory.sources.llm.chats import Loose
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
    sequence,
)


class _Author(Loose):
    role: str = ""
    name: str | None = None


class _Message(Loose):
    author: _Author | None = None
    create_time: float | str | None = None
    content: dict[str, Any] | None = None
    recipient: str | None = None
    weight: float | None = None
    metadata: dict[str, Any] | None = None


class _Node(Loose):
    parent: str | None = None
    message: _Message | None = None


class _ChatGPT(Loose):
    conversation_id: str | None = None
    id: str | None = None
    title: str | None = None
    create_time: float | str | None = None
    update_time: float | str | None = None
    current_node: str | None = None
    default_model_slug: str | None = None
    mapping: dict[str, Any]  # of nodes, which `_nodes` checks one by one


class _ClaudeMessage(Loose):
    sender: Literal["human", "assistant"]
    text: str | None = None
    content: ListOf[dict[str, Any]] | None = None
    attachments: ListOf[dict[str, Any]] | None = None
    files: ListOf[dict[str, Any]] | None = None
    created_at: str | None = None


class _Claude(Loose):
    uuid: str | None = None
    name: str | None = None
    model: str | None = None
    created_at: str | None = None
    updated_at: str | None = None
    project: dict[str, Any] | None = None
    chat_messages: ListOf[_ClaudeMessage]


def chatgpt_export(body: Mapping[str, Any], place: str) -> Conversation:
    """Read one conversation of `conversations.json`: a tree, of which the path to `current_node` is taken."""
    export = checked(_ChatGPT, body, place)
    nodes = _nodes(export, place)
    path, branches = _path(nodes, export.current_node, place)
    turns: list[Turn] = []
    for message in filter(None, (nodes[name].message for name in path)):
        turns += _chatgpt_turns(message, place)
    own = export.conversation_id or export.id
    return Conversation(
        provider="chatgpt",
        id=parse_identifier(own, _at(place, "conversation_id")) if own else None,
        turns=limited(turns, place),
        title=export.title or "",
        model=export.default_model_slug or "",
        started=_time(export.create_time, _at(place, "create_time")),
        updated=_time(export.update_time, _at(place, "update_time")),
        branches=branches,
        other_lines=other_lines(body),
    )


def claude_export(body: Mapping[str, Any], place: str) -> Conversation:
    """Read one conversation of Claude's export. The texts of attachments become files."""
    export = checked(_Claude, body, place)
    tools: dict[str, str] = {}
    turns: list[Turn] = []
    files: list[File] = []
    for n, message in enumerate(export.chat_messages):
        at = _time(message.created_at, _at(place, f"chat_messages[{n}].created_at"))
        speaker: Speaker = "user" if message.sender == "human" else "assistant"
        blocks = message.content or []
        spoken = blocks if turns_of(speaker, blocks, tools, at) else parts_of(message.text)
        attachments = message.attachments or []
        sent = [{**item, "type": "file"} for item in attachments + (message.files or [])]
        turns += turns_of(speaker, [*spoken, *sent], tools, at)
        files += [
            File(as_string(item.get("file_name")) or "attachment.txt", "text/plain", text.encode())
            for item in attachments
            if (text := as_string(item.get("extracted_content")))
        ]
    project = as_string(as_mapping(export.project).get("name"))
    return Conversation(
        provider="claude",
        id=parse_identifier(export.uuid, _at(place, "uuid")) if export.uuid else None,
        turns=limited(turns, place),
        title=export.name or "",
        model=export.model or "",
        started=_time(export.created_at, _at(place, "created_at")),
        updated=_time(export.updated_at, _at(place, "updated_at")),
        files=tuple(files),
        metadata={"project": project} if project else None,
        other_lines=other_lines(body),
    )


def _nodes(export: _ChatGPT, place: str) -> dict[str, _Node]:
    """Return the nodes by name. Raises `Rejected` for the first wrong one: pydantic would go through all of an object."""
    at = _at(place, "mapping")
    return {name: checked(_Node, node, f"{at}.{name}") for name, node in export.mapping.items()}


def _path(
    nodes: Mapping[str, _Node], current_node: str | None, place: str
) -> tuple[list[str], int]:
    """Return the nodes from the root to the current one (or the latest leaf), and the number of other leaves."""
    parents = {node.parent for node in nodes.values()}
    leaves = [name for name in nodes if name not in parents]
    current = current_node if current_node in nodes else None
    if current is None and leaves:
        current = max(leaves, key=lambda leaf: (_written(nodes[leaf], place), leaf))
    if current is None and nodes:
        raise Rejected(
            f"{_at(place, 'mapping')}: every node has a child, so it is not a tree",
            remedy="send the export as ChatGPT wrote it",
        )
    path: dict[str, None] = {}
    while current is not None and current in nodes:
        if current in path:
            raise Rejected(
                f"{_at(place, 'mapping')}: node {current[:80]} is its own ancestor",
                remedy="send the export as ChatGPT wrote it",
            )
        path[current] = None
        current = nodes[current].parent
    return list(path)[::-1], sum(1 for leaf in leaves if leaf not in path)


def _written(node: _Node, place: str) -> float:
    created = node.message.create_time if node.message else None
    at = _time(created, _at(place, "mapping.create_time"))
    return at.timestamp() if at else 0.0


def _chatgpt_turns(message: _Message, place: str) -> list[Turn]:
    at = _time(message.create_time, _at(place, "mapping.message.create_time"))
    content, about = as_mapping(message.content), as_mapping(message.metadata)
    author = message.author or _Author()
    kind, role = as_string(content.get("content_type")), author.role
    hidden = about.get("is_visually_hidden_from_conversation") or message.weight == 0
    text = _chatgpt_text(content)
    if hidden or kind.endswith("editable_context") or role not in ("user", "assistant", "tool"):
        return [Turn("system", text, at=at)] if text else []
    if kind in ("thoughts", "reasoning_recap"):
        return [Turn("thinking", text, at=at)] if text else []
    if role == "tool":
        return [Turn("tool", short(text), author.name or "", at)] if text else []
    if message.recipient not in (None, "all"):
        return [Turn("assistant", call_text(message.recipient, text), at=at)]
    names = [as_string(as_mapping(item).get("name")) for item in sequence(about.get("attachments"))]
    parts = [text, *({"type": "file", "name": name} for name in names)]
    turns = turns_of("user" if role == "user" else "assistant", parts, {}, at)
    cited = cited_sources(about.get("citations"))
    return [*turns[:-1], *(replace(turn, cited=turn.cited + cited) for turn in turns[-1:])]


def _chatgpt_text(content: Mapping[str, Any]) -> str:
    parts = [part if isinstance(part, str) else _part_text(part) for part in _parts(content)]
    whole = [as_string(content.get(field)) for field in ("text", "result", "content")]
    return "\n".join(text.strip() for text in (*parts, *whole) if text.strip())


def _parts(content: Mapping[str, Any]) -> list[object]:
    thoughts = (as_mapping(item).get("content") for item in sequence(content.get("thoughts")))
    profile = (content.get(field) for field in ("user_profile", "user_instructions"))
    texts: list[object] = [text for text in (*thoughts, *profile) if isinstance(text, str)]
    return [*sequence(content.get("parts")), *texts]


def _part_text(part: object) -> str:
    block = as_mapping(part)
    kind = as_string(block.get("content_type"))
    if isinstance(block.get("text"), str):
        return as_string(block["text"])
    if "image" in kind:
        return "[image]"
    return "[audio]" if "audio" in kind else ""


def _time(value: float | str | None, place: str) -> datetime | None:
    return None if value in (None, "") else parse_datetime(value, place)


def _at(place: str, field: str) -> str:
    return f"{place}.{field}" if place else field
