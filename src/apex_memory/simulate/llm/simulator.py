"""Agents and people converse about shipments: conversations in four formats, sent again whenever they have grown."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, ClassVar

from apex_memory.simulate.vendor import Push, Simulator, Truth
from apex_memory.simulate.world import Shipment, World

PATH = "/v1/conversations"
MODELS = {"openai": "gpt-4.1", "anthropic": "claude-sonnet-4-5", "chatgpt": "gpt-5"}
_HALF_MINUTE = timedelta(seconds=30)


@dataclass(frozen=True, slots=True)
class _Turn:
    """One turn: `user`, `assistant`, `call` (a tool call) or `tool` (its result)."""

    role: str
    text: str
    at: datetime


@dataclass(frozen=True, slots=True)
class _Conversation:
    """A conversation, and the number of turns it had each time that it was sent."""

    shipment: Shipment
    provider: str
    id: str
    turns: tuple[_Turn, ...]
    sent: tuple[int, ...]
    edited: bool = False
    """Whether the first question was edited: the first wording is another branch of the tree."""

    @property
    def key(self) -> str:
        return f"{self.provider}:{self.id}"

    def sent_at(self, turns: int) -> datetime:
        return self.turns[turns - 1].at + _HALF_MINUTE


class LLMSimulator(Simulator):
    """Two conversations a shipment. Agents send theirs whenever it has grown; exports hold whole conversations."""

    name: ClassVar[str] = "llm"

    def settings(self, base: str) -> dict[str, Any]:
        return {}

    def pushes(self, since: datetime, until: datetime) -> Sequence[Push]:
        due: list[tuple[datetime, str, bytes]] = []
        for conversation in self._conversations():
            for turns in conversation.sent:
                at = conversation.sent_at(turns)
                if since < at <= until:
                    due.append((at, conversation.key, body_of(conversation, turns)))
        due.sort(key=lambda item: item[:2])
        return [Push(at, PATH, body, _no_signature, keyed=True) for at, _, body in due]

    def truth(self, until: datetime) -> Sequence[Truth]:
        truth = []
        for conversation in self._conversations():
            sent = [turns for turns in conversation.sent if conversation.sent_at(turns) <= until]
            if sent:
                last_turn = conversation.turns[sent[-1] - 1]
                truth.append(Truth(conversation.key, last_turn.text))
        return truth

    def _conversations(self) -> Iterator[_Conversation]:
        for shipment in self.world.shipments:
            yield _tracking(self.world, shipment)
            yield _billing(shipment)


def _no_signature(body: bytes, at: datetime) -> Mapping[str, str]:
    return {}


def _tracking(world: World, shipment: Shipment) -> _Conversation:
    """Return a dialogue of our people with an agent: it looks a shipment up, and gets a second question later."""
    began = (shipment.at("picked_up") or shipment.at("accepted") or world.start) + timedelta(
        minutes=7
    )
    status = (
        f"on the way from {shipment.origin.city} to {shipment.destination.city} in unit {shipment.vehicle.unit}"
        if shipment.at("picked_up")
        else "cancelled by the customer"
    )
    later = shipment.at("delivered") or began + timedelta(hours=1)
    turns = (
        _Turn("user", f"Where is {shipment.id}?", began),
        _Turn("call", json.dumps({"shipment": shipment.id}), began + timedelta(seconds=2)),
        _Turn("tool", json.dumps({"status": status}), began + timedelta(seconds=3)),
        _Turn("assistant", f"{shipment.id} is {status}.", began + timedelta(seconds=5)),
        _Turn("user", "And now? The customer asks again.", later + timedelta(minutes=5)),
        _Turn(
            "assistant",
            f"{shipment.carrier.name} reports {shipment.pro} as its last word on {shipment.id}.",
            later + timedelta(minutes=6),
        ),
    )
    provider = "openai" if shipment.number % 2 else "anthropic"
    id = f"track-{shipment.number}"
    return _Conversation(shipment, provider, id, turns, (4, 6))


def _billing(shipment: Shipment) -> _Conversation:
    """Return a dialogue of accounting with a chat product, of which two exports are imported."""
    began = (shipment.at("invoiced") or shipment.at("accepted") or datetime.max) + timedelta(
        minutes=11
    )
    money = f"{shipment.total_cents / 100:,.2f} USD"
    turns = (
        _Turn("user", f"Draft a note that {shipment.invoice} bills {shipment.id}.", began),
        _Turn(
            "assistant",
            f"Dear {shipment.customer.name}: {shipment.invoice} over {money} bills {shipment.id}.",
            began + timedelta(seconds=20),
        ),
        _Turn("user", "Shorter, and name the purchase order.", began + timedelta(minutes=50)),
        _Turn(
            "assistant",
            f"{shipment.invoice}, {money}, for {shipment.id}, PO {shipment.po}.",
            began + timedelta(minutes=51),
        ),
    )
    if shipment.number % 2:
        id, provider = str(uuid.uuid5(uuid.NAMESPACE_URL, f"claude/{shipment.number}")), "claude"
    else:
        id, provider = str(uuid.uuid5(uuid.NAMESPACE_URL, f"chatgpt/{shipment.number}")), "chatgpt"
    return _Conversation(shipment, provider, id, turns, (2, 4), edited=shipment.number % 4 == 0)


def body_of(conversation: _Conversation, turns: int) -> bytes:
    """Return the conversation up to so many turns, in its vendor's format."""
    builders: Mapping[str, Callable[[_Conversation, Sequence[_Turn]], Any]] = {
        "openai": _openai,
        "anthropic": _anthropic,
        "chatgpt": _chatgpt,
        "claude": _claude,
    }
    return json.dumps(
        builders[conversation.provider](conversation, conversation.turns[:turns])
    ).encode()


