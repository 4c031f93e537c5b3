"""Records that are fetched one at a time: one that its vendor does not return holds neither its source nor its neighbours."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import pytest
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from apex_memory.app import App, open_app
from apex_memory.errors import ApexError
from apex_memory.saga.dead_letters import DeadLetter
from apex_memory.sealing import new_key
from apex_memory.simulate.frontapp.simulator import FrontSimulator
from apex_memory.simulate.hubspot.simulator import HubSpot
from apex_memory.simulate.quickbooks.simulator import QuickBooks
from apex_memory.simulate.server import serve_simulators
from apex_memory.simulate.turvo.simulator import Turvo
from apex_memory.simulate.vendor import Chaos, Simulator
from apex_memory.simulate.world import Clock, World
from apex_memory.sources.pages import ChangeHint
from tests.e2e.conftest import MakeSettings

MOST_ATTEMPTS = 3
KINDS: Sequence[type[Simulator]] = (Turvo, QuickBooks, HubSpot, FrontSimulator)
STRANGER = {"turvo": "shipment:99{}", "quickbooks": "{realm}:Bill:99{}", "hubspot": "company:99{}", "frontapp": "evt_99{}"}  # fmt: skip


@dataclass
class Ward:
    """A source and its simulated vendor, which answers calls about `bad` records, or all calls, with `answer`."""

    simulator: Any
    server: AsyncExitStack
    app: App = field(init=False)
    answer: Callable[[], Response] = lambda: JSONResponse({}, 503)
    bad: set[str] = field(default_factory=set)
    away: bool = False

    @property
    def name(self) -> str:
        return str(self.simulator.name)

    def keys(self) -> list[str]:
        """Return the keys of hints for records that exist."""
        now = self.simulator.clock.now
        if self.name == "frontapp":
            return [event.id for event in self.simulator._events if event.at <= now]
        truth = [item for item in self.simulator.truth(now) if not item.deleted]
        return [item.doc_key for item in truth if self.name != "hubspot" or "company:" in item.doc_key]  # fmt: skip

    def strangers(self, count: int) -> list[str]:
        realm = self.keys()[0].partition(":")[0]
        return [STRANGER[self.name].format(n + 1000, realm=realm) for n in range(count)]

    def is_bad(self, id: str) -> bool:
        return any(id.lower() == key.rpartition(":")[2].lower() for key in self.bad)

    def install(self) -> None:
        """Play the faults. HubSpot names the records of a call in its body."""
        refused = self.simulator._refused

        def refuse(request: Request) -> Response | None:
            ok = not self.away and not self.is_bad(request.url.path.rpartition("/")[2])
            return refused(request) if ok else self.answer()

        self.simulator._refused = refuse
        if isinstance(self.simulator, HubSpot):
            batch = self.simulator._batch

            def respond(plural: str, request: Request, body: Any) -> Response:
                ok = not any(self.is_bad(item["id"]) for item in body["inputs"])
                return batch(plural, request, body) if ok else self.answer()

            self.simulator._batch = respond  # type: ignore[method-assign] # as a vendor with a bad day

    async def hint(self, *keys: str) -> None:
        await self.app.fetcher.pulls.note(self.name, [ChangeHint(key, self.simulator.clock.now) for key in keys])  # fmt: skip

    async def pull(self) -> str:
        """Pull, drain, and return the error of the pull, if any."""
        try:
            await self.app.fetcher.pull(self.name)
        except ApexError as error:
            return str(error)
        finally:
            await self.app.direct.drain(self.name)
        return ""

    async def later(self) -> None:
        """Let the time pass until every hint is due."""
        await self.app.db.execute("UPDATE change_hints SET due_at = now() WHERE due_at IS NOT NULL")

    async def hints(self) -> dict[str, int]:
        """Return the attempts of each hint that is stored."""
        rows = await self.app.db.fetch("SELECT key, attempts FROM change_hints")
        return {row["key"]: row["attempts"] for row in rows}

    async def letters(self) -> list[DeadLetter]:
        return await self.app.dead_letters.find()

    async def cursor(self) -> Any:
        row = await self.app.db.fetch_one("SELECT position FROM cursors WHERE source = %s", (self.name,))  # fmt: skip
        return row and row["position"]

    async def events(self) -> int:
        row = await self.app.db.fetch_one("SELECT count(*) AS n FROM inbox")
        assert row
        return int(row["n"])


@asynccontextmanager
async def ward(kind: type[Simulator], make_settings: MakeSettings) -> AsyncIterator[Ward]:
    world = World.make(7, shipments=6)
    simulator = kind(world, Clock(world.start), Chaos())
    simulator.clock.advance_to(world.start + timedelta(hours=4))
    async with AsyncExitStack() as server:
        ward = Ward(simulator, server)
        ward.install()
        served = await server.enter_async_context(serve_simulators([simulator]))
        settings = make_settings(
            sources=served.settings(), secret_key=new_key(), max_attempts=MOST_ATTEMPTS
        )
        async with open_app(settings) as app:
            client = app.fetcher.clients[simulator.name]
            client._patience, client._rate_limits = 0, lambda: [(10_000, 1)]
            ward.app = app
            yield ward


def status(code: int) -> Callable[[], Response]:
    return lambda: JSONResponse({}, code)


def reported() -> Response:
    return JSONResponse({"Status": "ERROR", "details": {"errorCode": "5000"}})


FAULTS: list[tuple[type[Simulator], Callable[[], Response], str, int]] = [
    *((kind, status(503), "503", MOST_ATTEMPTS) for kind in KINDS),
    *((kind, status(400), "400", 1) for kind in KINDS),
    # Front's 403 means that the token may not read this object; the preview of it is in memory.
    *((kind, status(403), "403", MOST_ATTEMPTS) for kind in KINDS if kind is not FrontSimulator),
    (Turvo, reported, "Status ERROR", MOST_ATTEMPTS),
]


@pytest.mark.parametrize(("kind", "answer", "named", "attempts"), FAULTS, ids=[f"{kind.name}-{named}" for kind, _, named, _ in FAULTS])  # fmt: skip
async def test_a_record_that_is_not_returned_is_retried_and_then_a_dead_letter(
    kind: type[Simulator],
    answer: Callable[[], Response],
    named: str,
    attempts: int,
    make_settings: MakeSettings,
) -> None:
    async with ward(kind, make_settings) as desk:
        assert not await desk.pull()
        before, cursor = await desk.events(), await desk.cursor()
        bad, *good = desk.keys()[:4]
        desk.bad, desk.answer = {bad}, answer
        desk.simulator.clock.advance_to(desk.simulator.clock.now + timedelta(hours=10))
        await desk.hint(good[0], bad, *good[1:])
        assert not await desk.pull(), "one record fails no pull"
        assert await desk.events() > before + len(good), "what only the list shows arrives"
        assert await desk.cursor() != cursor, "and the cursor moves"
        for attempt in range(1, attempts):
            assert await desk.hints() == {bad: attempt}, "its neighbours were fetched"
            assert not await desk.letters()
            assert not await desk.pull()
            assert await desk.hints() == {bad: attempt}, "it is not due"
            await desk.later()
            assert not await desk.pull()
        assert await desk.hints() == {}
        [letter] = await desk.letters()
        assert bad in letter.message and named in letter.message
        assert "redrive fetches it again" in letter.remedy

        # A redrive fetches it again: in vain, and then with success.
        await desk.app.dead_letters.redrive([letter.id], actor="test")
        assert await desk.hints() == {bad: 0}
        for _ in range(attempts):
            assert not await desk.pull()
            await desk.later()
        [again] = await desk.letters()
        assert again.id != letter.id
        desk.bad.clear()
        await desk.app.dead_letters.redrive([again.id], actor="test")
        assert not await desk.pull()
        assert await desk.hints() == {} and not await desk.letters()


@pytest.mark.parametrize("kind", [Turvo, FrontSimulator])
async def test_a_record_of_the_list_that_is_not_returned_does_not_hold_the_list(
    kind: type[Simulator], make_settings: MakeSettings
) -> None:
    async with ward(kind, make_settings) as desk:
        now = desk.simulator.clock.now
        if isinstance(desk.simulator, FrontSimulator):
            listed = [item for item in desk.simulator._events if item.listed_at <= now]
            event = [item for item in listed if item.body is not None][-1]
            desk.bad, bad = {event.target}, event.id
        else:
            bad = desk.keys()[0]
            desk.bad = {bad}
        assert not await desk.pull()
        assert await desk.cursor()
        assert list(await desk.hints()) == [bad]
        before = await desk.events()
        desk.bad.clear()
        await desk.later()
        assert not await desk.pull()
        assert await desk.hints() == {} and not await desk.letters()
        assert await desk.events() > before


@pytest.mark.parametrize("kind", KINDS)
async def test_many_bad_hints_starve_no_new_one(
    kind: type[Simulator], make_settings: MakeSettings
) -> None:
    async with ward(kind, make_settings) as desk:
        assert not await desk.pull()
        first, second = desk.keys()[:2]
        desk.bad = set(desk.strangers(600))
        await desk.hint(*sorted(desk.bad))
        await desk.hint(first)
        assert not await desk.pull()
        assert not await desk.pull()
        hints = await desk.hints()
        assert hints.keys() == desk.bad and set(hints.values()) == {1}
        await desk.hint(second)
        await desk.later()
        assert not await desk.pull()
        assert second not in await desk.hints(), "it comes before those that failed"


@pytest.mark.parametrize("outage", ["503", "429", "401", "unreachable"])
@pytest.mark.parametrize("kind", KINDS)
async def test_an_outage_of_the_vendor_uses_no_attempt(
    kind: type[Simulator], outage: str, make_settings: MakeSettings
) -> None:
    async with ward(kind, make_settings) as desk:
        assert not await desk.pull()
        keys = desk.keys()[:3]
        await desk.hint(*keys)
        if outage == "unreachable":
            await desk.server.aclose()
        else:
            desk.answer = lambda: JSONResponse({}, int(outage), {"retry-after": "100"})
            desk.away = True
        for _ in range(MOST_ATTEMPTS + 1):
            assert await desk.pull(), "the outage is shown"
            await desk.later()
        assert await desk.hints() == dict.fromkeys(keys, 0)
        assert not await desk.letters()
        if outage != "unreachable":
            desk.away = False
            assert not await desk.pull()
            assert await desk.hints() == {}


async def test_where_no_list_is_due_turvo_shows_by_another_call_that_it_is_there(
    make_settings: MakeSettings,
) -> None:
    async with ward(Turvo, make_settings) as desk:
        vars(desk.app.sources["turvo"].settings)["listing_seconds"] = 3600
        assert not await desk.pull()
        bad = desk.keys()[0]
        desk.bad = {bad}
        await desk.hint(bad)
        assert not await desk.pull()
        assert await desk.hints() == {bad: 1}
        desk.away = True
        await desk.later()
        assert await desk.pull()
        assert await desk.hints() == {bad: 1}, "that may be the vendor's fault"


async def test_a_new_notice_makes_a_failed_record_due_soon(make_settings: MakeSettings) -> None:
    async with ward(Turvo, make_settings) as desk:
        bad = desk.keys()[0]
        await desk.hint(bad)
        await desk.app.db.execute("UPDATE change_hints SET due_at = now() + interval '2 hours', attempts = 2")  # fmt: skip
        await desk.hint(bad)
        row = await desk.app.db.fetch_one("SELECT attempts, due_at < now() + interval '61 seconds' AS soon FROM change_hints")  # fmt: skip
        assert row == {"attempts": 2, "soon": True}
