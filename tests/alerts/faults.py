"""The faults by which alerts are fired. A fault is a context manager: it lasts inside the block, and is mended at its end."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import tempfile
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, ExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import httpx2

from apex_memory.model import now
from tests.e2e import front
from tests.e2e.build_copy import copy_package, settings_of, worker_process
from tests.e2e.stack import Stack
from tests.faults.volumes import filled
from tests.receiver import Receiver, Response
from tests.waiting import until

SCRAPE_SECONDS = 2
CANDIDATE = "candidate"
OTHER_TITLES = {
    "sources/frontapp/documents.py": (
        'title=event.subject or "(no subject)"',
        'title="NEW " + (event.subject or "(no subject)")',
    )
}


@dataclass(slots=True)
class Scene:
    """A running stack under load, with the former system and the vendor's API beside it."""

    stack: Stack
    legacy: Receiver
    vendor: Receiver
    events: list[bytes]
    """What the vendor's list of events holds: full events that have no webhook."""


Mend = AbstractAsyncContextManager[None]


@dataclass(frozen=True, slots=True)
class Fault:
    """A fault, and the alerts that it must fire."""

    alerts: tuple[str, ...]
    what: str
    inject: Callable[[Scene], Mend]


def vendor_responses(scene_events: list[bytes]) -> Callable[[object], Response]:
    """Return the script of Front's API: a list of events, always whole."""

    def respond(_: object) -> Response:
        records = [json.loads(event)["payload"] for event in scene_events]
        page = {"_pagination": {"next": None}, "_results": records}
        return Response(
            headers={"content-type": "application/json"}, body=json.dumps(page).encode()
        )

    return respond


def held(*children: str) -> Callable[[Scene], Mend]:
    """These processes hang: they are stopped, and go on at the end."""

    @asynccontextmanager
    async def inject(scene: Scene) -> AsyncIterator[None]:
        with ExitStack() as stopped:
            for child in children:
                stopped.enter_context(scene.stack.held(child))
            yield

    return inject


@asynccontextmanager
async def late_workers(scene: Scene) -> AsyncIterator[None]:
    """Nobody processes events for a while, and then all at once."""
    with scene.stack.held("worker"), scene.stack.held("bulk"):
        await asyncio.sleep(15)  # how late the events are: more than the threshold of the alert
    yield


@asynccontextmanager
async def crashing_cache(scene: Scene) -> AsyncIterator[None]:
    """An engine ends again and again."""
    task = asyncio.create_task(_kill_again_and_again(scene.stack, "valkey"))
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def _kill_again_and_again(stack: Stack, name: str) -> None:
    while True:
        child = stack.children().get(name)
        if child and child.ready and child.pid:
            with suppress(ProcessLookupError):
                os.kill(child.pid, signal.SIGKILL)
        await asyncio.sleep(1)  # the pause between two crashes


@asynccontextmanager
async def stuttering_bulk(scene: Scene) -> AsyncIterator[None]:
    """A process gets an eighth of its time."""
    pid = scene.stack.children()["bulk"].pid
    task = asyncio.create_task(_stutter(pid))
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        os.kill(pid, signal.SIGCONT)


async def _stutter(pid: int) -> None:
    while True:
        os.kill(pid, signal.SIGSTOP)
        # What it plans for a second later falls into the next stop: it runs 0.7 s late, and still answers each scrape.
        await asyncio.sleep(1.6)
        os.kill(pid, signal.SIGCONT)
        await asyncio.sleep(0.25)  # it runs


@asynccontextmanager
async def bad_file(scene: Scene) -> AsyncIterator[None]:
    """A document that cannot be read; it is discarded at the end."""
    await scene.stack.http.post(
        "/v1/documents?name=broken.pdf",
        content=b"%PDF-1.7 broken",
        headers={"content-type": "application/pdf"},
    )
    yield
    letters = (await scene.stack.get("/v1/dead-letters", status="open"))["dead_letters"]
    for letter in letters:
        path = f"/v1/dead-letters/{letter['id']}/discard"
        await scene.stack.post(path, json={"reason": "make alerts"})


@asynccontextmanager
async def lost_webhook(scene: Scene) -> AsyncIterator[None]:
    """The vendor's list has events whose webhooks never came.

    A pull counts those that are older than a webhook takes, 15 s, and younger than the pull before, 5 s ago. Whenever the
    next pull comes, one of these two is.
    """
    for age in (14.5, 15.2):
        at = now().timestamp() - age - front.START
        scene.events.append(front.message(f"lost{age}", "c-lost", at=at))
    yield


