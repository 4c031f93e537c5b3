"""The whole stack as its users meet it: `apex up` as a process of its own, its HTTP API, its command line."""

from __future__ import annotations

import asyncio
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import (
    asynccontextmanager,
    contextmanager,
    redirect_stderr,
    redirect_stdout,
    suppress,
)
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import httpx2

from apex_memory.cli import main
from apex_memory.engines.base import HOST
from apex_memory.engines.cards import running_processes
from apex_memory.engines.process import command_and_environment
from apex_memory.engines.state import ChildState, read_stack, secret
from apex_memory.model import now
from apex_memory.sources import registry
from apex_memory.stores.postgres import Postgres
from tests.waiting import seconds_until, until

# With `GRAPH=embedded:`, so that each engine can be held and killed by itself.
CHILDREN = ("postgres", "valkey", "falkordb", "vectors", "temporal", "gateway", "worker", "bulk")
OPEN_BREAKER = re.compile(r"^apex_breaker_open\{.*\} (?!0(?:\.0)?$).*$", re.MULTILINE)
FINAL = ("done", "superseded", "dead")
SETTINGS = {
    "PORT": "0",
    "EMBEDDER": "hashing",
    "SOURCES__FRONTAPP__SIGNING_KEYS": '["test_signing_key"]',
    "LEASE_SECONDS": "5",
    "SWEEP_SECONDS": "1",
    "COLLECT_SECONDS": "2",
    "BREAKER_OPEN_SECONDS": "1",
    "RETRY_SECONDS": "0.1",
    "RETRY_ATTEMPTS": "2",
    "CALL_TIMEOUT_SECONDS": "3",
    "SNAPSHOT_SECONDS": "4",
    "GRACE_SECONDS": "5",
}
START_SECONDS = 180  # most of it for a machine that others work on, too


@dataclass(frozen=True, slots=True)
class CommandResult:
    """The output and exit code of a command."""

    code: int
    out: str
    error: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


