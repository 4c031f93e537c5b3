"""The graph on FalkorDB and in PostgreSQL, side by side: the same assertions in turns, then the queries of searches and entities.

Only the graph works here: no documents, no vectors, no saga. `GRAPH=postgresql: python -m bench filled` measures the whole
memory on the graph in PostgreSQL.
"""

from __future__ import annotations

import random
import statistics
import sys
import time
import uuid
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from uuid import UUID

from apex_memory.engines.base import Engine, free_port
from apex_memory.engines.falkordb import FalkorDB
from apex_memory.engines.postgres import PostgreSQL
from apex_memory.engines.process import Process, child_of
from apex_memory.model import GraphAssertion, Manifest, content_hash31
from apex_memory.pipeline import Pipeline
from apex_memory.saga.publication import ASSERTIONS_PER_CALL
from apex_memory.saga.stage import Stage
from apex_memory.search.retrieval import GRAPH_LIMIT
from apex_memory.sources import registry
from apex_memory.stores.base import GraphStore
from apex_memory.stores.graph import open_graph
from bench.corpus import CHUNK_CHARS, Corpus, GivenEmbedder, random_pool
from bench.cpu import spent, usage
from bench.engines import data_folder
from bench.rows import Row, percentile, scaled, stated

DOCUMENTS = 200_000
TEMPLATES = 500  # documents whose assertions are repeated, each time about another shipment
BATCH = 150  # documents that are written and counted together
TURNS = 40  # of each engine
QUERIES = 200
FACTS = 200  # of an entity
REMOVED = 3_000  # stages, a hundred at a time, as the collector does
EXCLUDED = 200

Document = list[GraphAssertion]
Call = Callable[[GraphStore], Awaitable[None]]


@dataclass(slots=True)
class Side:
    """One engine, and what was measured of it."""

    name: str
    engine: Engine
    process: Process
    graph: GraphStore
    rates: list[float] = field(default_factory=list)
    cpu: float = 0.0
    client: float = 0.0
    values: dict[str, float] = field(default_factory=dict)


async def graph() -> list[Row]:
    """Measure both engines; the note of each row has FalkorDB's value and the ratio."""
    count = scaled(DOCUMENTS)
    corpus = await _templates()
    async with data_folder() as folder, AsyncExitStack() as stack:
        sides = []
        for name, kind in (("FalkorDB", FalkorDB), ("PostgreSQL", PostgreSQL)):
            engine = kind(folder, free_port(), "bench")
            sides.append(await _started(name, engine, stack))
        stages: list[UUID] = []
        per_turn = count // TURNS
        for turn in range(TURNS):
            batches = _batches(corpus, turn * per_turn, per_turn)
            for side in sides if turn % 2 else sides[::-1]:
                await _write(side, batches)
            stages += [document[0].stage for batch in batches for document in batch]
            rates = ", ".join(f"{side.name} {side.rates[-1]:.0f}/s" for side in sides)
            print(f"  graph: {len(stages):,} documents, {rates}", file=sys.stderr)
        for side in sides:
            side.values["documents/s"] = statistics.median(side.rates)
            side.values["server's CPU ms a document"] = 1000 * side.cpu / count
            side.values["client's CPU ms a document"] = 1000 * side.client / count
        await _queries(sides, corpus, count, stages)
        for side in sides:
            await _removals(side, stages[:REMOVED])
            side.values["memory"] = _memory_mb(side.process.pid)
            last = f"shipment:{_shipment(per_turn * TURNS - 1)}"
            side.values["restart after a stop"] = await _restart(side, side.process.stop, last)
            side.values["restart after kill -9"] = await _restart(side, side.process.kill, last)
            await side.graph.tally(stages[-BATCH:])
            side.values["memory after a start"] = _memory_mb(side.process.pid)
            side.values["disk"] = _disk_mb(side.engine.directory)
    return _rows(sides, count, sum(map(len, corpus)) / len(corpus))


async def _started(name: str, engine: Engine, stack: AsyncExitStack) -> Side:
    engine.prepare()
    process = Process(child_of(engine), engine.data_dir / "log" / f"{engine.name}.log")
    side = Side(name, engine, process, open_graph(engine.url, timeout=60))
    stack.push_async_callback(_stop, side)
    await process.until_ready()
    stack.push_async_callback(side.graph.close)
    await side.graph.prepare()
    return side


