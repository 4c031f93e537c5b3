"""What the whole stack promises while its parts are killed and stopped, seen through the HTTP API and the command line alone."""

from __future__ import annotations

import asyncio
import json
import sys
import time
import uuid
from collections.abc import AsyncIterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from apex_memory.config import EMBEDDED
from apex_memory.engines.base import free_port
from apex_memory.model import now
from tests.e2e import front
from tests.e2e.logistics import DOCUMENTS, QUESTIONS
from tests.e2e.stack import CHILDREN, Stack, belonging, data_folder, running_stack
from tests.e2e.writer import Item, Writer, items, writing
from tests.waiting import until

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="reads /proc"),
    pytest.mark.timeout(240),  # processes start on a machine that others work on, too
]

EXAMPLES = Path(__file__).parents[2] / "examples" / "documents"
MORE = "There are more: --limit shows them.\n"
LANDING_SECONDS = 3  # vendors give up after three to ten
SEARCH_SECONDS = 8  # two waits of two seconds for a store that hangs, and a busy machine


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def shared() -> AsyncIterator[Stack]:
    async with running_stack(GRAPH=EMBEDDED) as stack:
        yield stack


@pytest_asyncio.fixture
async def stack(shared: Stack) -> AsyncIterator[Stack]:
    """A stack that others use as well: each test gets it whole, and leaves it whole."""
    yield shared
    print(f"whole again {await shared.whole():.1f} s after the test")


async def see_all_once(stack: Stack, writer: Writer, *, every: int = 1) -> None:
    """All that was acknowledged is at its end, and each document there once, in its newest version.

    Every `every`th document is searched for, by the shipment that only its newest version names.
    """
    states = await stack.states(writer.ids())
    assert states.keys() == set(writer.ids()), "an acknowledged event is gone"
    assert set(states.values()) <= {"done", "superseded"}, states
    newest = writer.newest()
    assert len(newest) == len({item.key for item in writer.landed}), "two documents for one key"
    listed = await documents(stack)
    for id, item in newest.items():
        [row] = [row for row in listed if row["document_id"] == id]
        assert not row["deleted"] and (not item.version or row["version"] == item.version)
    await asyncio.gather(
        *(see_once(stack, list(newest.items())[hand :: 4 * every]) for hand in range(4))
    )


async def see_once(stack: Stack, wanted: Sequence[tuple[str, Item]]) -> None:
    for id, item in wanted:
        answer = await stack.search(item.shipment)
        places = [(hit["document_id"], hit["start"]) for hit in answer["hits"]]
        assert places[0][0] == id and answer["degraded"] == [], item
        assert len(places) == len(set(places)), "the same passage twice"
        ref = f"shipment:{item.shipment}"
        named = (await stack.search(item.shipment, entities=[ref]))["hits"]
        assert {hit["document_id"] for hit in named} == {id}, item
        assert item.shipment in named[0]["snippet"]


async def documents(stack: Stack) -> list[Any]:
    """All documents of all pages."""
    listed: list[Any] = []
    cursor: dict[str, str] = {}
    while True:
        page = await stack.get("/v1/documents", limit=200, **cursor)
        listed += page["documents"]
        if page["next"] is None:
            return listed
        cursor = {"cursor": page["next"]}


@pytest.mark.long
async def test_kill_9_of_everything_while_writing_loses_and_doubles_nothing() -> None:
    async with running_stack(GRAPH=EMBEDDED) as stack:
        async with writing(stack, items(240), hands=8) as writer:
            await more(writer, 120)
            killed = now()
            took = await stack.kill()
            before = [event["id"] for event in writer.landed.values()]
            print(f"killed with {len(before)} acknowledged; all processes gone after {took:.2f} s")
            print(f"ready again after {await stack.start():.1f} s")
            states = await stack.states(before)
            assert states.keys() == set(before), "an acknowledged event is gone"
            print(f"all of them searchable {await stack.ended(before):.1f} s after that")
        ends = [(await stack.get(f"/v1/events/{id}"))["ended_at"] for id in before[-8:]]
        late = [end for end in ends if datetime.fromisoformat(end) > killed]
        assert late, "nothing was under way: this proves nothing"
        await stack.ended(writer.ids())
        await stack.whole()
        assert writer.sent_again, "nobody noticed: this proves nothing"
        await see_all_once(stack, writer)

        again = Writer(stack)
        for item in list(writer.landed)[::5]:
            await again.send(item)
        assert all(event["duplicate"] for event in again.landed.values())
        assert {i: e["id"] for i, e in again.landed.items()} == {
            item: writer.landed[item]["id"] for item in again.landed
        }
        await see_all_once(stack, writer, every=10)
        folder = stack.data_dir
    assert belonging(folder) == []


