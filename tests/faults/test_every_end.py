"""A search for inputs that break the rule: what was acknowledged has an end that can be seen, and nothing holds a source.

See `tests/faults/ends.py` for the rule, `foreign.py` for the inputs, `entrances.py` for the ways in.
"""

from __future__ import annotations

import asyncio
import json
import random
import uuid
from collections.abc import Callable, Coroutine, Mapping, Sequence
from contextlib import AsyncExitStack
from datetime import timedelta
from typing import Any, TypeVar
from unittest import mock

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule
from hypothesis.stateful import run_state_machine_as_test as run_machine

from apex_memory.config import Settings
from apex_memory.engines.base import free_port
from apex_memory.errors import ApexError
from apex_memory.fetching.pulls import Backfill
from apex_memory.inbox import landing
from apex_memory.inbox.transitions import OwnedEvent
from apex_memory.model import Event, LandResult
from apex_memory.saga.failures import _Handled
from apex_memory.saga.recovery import states
from apex_memory.sealing import new_key
from apex_memory.simulate.vendor import Chaos
from apex_memory.sources.base import Sample
from apex_memory.sources.pages import BackfillRange
from apex_memory.stores.postgres import Connection
from tests.faults import foreign
from tests.faults.ends import broken
from tests.faults.entrances import Entrances, Mangling, entrances
from tests.faults.foreign import Input
from tests.faults.test_rules import World, world

__all__ = ["world"]  # the fixture

T = TypeVar("T")
SEEDS = st.integers(0, 2**20)
VENDORS = ("frontapp", "hubspot", "plaid", "quickbooks", "samsara", "sonar", "turvo")
HOOKS = ("frontapp", "hubspot", "quickbooks", "samsara", "sonar", "turvo")
STEPS = ("claim", "prepare", "begin", "stage")
SOURCES = ("documents", "llm", "edi", *VENDORS)
HEALS = 12  # most rounds until everything must have its end


