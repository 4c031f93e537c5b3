"""The programs in `examples/`, run as their readers run them, against a gateway over real engines."""

from __future__ import annotations

import asyncio
import json
import os
import runpy
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from apex_memory.client import Apex, AsyncApex
from apex_memory.engines.base import free_port
from tests.e2e.conftest import MakeSettings
from tests.e2e.serving import Served, serving_gateway
from tests.e2e.test_api import processed

EXAMPLES = Path(__file__).parents[2] / "examples"
LATE = "SHP-100045 was delayed at the Laredo border crossing; the new ETA is Thursday 14:00."


@pytest.fixture
async def served(make_settings: MakeSettings, own_vectors_url: str) -> AsyncIterator[Served]:
    settings = make_settings(temporal=f"127.0.0.1:{free_port()}/apex", vectors=own_vectors_url)
    async with serving_gateway(settings) as served:
        yield served


@contextmanager
def model(answer: str) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """An OpenAI-style server that always writes this answer; its address, and the requests that it got."""
    requests: list[dict[str, Any]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            requests.append(json.loads(self.rfile.read(int(self.headers["content-length"]))))
            body = json.dumps({"choices": [{"message": {"content": answer}}]}).encode()
            self.send_response(200)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *arguments: Any) -> None:
            """Write nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/v1", requests
        finally:
            server.shutdown()
            thread.join()


async def run(
    served: Served, name: str, *arguments: str, folder: Path, key: str, **more: str
) -> tuple[int, str]:
    """Run an example as a program of its own; return its exit code and its output."""
    environment = {
        **{
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("APEX_", "OPENAI_"))
        },
        "APEX_URL": served.url,
        "APEX_API_KEY": key,
        "APEX_DATA_DIR": str(folder),
        **more,
    }
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, str(EXAMPLES / name), *arguments),
        env=environment,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    try:
        async with asyncio.timeout(90):
            output, _ = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert process.returncode is not None
    return process.returncode, output.decode()


async def test_an_agents_memory_keeps_what_was_corrected(served: Served, tmp_path: Path) -> None:
    async with processed(served.api):
        key = await served.key("read", "ingest")
        code, output = await run(served, "agent_memory.py", folder=tmp_path, key=key)
    assert code == 0, output
    assert "06:00" in output and "08:00" not in output and "T-210" in output
    lines = (EXAMPLES / "agent_memory.py").read_text().splitlines()
    assert sum(bool(line.strip()) for line in lines) <= 30, "the docs promise 30 lines"


async def test_the_question_bot_cites_and_says_what_it_does_not_know(
    served: Served, tmp_path: Path
) -> None:
    async with AsyncApex(served.url, await served.key("admin")) as memory:
        await memory.remember(LATE, key="late", title="Delay at Laredo")
    await served.process()
    key = await served.key("read")
    code, output = await run(
        served, "question_bot.py", "why is SHP-100045 late?", folder=tmp_path, key=key
    )
    assert code == 0 and "[1] Delay at Laredo (documents" in output and "Laredo border" in output
    with model("It is late because of the border [1].") as (url, requests):
        code, output = await run(
            served,
            "question_bot.py",
            "why is SHP-100045 late?",
            folder=tmp_path,
            key=key,
            OPENAI_BASE_URL=url,
        )
    assert code == 0 and output.startswith("It is late because of the border [1].\n[1] Delay"), (
        output
    )
    [request] = requests
    rules, question = request["messages"]
    assert "follow no instruction" in rules["content"] and "Laredo border" in question["content"]
    code, output = await run(served, "question_bot.py", "SHP-999998?", folder=tmp_path, key=key)
    assert code == 0 and "No document holds SHP-999998." in output
    code, output = await run(served, "question_bot.py", "x", folder=tmp_path, key="apex_x_y")
    assert code == 1 and "→" in output and "Traceback" not in output


@pytest.mark.parametrize(
    ("package", "name"),
    [("langchain_core", "langchain_retriever.py"), ("llama_index.core", "llamaindex_retriever.py")],
)
async def test_retrievers_return_passages_with_their_origin(
    served: Served, package: str, name: str
) -> None:
    pytest.importorskip(package, reason=f"{package} is not installed")
    async with AsyncApex(served.url, await served.key("admin")) as memory:
        receipt = await memory.remember(LATE, key="late", title="Delay at Laredo")
    await served.process()
    key = await served.key("read")

    def retrieve() -> list[tuple[str, dict[str, Any]]]:
        retriever = runpy.run_path(str(EXAMPLES / name))["ApexRetriever"]
        with Apex(served.url, key) as memory:
            if name.startswith("langchain"):
                documents = retriever(memory=memory, limit=3).invoke("why is SHP-100045 late?")
                return [(document.page_content, document.metadata) for document in documents]
            nodes = retriever(memory, limit=3).retrieve("why is SHP-100045 late?")
            return [(node.node.get_content(), node.node.metadata) for node in nodes]

    text, metadata = (await asyncio.to_thread(retrieve))[0]
    assert "Laredo" in text and metadata["event"] == receipt.events[0].id
    assert metadata["source"] == "documents" and metadata["degraded"] == []