def _openai(conversation: _Conversation, turns: Sequence[_Turn]) -> dict[str, Any]:
    messages: list[dict[str, Any]] = [{"role": "developer", "content": "Answer from the tools."}]
    for turn in turns:
        if turn.role == "call":
            call = {"name": "track_shipment", "arguments": turn.text}
            calls = [{"id": "call_1", "type": "function", "function": call}]
            messages.append({"role": "assistant", "content": None, "tool_calls": calls})
        elif turn.role == "tool":
            messages.append({"role": "tool", "tool_call_id": "call_1", "content": turn.text})
        else:
            messages.append({"role": turn.role, "content": turn.text})
    return _with_envelope(conversation, turns, "openai.chat", {"messages": messages})


def _anthropic(conversation: _Conversation, turns: Sequence[_Turn]) -> dict[str, Any]:
    messages: list[dict[str, Any]] = []
    for turn in turns:
        if turn.role == "call":
            tool = {"type": "tool_use", "id": "toolu_1", "name": "track_shipment"}
            block, role = {**tool, "input": json.loads(turn.text)}, "assistant"
        elif turn.role == "tool":
            block = {"type": "tool_result", "tool_use_id": "toolu_1", "content": turn.text}
            role = "user"
        else:
            block, role = {"type": "text", "text": turn.text}, turn.role
        messages.append({"role": role, "content": [block]})
    content = {"system": "Answer from the tools.", "messages": messages}
    return _with_envelope(conversation, turns, "anthropic.messages", content)


def _with_envelope(
    conversation: _Conversation, turns: Sequence[_Turn], format: str, content: Mapping[str, Any]
) -> dict[str, Any]:
    """Add what our own agents send beside a vendor's messages."""
    return {
        "conversation_id": conversation.id,
        "format": format,
        "title": f"Tracking {conversation.shipment.id}",
        "agent": {"id": "dispatch-assistant", "name": "Dispatch Assistant"},
        "user": conversation.shipment.contact.email,
        "model": MODELS[conversation.provider],
        "created_at": turns[0].at.isoformat(),
        "updated_at": turns[-1].at.isoformat(),
        **content,
    }


def _chatgpt(conversation: _Conversation, turns: Sequence[_Turn]) -> list[dict[str, Any]]:
    """Return an export of one conversation: a tree, in which an edited question is a branch of its own."""
    nodes: dict[str, dict[str, Any]] = {
        "root": {"id": "root", "parent": None, "children": [], "message": None}
    }
    if conversation.edited:
        old = _Turn("user", "Draft something for accounting.", turns[0].at - timedelta(seconds=40))
        _add_node(nodes, "old", "root", old)
        _add_node(
            nodes, "old-answer", "old", _Turn("assistant", "For whom?", old.at + _HALF_MINUTE)
        )
    parent = "root"
    for n, turn in enumerate(turns):
        _add_node(nodes, f"node-{n}", parent, turn)
        parent = f"node-{n}"
    return [
        {
            "conversation_id": conversation.id,
            "id": conversation.id,
            "title": f"Note on {conversation.shipment.invoice}",
            "create_time": turns[0].at.timestamp(),
            "update_time": turns[-1].at.timestamp(),
            "current_node": parent,
            "default_model_slug": MODELS["chatgpt"],
            "is_archived": False,
            "mapping": nodes,
        }
    ]


def _add_node(nodes: dict[str, dict[str, Any]], id: str, parent: str, turn: _Turn) -> None:
    message = {
        "id": f"message-{id}",
        "author": {"role": turn.role, "name": None, "metadata": {}},
        "create_time": turn.at.timestamp(),
        "update_time": None,
        "content": {"content_type": "text", "parts": [turn.text]},
        "status": "finished_successfully",
        "end_turn": True,
        "weight": 1.0,
        "recipient": "all",
        "channel": None,
        "metadata": {},
    }
    nodes[id] = {"id": id, "parent": parent, "children": [], "message": message}
    nodes[parent]["children"].append(id)


def _claude(conversation: _Conversation, turns: Sequence[_Turn]) -> list[dict[str, Any]]:
    messages = [
        {
            "uuid": str(uuid.uuid5(uuid.NAMESPACE_URL, f"{conversation.id}/{n}")),
            "sender": "human" if turn.role == "user" else "assistant",
            "text": turn.text,
            "content": [{"type": "text", "text": turn.text}],
            "attachments": [],
            "files": [],
            "created_at": turn.at.isoformat(),
            "updated_at": turn.at.isoformat(),
        }
        for n, turn in enumerate(turns)
    ]
    return [
        {
            "uuid": conversation.id,
            "name": f"Note on {conversation.shipment.invoice}",
            "summary": "",
            "created_at": turns[0].at.isoformat(),
            "updated_at": turns[-1].at.isoformat(),
            "account": {"uuid": str(uuid.uuid5(uuid.NAMESPACE_URL, "account"))},
            "chat_messages": messages,
        }
    ]
