"""Agents and people talk about shipments: conversations in all four formats, sent again whenever they have grown."""

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
class _Said:
    """One turn: a person's, the model's, or what a tool answered."""

    role: str
    text: str
    at: datetime


@dataclass(frozen=True, slots=True)
class _Talk:
    """A conversation: what was said, and how many turns there were each time that it was sent."""

    shipment: Shipment
    provider: str
    id: str
    turns: tuple[_Said, ...]
    sent: tuple[int, ...]
    edited: bool = False
    """The first question was asked differently at first: another branch of the tree."""

    @property
    def key(self) -> str:
        return f"{self.provider}:{self.id}"

    def sent_at(self, turns: int) -> datetime:
        return self.turns[turns - 1].at + _HALF_MINUTE


class LLMSimulator(Simulator):
    """Four talks that tell of the same shipments in turn; agents keep ours up to date, exports come whole."""

    name: ClassVar[str] = "llm"

    def settings(self, base: str) -> dict[str, Any]:
        return {}

    def pushes(self, since: datetime, until: datetime) -> Sequence[Push]:
        due = [
            (talk.sent_at(turns), talk, turns)
            for talk in self._talks()
            for turns in talk.sent
            if since < talk.sent_at(turns) <= until
        ]
        due.sort(key=lambda one: (one[0], one[1].key))
        return [
            Push(at, PATH, body_of(talk, turns), lambda body, now: {}, keyed=True)
            for at, talk, turns in due
        ]

    def truth(self, until: datetime) -> Sequence[Truth]:
        told = []
        for talk in self._talks():
            sent = [turns for turns in talk.sent if talk.sent_at(turns) <= until]
            if sent:
                told.append(Truth(talk.key, talk.turns[sent[-1] - 1].text))
        return told

    def _talks(self) -> Iterator[_Talk]:
        for shipment in self.world.shipments:
            yield _tracking(self.world, shipment)
            yield _billing(shipment)


def _tracking(world: World, shipment: Shipment) -> _Talk:
    """An agent that answers our people: it looks shipments up, and is asked again later."""
    began = (shipment.at("picked_up") or shipment.at("accepted") or world.start) + timedelta(
        minutes=7
    )
    where = (
        f"on the way from {shipment.origin.city} to {shipment.destination.city} in unit {shipment.vehicle.unit}"
        if shipment.at("picked_up")
        else "cancelled by the customer"
    )
    later = shipment.at("delivered") or began + timedelta(hours=1)
    turns = (
        _Said("user", f"Where is {shipment.id}?", began),
        _Said("call", json.dumps({"shipment": shipment.id}), began + timedelta(seconds=2)),
        _Said("tool", json.dumps({"status": where}), began + timedelta(seconds=3)),
        _Said("assistant", f"{shipment.id} is {where}.", began + timedelta(seconds=5)),
        _Said("user", "And now? The customer asks again.", later + timedelta(minutes=5)),
        _Said(
            "assistant",
            f"{shipment.carrier.name} reports {shipment.pro} as its last word on {shipment.id}.",
            later + timedelta(minutes=6),
        ),
    )
    provider = "openai" if shipment.number % 2 else "anthropic"
    id = f"track-{shipment.number}"
    return _Talk(shipment, provider, id, turns, (4, 6))


def _billing(shipment: Shipment) -> _Talk:
    """Somebody in accounting asks a chat product; exports of it are imported twice."""
    began = (shipment.at("invoiced") or shipment.at("accepted") or datetime.max) + timedelta(
        minutes=11
    )
    money = f"{shipment.total_cents / 100:,.2f} USD"
    turns = (
        _Said("user", f"Draft a note that {shipment.invoice} bills {shipment.id}.", began),
        _Said(
            "assistant",
            f"Dear {shipment.customer.name}: {shipment.invoice} over {money} bills {shipment.id}.",
            began + timedelta(seconds=20),
        ),
        _Said("user", "Shorter, and name the purchase order.", began + timedelta(minutes=50)),
        _Said(
            "assistant",
            f"{shipment.invoice}, {money}, for {shipment.id}, PO {shipment.po}.",
            began + timedelta(minutes=51),
        ),
    )
    if shipment.number % 2:
        id, provider = str(uuid.uuid5(uuid.NAMESPACE_URL, f"claude/{shipment.number}")), "claude"
    else:
        id, provider = str(uuid.uuid5(uuid.NAMESPACE_URL, f"chatgpt/{shipment.number}")), "chatgpt"
    return _Talk(shipment, provider, id, turns, (2, 4), edited=shipment.number % 4 == 0)


def body_of(talk: _Talk, turns: int) -> bytes:
    """The conversation as far as it had gone, in its vendor's format."""
    form: Mapping[str, Callable[[_Talk, Sequence[_Said]], Any]] = {
        "openai": _openai,
        "anthropic": _anthropic,
        "chatgpt": _chatgpt,
        "claude": _claude,
    }
    return json.dumps(form[talk.provider](talk, talk.turns[:turns])).encode()