class SlowGraph(Stack):
    """A stack whose graph is not ready before the file `loaded` is beside the data folder."""

    module = "tests.e2e.slow_graph"

    def __init__(self, data_dir: Path, **settings: str) -> None:
        super().__init__(data_dir, **settings)
        self._given["PYTHONPATH"] = str(Path(__file__).parents[2])

    def loaded(self) -> None:
        (self.data_dir.parent / "loaded").touch()


async def test_events_land_while_the_graph_still_loads() -> None:
    async with data_folder() as folder:
        stack = SlowGraph(folder, GRAPH=EMBEDDED)
        starting = asyncio.create_task(stack.start())
        try:
            await until(
                lambda: "gateway" in (seen := stack.children()) and seen["gateway"].ready,
                seconds=60,
                what=stack.log_tail,
            )
            assert not stack.children()["falkordb"].ready
            assert "worker" not in stack.children(), "it would fail at what is not there"
            stack.http = stack.client((folder / "admin.key").read_text().strip())
            event = await stack.remember("early", "Shipment SH-48213 waits in Laredo.", wait=False)
            assert await stack.states([event["id"]]) == {event["id"]: "received"}
            assert not starting.done()

            stack.loaded()
            print(f"up {await starting:.1f} s after the call")
            await stack.ended([event["id"]])
            [hit, *_] = (await stack.search("SH-48213"))["hits"]
            assert "waits in Laredo" in hit["snippet"]
        finally:
            starting.cancel()
            await asyncio.gather(starting, return_exceptions=True)
            await stack.stop()


@pytest.mark.long
async def test_each_process_is_killed_while_writing_and_nothing_is_lost(stack: Stack) -> None:
    async with writing(stack, items(3000), hands=3, pause=0.1) as writer:
        for name in CHILDREN:
            await more(writer, 15)
            took = await stack.kill_child(name)
            print(f"{name} is back after {took:.2f} s; {len(writer.landed)} acknowledged")
        await more(writer, 15)
        writer.enough.set()
    print(f"all {len(writer.landed)} at their end after {await stack.ended(writer.ids()):.1f} s")
    await stack.whole()
    await see_all_once(stack, writer, every=5)


async def more(writer: Writer, count: int) -> None:
    """Wait until so many more are acknowledged."""
    wanted = len(writer.landed) + count
    await until(lambda: len(writer.landed) >= wanted, seconds=60, what=writer.stack.log_tail)


@pytest.mark.long
async def test_without_the_cache_results_are_the_same_and_only_slower() -> None:
    async def answers(stack: Stack) -> tuple[list[Any], float]:
        began, hits = time.monotonic(), []
        for question in QUESTIONS:
            answer = await stack.search(question.text)
            assert answer["degraded"] == [], "the cache decides nothing"
            hits.append([(hit["document_id"], hit["start"]) for hit in answer["hits"]])
        return hits, (time.monotonic() - began) / len(QUESTIONS) * 1000

    async with running_stack(GRAPH=EMBEDDED) as stack:
        with stack.held("valkey"):
            for text in DOCUMENTS:
                about = {"title": text.title, "kind": text.kind, "occurred_at": text.at}
                event = await stack.remember(text.key, text.text, wait=False, **about)
            await until(lambda: nothing_waits(stack), seconds=60, what=stack.log_tail)
            hung, ms = await answers(stack)
            print(f"a search with a cache that hangs: {ms:.0f} ms")
            shown = await stack.get(f"/v1/documents/{event['document_id']}")
        await stack.whole()
        await answers(stack)  # the first time nothing is in the cache
        with_it, ms = await answers(stack)
        print(f"with the cache: {ms:.0f} ms")
        assert hung == with_it
        assert await stack.get(f"/v1/documents/{event['document_id']}") == shown
        await stack.stop()

        stack.set(CACHE=f"redis://127.0.0.1:{free_port()}/0")
        await stack.start()
        await until(lambda: stores_ready(stack), seconds=30, what=stack.log_tail)
        assert "valkey" not in stack.children()
        without, ms = await answers(stack)
        print(f"with nobody where the cache should be: {ms:.0f} ms")
        assert without == with_it
        assert await stack.get(f"/v1/documents/{event['document_id']}") == shown
        assert (await stack.remember("without", "Door 5."))["state"] == "done"


