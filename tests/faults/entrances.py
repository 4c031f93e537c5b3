"""The product behind all its entrances, in this process: HTTP routes, webhooks, pulls from simulated vendors, files.

`Entrances` records every event that was acknowledged: by a 2xx response, or by a committed page of a pull.
`tests/faults/ends.py` compares the record with what became of the events.
"""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, cast
from unittest import mock
from uuid import UUID

import httpx2
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from apex_memory.app import App
from apex_memory.config import Settings
from apex_memory.credentials.api_keys import create_key
from apex_memory.errors import ApexError
from apex_memory.fetching.pulls import Backfill, PullResult
from apex_memory.gateway import create_app
from apex_memory.inbox import landing
from apex_memory.model import Event, LandResult, now
from apex_memory.simulate.registry import simulator_classes
from apex_memory.simulate.server import serve_simulators
from apex_memory.simulate.vendor import Chaos, Simulator
from apex_memory.simulate.world import Clock, World
from apex_memory.sources.base import FileSource, StreamSource
from apex_memory.stores.postgres import Connection
from tests.faults.foreign import edited_json, mangled_json

URL = "http://127.0.0.1:8460"
TIMEOUT_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class Acknowledged:
    """An event that a sender believes to be stored, as it was handed to the inbox."""

    event: Event
    duplicate: bool


@dataclass(slots=True)
class Request2xx:
    """A request that was acknowledged: its events, and the words that its sender put into it."""

    name: str
    ids: list[UUID]
    words: Sequence[str]
    """Empty for inputs that are broken: which of their words can be read is not known."""


@dataclass(slots=True)
class Record:
    """What was acknowledged, and what a sender must never see."""

    events: list[Acknowledged] = field(default_factory=list)
    requests: list[Request2xx] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    statuses: dict[int, int] = field(default_factory=dict)
    hinted: set[str] = field(default_factory=set)
    """Sources whose webhooks left change hints."""


def _without_renamed(
    handed: Sequence[tuple[Event, LandResult]],
) -> list[tuple[Event, LandResult]]:
    """Leave out the duplicates that landed right after under an id of their own, since their content was another one."""
    renamed = {(event.event_id.rpartition("#")[0], event.payload) for event, _ in handed}
    return [
        (event, result)
        for event, result in handed
        if not (result.duplicate and (event.event_id, event.payload) in renamed)
    ]


class Entrances:
    """All ways into one installation. Made by `entrances`."""

    def __init__(
        self, app: App, http: httpx2.AsyncClient, simulators: Mapping[str, Simulator]
    ) -> None:
        self.app = app
        self.http = http
        self.simulators = simulators
        self.record = Record()
        self._handed: list[tuple[Event, LandResult]] = []

    async def spy(
        self, real: Any, connection: Connection, events: Sequence[Event]
    ) -> list[LandResult]:
        """Land events, and note them until it is known whether they were acknowledged."""
        results: list[LandResult] = await real(connection, events)
        self._handed += zip(events, results, strict=True)
        return results

    def _acknowledge(self) -> None:
        for event, result in _without_renamed(self._handed):
            self.record.events.append(Acknowledged(event, result.duplicate))
        self._handed.clear()

    async def post(
        self,
        path: str,
        body: bytes,
        *,
        headers: Mapping[str, str],
        query: Mapping[str, str] | None = None,
        words: Sequence[str] = (),
        name: str = "",
    ) -> httpx2.Response:
        """Send a request. A 5xx from a healthy installation is recorded as wrong."""
        self._handed.clear()
        response = await self.http.post(path, content=body, headers=headers, params=query or {})
        status = response.status_code
        self.record.statuses[status] = self.record.statuses.get(status, 0) + 1
        if status >= 500:
            self.record.wrong.append(f"{name or path}: {status} {response.text[:200]}")
        if response.is_success:
            self._handed = _without_renamed(self._handed)
            ids = [result.id for _, result in self._handed]
            if response.headers["content-type"].startswith("application/json"):
                listed = response.json().get("events")  # a vendor may expect a response of its own
                if listed is not None and [UUID(event["id"]) for event in listed] != ids:
                    self.record.wrong.append(f"{name or path}: {len(listed)} of {len(ids)} events")
            self.record.requests.append(Request2xx(name or path, ids, words))
            self._acknowledge()
        return response

    async def hook(
        self, source: str, body: bytes, *, words: Sequence[str] = (), name: str = ""
    ) -> httpx2.Response:
        """Send a webhook with the vendor's signature."""
        signed = self.app.sources[source].sign(body, now())
        headers = {"content-type": "application/json", **signed}
        self.record.hinted.add(source)
        return await self.post(
            f"/hooks/{source}", body, headers=headers, words=words, name=name or source
        )

    async def delete(self, document: UUID) -> None:
        """Delete a document by the API."""
        self._handed.clear()
        response = await self.http.delete(f"/v1/documents/{document}")
        if response.status_code >= 500:
            self.record.wrong.append(f"delete: {response.status_code}")
        if response.is_success:
            self._acknowledge()

    async def pull(self, source: str, backfill: Backfill | None = None) -> str:
        """Pull a source from its simulator until it has no more; return why it failed, or nothing.

        What a committed page brought is acknowledged: the vendor does not send it again.
        """

        async def on_page(result: PullResult) -> None:
            self._acknowledge()

        self._handed.clear()
        try:
            await self.app.fetcher.pull(source, on_page=on_page, backfill=backfill)
        except ApexError as error:
            return str(error)
        finally:
            self._handed.clear()
        return ""

    async def land_fetched(self, source: str, *, everything: bool = False) -> None:
        """Land the files and the windows of readings that pulls stored."""
        self._handed.clear()
        kind = self.app.sources[source]
        if isinstance(kind, FileSource):
            await self.app.fetcher.process_files(source)
        if isinstance(kind, StreamSource):
            await self.app.fetcher.aggregate_windows(source, everything=everything)
        self._acknowledge()


