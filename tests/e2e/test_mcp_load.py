"""Many agents at once over `/mcp`, against a gateway that is a process of its own, and each tool with each scope of key."""

from __future__ import annotations

import asyncio
import json
import re
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2
import psycopg
import pytest

pytest.importorskip("mcp")

from mcp.client import Client
from mcp.client.streamable_http import streamable_http_client
from mcp_types import CallToolResult, TextContent

from apex_memory.client import AsyncApex
from apex_memory.credentials.api_keys import create_key
from apex_memory.engines.base import free_port
from apex_memory.stores.postgres import Postgres
from tests.e2e.conftest import MakeSettings
from tests.e2e.test_api_process import Served, process, until_up, worker
from tests.waiting import until

AGENTS = 20
CALLS = 20
NOTE = "SHP-100045 was delayed at the Laredo border crossing."
PAGE = Path(__file__).parents[2] / "docs/howto/agents.md"
HELD_SECONDS = 7.0  # longer than a request waits for a connection of the pool
LATER = re.compile(r"Try (the same call )?again (after \d+ s|later)")
"""How a tool says that the gateway is overloaded or a store is away."""

SCOPES = {
    "read": ["read"],
    "ingest": ["ingest"],
    "admin": ["admin"],
    "read and ingest": ["read", "ingest"],
}
TOOLS: dict[str, tuple[str, dict[str, Any]]] = {
    "search_memory": ("read", {"question": "SHP-100045"}),
    "get_document": ("read", {"id": "note"}),
    "get_entity": ("read", {"ref": "shipment:SHP-100045"}),
    "recent_events": ("read", {"limit": 5}),
    "memory_status": ("read", {}),
    "remember": ("ingest", {"text": "Dock 7 is closed.", "key": "dock"}),
}
"""Each tool with the scope that docs/howto/agents.md says it needs, and arguments that succeed."""


@dataclass(slots=True)
class Answers:
    """What the gateway answered: statuses of HTTP, and what the tools returned."""

    statuses: Counter[int] = field(default_factory=Counter)
    results: Counter[str] = field(default_factory=Counter)
    refusals: list[str] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)
    """Bodies of responses that are server errors other than 503."""

    async def record(self, response: httpx2.Response) -> None:
        self.statuses[response.status_code] += 1
        if response.status_code in (429, 503):
            assert "retry-after" in response.headers, response.headers
        elif response.status_code >= 500:
            self.broken.append(f"{response.status_code} {(await response.aread())[:400]!r}")


@asynccontextmanager
async def agent(url: str, key: str, answers: Answers, mode: Any = "auto") -> AsyncIterator[Client]:
    """An agent with connections of its own, as another program has."""
    async with httpx2.AsyncClient(
        headers={"authorization": f"Bearer {key}"},
        timeout=60,
        event_hooks={"response": [answers.record]},
    ) as http:
        transport = streamable_http_client(f"{url}/mcp", http_client=http)
        async with Client(transport, mode=mode) as client:
            yield client


@dataclass(frozen=True, slots=True)
class Running:
    served: Served
    keys: dict[str, str]


@pytest.fixture
async def gateway(
    make_settings: MakeSettings, own_vectors_url: str, tmp_path: Path
) -> AsyncIterator[Running]:
    """A gateway process that no agent has called yet."""
    settings = make_settings(temporal=f"127.0.0.1:{free_port()}/apex", vectors=own_vectors_url)
    db = Postgres(settings.documents)
    await db.open()
    keys = {name: (await create_key(db, name, scopes)).key for name, scopes in SCOPES.items()}
    await db.close()
    port, log = free_port(), tmp_path / "gateway.log"
    url = f"http://127.0.0.1:{port}"
    with process(settings, port, log) as started:
        await until_up(url, started, log)
        yield Running(Served(url, keys["admin"], started, log, settings), keys)


@pytest.fixture
async def running(gateway: Running) -> AsyncIterator[Running]:
    """The gateway beside a worker, with a note in its memory."""
    async with worker(gateway.served.settings):
        async with AsyncApex(gateway.served.url, gateway.keys["admin"]) as memory:
            await memory.remember(NOTE, key="note", wait=20)
        yield gateway


def text_of(result: CallToolResult) -> str:
    [content] = result.content
    assert isinstance(content, TextContent)
    return str(content.text)


def plan(number: int) -> Sequence[tuple[str, dict[str, Any]]]:
    """Return the calls of one agent: every tool, in an order of its own."""
    calls: list[tuple[str, dict[str, Any]]] = []
    for n in range(CALLS):
        tool = list(TOOLS)[(number + n) % len(TOOLS)]
        arguments = dict(TOOLS[tool][1])
        if tool == "remember":
            # Own texts, versions of a text that all agents replace, and one text that all send at once.
            arguments = [
                {"text": f"Agent {number} wrote note {n}."},
                {"text": f"Agent {number} says {n}.", "key": "shared"},
                {"text": f"All agents know fact {n}."},
            ][number % 3]
        elif tool == "search_memory" and n % 2:
            arguments = {"question": f"where is SHP-100045 {number} {n}?", "max_tokens": 200}
        calls.append((tool, arguments))
    return calls


async def call(client: Client, tool: str, arguments: dict[str, Any], answers: Answers) -> None:
    result = await client.call_tool(tool, arguments)
    assert isinstance(result, CallToolResult)
    if result.is_error:
        answers.refusals.append(f"{tool}: {text_of(result)}")
    else:
        assert json.loads(text_of(result)) == result.structured_content
        answers.results[tool] += 1


def check(gateway: Running, answers: Answers) -> None:
    """Nothing was a failure of the gateway: no server error but a 503 with `Retry-After`, no traceback in its log."""
    log = gateway.served.log.read_text()
    assert not answers.broken, answers.broken[:5]
    assert "Traceback" not in log and "request failed" not in log, log[-4_000:]


