"""A source against its simulator: after a day of the world, with faults, memory must hold the truth."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from apex_memory.app import App
from apex_memory.errors import ApexError, NotFound, RetryLater
from apex_memory.model import document_uuid
from apex_memory.simulate.vendor import Push, Simulator, Truth
from apex_memory.sources.base import FileSource, InboundRequest, PulledSource, StreamSource
from apex_memory.sources.pages import Page, PullContext
from apex_memory.stores.postgres import Postgres

STEPS = 24


class Killed(RetryLater):
    """The worker dies here."""


@dataclass
class Day:
    """A day of one vendor, processed by the direct path. `kills`: share of pages around which the worker dies."""

    app: App
    simulator: Simulator
    hours: float = 18
    steps: int = STEPS
    kills: float = 0.0
    seed: int = 1
    failures: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.dice = random.Random(self.seed)
        self.name = self.simulator.name
        self.held: list[Push] = []

    async def run(self) -> None:
        """Run the day with faults, then let everything arrive without."""
        simulator, source = self.simulator, self.app.sources[self.name]
        before = simulator.clock.now
        with pytest.MonkeyPatch.context() as patch:
            if isinstance(source, PulledSource):
                patch.setattr(source, "pull", _mortal(source, self))
            for n in range(self.steps):
                now = simulator.world.start + timedelta(hours=self.hours) * (n + 1) / self.steps
                simulator.clock.advance_to(now)
                await self.send(simulator.pushes(before, now))
                await self.step()
                before = now
        simulator.chaos.off()
        for push in self.held:
            await self.send_one(push)
        for _ in range(3):
            if isinstance(source, PulledSource):
                # As if the wait before another attempt were over.
                await self.app.db.execute("UPDATE change_hints SET due_at = NULL")
                await self.app.fetcher.pull(self.name)
            await self.process(everything=True)

    async def step(self) -> None:
        source = self.app.sources[self.name]
        if isinstance(source, PulledSource):
            try:
                await self.app.fetcher.pull(self.name)
            except ApexError as error:
                self.failures.append(str(error))
        await self.process()

    async def process(self, *, everything: bool = False) -> None:
        """Land files and windows, and drain; with `everything` the windows that have not ended too."""
        source = self.app.sources[self.name]
        if isinstance(source, FileSource):
            await self.app.fetcher.process_files(self.name)
        if isinstance(source, StreamSource):
            await self.app.fetcher.aggregate_windows(self.name, everything=everything)
        await self.app.direct.drain(self.name)

    async def send(self, pushes: Any) -> None:
        chaos = self.simulator.chaos
        late, self.held = self.held, []
        for push in pushes:
            if chaos.strikes(chaos.lost) and not push.keyed:
                continue
            if chaos.strikes(chaos.disorder):
                self.held.append(push)
                continue
            for _ in range(2 if chaos.strikes(chaos.duplicates) else 1):
                await self.send_one(push)
        for push in late:
            await self.send_one(push)

    async def send_one(self, push: Push) -> None:
        source, now = self.app.sources[self.name], datetime.now(UTC)
        headers = {"content-type": push.content_type}
        headers |= {name.lower(): value for name, value in push.sign(push.body, now).items()}
        request = InboundRequest(push.body, headers, {}, now)
        if isinstance(source, PulledSource):
            client = self.app.fetcher.clients[self.name]
            await source.fetch_verification_data(request, client)
        received = source.receive(request)
        await self.app.inbox.land(received.events)
        await self.app.fetcher.pulls.note(self.name, received.change_hints)

    async def check(self, truth: Sequence[Truth], *, dead: int = 0) -> None:
        """Assert that each simulated document is there once, in its newest state, and nothing else, and nothing is left over."""
        assert any(not item.deleted for item in truth), "an empty day proves nothing"
        found = differences(await documents_of(self.app.db, self.name), truth)
        assert not found, found[:5]
        deleted = [item for item in truth if item.deleted]
        for item in deleted:
            with suppress(NotFound):
                await self.app.search.document(document_uuid(self.name, item.doc_key))
                raise AssertionError(f"{item.doc_key} is deleted but found")
        left = await self.app.db.fetch(
            "SELECT event_id, state, last_error FROM inbox WHERE source = %s AND (open OR state IN ('parked', 'dead'))",
            (self.name,),
        )
        assert len(left) == dead, left
        change_hints = await self.app.db.fetch(
            "SELECT key FROM change_hints WHERE source = %s", (self.name,)
        )
        assert not change_hints, change_hints


async def documents_of(db: Postgres, source: str) -> dict[str, str]:
    """Return the texts of a source's documents that are not deleted, by their keys."""
    rows = await db.fetch(
        """SELECT d.doc_key, m.text FROM documents d JOIN manifests m ON m.id = d.manifest_id
           WHERE d.source = %s AND NOT d.deleted""",
        (source,),
    )
    return {row["doc_key"]: row["text"] for row in rows}


def differences(held: Mapping[str, str], truth: Sequence[Truth]) -> list[str]:
    """Return, in words, how documents (texts by key) differ from the truth: each is there once, in its newest state."""
    expected = {item.doc_key: item.text for item in truth if not item.deleted}
    deleted = {item.doc_key for item in truth if item.deleted}
    assert len(expected) + len(deleted) == len(truth), "each document is expected once"
    lines = [f"{key} is missing" for key in sorted(expected.keys() - held.keys())]
    lines += [f"{key} is too much" for key in sorted(held.keys() - expected.keys())]
    lines += [
        f"{key}: {text!r} is not in {held[key]!r}"
        for key, text in expected.items()
        if key in held and text not in held[key]
    ]
    return lines


def _mortal(source: PulledSource, day: Day) -> Callable[[PullContext], AsyncIterator[Page]]:
    """Return the pull of a worker that is killed now and then, before a page is committed or right after."""

    async def pull(context: PullContext) -> AsyncIterator[Page]:
        async for page in type(source).pull(source, context):
            if day.dice.random() < day.kills:
                raise Killed("killed before the page was committed")
            yield page
            if day.dice.random() < day.kills:
                raise Killed("killed after the page was committed")

    return pull