class Company(RuleBasedStateMachine):
    """One example: an installation of its own, with everything that a company's tools send to it."""

    world: World

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.closing = AsyncExitStack()
        self.mangling = Mangling(1)
        self.words = 0
        self.sent: list[Input] = []
        self.ways: Entrances

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
            temporal=f"127.0.0.1:{free_port()}/apex",
            embedder="hashing",
            data_dir=world.folder,
            secret_key=new_key(),
            retry_attempts=1,
            retry_seconds=0.02,
            breaker_open_seconds=0.01,
        )
        chaos = Chaos(errors=0.05, limits=0.05)
        self.ways = await self.closing.enter_async_context(
            entrances(given, vendors=VENDORS, mangling=self.mangling, chaos=chaos)
        )

    # What comes in

    def _word(self) -> str:
        """A word that no other input of this example has."""
        self.words += 1
        return f"mk{self.words}zq"

    def _send(self, input: Input) -> None:
        self.sent.append(input)
        self.do(
            self.ways.post(
                input.path,
                input.body,
                headers=input.headers,
                query=input.query,
                words=input.words,
                name=input.name,
            )
        )

    @rule(kind=st.sampled_from(sorted(foreign.WHOLE)), seed=SEEDS, count=st.integers(1, 3))
    def send(self, kind: str, seed: int, count: int) -> None:
        chance = random.Random(seed)
        for _ in range(count):
            self._send(foreign.WHOLE[kind](self._word(), chance))

    @rule(kind=st.sampled_from(sorted(foreign.BROKEN)), seed=SEEDS, count=st.integers(1, 3))
    def send_broken(self, kind: str, seed: int, count: int) -> None:
        chance = random.Random(seed)
        for _ in range(count):
            self._send(foreign.BROKEN[kind](self._word(), chance))

    @rule(name=st.sampled_from(foreign.BROKEN_FILES), seed=SEEDS)
    def send_broken_file(self, name: str, seed: int) -> None:
        self._send(foreign.broken_file(name, random.Random(seed)))

    @precondition(lambda self: self.sent)
    @rule(seed=SEEDS, count=st.integers(1, 4))
    def send_again(self, seed: int, count: int) -> None:
        """What was sent before, in the reverse order."""
        chance = random.Random(seed)
        for input in reversed(chance.sample(self.sent, min(count, len(self.sent)))):
            self._send(input)

    @rule(seed=SEEDS, count=st.integers(1, 3))
    def front(self, seed: int, count: int) -> None:
        chance = random.Random(seed)
        for _ in range(count):
            body, words = foreign.front_webhook(self._word(), chance)
            self.do(self.ways.hook("frontapp", body, words=words))

    @rule(source=st.sampled_from(HOOKS), seed=SEEDS, whole=st.booleans())
    def vendor_webhook(self, source: str, seed: int, whole: bool) -> None:
        """A sample of a vendor's webhooks, as it is or with values that nobody expects."""
        chance = random.Random(seed)
        sample = chance.choice(self.ways.app.sources[source].samples())
        body = sample.body if whole else foreign.mangled_json(sample.body, chance)
        self.do(self.ways.hook(source, body, name=f"{source} {sample.name}"))

    def send_sample(self, source: str, sample: Sample) -> None:
        """A sample as the vendor or a caller sends it."""
        kind, name = self.ways.app.sources[source], f"{source} {sample.name}"
        if not kind.authenticated_by_key:
            self.do(self.ways.hook(source, sample.body, name=name))
            return
        self._send(
            Input(
                kind.route,
                sample.body,
                {"content-type": sample.content_type},
                sample.query,
                name=name,
            )
        )

    @precondition(lambda self: self.sent)
    @rule(seed=SEEDS)
    def delete(self, seed: int) -> None:
        ids = sorted({item.event.doc_id for item in self.ways.record.events})
        if ids:
            self.do(self.ways.delete(random.Random(seed).choice(ids)))

    @rule(
        source=st.sampled_from(VENDORS),
        hours=st.integers(0, 8),
        damage=st.booleans(),
        edited=st.booleans(),
    )
    def pull(self, source: str, hours: int, damage: bool, edited: bool) -> None:
        """Time passes at a vendor, and what it has is fetched.

        A part of its responses is damaged. With `edited` a part shows other texts under the ids and times that the
        vendor gave before.
        """
        self.do(self._pull(source, hours, damage=0.3 * damage, edits=0.5 * edited))

    @rule(source=st.sampled_from(VENDORS), edited=st.booleans())
    def backfill(self, source: str, edited: bool) -> None:
        """What a vendor has is fetched again, with `edited` in part with other texts under the same ids and times."""
        self.do(self._backfill(source, edits=0.5 * edited))

    @rule(source=st.sampled_from(VENDORS))
    def lose_the_cursor(self, source: str) -> None:
        """The next pull of a vendor begins as the first one did."""
        self.do(self.ways.app.db.execute("DELETE FROM cursors WHERE source = %s", (source,)))

    async def _backfill(self, source: str, edits: float) -> None:
        clock = self.ways.simulators[source].clock
        window = BackfillRange(clock.now - timedelta(days=2), clock.now)
        self.mangling.edits = edits
        await self.ways.pull(source, Backfill(uuid.uuid4(), source, window))
        self.mangling.edits = 0.0
        await self.ways.land_fetched(source)

    async def _pull(self, source: str, hours: int, damage: float, edits: float) -> None:
        clock = self.ways.simulators[source].clock
        clock.advance_to(clock.now + timedelta(hours=hours))
        self.mangling.share, self.mangling.edits = damage, edits
        await self.ways.pull(source)
        self.mangling.share, self.mangling.edits = 0.0, 0.0
        await self.ways.land_fetched(source)

    # What is done with it

    @rule(source=st.sampled_from(SOURCES))
    def work(self, source: str) -> None:
        self.do(self.ways.app.direct.drain(source))

    @rule(source=st.sampled_from(SOURCES), step=st.sampled_from(STEPS))
    def crash(self, source: str, step: str) -> None:
        """A worker stops after a step."""
        self.do(self._abandon(source, STEPS.index(step)))

    async def _abandon(self, source: str, last: int) -> None:
        app = self.ways.app
        batch = await app.steps.claim(source)
        if last >= 1:
            await app.steps.prepare(source, batch.id)
        if last >= 2:
            stages = (await app.publication.journal.begin(batch.id)).stages
            if last >= 3:
                await app.publication.stage_and_verify(stages)
        await self._expire()

    async def _expire(self) -> None:
        """Leases and waits are over."""
        db = self.ways.app.db
        await db.execute("UPDATE inbox SET next_at = clock_timestamp() WHERE open")
        await db.execute(
            "UPDATE stages SET lease_until = clock_timestamp() - interval '1 s' WHERE state = 'staging'"
        )

    @precondition(lambda self: self.sent)
    @rule()
    def redrive(self) -> None:
        self.do(self._redrive())

    async def _redrive(self) -> None:
        app = self.ways.app
        letters = await app.dead_letters.find()
        await app.dead_letters.redrive([letter.id for letter in letters], actor="test")

    # What must hold

    def teardown(self) -> None:
        try:
            if hasattr(self, "ways"):
                self.verdict(self.do(self._judge()))
        finally:
            self.do(self.closing.aclose())
            self.runner.close()

    def verdict(self, wrong: Sequence[str]) -> None:
        """The end of an example: what breaks the rule in it."""
        assert not wrong, "\n".join(wrong[:20])

    async def _judge(self) -> list[str]:
        """Let everything end, then ask what became of it."""
        ways = self.ways
        for simulator in ways.simulators.values():
            simulator.chaos.off()
        failures = await self._finish()
        wrong = failures + await broken(ways)
        for source in ("documents", "llm", "edi"):
            wrong += await self._still_works(source)
        await self._clear()
        return wrong

    async def _finish(self) -> list[str]:
        """Pull and drain until nothing is left; return what did not end."""
        ways, failures = self.ways, []
        touched = {item.event.source for item in ways.record.events} | ways.record.hinted
        # As if the wait before another attempt to fetch their records were over.
        await ways.app.db.execute("UPDATE change_hints SET due_at = NULL")
        for source in sorted(touched & set(ways.simulators)):
            reason = await ways.pull(source)
            if reason:
                failures.append(f"held: pulling {source} fails for ever: {reason}")
            await ways.land_fetched(source, everything=True)
        for _ in range(HEALS):
            await self._expire()
            await ways.app.upkeep.sweep()
            for source in SOURCES:
                await ways.app.direct.drain(source)
            stores = await states(ways.app.db, [ways.app.graph, ways.app.vectors])
            if not await ways.app.inbox.backlog() and set(stores.values()) == {"ready"}:
                break
        return failures

    async def _still_works(self, source: str) -> list[str]:
        """After all that a new input of the source is searchable at the first try."""
        kind = {"documents": "document", "llm": "chat", "edi": "edi"}[source]
        input = foreign.WHOLE[kind](self._word(), random.Random(4))
        headers = {"content-type": input.headers["content-type"]}
        response = await self.ways.post(input.path, input.body, headers=headers, query=input.query)
        if not response.is_success:
            return [f"held: {source}: {response.status_code} {response.text[:200]}"]
        await self.ways.app.direct.drain(source)
        ids = [event["id"] for event in response.json()["events"]]
        rows = await self.ways.app.db.fetch(
            "SELECT state FROM inbox WHERE id = ANY(%s::uuid[])", (ids,)
        )
        ends = {row["state"] for row in rows}
        return [] if ends <= {"done", "superseded"} else [f"held: {source}: a new input is {ends}"]

    async def _clear(self) -> None:
        """Leave the shared vector store as it was."""
        stages = await self.ways.app.db.fetch("SELECT stage_id FROM stages")
        await self.ways.app.vectors.delete_stages([row["stage_id"] for row in stages])