@pytest.mark.timeout(120)
async def test_twenty_agents_at_once_are_answered(running: Running) -> None:
    answers = Answers()

    async def live(number: int) -> None:
        mode = "legacy" if number % 2 else "auto"
        async with agent(running.served.url, running.keys["admin"], answers, mode) as client:
            for tool, arguments in plan(number):
                await call(client, tool, arguments, answers)

    # The first requests of all come at once to a gateway that has not loaded the protocol yet.
    await asyncio.gather(*(live(number) for number in range(AGENTS)))
    check(running, answers)
    assert answers.results.total() + len(answers.refusals) == AGENTS * CALLS
    for refusal in answers.refusals:
        assert LATER.search(refusal), refusal
    assert answers.results.total() >= AGENTS * CALLS * 0.9, answers.refusals[:5]


async def leave_early(url: str, key: str, *, version: str) -> None:
    """Send half of a message, and close the connection."""
    host, _, port = url.removeprefix("http://").partition(":")
    _, writer = await asyncio.open_connection(host, int(port))
    head = (
        f"POST /mcp HTTP/1.1\r\nHost: {host}\r\nAuthorization: Bearer {key}\r\n"
        "Accept: application/json, text/event-stream\r\nContent-Type: application/json\r\n"
        f"{version}Content-Length: 1000\r\n\r\n"
    )
    writer.write(head.encode() + b'{"jsonrpc": "2.0", ')
    await writer.drain()
    await asyncio.sleep(0.1)
    writer.close()
    await writer.wait_closed()


@pytest.mark.timeout(120)
async def test_an_agent_that_leaves_is_no_failure_of_the_gateway(gateway: Running) -> None:
    url, key = gateway.served.url, gateway.keys["read"]
    async with agent(url, key, Answers()) as client:
        await client.list_tools()
    versions = ("", "MCP-Protocol-Version: 2025-06-18\r\n", "MCP-Protocol-Version: 2026-07-28\r\n")
    for version in versions:
        await leave_early(url, key, version=version)

    def lines() -> list[dict[str, Any]]:
        return [json.loads(line) for line in gateway.served.log.read_text().splitlines()]

    await until(
        lambda: sum(line.get("status") == 499 for line in lines()) == len(versions),
        gateway.served.log.read_text,
        seconds=10,
    )
    assert not any(line.get("status") == 500 for line in lines())
    assert "Traceback" not in gateway.served.log.read_text()


@pytest.mark.timeout(120)
async def test_agents_get_a_retry_time_while_no_connection_to_postgresql_is_free(
    gateway: Running,
) -> None:
    answers = Answers()

    async def hold(held: asyncio.Barrier) -> None:
        connection = await psycopg.AsyncConnection.connect(gateway.served.settings.documents)
        async with connection, connection.transaction():
            await connection.execute(
                "LOCK TABLE documents, inbox, manifests IN ACCESS EXCLUSIVE MODE"
            )
            await held.wait()
            await asyncio.sleep(HELD_SECONDS)

    async def live(number: int) -> None:
        mode = "legacy" if number % 2 else "auto"
        async with agent(gateway.served.url, gateway.keys["admin"], answers, mode) as client:
            await held.wait()
            await call(client, "recent_events", {}, answers)

    held = asyncio.Barrier(AGENTS + 1)
    await asyncio.gather(hold(held), *(live(number) for number in range(AGENTS)))
    check(gateway, answers)
    assert answers.results.total() + len(answers.refusals) == AGENTS
    assert all(LATER.search(refusal) for refusal in answers.refusals), answers.refusals
    assert len(answers.refusals) > AGENTS / 4, answers


async def test_each_tool_with_each_scope(running: Running) -> None:
    """The table of docs/howto/agents.md holds for each kind of key, over both generations of the protocol."""
    rows = re.findall(r"^\| `(\w+)` \|.*\| `(\w+)` \|$", PAGE.read_text(), re.MULTILINE)
    assert dict(rows) == {tool: scope for tool, (scope, _) in TOOLS.items()}
    for name, scopes in SCOPES.items():
        for mode in ("auto", "legacy"):
            async with agent(running.served.url, running.keys[name], Answers(), mode) as client:
                listed = {tool.name for tool in (await client.list_tools()).tools}
                for tool, (scope, arguments) in TOOLS.items():
                    allowed = scope in scopes or "admin" in scopes
                    result = await client.call_tool(tool, arguments)
                    assert isinstance(result, CallToolResult)
                    text = text_of(result)
                    assert result.is_error != allowed, (name, tool, text)
                    assert (tool in listed) == allowed, (name, tool)
                    assert allowed or f"lacks the scope `{scope}`" in text, (name, tool, text)


async def test_nothing_is_listed_or_called_without_a_valid_key(gateway: Running) -> None:
    message: dict[str, Any] = {"jsonrpc": "2.0", "id": 1, "method": "tools/list", "params": {}}
    messages = [message]
    for tool, (_, arguments) in TOOLS.items():
        params = {"name": tool, "arguments": arguments}
        messages.append({**message, "method": "tools/call", "params": params})
    reader = gateway.keys["read"]
    accept = {"accept": "application/json, text/event-stream"}
    async with httpx2.AsyncClient(base_url=gateway.served.url, headers=accept) as http:
        for headers in ({}, {"authorization": f"Bearer {reader[:-1]}"}, {"x-api-key": "apex"}):
            for body in messages:
                answer = await http.post("/mcp", json=body, headers=headers)
                assert answer.status_code == 401, (headers, body)
                assert "resource_metadata=" in answer.headers["www-authenticate"]