async def nothing_waits(stack: Stack) -> bool:
    return bool((await stack.get("/v1/status"))["backlog"] == [])


async def stores_ready(stack: Stack) -> bool:
    """Return whether graph and vectors were checked after their start: until then responses list them as degraded."""
    stores = (await stack.get("/v1/status"))["stores"]
    return all(store["state"] == "ready" for store in stores if store["name"] != "cache")


async def test_without_temporal_events_land_and_wait(stack: Stack) -> None:
    with stack.held("temporal"):
        async with writing(stack, items(60), hands=4) as writer:
            pass
        print(f"the slowest of {len(writer.landed)} was answered in {writer.slowest * 1000:.0f} ms")
        assert writer.slowest < LANDING_SECONDS and not writer.sent_again
        status = await stack.get("/v1/status")
        assert status["temporal"]["reachable"] is False
        assert {store["state"] for store in status["stores"]} == {"ready"}
        late = await stack.remember("late", "Door 6.", wait=False)
        assert (await stack.get(f"/v1/events/{late['id']}"))["state"] == "received"
    print(f"all at their end {await stack.ended(writer.ids()):.1f} s after it came back")
    await stack.whole()
    await see_all_once(stack, writer, every=4)


@pytest.mark.parametrize(
    ("store", "child", "leg"), [("graph", "falkordb", "graph"), ("vectors", "vectors", "words")]
)
async def test_without_a_store_events_park_and_searches_are_marked(
    stack: Stack, store: str, child: str, leg: str
) -> None:
    async with writing(stack, items(6)) as known:
        pass
    await stack.ended(known.ids())
    with stack.held(child):
        async with writing(stack, items(12)) as writer:
            pass
        ids = writer.ids()
        await until(lambda: some_parked(stack, ids), seconds=40, every=0.2, what=stack.log_tail)
        parked = (await stack.get("/v1/events", state="parked", limit=200))["events"]
        mine = [event for event in parked if event["id"] in ids]
        assert {event["park_store"] for event in mine} == {store}
        assert all(event["attempts"] == 0 and event["last_error"] for event in mine)

        # The first one waits for the store, the next ones leave it alone.
        for id, item in list(known.newest().items())[:3]:
            began = time.monotonic()
            answer = await stack.search(item.shipment)
            took = time.monotonic() - began
            assert answer["degraded"] == [store] and took < SEARCH_SECONDS
            assert answer["hits"][0]["document_id"] == id
            print(f"a search without {store} took {took:.2f} s")

        status, doctor = stack.run_here("status", "--json"), stack.run_here("doctor", "--json")
        rows = [row for row in status.json["backlog"] if row["state"] == "parked"]
        assert {row["park_store"] for row in rows} == {store} and status.json["parked"] > 0
        assert doctor.code == 1
        bad = {finding["what"]: finding for finding in doctor.json if finding["state"] == "bad"}
        assert f"store {store}" in bad and all(finding["remedy"] for finding in bad.values())
        assert set(bad) <= {f"store {store}", f"breaker {store}"}, "nothing else is wrong"
    print(f"all at their end {await stack.ended(ids):.1f} s after {store} came back")
    await stack.whole()
    await see_all_once(stack, writer)
    answer = await stack.search(item.shipment)
    assert answer["degraded"] == [] and leg in answer["hits"][0]["legs"]


async def some_parked(stack: Stack, ids: Sequence[str]) -> bool:
    return "parked" in (await stack.states(ids)).values()


async def test_keys_and_signatures_decide_who_may_what(stack: Stack) -> None:
    made = {
        scope: await stack.post("/v1/keys", json={"name": scope, "scopes": [scope]})
        for scope in ("read", "ingest")
    }
    body = {"key": f"access-{uuid.uuid4()}", "text": "Door 7."}
    async with (
        stack.client() as nobody,
        stack.client("apex_0_wrong") as stranger,
        stack.client(made["read"]["key"]) as reader,
        stack.client(made["ingest"]["key"]) as sender,
    ):
        for client in (nobody, stranger):
            for path in ("/v1/search?q=door", "/v1/documents", "/v1/events", "/v1/keys"):
                assert (await client.get(path)).status_code == 401, path
            assert (await client.post("/v1/documents", json=body)).status_code == 401
        assert (await reader.post("/v1/documents", json=body)).status_code == 403
        assert (await reader.get("/v1/search?q=door")).status_code == 200
        assert (await reader.get("/v1/keys")).status_code == 403
        assert (await reader.delete(f"/v1/documents/{uuid.uuid4()}")).status_code == 403
        assert (await sender.get("/v1/search?q=door")).status_code == 403
        landed = await sender.post("/v1/documents", json=body)
        assert landed.status_code == 202
        assert (await nobody.get("/healthz")).status_code == 200
        gone = await stack.http.delete(f"/v1/keys/{made['ingest']['id']}")
        assert gone.status_code == 200
        assert (await sender.post("/v1/documents", json=body)).status_code == 401
    await stack.ended([landed.json()["events"][0]["id"]])