def search(world: World, kind: type[Company] = Company, **more: Any) -> None:
    """Run examples of what comes in; `AssertionError` when the rule is broken."""
    gate = settings().derandomize
    given: dict[str, Any] = {
        "max_examples": 5 if gate else 60,
        "stateful_step_count": 25 if gate else 60,
        "deadline": None,
        "suppress_health_check": list(HealthCheck),
        "print_blob": True,
    }
    run_machine(type(kind.__name__, (kind,), {"world": world}), settings=settings(**given | more))


@pytest.mark.soak
@pytest.mark.timeout(900)
def test_what_is_acknowledged_has_an_end_that_can_be_seen(world: World) -> None:
    search(world)


@pytest.mark.timeout(240)
def test_every_sample_of_the_project_goes_in_by_its_entrance_and_keeps_the_rule(
    world: World,
) -> None:
    """The samples of all sources, as requests and signed webhooks, twice; and a day of every simulated vendor."""
    company = type("Company", (Company,), {"world": world})()
    company.start()
    for name, source in company.ways.app.sources.items():
        for _ in range(2):
            for sample in source.samples():
                company.send_sample(name, sample)
    for vendor in VENDORS:
        company.pull(source=vendor, hours=24, damage=False, edited=False)
    for name in SOURCES:
        company.work(source=name)
    assert set(company.ways.record.statuses) <= {200, 202}, company.ways.record.statuses
    assert {item.event.source for item in company.ways.record.events} == set(SOURCES)
    company.teardown()