class Mangling:
    """Damages the share `share` of the simulated vendors' responses, and edits texts in the share `edits`."""

    def __init__(self, seed: int) -> None:
        self.share = 0.0
        self.edits = 0.0
        self.chance = random.Random(seed)

    def routes(self, simulator: Simulator) -> Sequence[BaseRoute]:
        """Return the routes of a simulator, whose JSON responses are damaged now and then."""
        routes: list[BaseRoute] = []
        for route in simulator.routes():
            assert isinstance(route, Route)
            methods = sorted(route.methods or {"GET"})
            routes.append(Route(route.path, self._endpoint(route.endpoint), methods=methods))
        return routes

    def _endpoint(self, endpoint: Any) -> Any:
        async def damaged(request: Request) -> Response:
            response: Response = await endpoint(request)
            body = bytes(response.body)
            if response.status_code != 200:
                return response
            if self.chance.random() < self.share:
                body = mangled_json(body, self.chance)
            if self.chance.random() < self.edits:
                body = edited_json(body, self.chance)
            return Response(body, media_type="application/json")

        return damaged


class _Mangled:
    """A simulator, served with other routes."""

    def __init__(self, simulator: Simulator, routes: Sequence[BaseRoute]) -> None:
        self._simulator = simulator
        self._routes = routes

    def routes(self) -> Sequence[BaseRoute]:
        return self._routes

    def __getattr__(self, name: str) -> Any:
        return getattr(self._simulator, name)


@asynccontextmanager
async def entrances(
    settings: Settings,
    *,
    vendors: Sequence[str],
    mangling: Mangling,
    chaos: Chaos | None = None,
) -> AsyncIterator[Entrances]:
    """Open an installation whose sources `vendors` point at simulators of one small world."""
    world = World.make(7, shipments=2)
    chaos = chaos or Chaos()
    simulators = {
        kind.name: kind(world, Clock(world.start), chaos)
        for kind in simulator_classes()
        if kind.name in vendors
    }
    mangled = [_Mangled(item, mangling.routes(item)) for item in simulators.values()]
    served = cast(list[Simulator], mangled)  # each passes on whatever else a simulator has
    async with serve_simulators(served) as server:
        tables = {**settings.sources, **server.settings()}
        application = create_app(settings.model_copy(update={"sources": tables}))
        async with application.router.lifespan_context(application):
            app: App = application.state.gateway.app
            await app.recovery.check_restarted_stores()
            key = await create_key(app.db, "test", ["admin"])
            transport = httpx2.ASGITransport(app=application, client=("127.0.0.1", 50_000))
            headers = {"authorization": f"Bearer {key.key}"}
            async with httpx2.AsyncClient(
                transport=transport, base_url=URL, headers=headers, timeout=TIMEOUT_SECONDS
            ) as http:
                ways = Entrances(app, http, simulators)
                real = landing.land

                async def spied(
                    connection: Connection, events: Sequence[Event]
                ) -> list[LandResult]:
                    return await ways.spy(real, connection, events)

                with mock.patch.object(landing, "land", spied):
                    yield ways