@asynccontextmanager
async def vendor_away(scene: Scene) -> AsyncIterator[None]:
    """The vendor's API responds with 500."""
    before = scene.vendor.script
    scene.vendor.script = lambda request: Response(500)
    try:
        yield
    finally:
        scene.vendor.script = before


def legacy_status(status: int) -> Callable[[Scene], Mend]:
    """The former system responds with this status; what became a dead letter is sent again at the end."""

    @asynccontextmanager
    async def inject(scene: Scene) -> AsyncIterator[None]:
        before = scene.legacy.script
        scene.legacy.script = lambda request: Response(status)
        try:
            yield
        finally:
            scene.legacy.script = before
            await scene.stack.post("/v1/mirror/redrive", json={"source": "frontapp"})

    return inject


@asynccontextmanager
async def full_disk(scene: Scene) -> AsyncIterator[None]:
    """The volume of the vectors is full."""
    folder: Path = scene.stack.data_dir / "vectors"
    with filled(folder):
        yield


@asynccontextmanager
async def differing_candidate(scene: Scene) -> AsyncIterator[None]:
    """A candidate build makes other titles of the same events, in a shadow. At the end that is accepted by name."""
    stack = scene.stack
    settings = settings_of(stack.children()["worker"].pid) | {
        "APEX_SECRET_KEY_FILE": str(stack.data_dir / "secret.key"),
        "APEX_BUILD_ID": CANDIDATE,
    }
    with tempfile.TemporaryDirectory(prefix="apex-build-") as name:
        folder = Path(name)
        path = copy_package(folder / "new", OTHER_TITLES)
        async with worker_process(path, settings, folder / "data", log=folder / "new.log"):
            await until(lambda: _polls(stack), "the candidate polls", seconds=120, every=0.5)
            await stack.post(f"/v1/builds/{CANDIDATE}/check", json={})
            start = {"build": CANDIDATE, "plan": {"steps": ["shadow", 10]}, "reason": "make alerts"}
            await stack.post("/v1/rollouts/build/start", json=start)
            try:
                yield
            finally:
                await stack.post("/v1/rollouts/build/stop", json={"reason": "make alerts"})
                await stack.post("/v1/rollouts/build/accept", json={"field": "title"})


async def _polls(stack: Stack) -> bool:
    """Return whether Temporal knows a worker of the candidate."""
    rows = (await stack.get("/v1/builds"))["builds"]
    return any(row["build"] == CANDIDATE and row["pollers"] for row in rows)


FAULTS = (
    Fault(("ApexProcessDown",), "the bulk worker hangs", held("bulk")),
    Fault(("ApexDeadLetters",), "a document that cannot be read", bad_file),
    Fault(("ApexMirrorBehind",), "the former system responds with 503", legacy_status(503)),
    Fault(("ApexMirrorDeadLetters",), "the former system responds with 422", legacy_status(422)),
    Fault(("ApexWebhooksLost",), "an event of the vendor without its webhook", lost_webhook),
    Fault(("ApexSourceStale",), "the vendor's API responds with 500", vendor_away),
    Fault(
        ("ApexBreakerOpen", "ApexEventsWait", "ApexSearchDegraded"),
        "the graph hangs",
        held("falkordb"),
    ),
    Fault(("ApexSearchSlow",), "the vector process hangs", held("vectors")),
    Fault(("ApexSearchableLate",), "both workers hang for 15 s", late_workers),
    Fault(("ApexTemporalUnreachable", "ApexFallbackActive"), "Temporal hangs", held("temporal")),
    Fault(("ApexFactsMissing", "ApexLandingErrors"), "PostgreSQL hangs", held("postgres")),
    Fault(("ApexEngineRestarts",), "the cache ends again and again", crashing_cache),
    Fault(("ApexProcessLate",), "the bulk worker gets an eighth of its time", stuttering_bulk),
    Fault(
        ("ApexDiskNearlyFull", "ApexEngineRefusesWrites"),
        "the volume of the vectors is full",
        full_disk,
    ),
    Fault(("ApexRolloutMismatch",), "a candidate with other titles", differing_candidate),
)


async def load(scene: Scene) -> None:
    """A quiet company: two webhooks and a search a second, for ever. Failures are the point of some faults."""
    number = 0
    while True:
        number += 1
        with suppress(httpx2.HTTPError, TimeoutError):
            async with asyncio.timeout(8):
                await scene.stack.hook(front.message(f"m{number}", f"c{number % 50}", at=number))
        if number % 2 == 0:
            with suppress(httpx2.HTTPError, TimeoutError):
                async with asyncio.timeout(8):
                    body = {"query": "where is SHP-100045?", "limit": 5}
                    await scene.stack.http.post("/v1/search", json=body)
        await asyncio.sleep(0.5)
