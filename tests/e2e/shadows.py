"""Helpers for tests of copies: a shadow that is on, a candidate build with a changed part, and a reader that looks for leaks."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any
from uuid import UUID

from apex_memory.app import App, open_app
from apex_memory.config import Settings
from apex_memory.errors import NotFound
from apex_memory.model import Assertion, Document, Event, LandResult
from apex_memory.rollout.shadow_facts import ShadowFacts, mismatches
from apex_memory.rollout.shadow_steps import CopyResult

SOURCE = "documents"
SUBJECT = f"source:{SOURCE}"
CANDIDATE = "candidate-1"

Change = Callable[[Document], Document]


async def shadow_on(app: App, subject: str = SUBJECT, build: str | None = None) -> None:
    """Turn a shadow on, as the operator's command does."""
    await app.db.execute(
        """INSERT INTO rollouts (subject, share, shadow, build) VALUES (%s, 0, true, %s)
           ON CONFLICT (subject) DO UPDATE SET shadow = true, build = excluded.build""",
        (subject, build),
    )


async def shadow_off(app: App, subject: str = SUBJECT) -> None:
    await app.db.execute("UPDATE rollouts SET shadow = false WHERE subject = %s", (subject,))


async def drain(app: App, *events: Event) -> list[LandResult]:
    """Land events and process them by the direct path."""
    landed = await app.inbox.land(events)
    await app.direct.drain(SOURCE)
    return landed


async def facts(app: App, subject: str = SUBJECT, build: str = "") -> ShadowFacts:
    async with app.db.connection() as connection:
        return await mismatches(connection, subject, build=build)


async def process_all(app: App, subject: str = SUBJECT, build: str = "") -> CopyResult:
    """Process copies until none is ready; return the sum of what became of them."""
    total = CopyResult()
    while (result := await app.shadow.process(subject, build)) is not None:
        for name in ("equal", "different", "failed", "waiting", "dropped"):
            setattr(total, name, getattr(total, name) + getattr(result, name))
    return total


async def copy_of(app: App, landed: LandResult) -> dict[str, Any]:
    """Return the row of the copy of an event."""
    row = await app.db.fetch_one("SELECT * FROM shadows WHERE inbox_id = %s", (landed.id,))
    assert row
    return row


async def leftovers(app: App) -> list[UUID]:
    """Shadow stages of which a store still holds something, or that are not at their end."""
    rows = await app.db.fetch("SELECT stage_id, state FROM stages WHERE shadow")
    stages = [row["stage_id"] for row in rows]
    held = {*(await app.graph.tally(stages)), *(await app.vectors.tally(stages))}
    return [row["stage_id"] for row in rows if row["state"] != "reaped" or row["stage_id"] in held]


class Changed:
    """A source with a changed mapper."""

    def __init__(self, source: Any, change: Change) -> None:
        self._source = source
        self._change = change

    def document(self, event: Event) -> Document:
        return self._change(self._source.document(event))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._source, name)


@asynccontextmanager
async def candidate(settings: Settings, change: Change | None = None) -> AsyncIterator[App]:
    """A second application on the same stores, as a candidate build opens it; with a changed mapper if given."""
    async with open_app(settings, any_embedder=True) as app:
        if change is not None:
            app.sources[SOURCE] = Changed(app.sources[SOURCE], change)  # type: ignore[assignment]
        yield app


def marked(word: str) -> Change:
    """A mapper that writes a word into text and title, and names an entity of it: a reader that sees it saw a copy."""

    def change(document: Document) -> Document:
        return replace(
            document,
            text=f"{document.text}\n\n{word} {word} {word}",
            title=f"{word} {document.title}",
            assertions=(
                *document.assertions,
                Assertion(predicate="mentions", object=f"lot:{word}"),
            ),
        )

    return change


@dataclass
class LeakReader:
    """Asks every reader for a word that only copies hold. `leaks` says where it was seen, `reads` counts the questions."""

    app: App
    word: str
    documents: list[UUID]
    leaks: list[str] = field(default_factory=list)
    reads: int = 0
    degraded: int = 0

    async def look(self) -> None:
        result = await self.app.search.search(self.word, limit=20)
        self.degraded += bool(result.degraded)
        for hit in result.hits:
            if {"words", "nearby"} & set(hit.legs):
                self.leaks.append(f"search: {hit.doc_id} by {hit.legs}")
            if self.word in hit.snippet or self.word in hit.title:
                self.leaks.append(f"search: {hit.doc_id} shows the word")
        for id in self.documents:
            document = await self.app.search.document(id)
            if self.word in document.text or self.word in document.title:
                self.leaks.append(f"document: {id}")
        try:
            entity = await self.app.search.entity(f"lot:{self.word}")
            if entity.documents or entity.roles:
                self.leaks.append("entity: a document names it")
        except NotFound:
            pass
        page = await self.app.search.documents(limit=200)
        if any(self.word in summary.title for summary in page.documents):
            self.leaks.append("list: a title shows the word")
        self.reads += 1

    async def run(self, stop: asyncio.Event) -> None:
        while not stop.is_set():
            await self.look()
