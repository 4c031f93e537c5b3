"""Two real builds of the package side by side, under load: 10, 50, 100 %, then back. Nothing is lost."""

from __future__ import annotations

import asyncio
import itertools
import math
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from apex_memory.inbox.routing import bucket_of
from apex_memory.stores.postgres import Postgres
from tests.e2e.build_copy import copy_package, settings_of, worker_process
from tests.e2e.stack import Stack, running_stack
from tests.soaking import only_in_soak
from tests.waiting import until

pytestmark = pytest.mark.timeout(900)

TITLE = "title=fields.title or"
CHANGED = {
    "sources/documents/source.py": (TITLE, 'title="NEW " + fields.title if fields.title else')
}
"""The changed mapper: titles of the new build begin with a word of their own."""
BROKEN = {
    "flows/drain/workflow.py": (
        "        over = False\n        while True:",
        "        await workflow.sleep(timedelta(seconds=1))\n        over = False\n        while True:",
    )
}
"""A change that running workflows cannot follow."""
EVENTS = 60  # that a step processes before it is judged


class Load:
    """Documents that land all the time, each under a key of its own."""

    def __init__(self, stack: Stack) -> None:
        self._stack = stack
        self.ids: list[str] = []

    async def run(self) -> None:
        for number in itertools.count():
            body = {
                "key": f"k{number}",
                "title": f"t{number}",
                "text": f"Shipment number {number}.",
            }
            events = (await self._stack.post("/v1/documents", json=body))["events"]
            self.ids += [event["id"] for event in events]
            await asyncio.sleep(0.1)  # the pace of the load


@asynccontextmanager
async def load_on(stack: Stack) -> AsyncIterator[Load]:
    load = Load(stack)
    task = asyncio.create_task(load.run())
    try:
        yield load
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def clock(db: Postgres) -> Any:
    row = await db.fetch_one("SELECT clock_timestamp() AS at")
    assert row
    return row["at"]


async def enough(db: Postgres, at: Any) -> list[Any]:
    """Return the first events that landed after `at`, when all of them are done: document, build, title.

    Not the first that are done: of two builds the faster one would process them all.
    """

    async def processed() -> list[Any] | None:
        rows = await db.fetch(
            """SELECT i.doc_id, i.build, i.path, i.state, i.workflow_id, d.title, i.received_at, i.prepared_at, i.ended_at,
                      i.attempts
               FROM inbox i LEFT JOIN documents d USING (doc_id)
               WHERE i.received_at > %s ORDER BY i.seq LIMIT %s""",
            (at, EVENTS),
        )
        done = [row for row in rows if row["state"] == "done"]
        return done if len(done) == EVENTS else None

    return await until(processed, f"{EVENTS} events processed", seconds=120, every=0.3) or []


async def command(stack: Stack, *arguments: str) -> Any:
    result = await stack.command("builds", *arguments, "--json", seconds=300)
    assert result.code == 0, result.error
    return result.json


async def last_of(db: Postgres, build: str, at: Any) -> float:
    """Seconds from `at` to the end of the last event that a build processed."""
    row = await db.fetch_one(
        "SELECT coalesce(extract(epoch FROM max(ended_at) - %s), 0)::float AS s FROM inbox WHERE build = %s",
        (at, build),
    )
    assert row
    return max(0.0, float(row["s"]))


async def waiting_build(stack: Stack, current: str) -> str:
    async def registered() -> str | None:
        builds = (await stack.get("/v1/builds"))["builds"]
        others = [row for row in builds if row["build"] != current and row["alive"]]
        return others[0]["build"] if others and others[0]["pollers"] else None

    return str(await until(registered, "the new build waits", seconds=120, every=0.5))


async def in_line(stack: Stack) -> None:
    async def same() -> bool:
        return (await stack.get("/v1/builds"))["in_line"] is True

    await until(same, "Temporal shows the same routing", seconds=60, every=0.5)


