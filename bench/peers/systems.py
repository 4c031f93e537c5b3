"""What is measured: a system that loads documents, answers questions, can be killed and started again on its data."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol
from uuid import UUID

import msgpack

from apex_memory import __version__
from apex_memory.model import document_uuid
from bench.cpu import usage
from bench.peers.adapters.base import CANDIDATES, Acknowledge, Document
from bench.standing import DEFAULT_EMBEDDER, Standing
from tests.e2e.stack import FINAL
from tests.waiting import until

ROOT = Path(__file__).parent.parent.parent
LOGS = ROOT / "build" / "peers"
LONG_SECONDS = 3_600  # of a load: with a language model it takes minutes
POSTS = 16  # at a time
PRIVATE = {
    "ANONYMIZED_TELEMETRY": "False",
    "GRAPHITI_TELEMETRY_ENABLED": "false",
    "HF_HUB_OFFLINE": "1",
    "MEM0_TELEMETRY": "False",
    "OPENAI_API_KEY": "none",
}
"""So that the peers neither report their use nor look for models outside."""


class System(Protocol):
    name: str

    async def start(self) -> Mapping[str, str]:
        """Start on the system's folder, as it is; return versions by package."""

    async def load(self, documents: Sequence[Document], acknowledge: Acknowledge) -> None:
        """Write the documents, and return when all are searchable. `acknowledge` gets a key when its document is."""

    async def search(self, question: str) -> tuple[list[str], float]:
        """Return the keys of the documents of all hits, best first, each once, and the seconds that took."""

    async def records(self) -> Mapping[str, int]:
        """Return how many records of the stores belong to each document."""

    async def progress(self) -> Mapping[str, bool] | None:
        """Return by key whether a document that was taken over is finished; None without such progress."""

    async def resume(self) -> None:
        """Do what the documentation says to do after a crash."""

    def cpu(self) -> float:
        """Return the CPU seconds of all its processes since the start."""

    async def kill(self) -> None:
        """SIGKILL to all its processes at once."""

    async def stop(self) -> None: ...


class Peer:
    """A peer's adapter in a process of its own, in the peers' virtual environment."""

    def __init__(self, name: str, folder: Path, *, python: Path, models: str) -> None:
        self.name = name
        self._folder = folder
        self._python = python
        self._models = models
        self._process: asyncio.subprocess.Process | None = None

    async def start(self) -> Mapping[str, str]:
        LOGS.mkdir(parents=True, exist_ok=True)
        with (LOGS / f"{self.name}.log").open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                *(self._python, "-m", "bench.peers.adapters"),
                *(self.name, self._folder, self._models),
                cwd=ROOT,
                env=os.environ | PRIVATE | {"MEM0_DIR": str(self._folder.parent)},
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=log,
                start_new_session=True,
                limit=2**26,
            )
        versions: Mapping[str, str] = (await self._answer())["ready"]
        return versions

    async def load(self, documents: Sequence[Document], acknowledge: Acknowledge) -> None:
        await self._command(
            acknowledge, do="load", documents=[asdict(document) for document in documents]
        )

    async def search(self, question: str) -> tuple[list[str], float]:
        answer = await self._command(do="search", question=question)
        return list(dict.fromkeys(answer["keys"])), answer["seconds"]

    async def records(self) -> Mapping[str, int]:
        records: Mapping[str, int] = (await self._command(do="records"))["records"]
        return records

    async def progress(self) -> Mapping[str, bool] | None:
        progress: Mapping[str, bool] | None = (await self._command(do="progress"))["progress"]
        return progress

    async def resume(self) -> None:
        await self._command(do="resume")

    def cpu(self) -> float:
        assert self._process
        return usage({"peer": self._process.pid})["peer"].total

    async def kill(self) -> None:
        assert self._process
        os.killpg(self._process.pid, signal.SIGKILL)
        await self._process.wait()

    async def stop(self) -> None:
        process = self._process
        if process is None:
            return
        if process.returncode is None and process.stdin:
            process.stdin.close()
            with suppress(TimeoutError):
                async with asyncio.timeout(30):
                    await process.wait()
        with suppress(ProcessLookupError):  # the server that it started, too
            os.killpg(process.pid, signal.SIGKILL)
        await process.wait()

    async def _command(
        self, acknowledge: Acknowledge = lambda key: None, **command: Any
    ) -> dict[str, Any]:
        assert self._process and self._process.stdin
        self._process.stdin.write(json.dumps(command).encode() + b"\n")
        while "acknowledged" in (answer := await self._answer()):
            acknowledge(answer["acknowledged"])
        if "error" in answer:
            raise RuntimeError(f"{self.name}: {command['do']}: {answer['error']}")
        return answer

    async def _answer(self) -> dict[str, Any]:
        assert self._process and self._process.stdout
        line = await self._process.stdout.readline()
        if not line:
            raise ConnectionError(f"{self.name} ended; see {LOGS}")
        answer: dict[str, Any] = json.loads(line)
        return answer