async def _stop(side: Side) -> None:
    await side.process.stop()  # the process of the last start


async def _templates() -> list[Document]:
    """Return the assertions that the pipeline makes of the corpus's documents."""
    pipeline = Pipeline(GivenEmbedder(random_pool(1_000)), chunk_chars=CHUNK_CHARS)
    document = registry.load({}, None)["documents"].document
    corpus = Corpus()
    prepared = await pipeline.prepare(
        [(corpus.event(n, name="graph"), document) for n in range(TEMPLATES)], reuse=False
    )
    await pipeline.close()
    manifests = [manifest for manifest in prepared if isinstance(manifest, Manifest)]
    assert len(manifests) == TEMPLATES
    return [list(Stage(uuid.uuid4(), manifest, 1, "x").assertions()) for manifest in manifests]


def _document(templates: Sequence[Document], n: int) -> Document:
    """Return the assertions of the n-th document: those of a template, about a shipment and a document of its own."""
    template = templates[n % len(templates)]
    stage, doc = uuid.uuid5(uuid.NAMESPACE_OID, f"s{n}"), uuid.uuid5(uuid.NAMESPACE_OID, f"d{n}")
    former = {str(template[0].doc): str(doc), f"SHP-{100_000 + n % len(templates)}": _shipment(n)}

    def own(text: str | None) -> str | None:
        for old, new in former.items() if text else ():
            assert text
            text = text.replace(old, new)
        return text

    made = []
    for place, item in enumerate(template):
        subject, thing, value = own(item.subject), own(item.object), own(item.value)
        assert subject
        digest = content_hash31(item.predicate, subject, thing, value, item.start)
        made.append(
            replace(
                item,
                id=uuid.uuid5(stage, f"a{place}"),
                stage=stage,
                doc=doc,
                subject=subject,
                object=thing,
                value=value,
                hash=digest,
            )
        )
    return made


def _shipment(n: int) -> str:
    return f"SHP-{100_000 + n}"


async def _write(side: Side, batches: Sequence[list[Document]]) -> None:
    """Write and count documents as the saga does."""
    pids = {"server": side.process.pid}
    before, own, began = usage(pids), time.process_time(), time.perf_counter()
    for batch in batches:
        ids = [document[0].stage for document in batch]
        assertions = [item for document in batch for item in document]
        for start in range(0, len(assertions), ASSERTIONS_PER_CALL):
            await side.graph.upsert(assertions[start : start + ASSERTIONS_PER_CALL])
        tallies = await side.graph.tally(ids)
        assert len(tallies) == len(ids)
    side.rates.append(sum(map(len, batches)) / (time.perf_counter() - began))
    side.client += time.process_time() - own
    side.cpu += spent(before, usage(pids))["server"].total


def _batches(templates: Sequence[Document], first: int, count: int) -> list[list[Document]]:
    return [
        [_document(templates, n) for n in range(start, min(start + BATCH, first + count))]
        for start in range(first, first + count, BATCH)
    ]


async def _queries(
    sides: Sequence[Side], templates: Sequence[Document], count: int, stages: Sequence[UUID]
) -> None:
    """Time the graph's part of searches and of the page of an entity, each question on both engines in turn."""
    dice = random.Random(1)
    ends = [item.object for document in templates for item in document if item.object]
    hubs = sorted({ref for ref in ends if not ref.startswith(("shipment:", "document:"))})
    hidden = dice.sample(list(stages), EXCLUDED)

    def shipment() -> str:
        return f"shipment:{_shipment(dice.randrange(count))}"

    kinds: dict[str, Callable[[], tuple[str, ...]]] = {
        "search by a shipment": lambda: (shipment(),),
        "search by a hub": lambda: (dice.choice(hubs),),
        "search by a shipment and two hubs": lambda: (shipment(), *dice.sample(hubs, 2)),
    }
    for name, refs in kinds.items():

        def search(refs: Callable[[], tuple[str, ...]] = refs) -> Call:
            return partial(_search, refs=refs())

        await _timed(sides, name, search)
    await _timed(
        sides,
        f"the last one, {EXCLUDED} stages hidden",
        lambda: partial(_search, refs=(shipment(), *dice.sample(hubs, 2)), hidden=hidden),
    )
    await _timed(sides, "a shipment's page", lambda: partial(_page, ref=shipment()))
    await _timed(sides, "a hub's page", lambda: partial(_page, ref=dice.choice(hubs)))


