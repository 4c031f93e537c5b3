"""The month in people's own words: chats, mail threads, dialogues with assistants, single mails and papers.

The files in `texts/` hold one item after another: a head line `@@ key | …`, then the text. In chats, dialogues and
exports a line `# TIME` sets the time of the turns after it, and a turn is a line `NAME: text`. In threads each mail begins
with `> TIME | FROM | TO`; its key is the thread's with its number. Companies, people and numbers are invented.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path
from typing import Any

from apex_memory.model import Event, micros
from apex_memory.sources.base import InboundRequest, Source
from bench.memory.month.company import MONTH

FOLDER = Path(__file__).parent / "texts"
OUR_DOMAIN = "@acme.example"
TURN_MINUTES = 3  # between two turns of a conversation


@dataclass(frozen=True, slots=True)
class Item:
    """One item of a file: its head line's fields after the key, and its lines."""

    key: str
    head: tuple[str, ...]
    text: str


@dataclass(frozen=True, slots=True)
class Turn:
    at: datetime
    speaker: str
    text: str


@dataclass(frozen=True, slots=True)
class Mail:
    key: str
    at: datetime
    thread: str
    subject: str
    sender: str
    receiver: str
    text: str


@cache
def items(file: str) -> Sequence[Item]:
    found = []
    for block in ("\n" + (FOLDER / f"{file}.txt").read_text()).split("\n@@ ")[1:]:
        line, _, text = block.partition("\n")
        key, *head = (part.strip() for part in line.split(" | "))
        found.append(Item(key, tuple(head), text.strip()))
    return tuple(found)


def written_events(sources: Mapping[str, Source]) -> dict[str, Event]:
    """Return the event of every item, by its key."""
    events: dict[str, Event] = {}
    for mail in mails():
        events[mail.key] = _mail_event(mail, sources["frontapp"])
    for item in items("chats"):
        form, title = item.head
        build = {"group": _group, "export": _export}[form]
        events[item.key] = build(item, title, sources)
    for item in items("dialogues"):
        form, title, user = item.head
        build_dialogue = {
            "claude": _claude,
            "chatgpt": _chatgpt,
            "anthropic": _messages,
            "openai": _messages,
        }[form]
        body = build_dialogue(item, title, user)
        events[item.key] = _posted(sources["llm"], body, turns_of(item)[-1].at)
    for n, item in enumerate(items("documents")):
        kind, title = item.head
        at = MONTH + timedelta(days=n, hours=9)
        body = {
            "key": item.key,
            "kind": kind,
            "title": title,
            "occurred_at": at.isoformat(),
            "text": item.text,
        }
        events[item.key] = _posted(sources["documents"], body, at)
    return events


def turns_of(item: Item) -> Sequence[Turn]:
    turns = []
    at = MONTH
    for line in item.text.splitlines():
        if line.startswith("# "):
            at = _time(line[2:])
            continue
        speaker, _, text = line.partition(": ")
        turns.append(Turn(at, speaker, text))
        at += timedelta(minutes=TURN_MINUTES)
    return turns


def mails() -> Iterator[Mail]:
    """Yield the mails of the threads, and the single ones."""
    for item in items("threads"):
        _, subject = item.head
        for n, block in enumerate(("\n" + item.text).split("\n> ")[1:], 1):
            head, _, text = block.partition("\n")
            at, sender, receiver = head.split(" | ")
            title = subject if n == 1 else f"Re: {subject}"
            yield Mail(
                f"{item.key}.{n}",
                _time(at),
                item.key,
                title,
                sender,
                receiver.strip(),
                text.strip(),
            )
    for item in items("mails"):
        at, sender, receiver, subject = item.head
        yield Mail(item.key, _time(at), item.key, subject, sender, receiver, item.text)


def _time(text: str) -> datetime:
    return datetime.fromisoformat(text.strip()).replace(tzinfo=UTC)