class Apex:
    """`apex up` with default settings, by its HTTP API. `folder` is the parent of its data folder."""

    name = "apex"

    def __init__(self, folder: Path) -> None:
        folder.mkdir(mode=0o711, parents=True)
        self._stack = Standing(folder / "data", EMBEDDER=DEFAULT_EMBEDDER)
        self._events: dict[str, str] = {}
        self._keys: dict[str, str] = {}

    async def start(self) -> Mapping[str, str]:
        await self._stack.start()
        return {"apex-memory": __version__}

    async def load(self, documents: Sequence[Document], acknowledge: Acknowledge) -> None:
        places = asyncio.Semaphore(POSTS)

        async def post(document: Document) -> None:
            fields = {"key": document.key, "occurred_at": document.at, "title": document.title}
            async with places:
                sent = await self._stack.post(
                    "/v1/documents", json={**fields, "text": document.text}
                )
            [event] = sent["events"]
            self._events[document.key] = event["id"]
            id = str(document_uuid("documents", document.key))
            self._keys[id] = document.key

        if len(documents) == 1:
            await self._write_one(documents[0])
            acknowledge(documents[0].key)
            return
        await asyncio.gather(*map(post, documents))
        waiting = {document.key for document in documents}
        deadline = time.monotonic() + LONG_SECONDS
        while waiting:
            assert time.monotonic() < deadline, self._stack.log_tail()
            for key in sorted(waiting & await self._finished()):
                waiting.discard(key)
                acknowledge(key)
            await asyncio.sleep(0.05)  # a bounded poll

    async def _write_one(self, document: Document) -> None:
        event = await self._stack.remember(
            document.key, document.text, occurred_at=document.at, title=document.title
        )
        self._events[document.key] = event["id"]
        self._keys[str(document_uuid("documents", document.key))] = document.key

    async def search(self, question: str) -> tuple[list[str], float]:
        began = time.perf_counter()
        found = await self._stack.post("/v1/search", json={"query": question, "limit": CANDIDATES})
        taken = time.perf_counter() - began
        keys = [self._keys[id] for hit in found["hits"] if (id := hit["document_id"]) in self._keys]
        return list(dict.fromkeys(keys)), taken

    async def records(self) -> Mapping[str, int]:
        """The passages of the version that readers see, and the document itself."""
        async with self._stack.inbox() as (_, db):
            rows = await db.fetch(
                """SELECT d.doc_key, m.chunks FROM documents d JOIN manifests m ON m.id = d.manifest_id
                   WHERE d.source = 'documents' AND NOT d.deleted"""
            )
        return {row["doc_key"]: 1 + len(msgpack.unpackb(row["chunks"])) for row in rows}

    async def progress(self) -> Mapping[str, bool] | None:
        finished = await self._finished()
        return {key: key in finished for key in self._events}

    async def resume(self) -> None:
        """Nothing has to be done: wait until it has finished what it took over."""

        async def is_done() -> bool:
            return await self._finished() == self._events.keys()

        await until(is_done, seconds=LONG_SECONDS, every=0.1, what=self._stack.log_tail)

    def cpu(self) -> float:
        return self._stack.cpu()

    async def kill(self) -> None:
        await self._stack.kill_all()

    async def stop(self) -> None:
        await self._stack.stop()

    async def _finished(self) -> set[str]:
        states = await self._stack.states([str(UUID(id)) for id in self._events.values()])
        return {key for key, id in self._events.items() if states.get(id) in FINAL}