class Stack:
    """One data folder, and what runs in it. `http` has the admin key; it is another one after each start."""

    module = "apex_memory.cli"
    """What is run as `apex`."""
    arguments: tuple[str, ...] = ("up", "--verbose")
    """The command that starts it."""

    def __init__(self, data_dir: Path, **settings: str) -> None:
        self.data_dir = data_dir
        self._given = {"APEX_DATA_DIR": str(data_dir)}
        self.set(**SETTINGS | settings)
        self._front = registry.load({"frontapp": {"signing_keys": ["test_signing_key"]}}, None)
        self._up: subprocess.Popen[bytes] | None = None
        self.key = ""
        self.http = httpx2.AsyncClient()

    def set(self, **settings: str) -> None:
        """Settings from the next start on, by their name without `APEX_`."""
        self._given |= {f"APEX_{name}": value for name, value in settings.items()}

    async def start(self, *, seconds: float = START_SECONDS) -> float:
        """Start it and wait until it is ready, at most `seconds`; return the seconds that took."""
        began = time.monotonic()
        with self.log.open("ab") as log:
            self._up = subprocess.Popen(
                [sys.executable, "-m", self.module, *self.arguments],
                env=os.environ | self._given,
                cwd=self.data_dir.parent,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        await until(self._is_up, seconds=seconds, what=self.log_tail)
        self.key = (self.data_dir / "admin.key").read_text().strip()
        await self.http.aclose()
        self.http = self.client(self.key)
        return time.monotonic() - began

    def _is_up(self) -> bool:
        assert self._up and self._up.poll() is None, f"apex up ended: {self.log_tail()}"
        children = self.children()
        return all(name in children and children[name].ready for name in ("gateway", "worker"))

    async def kill(self, *, seconds: float = 10) -> float:
        """SIGKILL to `apex up` alone; the seconds until nothing of it runs any more, at most so many."""
        assert self._up
        began = time.monotonic()
        self._up.kill()
        self._up.wait()
        await until(lambda: not belonging(self.data_dir), seconds=seconds, what=self._leftovers)
        return time.monotonic() - began

    async def stop(self) -> None:
        """Ask `apex up` to end, and see that it left nothing behind; whatever happens, nothing is left."""
        await self.http.aclose()
        up = self._up
        if up is None:
            return
        try:
            if up.poll() is None:
                up.terminate()
                await until(lambda: up.poll() is not None, seconds=40, what=self.log_tail)
            await until(lambda: not belonging(self.data_dir), seconds=5, what=self._leftovers)
        finally:
            up.kill()
            up.wait()
            for pid in belonging(self.data_dir):
                os.kill(pid, signal.SIGKILL)

    @property
    def log(self) -> Path:
        return self.data_dir.parent / "up.log"

    def log_tail(self) -> str:
        """Return the last log lines of `apex up`, the worker and the gateway, for the message of a failing test."""
        logs = (self.log, *(self.data_dir / "log" / f"{name}.log" for name in CHILDREN[-3:]))
        return "\n".join(f"--- {log.name}\n{_tail(log)}" for log in logs)

    def _leftovers(self) -> str:
        return str([command_and_environment(pid)[:100] for pid in belonging(self.data_dir)])

    def children(self) -> dict[str, ChildState]:
        """By name; none while a start has not yet taken over what the run before it wrote."""
        stack = read_stack(self.data_dir)
        return stack.children if stack and self._up and stack.pid == self._up.pid else {}

    @asynccontextmanager
    async def database(self) -> AsyncIterator[Postgres]:
        """A connection to its PostgreSQL."""
        password, port = secret(self.data_dir, "documents"), self.children()["postgres"].port
        db = Postgres(f"postgresql://apex:{password}@{HOST}:{port}/apex", size=2)
        await db.open()
        try:
            yield db
        finally:
            await db.close()

    def client(self, key: str = "") -> httpx2.AsyncClient:
        """A client of the gateway, with this key or none."""
        return httpx2.AsyncClient(
            base_url=self.children()["gateway"].url,
            headers={"authorization": f"Bearer {key}"} if key else {},
            timeout=30,
        )

    async def get(self, path: str, **params: Any) -> Any:
        """Return the JSON of a GET that must succeed."""
        answer = await self.http.get(path, params=params)
        assert answer.is_success, (path, answer.status_code, answer.text)
        return answer.json()

    async def post(self, path: str, **more: Any) -> Any:
        """Return the JSON of a POST that must succeed."""
        answer = await self.http.post(path, **more)
        assert answer.is_success, (path, answer.status_code, answer.text)
        return answer.json()

    async def remember(self, key: str, text: str, *, wait: bool = True, **fields: Any) -> Any:
        """Post a document; its event, at its end unless `wait` is false."""
        path = "/v1/documents" + ("?wait=searchable&timeout=30" if wait else "")
        [event] = (await self.post(path, json={"key": key, "text": text, **fields}))["events"]
        return event

    async def hook(self, body: bytes, *, path: str = "/hooks/frontapp") -> httpx2.Response:
        """A webhook, signed as Front does."""
        return await self.http.post(path, content=body, headers=self.signed(body))

    def signed(self, body: bytes) -> dict[str, str]:
        return {"content-type": "application/json", **self._front["frontapp"].sign(body, now())}

    async def search(self, query: str, **filters: Any) -> Any:
        body = {"query": query, "limit": 10, "filters": filters}
        return await self.post("/v1/search", json=body)

    async def states(self, ids: Sequence[str]) -> dict[str, str]:
        """State by event id."""
        states: dict[str, str] = {}
        for first in range(0, len(ids), 500):
            path, chunk = "/v1/events/states", list(ids[first : first + 500])
            # As a client does: while a stack catches up, PostgreSQL may have no time for questions.
            while (answer := await self.http.post(path, json={"ids": chunk})).status_code == 503:
                wait = float(answer.headers["retry-after"])
                await asyncio.sleep(wait)  # as long as the gateway demands
            assert answer.is_success, (path, answer.status_code, answer.text)
            states |= answer.json()["states"]
        return states

    async def ended(self, ids: Sequence[str], *, seconds: float = 60) -> float:
        """Wait until all events are final; return the seconds that took."""

        async def at_an_end() -> bool:
            states = await self.states(ids)
            return len(states) == len(set(ids)) and set(states.values()) <= set(FINAL)

        return await seconds_until(at_an_end, seconds=seconds, every=0.1, what=self.log_tail)

    async def whole(self, *, seconds: float = 30) -> float:
        """Wait until every process runs, every store is ready, no breaker is open, and nothing waits; the seconds that took."""

        async def is_whole() -> bool:
            if not all(child.ready for child in self.children().values()):
                return False
            try:
                status = await self.get("/v1/status")
            except httpx2.TransportError:
                return False
            ready = all(store["state"] == "ready" for store in status["stores"])
            if not (ready and status["temporal"]["reachable"] and not status["backlog"]):
                return False
            return not await self.open_breakers()

        return await seconds_until(is_whole, seconds=seconds, every=0.1, what=self.log_tail)

    async def open_breakers(self) -> list[str]:
        """Return which circuit breakers are not closed, as `process: metric`."""
        breakers = []
        for card in running_processes(self.data_dir):
            try:
                metrics = (await self.http.get(card.metrics)).text
            except httpx2.TransportError:
                continue  # a process that is gone has no breakers
            breakers += [f"{card.process}: {line}" for line in OPEN_BREAKER.findall(metrics)]
        return breakers

    @contextmanager
    def held(self, name: str) -> Iterator[None]:
        """A child that is there and does not answer: stopped with all its processes, and let go at the end."""
        pids = [self.children()[name].pid]
        os.kill(pids[0], signal.SIGSTOP)  # first, so that it makes no more of them
        pids += [pid for pid, parent in _parents().items() if parent == pids[0]]
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        try:
            yield
        finally:
            for pid in pids:
                os.kill(pid, signal.SIGCONT)

    async def kill_child(self, name: str, *, seconds: float = 30) -> float:
        """SIGKILL to one child, which must be back in so many seconds; return how many it took."""
        former = self.children()[name].pid
        os.kill(former, signal.SIGKILL)

        def is_back() -> bool:
            child = self.children()[name]
            return child.ready and child.pid not in (0, former)

        return await seconds_until(is_back, seconds=seconds, what=self.log_tail)

    def run_here(self, *arguments: str) -> CommandResult:
        """`apex …` in this process: the same, without a second of imports each."""
        out, error, code = io.StringIO(), io.StringIO(), 0
        with (
            mock.patch.object(sys, "argv", ["apex", *arguments]),
            mock.patch.dict(os.environ, self._given),
            redirect_stdout(out),
            redirect_stderr(error),
        ):
            try:
                main()
            except SystemExit as end:
                code = int(end.code or 0)
        return CommandResult(code, out.getvalue(), error.getvalue())

    async def command(self, *arguments: str, seconds: float = 60) -> CommandResult:
        """`apex …` as a person calls it in this data folder."""
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "apex_memory.cli", *arguments),
            env=os.environ | self._given,
            cwd=self.data_dir.parent,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        try:
            async with asyncio.timeout(seconds):
                out, error = await process.communicate()
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        assert process.returncode is not None
        return CommandResult(process.returncode, out.decode(), error.decode())