def _mail_event(mail: Mail, source: Source) -> Event:
    id = mail.key.replace(".", "_")
    inbound = OUR_DOMAIN not in mail.sender
    target = {
        "id": f"msg_{id}",
        "type": "email",
        "is_inbound": inbound,
        "created_at": mail.at.timestamp(),
        "subject": mail.subject,
        "text": mail.text,
        "recipients": [_party(mail.sender, "from"), _party(mail.receiver, "to")],
    }
    body = {
        "id": f"evt_{id}",
        "type": "inbound" if inbound else "outbound",
        "emitted_at": mail.at.timestamp(),
        "conversation": {
            "id": f"cnv_{mail.thread}",
            "subject": mail.subject,
            "status": "archived",
        },
        "target": {"_meta": {"type": "message"}, "data": target},
    }
    # Not through `receive`, which wants the signature of an installation's own keys.
    return Event(
        source=source.name,
        event_id=f"evt_{id}",
        doc_key=f"message:msg_{id}",
        version=micros(mail.at),
        occurred_at=mail.at,
        payload=json.dumps({"payload": body}).encode(),
        priority=source.priority,
    )


def _party(text: str, role: str) -> dict[str, str | None]:
    name, _, handle = text.rstrip(">").rpartition(" <")
    return {"name": name or None, "handle": handle, "role": role}


def _group(item: Item, title: str, sources: Mapping[str, Source]) -> Event:
    """A group chat: messages of OpenAI's format, each with the name of who wrote it."""
    turns = turns_of(item)
    messages = [{"role": "user", "name": turn.speaker, "content": turn.text} for turn in turns]
    body = {
        "conversation_id": item.key,
        "format": "openai.chat",
        "title": title,
        "agent": "chat-archive",
        "created_at": turns[0].at.isoformat(),
        "updated_at": turns[-1].at.isoformat(),
        "messages": messages,
    }
    return _posted(sources["llm"], body, turns[-1].at)


def _export(item: Item, title: str, sources: Mapping[str, Source]) -> Event:
    """A chat as a phone exports it: a text with a date before each message."""
    turns = turns_of(item)
    lines = [f"[{turn.at:%d.%m.%Y, %H:%M}] {turn.speaker}: {turn.text}" for turn in turns]
    body = {
        "key": item.key,
        "kind": "chat",
        "title": title,
        "occurred_at": turns[-1].at.isoformat(),
        "text": "\n".join(lines),
    }
    return _posted(sources["documents"], body, turns[-1].at)


def _messages(item: Item, title: str, user: str) -> dict[str, Any]:
    turns = turns_of(item)
    roles = {"U": "user", "A": "assistant"}
    return {
        "conversation_id": item.key,
        "format": "anthropic.messages" if item.head[0] == "anthropic" else "openai.chat",
        "title": title,
        "agent": "office-assistant",
        "user": user,
        "created_at": turns[0].at.isoformat(),
        "updated_at": turns[-1].at.isoformat(),
        "messages": [{"role": roles[turn.speaker], "content": turn.text} for turn in turns],
    }


def _claude(item: Item, title: str, user: str) -> list[dict[str, Any]]:
    turns = turns_of(item)
    senders = {"U": "human", "A": "assistant"}
    messages = [
        {
            "uuid": f"{item.key}-{n}",
            "sender": senders[turn.speaker],
            "text": turn.text,
            "content": [{"type": "text", "text": turn.text}],
            "created_at": turn.at.isoformat(),
        }
        for n, turn in enumerate(turns)
    ]
    return [
        {
            "uuid": item.key,
            "name": title,
            "created_at": turns[0].at.isoformat(),
            "updated_at": turns[-1].at.isoformat(),
            "account": {"uuid": user},
            "chat_messages": messages,
        }
    ]


def _chatgpt(item: Item, title: str, user: str) -> list[dict[str, Any]]:
    turns = turns_of(item)
    roles = {"U": "user", "A": "assistant"}
    nodes: dict[str, dict[str, Any]] = {"root": {"id": "root", "parent": None, "message": None}}
    parent = "root"
    for n, turn in enumerate(turns):
        message = {
            "id": f"message-{n}",
            "author": {"role": roles[turn.speaker]},
            "create_time": turn.at.timestamp(),
            "content": {"content_type": "text", "parts": [turn.text]},
            "recipient": "all",
            "weight": 1.0,
        }
        nodes[f"node-{n}"] = {"id": f"node-{n}", "parent": parent, "message": message}
        parent = f"node-{n}"
    return [
        {
            "conversation_id": item.key,
            "title": title,
            "create_time": turns[0].at.timestamp(),
            "update_time": turns[-1].at.timestamp(),
            "current_node": parent,
            "mapping": nodes,
            "metadata": {"account": user},
        }
    ]


def _posted(source: Source, body: Any, at: datetime) -> Event:
    headers = {"content-type": "application/json"}
    request = InboundRequest(json.dumps(body).encode(), headers, {}, at)
    return source.receive(request).events[0]
