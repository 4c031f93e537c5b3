"""The sample world as events of its sources, and the questions with the passages that answer them.

World files hold one item after another: a head line `@@ key | time | …`, then the text. Mails are events of
Front, talks are conversations that an agent pushes, everything else is a plain document. Companies,
people and numbers are invented.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from apex_memory.model import Event, micros
from apex_memory.sources.base import InboundRequest, Source

FOLDER = Path(__file__).parent
NOW = datetime(2025, 11, 28, 12, tzinfo=UTC)
"""The time of the questions: the day after the world ends."""

TYPES = ("identifier", "paraphrase", "two-source", "who-said", "when")
_SPEAKERS = {"U": "user", "A": "assistant"}


@dataclass(frozen=True, slots=True)
class Item:
    key: str
    at: datetime
    head: tuple[str, ...]
    text: str
    file: str


@dataclass(frozen=True, slots=True)
class Evidence:
    """A passage, located by a quote that occurs once in the document's text; without a quote the whole document."""

    document: str
    quote: str


@dataclass(frozen=True, slots=True)
class Question:
    type: str
    text: str
    evidence: tuple[Evidence, ...]
    any_suffices: bool = False
    """Whether the pieces of evidence are alternatives, of which one is enough."""

    @property
    def half(self) -> Literal["tuned", "held"]:
        """Ranking was tuned on the first half only. Chosen by hash, so that it stays when questions are added."""
        return "held" if hashlib.sha256(self.text.encode()).digest()[0] & 1 else "tuned"


@dataclass(frozen=True, slots=True)
class QuestionSet:
    """Documents, as events by key, and questions about them. `now` is the time at which the questions are asked."""

    events: Mapping[str, Event]
    questions: Sequence[Question]
    now: datetime
    types: tuple[str, ...]


def sample_set(sources: Mapping[str, Source]) -> QuestionSet:
    """Return the sample world and its questions."""
    return QuestionSet(events(sources), questions(), NOW, TYPES)


def questions() -> list[Question]:
    rows = map(json.loads, (FOLDER / "questions.jsonl").read_text().splitlines())
    return [
        Question(
            row["type"],
            row["question"],
            tuple(Evidence(**evidence) for evidence in row["evidence"]),
        )
        for row in rows
    ]


def items() -> Iterator[Item]:
    for file in sorted((FOLDER / "world").glob("*.txt")):
        for block in ("\n" + file.read_text()).split("\n@@ ")[1:]:
            line, _, text = block.partition("\n")
            key, at, *head = (field.strip() for field in line.split(" | "))
            moment = datetime.fromisoformat(at).replace(tzinfo=UTC)
            yield Item(key, moment, tuple(head), text.strip(), file.stem)


def events(sources: Mapping[str, Source]) -> dict[str, Event]:
    """The event of every item, by the item's key."""
    make = {"mail": _mail, "talks": _talk}
    return {item.key: make.get(item.file, _document)(item, sources) for item in items()}


def _mail(item: Item, sources: Mapping[str, Source]) -> Event:
    thread, sender, receiver, subject = item.head
    target = {
        "id": item.key,
        "type": "email",
        "is_inbound": "@larkfield" not in sender,
        "created_at": item.at.timestamp(),
        "subject": subject,
        "text": item.text,
        "recipients": [_person(sender, "from"), _person(receiver, "to")],
    }
    body = {
        "id": f"evt_{item.key}",
        "type": "inbound" if target["is_inbound"] else "outbound",
        "emitted_at": item.at.timestamp(),
        "conversation": {"id": thread, "subject": subject, "status": "archived"},
        "target": {"_meta": {"type": "message"}, "data": target},
    }
    # Not through `receive`, which wants the signature of an installation's own keys.
    return Event(
        source="frontapp",
        event_id=f"evt_{item.key}",
        doc_key=f"message:{item.key}",
        version=micros(item.at),
        occurred_at=item.at,
        payload=json.dumps({"payload": body}).encode(),
        priority=sources["frontapp"].priority,
    )


def _person(text: str, role: str) -> dict[str, str]:
    name, _, handle = text.rstrip(">").partition(" <")
    return {"name": name, "handle": handle, "role": role}


def _talk(item: Item, sources: Mapping[str, Source]) -> Event:
    agent, user, title = item.head
    messages = []
    for line in item.text.splitlines():
        speaker, _, content = line.partition(": ")
        if speaker in _SPEAKERS:
            messages.append({"role": _SPEAKERS[speaker], "content": content})
        else:
            name = speaker.removeprefix("T ")
            messages.append({"role": "tool", "name": name, "content": content})
    return _posted(
        sources["llm"],
        item,
        conversation_id=item.key,
        title=title,
        agent=agent,
        user=user,
        updated_at=item.at.isoformat(),
        messages=messages,
    )


def _document(item: Item, sources: Mapping[str, Source]) -> Event:
    kind, title = item.head
    return _posted(
        sources["documents"],
        item,
        key=item.key,
        kind=kind,
        title=title,
        occurred_at=item.at.isoformat(),
        text=item.text,
    )


def _posted(source: Source, item: Item, **body: Any) -> Event:
    headers = {"content-type": "application/json"}
    request = InboundRequest(json.dumps(body).encode(), headers, {}, item.at)
    return source.receive(request).events[0]