@asynccontextmanager
async def data_folder() -> AsyncIterator[Path]:
    """Where a stack keeps its data: PostgreSQL's unprivileged user can pass through the folder above it."""
    parent = Path(tempfile.mkdtemp(prefix="apex-whole-"))
    parent.chmod(0o711)
    try:
        yield parent / "data"
    finally:
        shutil.rmtree(parent)


@asynccontextmanager
async def running_stack(**settings: str) -> AsyncIterator[Stack]:
    """A stack that is ready, in a folder of its own; both are removed at the end."""
    async with data_folder() as folder:
        stack = Stack(folder, **settings)
        try:
            print(f"ready after {await stack.start():.1f} s")
            await stack.whole()
            yield stack
        finally:
            await stack.stop()


def belonging(data_dir: Path) -> list[int]:
    """Processes started for this data folder, their children too."""
    pids = [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]
    mark = f"APEX_DATA_DIR={data_dir}\n"
    return [pid for pid in pids if mark in command_and_environment(pid)]


def _parents() -> dict[int, int]:
    """Parent by process, of all there are."""
    parents = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with suppress(FileNotFoundError, ProcessLookupError):  # it ended meanwhile
                stat = (entry / "stat").read_text().rpartition(")")[2].split()
                parents[int(entry.name)] = int(stat[1])
    return parents


def _tail(log: Path) -> str:
    return "\n".join(log.read_text(errors="replace").splitlines()[-15:]) if log.exists() else "none"
