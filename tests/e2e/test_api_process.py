"""The gateway as a process of its own, and generated requests against it."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import httpx2
import pytest

from apex_memory.app import App, open_app
from apex_memory.config import Settings
from apex_memory.credentials.api_keys import create_key
from apex_memory.engines.base import free_port
from apex_memory.stores.postgres import Postgres
from tests.e2e.conftest import MakeSettings
from tests.waiting import until

# Left out: what needs a worker (the smoke test returns 503 without one), and what would prune the
# vectors of other tests, which share the process.
LEFT_OUT = ("/v1/hello", "/v1/stores/{store}/reconcile")
CHECKS = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_headers_conformance",
    "response_schema_conformance",
    "negative_data_rejection",
    "unsupported_method",
    "ignored_auth",
)
# How to write the bodies that are no JSON.
HOOKS = """
import schemathesis
from hypothesis.strategies import binary

for kind in ("application/x-ndjson", "text/markdown", "application/edi-x12"):
    schemathesis.openapi.media_type(kind, binary())
"""


@dataclass(frozen=True, slots=True)
class Served:
    url: str
    key: str
    process: subprocess.Popen[bytes]
    log: Path
    settings: Settings


def environment(settings: Settings, port: int, further: Sequence[str] = ()) -> dict[str, str]:
    """Return the variables of a gateway process. `further` names settings that it gets beside those of the stores."""
    given = {name for name in os.environ if not name.startswith("APEX_")}
    stores = ("documents", "graph", "vectors", "cache", "embedder", "temporal")
    return {
        **{name: os.environ[name] for name in given},
        **{f"APEX_{name.upper()}": str(getattr(settings, name)) for name in (*stores, *further)},
        "APEX_SECRET_KEY": settings.secret_key.get_secret_value(),
        "APEX_SETTINGS_FILE": os.devnull,
        "APEX_PORT": str(port),
        "APEX_LOG_FORMAT": "json",
        "APEX_SOURCES__FRONTAPP__SIGNING_KEYS": '["test_signing_key"]',
    }


@contextmanager
def process(
    settings: Settings, port: int, log: Path, further: Sequence[str] = ()
) -> Iterator[subprocess.Popen[bytes]]:
    with log.open("wb") as out:
        started = subprocess.Popen(
            [sys.executable, "-m", "apex_memory.gateway"],
            env=environment(settings, port, further),
            stdout=out,
            stderr=out,
        )
    try:
        yield started
    finally:
        started.kill()
        started.wait()


async def until_up(url: str, running: subprocess.Popen[bytes], log: Path) -> None:
    async with httpx2.AsyncClient() as http:

        async def is_up() -> bool:
            assert running.poll() is None, log.read_text()
            try:
                return (await http.get(f"{url}/readyz")).is_success
            except httpx2.TransportError:
                return False

        await until(is_up, log.read_text, seconds=60)


@pytest.fixture
async def served(make_settings: MakeSettings, tmp_path: Path) -> AsyncIterator[Served]:
    settings = make_settings(temporal=f"127.0.0.1:{free_port()}/apex")
    db = Postgres(settings.documents)
    await db.open()
    key = await create_key(db, "test", ["admin"])
    await db.close()
    port, log = free_port(), tmp_path / "gateway.log"
    url = f"http://127.0.0.1:{port}"
    with process(settings, port, log) as running:
        await until_up(url, running, log)
        yield Served(url, key.key, running, log, settings)


async def test_it_serves_and_ends_on_sigterm(served: Served) -> None:
    headers = {"authorization": f"Bearer {served.key}"}
    async with httpx2.AsyncClient(base_url=served.url, headers=headers) as http:
        answer = await http.post("/v1/documents?secret=1", json={"text": "a note"})
        assert answer.status_code == 202 and "server" not in answer.headers
    served.process.send_signal(signal.SIGTERM)
    assert await asyncio.to_thread(served.process.wait, 15) == 0
    log = served.log.read_text()
    assert '"path": "/v1/documents"' in log
    assert "a note" not in log and "secret" not in log and served.key not in log


async def test_a_body_that_is_too_large_is_refused_while_it_is_sent(served: Served) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", int(served.url.rpartition(":")[2]))
    writer.write(
        b"POST /hooks/frontapp HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999\r\n\r\nstart"
    )
    answer = await asyncio.wait_for(reader.read(), 10)  # to the end: the connection is closed
    assert answer.startswith(b"HTTP/1.1 413") and b"connection: close" in answer.lower()
    writer.close()


async def test_a_taken_port_is_a_clear_refusal(make_settings: MakeSettings, tmp_path: Path) -> None:
    log = tmp_path / "gateway.log"
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with process(make_settings(), taken.getsockname()[1], log) as running:
            assert await asyncio.to_thread(running.wait, 30) == 2
    assert "cannot listen" in log.read_text() and "Traceback" not in log.read_text()


@asynccontextmanager
async def worker(settings: Settings) -> AsyncIterator[None]:
    """Process the events that land, in this process, so that a request that waits for one returns.

    A generated request may pause a source, and then the next one would wait in vain: it is resumed.
    """

    async def process(app: App) -> None:
        while True:
            await app.db.execute("UPDATE sources SET paused = false WHERE paused")
            for source in app.sources:
                await app.direct.drain(source)
            await asyncio.sleep(0.02)  # a worker's pause between two looks

    async with open_app(settings) as app:
        await app.recovery.check_restarted_stores()
        task = asyncio.create_task(process(app))
        try:
            yield
        finally:
            task.cancel()
            with suppress(asyncio.CancelledError):  # whatever else ended it fails the test
                await task


@pytest.mark.long
@pytest.mark.timeout(240)
async def test_generated_requests_never_break_it(served: Served, tmp_path: Path) -> None:
    left_out = [part for path in LEFT_OUT for part in ("--exclude-path", path)]
    hooks = tmp_path / "hooks.py"
    hooks.write_text(HOOKS)
    command = [
        str(Path(sys.executable).with_name("schemathesis")),
        *("run", f"{served.url}/openapi.json"),
        *("--header", f"Authorization: Bearer {served.key}"),
        *("--phases", "coverage,fuzzing", "--max-examples", "8"),
        *("--checks", ",".join(CHECKS), *left_out),
        *("--continue-on-failure", "--no-shrink", "--no-color", "--workers", "1"),
        *("--warnings", "off", "--suppress-health-check", "all", "--seed", "1"),
    ]
    async with worker(served.settings):
        tried = await asyncio.to_thread(
            subprocess.run,
            command,
            capture_output=True,
            text=True,
            cwd=tmp_path,
            env=os.environ | {"SCHEMATHESIS_HOOKS": str(hooks)},
            timeout=200,
            check=False,
        )
    assert tried.returncode == 0, tried.stdout[-6_000:] + tried.stderr[-1_000:]
    assert "request failed" not in served.log.read_text()
