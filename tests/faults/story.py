"""What the writers send, derived from a seed: every version of every document names itself throughout its text."""

from __future__ import annotations

import itertools
import json
import random
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from uuid import UUID

from apex_memory.model import document_uuid
from tests.e2e import front

MARK = re.compile(r"\bzq[a-z]+\d+v\d+\b")
TALKED = 12  # events of a conversation: each deletion lands one for every message it has
BLOCK = 24  # operations that are shuffled among themselves
TOLD = (
    "waits at door four of the yard in Reno",
    "left for Elko with a full load of pallets",
    "is late because of snow on the pass",
    "was signed for by the night shift",
)


@dataclass(frozen=True, slots=True)
class Send:
    """One request. `kind`: `document`, `delete`, `message`, `conversation` or `poison`."""

    kind: str
    key: str
    version: int
    body: bytes = b""
    deletes: bool = False
    parent: str = ""

    @property
    def doc_id(self) -> UUID:
        if self.kind in ("message", "conversation"):
            return document_uuid("frontapp", f"{self.kind}:{self.key}")
        return document_uuid("documents", self.key)


def mark(key: str, version: int) -> str:
    """A word that only this version of this document has."""
    return f"zq{key}v{version}"


def title(key: str, version: int) -> str:
    return f"Note {mark(key, version)}"


def text(key: str, version: int) -> str:
    """One to six paragraphs, each of which names its version: a chunk of another one shows."""
    chance = random.Random(f"{key}/{version}")
    paragraphs = (
        f"{mark(key, version)}: shipment SHP-{chance.randrange(10**6, 10**7)} {chance.choice(TOLD)}; "
        f"it has {chance.randrange(2, 40)} pieces and is watched by {mark(key, version)}."
        for _ in range(chance.randrange(1, 7))
    )
    return "\n\n".join(paragraphs)


def document(key: str, version: int) -> Send:
    body = {
        "key": key,
        "version": version,
        "title": title(key, version),
        "text": text(key, version),
        "entities": [f"lot:{mark(key, version)}"],
    }
    return Send("document", key, version, json.dumps(body).encode())


def poison(n: int, version: int) -> Send:
    """A file that no parser reads: it ends as a dead letter."""
    body = {
        "key": f"poison{n}",
        "version": version,
        "name": "broken.pdf",
        "content_base64": "JVBERi0xLjcKbm90aGluZw==",
        "content_type": "application/pdf",
    }
    return Send("poison", f"poison{n}", version, json.dumps(body).encode())


class Story:
    """An endless supply of operations over few documents, shuffled and in part sent twice."""

    def __init__(self, seed: str, *, documents: int = 30) -> None:
        self._chance = random.Random(seed)
        self._keys = [f"d{n}" for n in range(documents)]
        self._of_conversations = itertools.count()
        self._numbers = itertools.count(1)
        self._start = time.time_ns() // 1000
        self.keys = self._keys

    def __iter__(self) -> Iterator[Send]:
        while True:
            block = [self._operation() for _ in range(BLOCK)]
            block += self._chance.sample(block, 4)
            self._chance.shuffle(block)
            yield from block

    def _version(self) -> int:
        """Later operations have higher versions than the deletes the server dated before them."""
        return max(time.time_ns() // 1000, self._start) + next(self._numbers)

    def _operation(self) -> Send:
        chance, version = self._chance.random(), self._version()
        if chance < 0.04:
            return poison(next(self._numbers), version)
        if chance < 0.08:
            return Send("delete", self._chance.choice(self._keys), version, deletes=True)
        if chance < 0.25:
            return self._of_front(version)
        return document(self._chance.choice(self._keys), version)

    def _of_front(self, version: int) -> Send:
        conversation = (
            f"cnv_{(next(self._of_conversations) + self._chance.choice((0, 9))) // TALKED}"
        )
        # Front dates in seconds with fractions; what counts here is that the numbers differ.
        at = round(version / 1e6 - front.START, 6)
        kind = self._chance.choice(("message", "message", "archive", "trash", "restore"))
        version = round((front.START + at) * 1e6)
        if kind == "message":
            key = f"msg_{next(self._numbers)}"
            sentence = f"{mark(key.replace('_', ''), 1)} {self._chance.choice(TOLD)}."
            body = front.message(key, conversation, at=at, text=sentence)
            return Send("message", key, version, body, parent=conversation)
        body = front.conversation(conversation, kind, at=at)
        return Send("conversation", conversation, version, body, deletes=kind == "trash")