@pytest.mark.soak
@pytest.mark.long
@pytest.mark.alone(reason="measures seconds under load")
async def test_two_builds_side_by_side_under_load(request: pytest.FixtureRequest) -> None:
    only_in_soak(request)
    with tempfile.TemporaryDirectory(prefix="apex-build-") as name:
        folder = Path(name)
        path = copy_package(folder / "new", CHANGED)
        async with running_stack() as stack:
            settings = settings_of(stack.children()["worker"].pid)
            settings["APEX_SECRET_KEY_FILE"] = str(stack.data_dir / "secret.key")
            report = await command(stack, "list")
            old = report["current"]
            assert report["builds"][0]["share"] == 100
            db = Postgres(settings["APEX_DOCUMENTS"])
            await db.open()
            async with load_on(stack) as load:
                log = folder / "new.log"
                async with worker_process(path, settings, folder / "data", log=log):
                    new = await waiting_build(stack, old)
                    refused = await stack.command("builds", "ramp", new, "10")
                    assert refused.code != 0 and "builds check" in refused.error
                    assert (await command(stack, "check", new, "--histories", "3"))["passed"]

                    for share in (10, 50, 100):
                        await command(stack, "ramp", new, str(share))
                        rows = await enough(db, await clock(db))
                        for row in rows:
                            is_new = bucket_of(row["doc_id"]) < share
                            assert row["build"] == (new if is_new else old), (share, row)
                            assert row["title"].startswith("NEW ") == is_new, (share, row)
                        of_new = sum(row["build"] == new for row in rows) / len(rows)
                        tolerance = (
                            3 * math.sqrt(share * (100 - share)) / 100 / math.sqrt(len(rows))
                        )
                        assert abs(of_new - share / 100) <= tolerance, (share, of_new)
                        print(f"{share} %: {len(rows)} events, {of_new:.0%} by the new build")
                        await in_line(stack)

                    at = await clock(db)
                    # By HTTP: the start of a command is not part of the call.
                    result = await stack.post("/v1/builds/rollback", json={"reason": "test"})
                    print(f"rollback of the candidate: {result['taken_back']} taken back")
                    rows = await enough(db, await clock(db))
                    assert {row["build"] for row in rows} == {old}
                    ramped = await last_of(db, new, at)

                    await command(stack, "promote", new)
                    rows = await enough(db, await clock(db))
                    assert {row["build"] for row in rows} == {new}
                    await in_line(stack)
                    at = await clock(db)
                    await stack.post("/v1/builds/rollback", json={})
                    rows = await enough(db, await clock(db))
                    assert {row["build"] for row in rows} == {old}
                    promoted = await last_of(db, new, at)
                    await in_line(stack)
            print(f"last event on the new build {ramped:.2f} s and {promoted:.2f} s after the call")
            await stack.ended(load.ids, seconds=120)
            states = await stack.states(load.ids)
            assert set(states.values()) == {"done"}
            count = await db.fetch_one("SELECT count(*) AS n FROM documents WHERE NOT deleted")
            assert count and count["n"] == len(load.ids)
            await db.close()
            assert ramped <= 2 and promoted <= 2


@pytest.mark.long
async def test_a_build_that_cannot_continue_recent_runs_may_not_ramp() -> None:
    """The negative control of the check: a workflow whose code changed in a way that histories cannot follow."""
    with tempfile.TemporaryDirectory(prefix="apex-build-") as name:
        folder = Path(name)
        path = copy_package(folder / "new", BROKEN)
        async with running_stack() as stack:
            await stack.remember("a", "one")
            settings = settings_of(stack.children()["worker"].pid)
            settings["APEX_SECRET_KEY_FILE"] = str(stack.data_dir / "secret.key")
            old = (await command(stack))["current"]  # without a command it lists
            log = folder / "new.log"
            async with worker_process(path, settings, folder / "data", log=log):
                new = await waiting_build(stack, old)
                checked = await stack.command("builds", "check", new, "--json", seconds=300)
                assert checked.code == 1
                assert checked.json["passed"] is False and "Drain" in checked.json["detail"]
                refused = await stack.command("builds", "ramp", new, "10")
                assert refused.code != 0 and "did not pass" in refused.error
            await stack.remember("b", "two")
