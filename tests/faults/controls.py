"""Broken on purpose: the checkers of a run must find what is wrong here, or they are blind and the run proves nothing."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from uuid import UUID, uuid4

import psycopg

from apex_memory.app import App, open_app
from apex_memory.engines.base import free_port
from apex_memory.engines.edge import Edge
from apex_memory.engines.falkordb import FalkorDB
from apex_memory.engines.process import Process, child_of
from apex_memory.errors import ApexError
from apex_memory.model import Event, now
from apex_memory.sources.base import InboundRequest
from tests.faults.checks import examine, settle
from tests.faults.readers import History, judge_document, judge_hit
from tests.faults.story import Send, document, mark, text, title
from tests.faulty import Fault, Faulty
from tests.waiting import until

DOCUMENTS = 12


@dataclass(slots=True)
class Controlled:
    """`blind` names the controls that were not caught; `caught` has the findings of the others."""

    blind: list[str] = field(default_factory=list)
    caught: list[str] = field(default_factory=list)

    def saw(self, control: str, findings: list[str], *, meant: str) -> None:
        if any(meant in what for what in findings):
            such = next(what for what in findings if meant in what)
            self.caught.append(f"{control}: caught, {len(findings)} findings, such as: {such}")
        else:
            self.blind.append(f"the checkers are blind: {control} was not caught ({findings[:2]})")


class Volatile(FalkorDB):
    """The graph as its default configuration has it: what is acknowledged is in memory alone."""

    def prepare(self) -> None:
        super().prepare()
        config = self._config.read_text().replace("appendonly yes", "appendonly no")
        self._config.write_text(config)


async def controls(app: App, folder: Path) -> Controlled:
    """All controls, on the engines of `app` but for vectors of their own, in databases of their own.

    Neo4j's free edition has no second database: there they share the graph, and take what is theirs away again.
    """
    result = Controlled()
    engine = Edge(folder, free_port(), "control", app.vectors.dimension)
    engine.prepare()
    process = Process(child_of(engine), folder / "vectors.log")
    try:
        await process.until_ready()
        await _forgetful_store(app, engine.url, folder, result)
        for store in ("vectors", "graph"):
            await _lying_store(app, store, engine.url, result)
        await _bucket_of_nobody(app, engine.url, result)
    finally:
        await process.kill()
    _doctored_answers(result)
    return result


@asynccontextmanager
async def scratch(app: App, **other: str) -> AsyncIterator[App]:
    """An application on the same engines, with a database of its own; it leaves nothing behind."""
    url, name = app.settings.documents, f"control_{uuid4().hex[:8]}"
    async with await psycopg.AsyncConnection.connect(url, autocommit=True) as admin:
        await admin.execute(f"CREATE DATABASE {name}")
        graph = app.settings.graph
        if graph.startswith("falkordb:"):
            graph = graph.rpartition("/")[0] + f"/{name}"
        given = {"documents": url.rpartition("/")[0] + f"/{name}", "graph": graph} | other
        try:
            async with open_app(app.settings.model_copy(update=given)) as mine:
                await mine.recovery.check_restarted_stores()
                yield mine
                rows = await mine.db.fetch("SELECT stage_id FROM stages")
                for store in (mine.graph, mine.vectors):
                    await store.delete_stages([row["stage_id"] for row in rows])
        finally:
            await admin.execute(f"DROP DATABASE {name} WITH (FORCE)")


def event(app: App, send: Send) -> Event:
    request = InboundRequest(
        body=send.body,
        headers={"content-type": "application/json"},
        query={},
        received_at=now(),
    )
    return app.sources["documents"].receive(request).events[0]


async def fill(app: App) -> dict[UUID, Send]:
    """Some documents, searchable; what was acknowledged."""
    sends = [document(f"c{n}", n + 1) for n in range(DOCUMENTS)]
    landed = await app.inbox.land([event(app, send) for send in sends])
    await app.direct.drain("documents")
    return {item.id: send for item, send in zip(landed, sends, strict=True)}


async def _forgetful_store(app: App, vectors: str, folder: Path, result: Controlled) -> None:
    """A store that acknowledges before its disk has it, and a kill -9. The check at its restart must restore it."""
    engine = Volatile(folder, free_port(), "control")
    engine.prepare()
    log = folder / "volatile.log"
    process = Process(child_of(engine), log)
    try:
        await process.until_ready()
        async with scratch(app, graph=engine.url, vectors=vectors) as mine:
            acknowledged = await fill(mine)
            sound = (await examine(mine, acknowledged)).all()
            if sound:
                result.blind.append(f"the control is not sound before its fault: {sound[:2]}")
            await process.kill()
            process = Process(child_of(engine), log)
            await process.until_ready()
            await _answering(mine)
            findings = (await examine(mine, acknowledged)).all()
            result.saw("a store that forgets", findings, meant="the graph holds 0 of")
            await mine.recovery.check_restarted_stores()
            mine.collector._grace = 0
            await mine.upkeep.collect()
            await settle(mine, seconds=1)
            left = (await examine(mine, acknowledged)).all()
            if left:
                result.blind.append(f"what a store forgot was not restored: {left[:2]}")
            result.caught.append("what it forgot is there again after the restart gate")
    finally:
        await process.kill()


async def _answering(app: App) -> None:
    """The first call after a restart finds the connections broken."""

    async def answers() -> bool:
        try:
            await app.graph.ping()
        except ApexError:
            return False
        return True

    await until(answers, "the graph answers")


async def _lying_store(app: App, store: str, vectors: str, result: Controlled) -> None:
    """A store that acknowledges and drops, and nobody who verifies."""
    async with scratch(app, vectors=vectors) as mine:
        lying = Faulty(getattr(mine, store))
        lying.plan(Fault.DROP, "upsert", times=1)
        setattr(mine.publication, f"_{store}", lying)
        mine.publication.verify = _believe  # type: ignore[method-assign] # no check, on purpose
        findings = (await examine(mine, await fill(mine))).all()
        result.saw(
            f"a store ({store}) that lies, unverified", findings, meant=f"the {store} holds 0 of"
        )


async def _bucket_of_nobody(app: App, vectors: str, result: Controlled) -> None:
    """A share under which Temporal should process half of the documents, and nobody who does."""
    async with scratch(app, vectors=vectors) as mine:
        await mine.shares.set("source:documents", 50, actor="control", reason="control")
        sends = [document(f"c{n}", n + 1) for n in range(DOCUMENTS)]
        landed = await mine.inbox.land([event(mine, send) for send in sends])
        acknowledged = {item.id: send for item, send in zip(landed, sends, strict=True)}
        processed = await mine.direct.drain("documents", everything=False)
        findings = (await examine(mine, acknowledged)).all()
        if not 0 < processed < DOCUMENTS:
            result.blind.append(
                f"the direct path processed {processed} of {DOCUMENTS} at a share of 50"
            )
        result.saw("documents whose path nobody works on", findings, meant="are received")


async def _believe(stages: object) -> dict[UUID, ApexError]:
    return {}


def _doctored_answers(result: Controlled) -> None:
    """Responses that no reader may get; the readers' check must report each."""
    whole, other = text("c1", 7), text("c1", 8)
    good = {
        "text": whole,
        "title": title("c1", 7),
        "entities": [f"lot:{mark('c1', 7)}"],
        "provenance": {"version": 7},
    }
    hit = {"start": 0, "end": 40, "snippet": whole[:40], "title": title("c1", 7)}
    hit["provenance"] = {"version": 7}
    history = History("a reader")
    history.saw("c1", 8)
    deleted = History("a reader")
    deleted.saw("c1", 7)
    deleted.saw_none("c1")
    sound = (judge_document("c1", good), judge_hit("c1", hit), History("a reader").saw("c1", 7))
    caught = {
        "part of a version": judge_document("c1", good | {"text": whole[:-20]}),
        "a mix of two versions": judge_document("c1", good | {"text": whole[:60] + other[60:]}),
        "another version's title": judge_document("c1", good | {"title": title("c1", 8)}),
        "another version's passage": judge_hit("c1", hit | {"snippet": other[:40]}),
        "time going back": history.saw("c1", 7),
        "a deleted version again": deleted.saw("c1", 7),
    }
    result.blind += [
        f"the checkers are blind: {what}" for what, findings in caught.items() if not findings
    ]
    result.blind += [f"a sound answer is refused: {refusal}" for refusal in sound if refusal]
    result.caught.append(f"doctored answers: {', '.join(caught)}")