async def test_what_is_not_signed_or_too_large_does_not_land(stack: Stack) -> None:
    id = uuid.uuid4().hex
    body = front.message(f"msg_{id}", f"cnv_{id}", at=0)
    newest = (await stack.get("/v1/events", limit=1))["events"]
    async with stack.client() as nobody:
        forged = body.replace(b"SHP-100045", b"SHP-999999")
        for headers in ({}, stack.signed(forged)):
            answer = await nobody.post("/hooks/frontapp", content=body, headers=headers)
            assert answer.status_code == 401, answer.text
    for path, size in (("/v1/documents", 50_000_001), ("/hooks/frontapp", 5_000_001)):
        answer = await stack.http.post(path, content=b"x" * size)
        assert answer.status_code == 413, answer.text
        assert answer.json()["error"]["remedy"]
    assert (await stack.get("/v1/events", limit=1))["events"] == newest, "nothing has landed"
    assert (await stack.hook(body)).status_code == 202, "the same body with its own signature"


async def test_a_folder_is_ingested_once_and_every_list_is_json(stack: Stack) -> None:
    first = await stack.command("ingest", "--json", str(EXAMPLES))
    files = len(list(EXAMPLES.iterdir()))
    assert first.code == 0, first
    sent = first.json["files"]
    assert [file["outcome"] for file in sent] == ["new"] * files
    assert [file["state"] for file in sent] == ["done"] * files
    second = await stack.command("ingest", "--json", str(EXAMPLES))
    assert second.code == 0
    assert [file["outcome"] for file in second.json["files"]] == ["unchanged"] * files
    assert [f["events"] for f in second.json["files"]] == [f["events"] for f in sent]

    event = await stack.get(f"/v1/events/{sent[0]['events'][0]}")
    lists = [
        ["status"],
        ["doctor"],
        ["hello"],
        ["search", "SHP-100045"],
        ["entity", "shipment:SHP-100045"],
        ["document", event["document_id"]],
        ["documents"],
        ["events"],
        ["event", event["id"]],
        ["keys", "list"],
        ["dead-letters", "list"],
        ["reconcile", "graph"],
        ["reconcile", "vectors"],
        ["rebuild", "cache"],
        ["rebuild", "graph"],
    ]
    for words in lists:
        plain, machine = stack.run_here(*words), stack.run_here(*words, "--json")
        assert (plain.code, machine.code, machine.error) == (0, 0, ""), (words, plain)
        goes_on = isinstance(machine.json, dict) and machine.json.get("next")
        assert plain.error == (MORE if goes_on else ""), (words, plain)
        assert plain.out.strip() and machine.json, words
        with pytest.raises(json.JSONDecodeError):
            plain.json  # noqa: B018 (it is for people)


async def test_commands_report_what_is_wrong_and_what_to_do(stack: Stack) -> None:
    for words in (["event", str(uuid.uuid4())], ["ingest", "/nowhere"], ["search", "x" * 9_999]):
        result = stack.run_here(*words)
        assert result.code == 1 and "→" in result.error and "Traceback" not in result.error
    with stack.held("vectors"):
        doctor = await stack.command("doctor")
        assert doctor.code == 1 and "store vectors" in doctor.out and "→" in doctor.out
    await stack.whole()
    assert stack.run_here("doctor").code == 0


async def test_postgresql_that_hangs_is_reported_in_bounded_time(stack: Stack) -> None:
    """Its own time limits do not act then; and once it goes on, so does everything."""
    body = {"key": f"hang-{uuid.uuid4().hex}", "text": "SHP-700001 waits."}
    with stack.held("postgres"):
        began = time.monotonic()
        answers = await asyncio.gather(
            stack.http.get("/v1/documents"), stack.http.post("/v1/documents", json=body)
        )
        assert [answer.status_code for answer in answers] == [503, 503]
        assert all(answer.headers.get("retry-after") for answer in answers)
        assert time.monotonic() - began < 20

    async def lands() -> bool:
        return (await stack.http.post("/v1/documents", json=body)).status_code == 202

    await until(lands, seconds=10)
