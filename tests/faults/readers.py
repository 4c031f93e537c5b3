"""Readers that never pause, and what they must never see: part of a version, a mix of two, or time going back."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import httpx2

from apex_memory.model import document_uuid
from tests.e2e.stack import Stack
from tests.faults.story import MARK, mark, text, title


@dataclass(slots=True)
class History:
    """What one reader has seen: per document the newest version, and whether it was deleted after that."""

    name: str
    seen: dict[str, tuple[int, bool]] = field(default_factory=dict)

    def saw(self, key: str, version: int) -> str | None:
        """Note a version; what is wrong with seeing it now, if anything."""
        known, gone = self.seen.get(key, (-1, False))
        if version < known or (gone and version == known):
            was = "deleted after " if gone else ""
            return f"{self.name}: {key} went back to {version}, it was {was}{known}"
        self.seen[key] = (version, False)
        return None

    def saw_none(self, key: str) -> None:
        if key in self.seen:
            self.seen[key] = (self.seen[key][0], True)


def judge_document(key: str, shown: Any) -> str | None:
    """Return what is wrong with a document of a response; None if nothing."""
    version = shown["provenance"]["version"]
    lots = [ref for ref in shown["entities"] if ref.startswith("lot:")]
    if shown["text"] != text(key, version):
        return f"{key}: the text of version {version} is part of it, or another one's"
    if shown["title"] != title(key, version) or lots != [f"lot:{mark(key, version)}"]:
        return f"{key}: title or entities are not those of version {version}"
    return None


def judge_hit(key: str, hit: Any) -> str | None:
    """What is wrong with a passage found by a search."""
    version = hit["provenance"]["version"]
    whole = text(key, version)
    if whole[hit["start"] : hit["end"]] != hit["snippet"]:
        return f"{key}: a passage of version {version} is not of its text"
    marks = set(MARK.findall(hit["snippet"])) | {hit["title"].removeprefix("Note ")}
    if marks - {mark(key, version)}:
        return f"{key}: a passage of version {version} names {sorted(marks)}"
    return None


class Readers:
    """`wrong` has what was read and must not be; `requests` counts the requests by kind."""

    def __init__(self, stack: Stack, keys: Sequence[str], *, seed: str, hands: int = 2) -> None:
        self.wrong: list[str] = []
        self.requests: Counter[str] = Counter()
        self._stack = stack
        self._keys = list(keys)
        self._by_id = {str(document_uuid("documents", key)): key for key in keys}
        self._seed = seed
        self._hands = hands
        self._closing = asyncio.Event()

    def close(self) -> None:
        self._closing.set()

    async def run(self) -> None:
        async with asyncio.TaskGroup() as group:
            for n in range(self._hands):
                group.create_task(self._read(n))

    async def _read(self, n: int) -> None:
        chance, history = random.Random(f"{self._seed}/{n}"), History(f"reader {n}")
        while not self._closing.is_set():
            key = chance.choice(self._keys)
            ask = chance.choice((self._document, self._search, self._everywhere))
            try:
                async with asyncio.timeout(15):
                    await ask(history, key)
            except (httpx2.TransportError, RuntimeError, TimeoutError) as error:
                if isinstance(error, RuntimeError) and not self._stack.http.is_closed:
                    raise
                self.requests["unanswered"] += 1
                await asyncio.sleep(0.1)  # a client's pause before it repeats

    def _note(self, *verdicts: str | None) -> None:
        self.wrong += [verdict for verdict in verdicts if verdict]

    async def _document(self, history: History, key: str) -> int | None:
        """Return the version seen; None if there is none, or no answer."""
        answer = await self._stack.http.get(f"/v1/documents/{document_uuid('documents', key)}")
        self.requests["document" if answer.is_success else f"document {answer.status_code}"] += 1
        if answer.status_code == 404:
            history.saw_none(key)
        if not answer.is_success:
            return None
        shown = answer.json()
        version = int(shown["provenance"]["version"])
        self._note(history.saw(key, version), judge_document(key, shown))
        return version

    async def _search(self, history: History, key: str) -> None:
        """Words that many documents have: passages of many versions come, each must be whole and not old."""
        answer = await self._ask("search", {"query": "shipment at door four", "limit": 20})
        for hit in answer["hits"] if answer else ():
            if document := self._by_id.get(hit["document_id"]):
                version = hit["provenance"]["version"]
                self._note(history.saw(document, version), judge_hit(document, hit))

    async def _everywhere(self, history: History, key: str) -> None:
        """A version that is live before and after must be in the vectors and in the graph, or these be called degraded."""
        version = await self._document(history, key)
        if version is None:
            return
        word, id = mark(key, version), str(document_uuid("documents", key))
        # As many as there can be, one of each document: what a store brought cannot be ranked out of sight.
        answer = await self._ask("words", {"query": word, "limit": 100, "passages_per_document": 1})
        entity = await self._stack.http.get(f"/v1/entities/lot/{word}")
        if await self._document(history, key) != version or answer is None:
            return
        legs = {leg for hit in answer["hits"] if hit["document_id"] == id for leg in hit["legs"]}
        in_vectors = bool({"words", "dense", "nearby"} & legs)
        if not in_vectors and not answer["degraded"]:
            self.wrong.append(f"{word}: is live, and no vectors of it are found")
        if not entity.is_success:
            return
        in_graph = bool(entity.json()["roles"])
        if not in_graph and not entity.json()["degraded"]:
            self.wrong.append(f"{word}: is live, and the graph says nothing of it")
        self.requests["seen whole"] += in_vectors and in_graph

    async def _ask(self, kind: str, body: dict[str, Any]) -> Any:
        answer = await self._stack.http.post("/v1/search", json=body)
        self.requests[kind if answer.is_success else f"{kind} {answer.status_code}"] += 1
        if not answer.is_success:
            return None
        result = answer.json()
        self.requests["degraded"] += bool(result["degraded"])
        return result