class SecondContentIsDropped(Company):
    """The control: a landing that takes another version of equal time for a redelivery of the first."""

    async def _open(self) -> None:
        real = landing.land
        known: dict[tuple[Any, int], Event] = {}

        async def land(connection: Connection, events: Sequence[Event]) -> list[LandResult]:
            first = [known.setdefault((event.doc_id, event.version), event) for event in events]
            return await real(connection, first)

        self.closing.enter_context(mock.patch.object(landing, "land", land))
        await super()._open()


class LettersAreNotFiled(Company):
    """The control: events die, and nobody sees it."""

    async def _open(self) -> None:
        await super()._open()
        handler = self.ways.app.publication.failures
        real = handler._dead_letter

        async def dead_letter(connection: Connection, step: str, dead: Sequence[Any]) -> None:
            await real(connection, step, dead)
            ids = [item.inbox_id for item in dead]
            await connection.execute("DELETE FROM dead_letters WHERE inbox_id = ANY(%s)", (ids,))

        handler._dead_letter = dead_letter  # type: ignore[method-assign] # loses its letters


class PoisonHoldsItsBatch(Company):
    """The control: a batch with something unreadable in it is tried again for ever."""

    async def _open(self) -> None:
        await super()._open()
        self.ways.app.publication.failures._decide = _always_again  # type: ignore[method-assign] # gives nothing up


def _always_again(event: OwnedEvent, error: ApexError) -> Any:
    return _Handled(event.id, event.source, event.attempts, error, "retry")


def _equal_times(company: Company) -> None:
    """Two contents of one key and version, one after the other."""
    for text in ("first", "second"):
        body = json.dumps({"key": "a", "version": 1, "text": text}).encode()
        company._send(Input("/v1/documents", body, words=[text], name="document"))


def _poison(company: Company) -> None:
    company.send_broken_file(name="nothing.pdf", seed=1)
    company.work(source="documents")


CONTROLS: Mapping[type[Company], tuple[str, Callable[[Company], None]]] = {
    SecondContentIsDropped: ("lost|dropped", _equal_times),
    LettersAreNotFiled: ("dead without a letter", _poison),
    PoisonHoldsItsBatch: ("held", _poison),
}


@pytest.mark.parametrize("control", CONTROLS, ids=lambda control: str(control.__name__))
def test_a_product_that_breaks_the_rule_is_found(world: World, control: type[Company]) -> None:
    """With given steps in the gate; a soak searches for the steps, too."""
    meant, steps = CONTROLS[control]
    for kind, expected in ((Company, None), (control, meant)):
        company = type(kind.__name__, (kind,), {"world": world})()
        company.start()
        steps(company)
        if expected is None:
            company.teardown()
        else:
            with pytest.raises(AssertionError, match=expected):
                company.teardown()


@pytest.mark.timeout(600)
@pytest.mark.parametrize("control", CONTROLS, ids=lambda control: str(control.__name__))
def test_the_search_finds_a_product_that_breaks_the_rule(
    world: World, control: type[Company], request: pytest.FixtureRequest
) -> None:
    if not request.config.getoption("--soak"):
        pytest.skip("a minute each: `make soak`")
    meant, _ = CONTROLS[control]
    with pytest.raises(AssertionError, match=meant):
        search(world, control, max_examples=10, phases=[Phase.generate])