def _openai(talk: _Talk, turns: Sequence[_Said]) -> dict[str, Any]:
    messages: list[dict[str, Any]] = [{"role": "developer", "content": "Answer from the tools."}]
    for said in turns:
        if said.role == "call":
            call = {"name": "track_shipment", "arguments": said.text}
            calls = [{"id": "call_1", "type": "function", "function": call}]
            messages.append({"role": "assistant", "content": None, "tool_calls": calls})
        elif said.role == "tool":
            messages.append({"role": "tool", "tool_call_id": "call_1", "content": said.text})
        else:
            messages.append({"role": said.role, "content": said.text})
    return _kept(talk, turns, "openai.chat", {"messages": messages})


def _anthropic(talk: _Talk, turns: Sequence[_Said]) -> dict[str, Any]:
    messages: list[dict[str, Any]] = []
    for said in turns:
        if said.role == "call":
            asked = {"type": "tool_use", "id": "toolu_1", "name": "track_shipment"}
            block, role = {**asked, "input": json.loads(said.text)}, "assistant"
        elif said.role == "tool":
            block = {"type": "tool_result", "tool_use_id": "toolu_1", "content": said.text}
            role = "user"
        else:
            block, role = {"type": "text", "text": said.text}, said.role
        messages.append({"role": role, "content": [block]})
    more = {"system": "Answer from the tools.", "messages": messages}
    return _kept(talk, turns, "anthropic.messages", more)


def _kept(
    talk: _Talk, turns: Sequence[_Said], form: str, more: Mapping[str, Any]
) -> dict[str, Any]:
    """What our own agents send beside a vendor's messages."""
    return {
        "conversation_id": talk.id,
        "format": form,
        "title": f"Tracking {talk.shipment.id}",
        "agent": {"id": "dispatch-assistant", "name": "Dispatch Assistant"},
        "user": talk.shipment.contact.email,
        "model": MODELS[talk.provider],
        "created_at": turns[0].at.isoformat(),
        "updated_at": turns[-1].at.isoformat(),
        **more,
    }


def _chatgpt(talk: _Talk, turns: Sequence[_Said]) -> list[dict[str, Any]]:
    """One conversation of an export: a tree. An edited question hangs beside the one that counts."""
    nodes: dict[str, dict[str, Any]] = {
        "root": {"id": "root", "parent": None, "children": [], "message": None}
    }
    if talk.edited:
        old = _Said("user", "Draft something for accounting.", turns[0].at - timedelta(seconds=40))
        _grow(nodes, "old", "root", old)
        _grow(nodes, "old-answer", "old", _Said("assistant", "For whom?", old.at + _HALF_MINUTE))
    parent = "root"
    for n, said in enumerate(turns):
        _grow(nodes, f"node-{n}", parent, said)
        parent = f"node-{n}"
    return [
        {
            "conversation_id": talk.id,
            "id": talk.id,
            "title": f"Note on {talk.shipment.invoice}",
            "create_time": turns[0].at.timestamp(),
            "update_time": turns[-1].at.timestamp(),
            "current_node": parent,
            "default_model_slug": MODELS["chatgpt"],
            "is_archived": False,
            "mapping": nodes,
        }
    ]


def _grow(nodes: dict[str, dict[str, Any]], id: str, parent: str, said: _Said) -> None:
    message = {
        "id": f"message-{id}",
        "author": {"role": said.role, "name": None, "metadata": {}},
        "create_time": said.at.timestamp(),
        "update_time": None,
        "content": {"content_type": "text", "parts": [said.text]},
        "status": "finished_successfully",
        "end_turn": True,
        "weight": 1.0,
        "recipient": "all",
        "channel": None,
        "metadata": {},
    }
    nodes[id] = {"id": id, "parent": parent, "children": [], "message": message}
    nodes[parent]["children"].append(id)


def _claude(talk: _Talk, turns: Sequence[_Said]) -> list[dict[str, Any]]:
    messages = [
        {
            "uuid": str(uuid.uuid5(uuid.NAMESPACE_URL, f"{talk.id}/{n}")),
            "sender": "human" if said.role == "user" else "assistant",
            "text": said.text,
            "content": [{"type": "text", "text": said.text}],
            "attachments": [],
            "files": [],
            "created_at": said.at.isoformat(),
            "updated_at": said.at.isoformat(),
        }
        for n, said in enumerate(turns)
    ]
    return [
        {
            "uuid": talk.id,
            "name": f"Note on {talk.shipment.invoice}",
            "summary": "",
            "created_at": turns[0].at.isoformat(),
            "updated_at": turns[-1].at.isoformat(),
            "account": {"uuid": str(uuid.uuid5(uuid.NAMESPACE_URL, "account"))},
            "chat_messages": messages,
        }
    ]
