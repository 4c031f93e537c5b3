"""Rollouts on a real PostgreSQL: plans that go up by their gates and back by themselves, people who steer them."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator
from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from apex_memory.errors import Conflict, Misconfigured, NotFound, Rejected, RetryLater
from apex_memory.inbox import Inbox
from apex_memory.inbox.routing import bucket_of
from apex_memory.model import Event, now
from apex_memory.rollout import builds
from apex_memory.rollout.candidate import promoting
from apex_memory.rollout.controller import Controller
from apex_memory.rollout.facts import facts_of, parameters_of, recent_sql, waiting_sql
from apex_memory.rollout.gates import Copies, Decision
from apex_memory.rollout.runs import Change, Run, Runs
from apex_memory.rollout.shadow_facts import accept
from apex_memory.rollout.shadow_gate import copies_of
from apex_memory.rollout_settings import RolloutSettings
from apex_memory.stores.postgres import Connection, Postgres
from tests.waiting import until

FRONT = "source:frontapp"
QUICK = {"min_seconds": 0, "min_events": 10, "backlog_floor": 5}


@dataclass
class World:
    """A database with an inbox, and what a test decides about it."""

    db: Postgres
    runs: Runs
    controller: Controller
    copies: Copies = field(default_factory=Copies)

    async def share(self, subject: str = FRONT) -> tuple[int, bool] | None:
        row = await self.db.fetch_one(
            "SELECT share, shadow FROM rollouts WHERE subject = %s", (subject,)
        )
        return (row["share"], row["shadow"]) if row else None

    async def run(self, subject: str = FRONT) -> Run:
        run = await self.runs.latest(subject)
        assert run
        return run

    async def start(self, *steps: Any, subject: str = FRONT, **more: Any) -> Run:
        build = "build-2" if subject == "build" else None
        if build:
            await builds.register(self.db, "build-1", decides=True)
            await builds.register(self.db, build, decides=True)
            await builds.record_check(self.db, build, passed=True, detail="replayed")
        changes = {"steps": list(steps), **QUICK, **more}
        return await self.runs.start(
            subject, actor="key:ann", reason="try it", build=build, changes=changes
        )

    async def processed(
        self,
        count: int,
        *,
        path: str = "temporal",
        build: str = "build-1",
        state: str = "done",
        seconds: float = 0.1,
        source: str = "frontapp",
        attempts: int = 0,
    ) -> list[uuid.UUID]:
        """Land events that this path and build have processed to a state, in so many seconds."""
        ids = await self.landed(count, source=source)
        await self.db.execute(
            """UPDATE inbox SET path = %s, build = %s, state = %s, attempts = %s,
                      ended_at = CASE WHEN %s IN ('done', 'superseded', 'dead')
                                      THEN received_at + make_interval(secs => %s) END
               WHERE id = ANY(%s)""",
            (path, build, state, attempts, state, seconds, ids),
        )
        return ids

    async def landed(self, count: int, *, source: str = "frontapp") -> list[uuid.UUID]:
        events = [
            Event(
                source=source,
                event_id=(name := uuid.uuid4().hex),
                doc_key=name,
                version=1,
                occurred_at=now(),
                payload=b"{}",
                content_type="application/json",
            )
            for _ in range(count)
        ]
        return [landed.id for landed in await Inbox(self.db).land(events)]


@pytest.fixture(name="world")
async def _world(database_url: str) -> AsyncIterator[World]:
    db = Postgres(database_url)
    await db.open()
    runs = Runs(db, RolloutSettings(), ("frontapp", "plaid"))

    async def copies_of(connection: Connection, run: Run) -> Copies:
        return world.copies

    world = World(db, runs, Controller(db, runs, copies_of=copies_of))
    yield world
    await db.close()


async def test_a_rollout_goes_up_step_by_step_to_its_end(world: World) -> None:
    await world.start("shadow", 10, 100)
    assert await world.share() == (0, True)
    await world.controller.tick()
    assert (await world.run()).verdict.startswith("waiting: events: 0 of 10 compared copies")

    world.copies = Copies(compared=10)
    await world.controller.tick()
    assert await world.share() == (10, False)
    await world.processed(10)
    await world.processed(30, path="direct")
    await world.controller.tick()
    assert await world.share() == (100, False)
    assert (await world.run()).baseline == pytest.approx(0.1, abs=0.01)

    await world.controller.tick()
    assert (await world.run()).state == "running", "events of the step before do not count"
    await world.processed(10)
    await world.controller.tick()
    run = await world.run()
    assert (run.state, run.ended_at is not None) == ("done", True)
    assert await world.share() == (100, False)
    history = await world.runs.history(FRONT)
    assert [(row["event"], row["share"], row["actor"]) for row in history] == [
        ("finish", 100, "gate"),
        ("promote", 100, "gate"),
        ("promote", 10, "gate"),
        ("start", 0, "key:ann"),
    ]
    assert history[-1]["reason"] == "try it"
    assert "10 of 10 events" in history[0]["reason"]


async def test_the_copies_of_a_shadow_are_facts_of_its_step(world: World) -> None:
    run = await world.start("shadow", 100)
    ids = await world.processed(12, path="direct")
    fill = """INSERT INTO shadows (subject, inbox_id, source, state, equal, fields, ended_at)
              SELECT %s, id, 'frontapp', 'compared', true, '{}', clock_timestamp() FROM unnest(%s::uuid[]) AS id"""
    await world.db.execute(fill, (FRONT, ids))
    await world.db.execute(
        "UPDATE shadows SET equal = false, fields = '{title}' WHERE inbox_id = ANY(%s)", (ids[:2],)
    )
    controller = Controller(world.db, world.runs, copies_of=copies_of)
    await controller.tick()
    assert "2 of 12 compared copies differ" in (await world.run()).verdict
    async with world.db.transaction() as connection:
        await accept(connection, FRONT, "", "title", actor="key:ann", reason="meant")
    await controller.tick()
    assert await world.share() == (100, False)
    assert run.step == 0


async def test_without_data_a_step_holds(world: World) -> None:
    await world.start(10, 100)
    await world.processed(200, path="direct")  # the other side's events are no data of this one
    for _ in range(5):
        await world.controller.tick()
    assert await world.share() == (10, False)
    assert "0 of 10 events" in (await world.run()).verdict


async def test_failures_roll_back_with_the_reason_and_stay_back(world: World) -> None:
    await world.start(10, 50, 100)
    await world.processed(40)
    await world.processed(40, path="direct")
    await world.controller.tick()
    assert await world.share() == (50, False)

    await world.processed(1, state="dead")
    await world.processed(8)
    await world.controller.tick()
    run = await world.run()
    assert (run.state, run.step) == ("rolled back", 0)
    assert await world.share() == (10, False)
    assert run.reason == "failures: 1 of 9 events failed; allowed are 1 %"
    row = await world.db.fetch_one("SELECT * FROM rollouts WHERE subject = %s", (FRONT,))
    assert row and (row["changed_by"], row["reason"]) == ("gate", run.reason)

    await world.processed(40)  # the step's gate would hold
    await world.processed(40, path="direct")
    await world.controller.tick()
    assert await world.share() == (10, False)
    assert "`apex rollout approve`" in (await world.run()).verdict

    await world.runs.approve(FRONT, actor="key:bob", reason="fixed")
    await world.controller.tick()
    assert await world.share() == (10, False), "the facts begin anew"
    await world.processed(40)
    await world.processed(40, path="direct")
    await world.controller.tick()
    assert await world.share() == (50, False)


async def test_from_the_first_step_the_way_back_leads_to_nothing(world: World) -> None:
    await world.start(10)
    await world.processed(5, state="dead")
    await world.controller.tick()
    run = await world.run()
    assert (run.state, run.step_name, run.ended_at is not None) == ("rolled back", "off", True)
    assert await world.share() == (0, False)


async def test_events_that_fail_again_and_again_are_evidence_before_they_are_dead(
    world: World,
) -> None:
    await world.start(10)
    await world.processed(5, state="received", attempts=1)
    await world.controller.tick()
    assert await world.share() == (10, False), "a blip is none"
    await world.processed(2, state="received", attempts=2)
    await world.controller.tick()
    assert await world.share() == (0, False)


async def test_a_slow_side_rolls_back_relative_to_the_other(world: World) -> None:
    await world.start(10)
    await world.processed(30, seconds=8, path="direct")
    await world.processed(20, seconds=20)
    await world.controller.tick()
    assert "allowed" not in (await world.run()).verdict
    assert await world.share() == (10, False), "24 s are allowed where the other side takes 8"


async def test_a_slow_side_rolls_back(world: World) -> None:
    await world.start(10, 100)
    await world.processed(30, seconds=0.1, path="direct")
    await world.processed(20, seconds=20)
    await world.controller.tick()
    assert await world.share() == (0, False)
    assert (await world.run()).reason.startswith("latency: p99 is 20.0 s; allowed are 1.0 s")


async def test_a_store_that_is_away_blames_nobody(world: World) -> None:
    await world.start(10, 100)
    await world.processed(30, path="direct", state="parked")
    await world.processed(20, seconds=20)
    await world.controller.tick()
    assert "30 events wait for a store" in (await world.run()).verdict
    await world.db.execute(
        "UPDATE inbox SET state = 'done', ended_at = clock_timestamp() WHERE state = 'parked'"
    )
    await world.controller.tick()
    run = await world.run()
    assert "p99 is not known yet" in run.verdict, "times of the disturbance do not count"
    assert await world.share() == (10, False)


async def test_a_backlog_of_the_new_side_alone_rolls_back(world: World) -> None:
    await world.start(50)
    await world.processed(40, path="direct")
    ids = await world.landed(60)
    buckets = await world.db.fetch("SELECT id, doc_id FROM inbox WHERE id = ANY(%s)", (ids,))
    others = [row["id"] for row in buckets if bucket_of(row["doc_id"]) >= 50]
    await world.db.execute(
        "UPDATE inbox SET state = 'done', path = 'direct', ended_at = clock_timestamp() WHERE id = ANY(%s)",
        (others,),
    )
    await world.controller.tick()
    assert await world.share() == (50, False), "they have only just come"
    await world.db.execute(
        """UPDATE rollout_runs SET step_began = step_began - interval '1 min';""",
    )
    await world.db.execute(
        "UPDATE inbox SET received_at = received_at - interval '50 s' WHERE state = 'received'"
    )
    await world.controller.tick()
    waiting = 60 - len(others)
    assert await world.share() == (0, False)
    assert f"backlog: {waiting} events wait" in (await world.run()).reason


async def test_the_candidate_build_is_judged_by_its_own_events(world: World) -> None:
    await world.start("shadow", 10, subject="build")
    world.copies = Copies(compared=10)
    await world.controller.tick()
    assert await world.share("build") == (10, False)
    row = await world.db.fetch_one("SELECT build FROM rollouts WHERE subject = 'build'")
    assert row == {"build": "build-2"}
    await world.processed(30, build="build-1", state="dead", source="plaid")
    await world.controller.tick()
    assert await world.share("build") == (10, False), "the current build is not on trial"
    await world.processed(3, build="build-2", state="dead", source="plaid")
    await world.processed(300, build="build-1", source="frontapp")
    await world.controller.tick()
    assert await world.share("build") == (0, True), "and back in shadow"


async def test_a_manual_plan_waits_for_a_person(world: World) -> None:
    await world.start(10, 100, promotion="manual")
    await world.processed(20)
    await world.processed(20, path="direct")
    await world.controller.tick()
    assert (await world.run()).verdict == "the gate holds; waiting for approval"
    await world.runs.approve(FRONT, actor="key:ann", reason="looks well")
    await world.controller.tick()
    assert await world.share() == (100, False)
    assert (await world.run()).approved is False, "the next step needs its own"


async def test_people_hold_go_back_and_stop(world: World) -> None:
    await world.start(10, 50, 100)
    with pytest.raises(Conflict, match="nothing to approve"):
        await world.runs.approve(FRONT, actor="key:ann")
    await world.runs.hold(FRONT, actor="key:ann", reason="lunch")
    await world.processed(20)
    await world.processed(20, path="direct")
    await world.controller.tick()
    assert await world.share() == (10, False)
    await world.runs.approve(FRONT, actor="key:ann", reason="back")
    await world.controller.tick()
    assert await world.share() == (50, False)

    with pytest.raises(Rejected, match="not an earlier step"):
        await world.runs.back(FRONT, actor="key:ann", to="100")
    run = await world.runs.back(FRONT, actor="key:ann", reason="strange hits")
    assert (run.state, run.step_name, await world.share()) == ("rolled back", "10 %", (10, False))
    run = await world.runs.back(FRONT, actor="key:ann", to="off")
    assert (run.state, await world.share()) == ("rolled back", (0, False))
    with pytest.raises(Conflict, match="no rollout is in progress"):
        await world.runs.stop(FRONT, actor="key:ann")

    await world.start(10, 100)
    run = await world.runs.stop(FRONT, actor="key:ann", keep=True)
    assert (run.state, await world.share()) == ("stopped", (10, False))
    await world.start(10, 100)
    await world.runs.stop(FRONT, actor="key:ann", reason="no more")
    assert await world.share() == (0, False)
    history = await world.runs.history(FRONT)
    assert (history[0]["event"], history[0]["reason"]) == ("stop", "no more")


async def test_traffic_and_code_are_not_rolled_out_at_the_same_time(world: World) -> None:
    await world.start(10)
    with pytest.raises(Conflict, match="in progress already"):
        await world.start(10)
    await world.start(10, subject="source:plaid")
    with pytest.raises(Conflict, match="traffic and code"):
        await world.start(10, subject="build")
    for subject in (FRONT, "source:plaid"):
        await world.runs.stop(subject, actor="key:ann")
    await world.start(10, subject="build")
    with pytest.raises(Conflict, match="traffic and code"):
        await world.start(10)


async def test_wrong_starts_are_refused(world: World) -> None:
    with pytest.raises(NotFound, match="no such source"):
        world.runs.subject("nobody")
    with pytest.raises(Rejected, match=r"plan.steps: shares must rise"):
        await world.start(50, 10)
    with pytest.raises(Rejected, match="expected for the rollout of a build"):
        await world.runs.start("build", actor="key:ann")
    assert await world.share() is None
    with pytest.raises(Misconfigured, match=r"rollout\.sources\.nobody: unknown source"):
        Runs(world.db, RolloutSettings(sources={"nobody": {}}), ("frontapp",))


async def test_of_two_controllers_one_decides_until_it_is_gone(world: World) -> None:
    other = Controller(world.db, world.runs, copies_of=world.controller._copies_of)
    assert await world.controller.tick()
    assert not await other.tick()
    assert await world.controller.tick()
    await world.db.execute("UPDATE leases SET until = clock_timestamp() WHERE name = 'rollout'")
    assert await other.tick()
    assert not await world.controller.tick()
    await world.db.execute("UPDATE leases SET until = clock_timestamp() WHERE name = 'rollout'")
    assert await world.controller.tick()


async def test_two_that_decide_at_once_go_one_step(world: World) -> None:
    await world.start(10, 20, 50, 100)
    run = await world.run()
    promotion = Decision("promote", "the gate holds")
    done = await asyncio.gather(*(world.runs.carry_out(run, promotion) for _ in range(4)))
    assert sorted(done) == [False, False, False, True]
    assert await world.share() == (20, False)
    await world.runs.hold(FRONT, actor="key:ann")
    assert not await world.runs.carry_out(replace(run, step=1), promotion), "held meanwhile"


async def test_what_follows_a_change_is_repeated_until_it_succeeds(world: World) -> None:
    seen: list[Change] = []

    async def applied(change: Change) -> None:
        seen.append(change)
        if len(seen) < 3:
            raise RetryLater("Temporal does not respond")

    world.controller.on_change("build", applied)
    await world.start(10, 100, subject="build")
    for _ in range(5):
        await world.controller.tick()
    assert seen == [Change("build", "build-2", 10, False, None)] * 3
    await world.runs.stop("build", actor="key:ann")
    await world.controller.tick()
    await world.controller.tick()
    assert seen[3:] == [Change("build", "build-2", 0, False, "stopped")]


async def test_a_build_whose_gates_held_becomes_current(world: World) -> None:
    world.controller.on_change("build", promoting(world.db))
    await world.start(100, subject="build")
    await world.processed(20, build="build-2")
    await world.controller.tick()
    assert (await world.run("build")).state == "done"
    routing = await builds.routing(world.db)
    assert (routing.current, routing.previous, routing.candidate) == ("build-2", "build-1", "")


async def test_a_build_that_goes_back_loses_its_unfinished_events(world: World) -> None:
    await world.start(10, 100, subject="build")
    ids = await world.processed(3, build="build-2", state="received")
    await world.db.execute(
        "UPDATE inbox SET batch = gen_random_uuid(), next_at = next_at + interval '1 h' WHERE id = ANY(%s)",
        (ids,),
    )
    await world.processed(2, build="build-2", state="dead")
    await world.controller.tick()
    assert await world.share("build") is None, "it is no candidate any more"
    row = await world.db.fetch_one(
        "SELECT count(*) AS ready FROM inbox WHERE batch IS NULL AND open AND next_at <= clock_timestamp()"
    )
    assert row == {"ready": 3}


async def test_a_build_that_may_not_be_rolled_out_is_refused(world: World) -> None:
    async def refused(build: str) -> str:
        with pytest.raises((Conflict, NotFound)) as error:
            await world.runs.start("build", actor="key:ann", build=build, changes={"steps": [10]})
        return str(error.value)

    await builds.register(world.db, "build-1", decides=True)
    assert "no worker of this build" in await refused("build-2")
    await builds.register(world.db, "build-2", decides=True)
    assert "has not been checked" in await refused("build-2")
    assert "is the current build" in await refused("build-1")
    assert await world.runs.latest("build") is None


async def test_a_build_in_shadow_holds_until_it_has_passed_its_check(world: World) -> None:
    await builds.register(world.db, "build-1", decides=True)
    plan = {"steps": ["shadow", 10], **QUICK}
    await world.runs.start("build", actor="key:ann", build="build-2", changes=plan)
    world.copies = Copies(compared=10)
    await world.controller.tick()
    assert "no worker of this build" in (await world.run("build")).verdict
    await builds.register(world.db, "build-2", decides=True)
    await world.controller.tick()
    assert "`apex builds check build-2`" in (await world.run("build")).verdict
    assert await world.share("build") == (0, True)
    await builds.record_check(world.db, "build-2", passed=True, detail="replayed")
    await world.controller.tick()
    assert await world.share("build") == (10, False)


async def test_the_facts_of_a_large_inbox_come_from_indexes(world: World) -> None:
    fill = """INSERT INTO inbox (id, source, event_id, doc_id, doc_key, priority, version, occurred_at, content_type,
                                 state, path, ended_at)
              SELECT gen_random_uuid(), 'frontapp', %s || n, gen_random_uuid(), 'k', 0, 1, now(), 't', 'done',
                     CASE WHEN mod(n, 10) = 0 THEN 'temporal' ELSE 'direct' END, clock_timestamp() + interval '2 s'
              FROM generate_series(1, %s) n"""
    await world.db.execute(fill, ("old", 20_000))
    run = await world.start(10)
    await world.db.execute(fill, ("new", 1_000))
    await world.db.execute("ANALYZE inbox")
    async with world.db.connection() as connection:
        facts = await facts_of(connection, run, Copies())
        for query in (recent_sql(build=False), recent_sql(build=True), waiting_sql(build=False)):
            cursor = await connection.execute(f"EXPLAIN {query}", parameters_of(run))
            lines = [row["QUERY PLAN"] for row in await cursor.fetchall()]
            assert not [line for line in lines if "Seq Scan on inbox" in line], lines
    assert (facts.new.ended, facts.other.ended) == (100, 900)
    assert facts.new.p99 and 1 <= facts.new.p99 < 10


async def test_a_gate_takes_the_lock_of_builds_before_any_row(world: World) -> None:
    """The order of `apex builds rollback`, which then waits for the run: the other order could deadlock."""
    run = await world.start(10, 100, subject="build")
    async with world.db.transaction() as connection:
        await builds.lock_roles(connection)
        deciding = asyncio.create_task(world.runs.carry_out(run, Decision("back", "bad")))

        async def waits() -> bool:
            row = await world.db.fetch_one(
                "SELECT count(*) AS n FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"
            )
            return bool(row and row["n"])

        await until(waits, "the gate waits for the lock")
        await connection.execute(
            "SELECT FROM rollout_runs WHERE id = %s FOR UPDATE NOWAIT", (run.id,)
        )
        assert not deciding.done()
    assert await deciding is True


async def test_a_rollback_and_gates_that_decide_at_the_same_instant_follow_one_another(
    world: World,
) -> None:
    for _ in range(15):
        run = await world.start(10, 50, 100, subject="build")
        ids = await world.landed(20)
        await world.db.execute(
            "UPDATE inbox SET build = 'build-2', batch = gen_random_uuid() WHERE id = ANY(%s)",
            (ids,),
        )
        results = await asyncio.gather(
            world.runs.carry_out(run, Decision("promote", "the gate holds")),
            builds.rollback(world.db, actor="key:ann", reason="bad"),
            world.runs.carry_out(run, Decision("back", "failures")),
            world.runs.back("build", actor="key:bob", to="off"),
            return_exceptions=True,
        )
        failed = [result for result in results if isinstance(result, BaseException)]
        assert all(isinstance(error, Conflict) for error in failed), failed
        assert len(failed) < len(results)
        ended = await world.run("build")
        assert ended.ended_at and ended.state == "rolled back"
        assert await world.share("build") is None
        row = await world.db.fetch_one(
            "SELECT count(*) AS n FROM inbox WHERE open AND batch IS NOT NULL AND build = 'build-2'"
        )
        assert row and row["n"] == 0