async def _search(graph: GraphStore, refs: Sequence[str], hidden: Sequence[UUID] = ()) -> None:
    known = await graph.known(refs)
    assert len(known) == len(refs)
    assert await graph.linked(list(known), limit=GRAPH_LIMIT, exclude=hidden)
    await graph.incarnation()


async def _page(graph: GraphStore, ref: str) -> None:
    assert await graph.facts(ref, limit=FACTS)
    await graph.incarnation()


async def _timed(sides: Sequence[Side], name: str, make: Callable[[], Call]) -> None:
    taken: dict[str, list[float]] = {side.name: [] for side in sides}
    for n in range(QUERIES + 10):
        call = make()
        for side in sides if n % 2 else sides[::-1]:
            began = time.perf_counter()
            await call(side.graph)
            if n >= 10:  # the first ones warm up
                taken[side.name].append(1000 * (time.perf_counter() - began))
    for side in sides:
        side.values[f"{name}, p50"] = percentile(taken[side.name], 0.5)
        side.values[f"{name}, p99"] = percentile(taken[side.name], 0.99)


async def _removals(side: Side, stages: Sequence[UUID]) -> None:
    pids = {"server": side.process.pid}
    before, began = usage(pids), time.perf_counter()
    for start in range(0, len(stages), 100):
        await side.graph.delete_stages(stages[start : start + 100])
    side.values["removed documents/s"] = len(stages) / (time.perf_counter() - began)
    used = spent(before, usage(pids))["server"].total
    side.values["CPU ms a removed document"] = 1000 * used / len(stages)


async def _restart(side: Side, end: Callable[[], Awaitable[object]], ref: str) -> float:
    """End the server, start it again, and return the seconds until it answers about an entity."""
    await end()
    began = time.perf_counter()
    side.process = Process(
        child_of(side.engine), side.engine.data_dir / "log" / f"{side.engine.name}.log"
    )
    await side.process.until_ready()
    assert await side.graph.known([ref])
    return time.perf_counter() - began


def _memory_mb(pid: int) -> float:
    """Return the memory of a server with its children: their own, and what they share once."""
    own, shared = 0, 0
    for process in (pid, *_children(pid)):
        fields = dict(
            line.split(":", 1)
            for line in Path(f"/proc/{process}/status").read_text().splitlines()
            if line.startswith(("RssAnon", "RssShmem"))
        )
        own += int(fields["RssAnon"].split()[0])
        shared = max(shared, int(fields["RssShmem"].split()[0]))
    return (own + shared) / 1024


def _children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def _disk_mb(folder: Path) -> float:
    files = [file for file in folder.resolve().rglob("*") if file.is_file()]
    return sum(file.stat().st_blocks * 512 for file in files) / 1e6


UNITS = {"documents/s": "documents/s", "removed documents/s": "documents/s"}


def _unit(name: str) -> str:
    if name in UNITS:
        return UNITS[name]
    if name.startswith("restart"):
        return "s"
    return "MB" if name.startswith(("memory", "disk")) else "ms"


def _rows(sides: Sequence[Side], count: int, assertions: float) -> list[Row]:
    falkor, postgres = sides
    how = f"{count:,} documents of {assertions:.1f} assertions, {TURNS} turns each, {BATCH} documents a batch"
    rows = []
    for name, value in postgres.values.items():
        other = falkor.values[name]
        note = f"FalkorDB {other:.4g}, ratio {value / other:.2f}; {how}"
        rows.append(stated(f"graph in PostgreSQL: {name}", value, _unit(name), note))
    ratios = sorted(p / f for f, p in zip(falkor.rates, postgres.rates, strict=True))
    spread = f"ratios of the turns {ratios[0]:.2f} to {ratios[-1]:.2f}; {how}"
    rows.append(
        stated("graph in PostgreSQL: rate of FalkorDB's", statistics.median(ratios), "×", spread)
    )
    return rows
