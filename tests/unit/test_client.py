"""The Python client against a gateway that answers as each test says: retries, time-outs, errors, keys."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx2
import pytest
from pydantic import ValidationError

from apex_memory.client import (
    Apex,
    AsyncApex,
    Busy,
    Conflict,
    Forbidden,
    Misconfigured,
    NotFound,
    Refused,
    Rejected,
    TooLarge,
    Unauthorized,
    Unavailable,
)

URL = "http://127.0.0.1:1"
RECEIPT = {
    "events": [
        {"id": "e", "source": "documents", "event_id": "x", "document_id": "d", "duplicate": False}
    ],
    "status_url": "/v1/events/e",
}
OWN = {"id": "k", "name": "agent", "scopes": ["read"]}

Respond = Callable[[httpx2.Request], httpx2.Response]


def client(respond: Respond, **options: Any) -> Apex:
    return Apex(URL, "apex_k_s", transport=httpx2.MockTransport(respond), **options)


def problem(status: int, code: str = "x", **headers: str) -> httpx2.Response:
    body = {"error": {"code": code, "message": "why", "remedy": "do this"}}
    return httpx2.Response(status, json=body, headers=headers)


class Recorder:
    """Responds with the next of `responses`, and with the last of them from then on."""

    def __init__(self, *responses: httpx2.Response | Exception) -> None:
        self.responses = list(responses)
        self.requests: list[httpx2.Request] = []

    def __call__(self, request: httpx2.Request) -> httpx2.Response:
        self.requests.append(request)
        response = self.responses.pop(0) if len(self.responses) > 1 else self.responses[0]
        if isinstance(response, Exception):
            raise response
        return response


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[float]]:
    """Pauses pass at once, and move the clock."""
    now, waited = [0.0], []

    def pause(seconds: float) -> None:
        waited.append(seconds)
        now[0] += seconds

    async def pause_async(seconds: float) -> None:
        pause(seconds)

    monkeypatch.setattr("apex_memory.client.apex.sleep", pause)
    monkeypatch.setattr("apex_memory.client.apex.asyncio.sleep", pause_async)
    monkeypatch.setattr("apex_memory.client.apex.monotonic", lambda: now[0])
    yield waited


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, Rejected),
        (401, Unauthorized),
        (403, Forbidden),
        (404, NotFound),
        (409, Conflict),
        (413, TooLarge),
        (422, Rejected),
        (503, Busy),
        (500, Refused),
        (431, Refused),
    ],
)
def test_an_error_has_the_code_and_the_remedy_of_the_gateway(
    status: int, kind: type[Refused]
) -> None:
    respond = Recorder(problem(status, "its_code"))
    with client(respond, patience=0) as memory, pytest.raises(Refused) as caught:
        memory.status()
    error = caught.value
    assert type(error) is kind
    assert (str(error), error.remedy, error.code, error.status) == (
        "why",
        "do this",
        "its_code",
        status,
    )


def test_an_error_without_the_form_of_the_api_is_an_error_too() -> None:
    for body in (b"", b"<html>", b"[]", b'{"error": 1}', b"\xff"):
        respond = Recorder(httpx2.Response(502, content=body))
        with client(respond) as memory, pytest.raises(Refused, match="status 502"):
            memory.own_key()


def test_a_503_is_repeated_as_retry_after_says_and_stores_once(pauses: list[float]) -> None:
    busy, stored = problem(503, **{"Retry-After": "3"}), httpx2.Response(202, json=RECEIPT)
    respond = Recorder(busy, problem(503), stored)
    with client(respond) as memory:
        receipt = memory.remember("text")
    assert pauses == [3, 1] and receipt.events[0].id == "e" and not receipt.searchable
    keys = {request.headers["idempotency-key"] for request in respond.requests}
    assert len(respond.requests) == 3 and len(keys) == 1
    with client(respond) as memory:
        memory.remember("text")
    assert respond.requests[-1].headers["idempotency-key"] not in keys


async def test_the_async_client_repeats_a_503_too(pauses: list[float]) -> None:
    respond = Recorder(problem(503, **{"Retry-After": "2"}), httpx2.Response(200, json=OWN))
    async with AsyncApex(URL, "k", transport=httpx2.MockTransport(respond)) as memory:
        assert (await memory.own_key()).may("read")
    assert pauses == [2]


def test_patience_ends(pauses: list[float]) -> None:
    respond = Recorder(problem(503, **{"Retry-After": "600"}))
    with client(respond, patience=25) as memory, pytest.raises(Busy) as caught:
        memory.status()
    assert caught.value.after == 600 and sum(pauses) == 20, "no pause is longer than 10 s"


def test_other_errors_are_not_repeated(pauses: list[float]) -> None:
    respond = Recorder(problem(422))
    with client(respond) as memory, pytest.raises(Rejected):
        memory.remember("text")
    assert len(respond.requests) == 1 and not pauses


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (httpx2.ConnectError("refused"), "does not respond"),
        (httpx2.RemoteProtocolError("closed"), "does not respond"),
        (httpx2.ReadTimeout("slow"), "runs, and did not respond within 7 s"),
    ],
)
def test_a_gateway_that_does_not_respond_is_unavailable(error: Exception, message: str) -> None:
    respond = Recorder(error)
    with client(respond, timeout=7) as memory, pytest.raises(Unavailable, match=message) as caught:
        memory.search("x")
    assert "apex" in caught.value.remedy


def test_waiting_extends_the_time_limit() -> None:
    limits: list[float] = []

    def respond(request: httpx2.Request) -> httpx2.Response:
        limits.append(request.extensions["timeout"]["read"])
        return httpx2.Response(202, json=RECEIPT)

    with client(respond, timeout=5) as memory:
        memory.remember("text")
        memory.remember("text", wait=60)
    assert limits[0] == 5 and limits[1] > 60


def test_the_request_is_what_was_asked_for() -> None:
    respond = Recorder(
        httpx2.Response(
            200,
            json={
                "hits": [],
                "degraded": [],
                "took_ms": {},
                "entities": [],
                "unknown": [],
                "new": 1,
            },
        )
    )
    since = datetime(2026, 3, 1, tzinfo=UTC)
    with client(respond) as memory:
        answer = memory.search("why?", sources=["turvo"], since=since, limit=3)
    [request] = respond.requests
    assert request.headers["authorization"] == "Bearer apex_k_s"
    sent = json.loads(request.content)
    assert sent["query"] == "why?" and sent["limit"] == 3
    assert sent["filters"]["sources"] == ["turvo"]
    assert sent["filters"]["since"] == "2026-03-01T00:00:00+00:00"
    assert answer.as_json()["new"] == 1, "a field that this client does not know is kept"
    with pytest.raises(ValidationError):
        answer.hits = ()  # type: ignore[misc]
    with pytest.raises(ValueError, match="zone"):
        memory.search("x", since=datetime(2026, 3, 1))


def test_ids_are_one_segment_of_the_path() -> None:
    respond = Recorder(problem(404))
    with client(respond) as memory:
        for call in (memory.get_document, memory.event):
            with pytest.raises(NotFound):
                call("../keys?x=1#y")
    assert {request.url.raw_path.count(b"/") for request in respond.requests} == {3}
    assert not any(b"?" in request.url.raw_path for request in respond.requests)


def test_address_and_key_come_from_the_settings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("APEX_DATA_DIR", str(tmp_path))
    with pytest.raises(Unavailable, match="no stack runs") as caught:
        Apex()
    assert "apex up" in caught.value.remedy
    monkeypatch.setenv("APEX_URL", "https://memory.example/")
    (tmp_path / "admin.key").write_text("apex_a_b\n")
    respond = Recorder(httpx2.Response(200, json=OWN))
    for key, expected in (("", "apex_a_b"), ("apex_c_d\n", "apex_c_d")):
        monkeypatch.setenv("APEX_API_KEY", key)
        with Apex(transport=httpx2.MockTransport(respond)) as memory:
            memory.own_key()
        request = respond.requests[-1]
        assert request.headers["authorization"] == f"Bearer {expected}"
        assert str(request.url) == "https://memory.example/v1/keys/own"
    monkeypatch.setenv("APEX_NO_SUCH_SETTING", "1")
    with pytest.raises(Misconfigured):
        Apex()


async def test_clients_of_several_keys_share_their_connections() -> None:
    respond = Recorder(httpx2.Response(200, json=OWN))
    async with AsyncApex(URL, "first", transport=httpx2.MockTransport(respond)) as memory:
        await asyncio.gather(memory.own_key(), memory.with_key("second").own_key())
        await memory.own_key()
    keys = [request.headers["authorization"] for request in respond.requests]
    assert sorted(keys) == ["Bearer first", "Bearer first", "Bearer second"]


def test_the_client_loads_no_server_and_no_store() -> None:
    script = (
        "import sys, apex_memory.client;"
        "print(sorted({name.split('.')[0] for name in sys.modules} & {'temporalio', 'psycopg', 'fastapi',"
        " 'numpy', 'redis', 'qdrant_client', 'opentelemetry', 'structlog', 'typer', 'rich'}))"
    )
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "[]"
