"""The layers around the routes: Host check, request ids, limits of bodies, the last `except`."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator
from types import FrameType
from typing import Any

import httpx2
import pytest
from fastapi import FastAPI, Request
from starlette.types import Message, Scope
from structlog.testing import capture_logs

from apex_memory.config import Settings
from apex_memory.errors import (
    ApexError,
    Conflict,
    Forbidden,
    Misconfigured,
    NotFound,
    Rejected,
    RetryLater,
    TooLarge,
    Unauthorized,
    Unavailable,
)
from apex_memory.gateway import body_limit as bodies
from apex_memory.gateway import errors
from apex_memory.gateway.body_limit import BodyLimitMiddleware, SourceRoute
from apex_memory.gateway.errors import Malformed
from apex_memory.gateway.middleware import Hosts, RequestMiddleware
from apex_memory.gateway.routes.shared import RequestBody
from apex_memory.model import Document, Event, Priority
from apex_memory.sources.base import InboundRequest, Received, Sample, Source, SourceSettings
from apex_memory.telemetry import HTTP_SECONDS, REFUSED
from tests.waiting import until

RESPONSES = {
    "unauthorized": (Unauthorized("no"), 401),
    "forbidden": (Forbidden("no"), 403),
    "not_found": (NotFound("no"), 404),
    "too_large": (TooLarge("no"), 413),
    "rejected": (Rejected("no"), 422),
    "malformed": (Malformed("no"), 400),
    "conflict": (Conflict("no"), 409),
    "retry_later": (RetryLater("no", after=1.2), 503),
    "unavailable": (Unavailable("graph", "no"), 503),
    "misconfigured": (Misconfigured("no"), 500),
}


class Toy(Source[SourceSettings]):
    """A webhook source whose signature header is unknown to the gateway."""

    name = "toy"
    title = "Toy"
    priority = Priority.P1

    def receive(self, request: InboundRequest) -> Received:
        return Received()

    def document(self, event: Event) -> Document:
        raise NotImplementedError

    def samples(self) -> list[Sample]:
        return []


def application(settings: Settings, limit: int = 1_000) -> FastAPI:
    """A small application under the gateway's layers; `/hooks/toy` is a source's route."""
    api = FastAPI(redirect_slashes=False)
    api.state.routes = {"/hooks/toy": "toy"}
    errors.install(api)

    @api.post("/hooks/toy")
    async def hook(request: Request) -> int:
        return len(await request.body())

    @api.get("/raise/{code}")
    async def fail(code: str) -> None:
        if code == "bug":
            raise ZeroDivisionError("the body said: secret")
        raise RESPONSES[code][0]

    @api.post("/numbers")
    async def numbers(body: list[int]) -> int:
        return sum(body)

    routes = {"/hooks/toy": SourceRoute(Toy(SourceSettings()), limit)}
    api.add_middleware(BodyLimitMiddleware, settings=settings, routes=routes)
    api.add_middleware(RequestMiddleware, hosts=Hosts(settings))
    return api


def client_of(api: FastAPI, base: str = "http://127.0.0.1:8460") -> httpx2.AsyncClient:
    return httpx2.AsyncClient(transport=httpx2.ASGITransport(app=api), base_url=base)


@pytest.fixture
async def client() -> AsyncIterator[httpx2.AsyncClient]:
    async with client_of(application(Settings())) as client:
        yield client


@pytest.mark.parametrize("code", RESPONSES)
async def test_every_error_has_its_status_and_the_one_shape(
    client: httpx2.AsyncClient, code: str
) -> None:
    answer = await client.get(f"/raise/{code}")
    assert answer.status_code == RESPONSES[code][1]
    assert answer.json()["error"]["code"] == code
    assert set(answer.json()["error"]) == {"code", "message", "remedy"}
    assert ("retry-after" in answer.headers) == (answer.status_code == 503)
    assert ("www-authenticate" in answer.headers) == (answer.status_code == 401)


async def test_every_class_of_error_has_an_answer() -> None:
    assert {kind for kind, _, _ in errors.STATUSES} == {type(e) for e, _ in RESPONSES.values()} - {
        Malformed
    }
    assert errors.status_of(ApexError("no")) == (500, "internal")
    assert (await client_of(application(Settings())).get("/raise/retry_later")).headers[
        "retry-after"
    ] == "2", "seconds are rounded up"


async def test_the_response_to_a_bug_holds_an_id_that_is_in_the_log_and_nothing_else(
    client: httpx2.AsyncClient,
) -> None:
    with capture_logs() as log:
        answer = await client.get("/raise/bug?key=hidden")
    assert answer.status_code == 500
    assert answer.json()["error"]["id"] == answer.headers["x-request-id"]
    assert "secret" not in answer.text
    [bug] = [line for line in log if line["log_level"] == "error"]
    assert bug["error_id"] == answer.headers["x-request-id"] and bug["exc_info"]
    [access] = [line for line in log if line["event"] == "request"]
    assert access["path"] == "/raise/{code}" and "hidden" not in str(access)


@pytest.mark.parametrize(
    "path", ["/raise/zoe@example.com", "/nothing/zoe@example.com?q=zoe@example.com"]
)
async def test_w10_the_access_log_has_no_path_that_names_somebody(
    client: httpx2.AsyncClient, path: str
) -> None:
    with capture_logs() as log:
        await client.get(path)
    [access] = [line for line in log if line["event"] == "request"]
    assert "zoe" not in str(access) and "example.com" not in str(access)
    assert access["path"] in ("/raise/{code}", "unmatched")


@pytest.mark.parametrize(
    ("sent", "status", "code"),
    [(b"[1,", 400, "malformed"), (b'["x"]', 422, "invalid"), (b"[1, 2]", 200, None)],
)
async def test_bodies_are_validated_in_the_same_shape(
    client: httpx2.AsyncClient, sent: bytes, status: int, code: str | None
) -> None:
    answer = await client.post(
        "/numbers", content=sent, headers={"content-type": "application/json"}
    )
    assert answer.status_code == status
    if code:
        assert answer.json()["error"]["code"] == code


async def test_unknown_routes_and_methods(client: httpx2.AsyncClient) -> None:
    assert (await client.get("/nothing")).json()["error"]["code"] == "not_found"
    answer = await client.get("/hooks/toy")
    assert answer.status_code == 405 and answer.headers["allow"] == "POST"


@pytest.mark.parametrize(
    ("given", "kept"), [("abc-1.2_3", True), ("a b", False), ("x" * 65, False), (None, False)]
)
async def test_a_request_id_is_taken_over_or_made(
    client: httpx2.AsyncClient, given: str | None, kept: bool
) -> None:
    answer = await client.get("/nothing", headers={"x-request-id": given} if given else {})
    assert (answer.headers["x-request-id"] == given) is kept
    assert answer.headers["x-content-type-options"] == "nosniff"


@pytest.mark.parametrize(
    ("bound", "host", "path", "accepted"),
    [
        ("127.0.0.1", "127.0.0.1:8460", "/", True),
        ("127.0.0.1", "localhost", "/", True),
        ("127.0.0.1", "[::1]:8460", "/", True),
        ("::1", "[::1]:8460", "/", True),
        ("127.0.0.1", "evil.example:8460", "/", False),
        ("127.0.0.1", "127.0.0.1.evil.example", "/", False),
        ("127.0.0.1", "", "/", False),
        ("localhost", "evil.example", "/v1/search", False),
        ("127.0.0.1", "tunnel.example", "/hooks/toy", True),
        ("127.0.0.1", "tunnel.example", "/hooks", False),
        ("127.0.0.1", "apex.acme.example", "/", True),  # the setting `url`
        ("0.0.0.0", "evil.example", "/", True),
    ],
)
async def test_hosts(bound: str, host: str, path: str, accepted: bool) -> None:
    hosts = Hosts(Settings(host=bound, url="https://apex.acme.example/x"))
    assert hosts.accept(host, path) is accepted


async def test_a_foreign_host_is_misdirected() -> None:
    async with client_of(application(Settings()), "http://rebound.example:8460") as client:
        answer = await client.get("/nothing")
        assert answer.status_code == 421 and answer.json()["error"]["code"] == "wrong_host"


def refused(reason: str) -> float:
    return float(REFUSED.labels("toy", reason)._value.get())


async def chunks(count: int, size: int) -> AsyncIterator[bytes]:
    for _ in range(count):
        yield b"x" * size


async def test_a_body_within_the_limit_passes(client: httpx2.AsyncClient) -> None:
    assert (await client.post("/hooks/toy", content=b"x" * 1_000)).json() == 1_000
    assert (await client.post("/hooks/toy", content=chunks(10, 100))).json() == 1_000


async def test_a_body_over_the_limit_is_refused_before_it_is_read() -> None:
    before = refused("too_large")
    happened: list[Message] = []

    async def receive() -> Message:
        happened.append({"type": "read"})
        return {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        happened.append(message)

    scope = {
        "type": "http",
        "method": "POST",
        "path": "/hooks/toy",
        "query_string": b"",
        "headers": [(b"content-length", b"1001"), (b"host", b"127.0.0.1")],
    }
    await application(Settings())(scope, receive, send)
    start, body = happened[:2]
    assert start["status"] == 413 and (b"connection", b"close") in start["headers"]
    assert b'"too_large"' in body["body"], "the whole answer is sent before anything is read"
    assert refused("too_large") == before + 1


async def test_a_body_that_grows_over_the_limit_is_refused(client: httpx2.AsyncClient) -> None:
    before = refused("too_large")
    answer = await client.post("/hooks/toy", content=chunks(11, 100))
    assert answer.status_code == 413 and answer.json()["error"]["code"] == "too_large"
    assert refused("too_large") == before + 1


async def test_json_routes_have_a_limit_too(
    client: httpx2.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bodies, "JSON_BYTES", 100)
    headers = {"content-type": "application/json"}
    assert (await client.post("/numbers", content=b"x" * 101, headers=headers)).status_code == 413
    streamed = await client.post("/numbers", content=chunks(2, 60), headers=headers)
    assert streamed.status_code == 413


async def test_all_bodies_together_are_bounded() -> None:
    layer = BodyLimitMiddleware(
        application(Settings()),
        settings=Settings(webhook_body_memory=800),
        routes={"/hooks/toy": SourceRoute(Toy(SourceSettings()), 100)},
    )
    share = layer._webhooks
    gate = asyncio.Event()

    async def holding(parts: list[bytes]) -> int:
        """Status of a request that sends some parts, then the end once the gate opens."""
        status = []

        async def receive() -> dict[str, Any]:
            if parts:
                return {"type": "http.request", "body": parts.pop(), "more_body": True}
            await gate.wait()
            return {"type": "http.request", "body": b""}

        async def send(message: Any) -> None:
            status.append(message.get("status"))

        scope: Scope = {
            "type": "http",
            "method": "POST",
            "path": "/hooks/toy",
            "headers": [],
            "query_string": b"",
            "app": layer._app,
            "client": ("10.0.0.1", 1),
        }
        await layer(scope, receive, send)
        return int(status[0])

    held = [asyncio.create_task(holding([b"x" * 100])) for _ in range(2)]
    await until(lambda: share.used >= 200, "both bodies are held", every=0)
    assert await holding([b"x"]) == 503
    gate.set()
    assert await asyncio.gather(*held) == [200, 200]
    assert share.used == 0 and not share.by_peer
    assert await holding([b"x"]) == 200


async def test_a_body_that_does_not_come_is_given_up() -> None:

    async def slow() -> AsyncIterator[bytes]:
        yield b"x"
        await asyncio.Event().wait()

    async with client_of(application(Settings(webhook_body_seconds=0.01))) as client:
        answer = await client.post("/hooks/toy", content=slow())
        assert answer.status_code == 408 and answer.json()["error"]["code"] == "timeout"


async def test_requests_are_measured_by_route(client: httpx2.AsyncClient) -> None:
    measured = HTTP_SECONDS.labels("GET", "/raise/{code}", "409")
    before = measured._sum.get()
    await client.get("/raise/conflict?key=secret")
    assert measured._sum.get() > before


class Question(RequestBody):
    """A body as routes declare it."""

    text: str = ""


async def test_a_refused_body_is_released_without_the_garbage_collector() -> None:
    api = FastAPI()
    errors.install(api)
    api.state.routes = {}

    @api.post("/ask")
    async def ask(question: Question) -> str:
        return question.text

    transport = httpx2.ASGITransport(app=api)
    async with httpx2.AsyncClient(transport=transport, base_url="http://x") as http:
        await http.post("/ask", json={"text": "x"})  # what is made once
        gc.collect()
        gc.disable()
        gc.set_debug(gc.DEBUG_SAVEALL)
        try:
            for _ in range(3):
                answer = await http.post("/ask", json={str(n): n for n in range(1_000)})
                assert answer.status_code == 422
            gc.collect()
            kept = [o.f_code.co_name for o in gc.garbage if isinstance(o, FrameType)]
        finally:
            gc.set_debug(0)
            gc.garbage.clear()
            gc.enable()
    assert kept == []
