"""Random use of the real engines, compared with ten lines that say what ought to come out."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar
from unittest import mock
from uuid import UUID

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from hypothesis.stateful import run_state_machine_as_test as run_machine

from apex_memory.app import App, open_app
from apex_memory.config import Settings
from apex_memory.errors import ApexError
from apex_memory.model import TOMBSTONE, Event, Tally, now
from apex_memory.saga import journal
from apex_memory.saga.recovery import ReconcileResult
from apex_memory.saga.stage import Stage
from apex_memory.sources.base import InboundRequest
from apex_memory.stores.postgres import Connection
from tests.databases import Databases
from tests.faults.checks import examine, settle
from tests.faults.story import Send, document, text
from tests.faulty import Fault, Faulty

T = TypeVar("T")
KEYS = st.sampled_from(("a", "b", "c", "d"))
VERSIONS = st.integers(1, 9)
STORES = st.sampled_from(("graph", "vectors"))
GATE_EXAMPLES, SOAK_EXAMPLES = 12, 120
STEPS = ("claim", "prepare", "begin", "stage")

Order = tuple[int, str]
Steps = Sequence[Callable[["Memory"], None]]


@dataclass
class Reference:
    """The newest order key of a document wins; a delete is a version like any other."""

    newest: dict[str, tuple[Order, bool]] = field(default_factory=dict)

    def take(self, key: str, order: Order, *, deletes: bool) -> None:
        if key not in self.newest or order > self.newest[key][0]:
            self.newest[key] = (order, deletes)

    def live(self) -> dict[str, Order]:
        return {key: order for key, (order, deletes) in self.newest.items() if not deletes}


@dataclass(frozen=True)
class World:
    """Where the engines are."""

    databases: Databases
    valkey: str
    vectors: str
    folder: Path


@dataclass
class Abandoned:
    """What a worker held when it stopped; it may wake late."""

    batch: UUID
    stages: list[Stage]
    verified: bool
    """It had only to commit."""


class Memory(RuleBasedStateMachine):
    """One example: a database and a graph of its own, used and abused, then healed and compared."""

    world: World

    def __init__(self) -> None:
        super().__init__()
        self.reference = Reference()
        self.sent: dict[UUID, Send] = {}
        self.events: list[Event] = []
        self.abandoned: list[Abandoned] = []
        self.highest: dict[UUID, Order] = {}
        self.runner = asyncio.Runner()
        self.closing = AsyncExitStack()
        self.app: App
        self.faulty: dict[str, Faulty]

    def do(self, work: Coroutine[Any, Any, T]) -> T:
        return self.runner.run(work)

    @initialize()
    def start(self) -> None:
        self.do(self._open())

    async def _open(self) -> None:
        world = self.world
        given = Settings(
            documents=await self.closing.enter_async_context(world.databases.database()),
            vectors=world.vectors,
            cache=world.valkey,
            embedder="hashing",
            data_dir=world.folder,
            chunk_chars=200,
            retry_attempts=1,
            max_attempts=50,
            breaker_open_seconds=0.01,
        )
        self.app = app = await self.closing.enter_async_context(open_app(given))
        # The vector store is shared with the examples before, and those that fail leave it as it is.
        await app.vectors.delete_stages([item.stage async for item in app.vectors.walk()])
        await app.recovery.check_restarted_stores()
        self.faulty = {"graph": Faulty(app.graph), "vectors": Faulty(app.vectors)}
        app.sweeper._stores = {**app.sweeper._stores, **self.faulty}
        app.recovery._stores = dict(self.faulty)
        for part in (app.publication, app.sweeper, app.collector):
            part._graph = self.faulty["graph"]
            part._vectors = self.faulty["vectors"]
        self.break_something(app)

    def break_something(self, app: App) -> None:
        """For the controls."""

    # What comes in

    @rule(key=KEYS, version=VERSIONS, by=st.sampled_from("xy"))
    def write(self, key: str, version: int, by: str) -> None:
        send = document(key, version)
        request = InboundRequest(
            body=send.body,
            headers={"content-type": "application/json", "idempotency-key": f"{key}{version}{by}"},
            query={},
            received_at=now(),
        )
        self._land(self.app.sources["documents"].receive(request).events[0], send)

    @rule(key=KEYS, version=VERSIONS)
    def delete(self, key: str, version: int) -> None:
        event = Event(
            source="documents",
            event_id=f"{key}{version}-",
            doc_key=key,
            version=version,
            occurred_at=now(),
            payload=b"",
            content_type=TOMBSTONE,
        )
        self._land(event, Send("delete", key, version, deletes=True))

    @rule(key=KEYS, version=VERSIONS)
    def poison(self, key: str, version: int) -> None:
        """It must end as a dead letter, and count for nothing."""
        event = Event(
            source="documents",
            event_id=f"{key}{version}!",
            doc_key=key,
            version=version,
            occurred_at=now(),
            payload=b"\x00no document",
            content_type="application/octet-stream",
        )
        self._land(event, Send("poison", key, version))

    @rule(chance=st.randoms(use_true_random=False))
    def redeliver(self, chance: Any) -> None:
        if self.events:
            [landed] = self.do(self.app.inbox.land([chance.choice(self.events)]))
            assert landed.duplicate

    def _land(self, event: Event, send: Send) -> None:
        [landed] = self.do(self.app.inbox.land([event]))
        assert landed.duplicate == (event.id in self.sent)
        if not landed.duplicate:
            self.sent[event.id] = send
            self.events.append(event)
            if send.kind != "poison":
                self.reference.take(send.key, (event.version, event.event_id), deletes=send.deletes)

    # What is done with it

    @rule()
    def work(self) -> None:
        self.do(self.app.direct.drain("documents"))

    @rule()
    def sweep(self) -> None:
        self.do(self.app.upkeep.sweep())

    @rule()
    def collect(self) -> None:
        """The grace is over, and the collector runs."""
        self.do(self._collect())

    async def _collect(self) -> None:
        await self.app.db.execute(
            "UPDATE stages SET ended_at = ended_at - interval '1 h' WHERE state = 'superseded'"
        )
        await self.app.upkeep.collect()

    @rule()
    def redrive(self) -> None:
        letters = self.do(self.app.dead_letters.find())
        self.do(self.app.dead_letters.redrive([letter.id for letter in letters], actor="test"))

    # What goes wrong

    @rule(step=st.sampled_from(STEPS))
    def crash(self, step: str) -> None:
        """A worker stops after a step, and everyone believes its lease to be over."""
        self.do(self._abandon(STEPS.index(step)))

    async def _abandon(self, last: int) -> None:
        batch = await self.app.steps.claim("documents")
        stages: list[Stage] = []
        if last >= 1:
            await self.app.steps.prepare("documents", batch.id)
        if last >= 2:
            stages = (await self.app.publication.journal.begin(batch.id)).stages
        if last >= 3:
            errors = await self.app.publication.stage_and_verify(stages)
            stages = [stage for stage in stages if stage.id not in errors]
        self.abandoned.append(Abandoned(batch.id, stages, verified=last >= 3))
        await self._expire()

    async def _expire(self) -> None:
        await self.app.db.execute("UPDATE inbox SET next_at = clock_timestamp() WHERE open")
        await self.app.db.execute(
            "UPDATE stages SET lease_until = clock_timestamp() - interval '1 s' WHERE state = 'staging'"
        )

    @rule()
    def wake_late(self) -> None:
        """A worker that was given up goes on where it stopped: it writes to the stores, or has done so, and tries to commit."""
        if self.abandoned:
            self.do(self._go_on(self.abandoned.pop(0)))

    async def _go_on(self, held: Abandoned) -> None:
        publication = self.app.publication
        errors = {} if held.verified else await publication.stage_and_verify(held.stages)
        good = [stage for stage in held.stages if stage.id not in errors]
        await publication.journal.commit(held.batch, good, graph_at=now(), vectors_at=now())
        await self.app.steps.publish(held.batch)

    @rule(store=STORES)
    def outage(self, store: str) -> None:
        self.faulty[store].plan(Fault.FAIL, "upsert", "tally", "ping", "delete_stages")

    @rule(store=STORES)
    def lose_a_reply(self, store: str) -> None:
        self.faulty[store].plan(Fault.LOSE_REPLY, "upsert", "delete_stages", times=1)

    @rule(store=STORES)
    def lie(self, store: str) -> None:
        """It acknowledges what it drops."""
        self.faulty[store].plan(Fault.DROP, "upsert", times=1)

    @rule()
    def heal(self) -> None:
        for store in self.faulty.values():
            store.heal()

    @rule(store=STORES, chance=st.randoms(use_true_random=False))
    def forget(self, store: str, chance: Any) -> None:
        """A store comes back without some of what it held."""
        self.do(self._forget(store, chance))

    async def _forget(self, store: str, chance: Any) -> None:
        rows = await self.app.db.fetch(
            "SELECT stage_id FROM stages WHERE state IN ('staging', 'committed') ORDER BY doc_id, created_at"
        )
        lost = [row["stage_id"] for row in rows if chance.random() < 0.5]
        await getattr(self.app, store).delete_stages(lost)
        await self.app.db.execute(
            "UPDATE store_state SET incarnation = 'another' WHERE store = %s", (store,)
        )

    # What must hold

    @invariant()
    def no_document_goes_back(self) -> None:
        if not hasattr(self, "app"):
            return
        for row in self.do(self.app.db.fetch("SELECT doc_id, version, event_id FROM documents")):
            order = (row["version"], row["event_id"])
            assert order >= self.highest.get(row["doc_id"], order), "older overwrote newer"
            self.highest[row["doc_id"]] = order

    @invariant()
    def what_is_live_is_whole(self) -> None:
        """In each store that readers believe: one that forgot something is not, until it has been checked."""
        if hasattr(self, "app"):
            self.do(self._look_into_the_stores())

    async def _look_into_the_stores(self) -> None:
        states = await self.app.recovery.states()
        rows = await self.app.db.fetch("SELECT doc_key, stage_id FROM documents ORDER BY doc_key")
        expected = await self.app.publication.journal.expected([row["stage_id"] for row in rows])
        for store, side in (("vectors", 0), ("graph", 1)):
            if states[store] != "ready":
                continue
            tallies = await getattr(self.app, store).tally([row["stage_id"] for row in rows])
            for row in rows:
                held, wanted = (
                    tallies.get(row["stage_id"], Tally()),
                    expected[row["stage_id"]][side],
                )
                assert held == wanted, f"{row['doc_key']} is live, and not whole in the {store}"

    def teardown(self) -> None:
        try:
            if hasattr(self, "app"):
                self.do(self._compare())
        finally:
            self.close()

    def close(self) -> None:
        self.do(self.closing.aclose())
        self.runner.close()

    async def _compare(self) -> None:
        self.heal_all()
        await self._finish()
        rows = await self.app.db.fetch("SELECT * FROM documents WHERE NOT deleted")
        live = {row["doc_key"]: (row["version"], row["event_id"]) for row in rows}
        assert live == self.reference.live()
        assert (await examine(self.app, self.sent)).all() == []
        shown = [await self.app.search.document(row["doc_id"]) for row in rows]
        assert {document.key: document.text for document in shown} == {
            key: text(key, order[0]) for key, order in live.items()
        }
        stages = await self.app.db.fetch("SELECT stage_id FROM stages")
        await self.app.vectors.delete_stages([row["stage_id"] for row in stages])

    def heal_all(self) -> None:
        for store in self.faulty.values():
            store.heal()

    async def _finish(self) -> None:
        """Let time pass until nothing waits: leases and waits are over, the grace too."""
        for _ in range(30):
            await self._expire()
            await self.app.upkeep.sweep()
            await self.app.direct.drain("documents")
            await self._collect()
            busy = await self.app.db.fetch(
                "SELECT FROM stages WHERE state NOT IN ('committed', 'reaped') LIMIT 1"
            )
            states = await self.app.recovery.states()
            if (
                not busy
                and not await self.app.inbox.backlog()
                and set(states.values()) == {"ready"}
            ):
                break
            await asyncio.sleep(0.02)  # longer than the breaker stays open, in 30 rounds at most
        await settle(self.app, seconds=1)


@pytest.fixture
def world(
    databases: Databases,
    valkey_url: str,
    own_vectors_url: str,
    tmp_path: Path,
) -> Iterator[World]:
    yield World(databases, valkey_url, own_vectors_url, tmp_path)


def use(world: World, kind: type[Memory] = Memory, **more: Any) -> None:
    """Run examples of random use. `AssertionError` when one does not come out as it ought to."""
    assert settings.default is not None
    given: dict[str, Any] = {
        "max_examples": GATE_EXAMPLES if settings.default.derandomize else SOAK_EXAMPLES,
        "stateful_step_count": 25,
        "deadline": None,
        "suppress_health_check": list(HealthCheck),
        "print_blob": True,
    }
    run_machine(type(kind.__name__, (kind,), {"world": world}), settings=settings(**given | more))


@pytest.mark.soak
@pytest.mark.timeout(240)
def test_whatever_happens_the_newest_version_is_what_all_stores_hold(world: World) -> None:
    use(world)


def follow(world: World, kind: type[Memory], steps: Steps) -> None:
    """One example whose steps are given. `AssertionError` when what must hold does not."""
    memory = type(kind.__name__, (kind,), {"world": world})()
    try:
        memory.start()
        for step in steps:
            step(memory)
            memory.no_document_goes_back()
            memory.what_is_live_is_whole()
    except BaseException:
        memory.close()  # what comes out in the end would hide what failed
        raise
    memory.teardown()


class NobodyLooks(Memory):
    """A restart gate that believes every store."""

    def break_something(self, app: App) -> None:
        async def check(name: str, *, since: datetime) -> ReconcileResult:
            return ReconcileResult(name)

        app.recovery.check = check  # type: ignore[method-assign] # finds nothing wrong


class NobodyVerifies(Memory):
    """What a store acknowledges is believed."""

    def break_something(self, app: App) -> None:
        async def verify(stages: Sequence[Stage]) -> dict[UUID, ApexError]:
            return {}

        app.publication.verify = verify  # type: ignore[method-assign] # believes every store


class NobodyAsksWhoseItIs(Memory):
    """A commit that flips to its stages whatever became of them."""

    def break_something(self, app: App) -> None:
        patch = mock.patch.object(journal, "_lock_mine", _all_of_them)
        self.closing.enter_context(patch)


async def _all_of_them(connection: Connection, owner: UUID, stages: Sequence[Stage]) -> set[UUID]:
    return {stage.id for stage in stages}


CONTROLS: dict[str, tuple[type[Memory], Steps]] = {
    "the restart gate": (
        NobodyLooks,
        (
            *(lambda memory, key=key: memory.write(key=key, version=1, by="x") for key in "abcd"),
            lambda memory: memory.work(),
            lambda memory: memory.forget(store="vectors", chance=random.Random(1)),
            lambda memory: memory.sweep(),
        ),
    ),
    "verify": (
        NobodyVerifies,
        (
            lambda memory: memory.write(key="a", version=1, by="x"),
            lambda memory: memory.lie(store="graph"),
            lambda memory: memory.work(),
        ),
    ),
    "state and owner in the commit": (
        NobodyAsksWhoseItIs,
        (
            lambda memory: memory.write(key="a", version=1, by="x"),
            lambda memory: memory.crash(step="stage"),
            lambda memory: memory.sweep(),
            lambda memory: memory.wake_late(),
        ),
    ),
}


@pytest.mark.parametrize("protection", CONTROLS)
def test_what_needs_a_protection_goes_well_with_it(world: World, protection: str) -> None:
    _, steps = CONTROLS[protection]
    follow(world, Memory, steps)


@pytest.mark.parametrize("protection", CONTROLS)
def test_without_the_protection_the_same_goes_wrong(world: World, protection: str) -> None:
    """The control: with one of them taken away, the rules find a failure."""
    broken, steps = CONTROLS[protection]
    with pytest.raises(AssertionError, match="is live, and not whole"):
        follow(world, broken, steps)


def test_a_lease_is_renewed_beside_a_commit_and_waits_for_nothing(world: World) -> None:
    """A commit takes events first, then stages; a renewal takes them a batch at a time, and waits for neither."""
    memory = type("Memory", (Memory,), {"world": world})()
    try:
        memory.start()
        for key in "ab":
            memory.write(key=key, version=1, by="x")
        memory.do(_renew_beside_a_commit(memory.app))
    finally:
        memory.close()


async def _renew_beside_a_commit(app: App) -> None:
    batch = await app.steps.claim("documents")
    await app.steps.prepare("documents", batch.id)
    [held, free] = (await app.publication.journal.begin(batch.id)).stages
    async with app.db.transaction() as committing:
        for query, id in (
            ("SELECT FROM inbox WHERE id = %s FOR NO KEY UPDATE", held.manifest.inbox_id),
            ("SELECT FROM stages WHERE stage_id = %s FOR UPDATE", held.id),
        ):
            await committing.execute(query, (id,))
        async with asyncio.timeout(1):
            await app.inbox.renew(batch.id, lease=10_000)
    rows = await app.db.fetch(
        """SELECT s.stage_id, lease_until > now() + interval '1 h' AND next_at > now() + interval '1 h' AS renewed
           FROM stages s JOIN inbox i ON i.id = s.inbox_id"""
    )
    assert {row["stage_id"]: row["renewed"] for row in rows} == {held.id: False, free.id: True}
