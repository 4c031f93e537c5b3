"""The whole stack of engines, really started, killed, and started again on the same data."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from urllib.parse import urlsplit

import psycopg
import pytest
from prometheus_client import REGISTRY
from redis.asyncio import Redis

from apex_memory.config import EMBEDDED, Settings
from apex_memory.engines.process import command_and_environment
from apex_memory.engines.selection import embedded_engines, environment_for
from apex_memory.engines.state import read_stack
from apex_memory.engines.supervisor import Supervisor
from apex_memory.errors import Conflict
from tests.waiting import seconds_until

ENGINES = ("postgres", "valkey", "falkordb", "vectors", "temporal")
DRIVER = Path(__file__).with_name("stack_process.py")

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


@pytest.fixture
def folder() -> Iterator[Path]:
    """A data folder that an unprivileged user can reach, in which nothing is left running."""
    parent = Path(tempfile.mkdtemp(prefix="apex-stack-"))
    parent.chmod(0o711)
    yield parent / "data"
    for pid in belonging(parent / "data"):
        os.kill(pid, signal.SIGKILL)
    shutil.rmtree(parent)


def belonging(folder: Path) -> list[int]:
    """Processes started for this data folder, children's children too. This one is not among them."""
    pids = [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]
    return [pid for pid in pids if f"APEX_DATA_DIR={folder}" in command_and_environment(pid)]


@asynccontextmanager
async def driver(
    folder: Path, *options: str
) -> AsyncIterator[tuple[asyncio.subprocess.Process, list[list[str]]]]:
    """A supervisor process that is up, and the events it reported until then."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, DRIVER, folder, *options, stdout=asyncio.subprocess.PIPE
    )
    assert process.stdout
    events: list[list[str]] = []
    while not events or events[-1][1] != "up":
        line = await process.stdout.readline()
        assert line, f"the supervisor ended before it was up: {events}"
        events.append(json.loads(line))
    try:
        yield process, events
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


def settings_of(folder: Path) -> Settings:
    return Settings(data_dir=folder, graph=EMBEDDED)


@pytest.mark.alone(reason="a start has a budget of ten seconds")
async def test_starts_within_budget_and_restarts_what_dies(
    folder: Path, record_property: Callable[[str, object], None]
) -> None:
    events: list[tuple[str, str, str]] = []
    settings = settings_of(folder)
    begun = time.monotonic()
    async with Supervisor(folder, lambda *event: events.append(event)) as supervisor:
        engines = embedded_engines(settings, 32)
        await supervisor.start(*engines)
        cold = time.monotonic() - begun
        print(f"cold start of all engines: {cold:.2f} s")
        record_property("cold_start_seconds", round(cold, 2))
        assert cold < 10

        stack = read_stack(folder)
        assert stack and stack.pid == os.getpid()
        assert set(stack.children) == set(ENGINES)
        assert all(child.ready and child.version for child in stack.children.values())
        secrets = json.loads((folder / "secrets.json").read_text()).values()
        assert not any(secret in (folder / "run/stack.json").read_text() for secret in secrets)
        assert not any(
            secret in Path(f"/proc/{child.pid}/cmdline").read_text()
            for child in stack.children.values()
            for secret in secrets
        )
        assert environment_for(engines, settings).keys() == {
            *("APEX_DATA_DIR", "APEX_DOCUMENTS", "APEX_GRAPH", "APEX_VECTORS"),
            *("APEX_CACHE", "APEX_TEMPORAL"),
        }

        for name in ENGINES:
            await kill_and_see_it_return(folder, name, events)

    assert read_stack(folder) is None
    assert belonging(folder) == []
    stopped = [name for name, what, _ in events if what == "stopped"]
    assert stopped == ["temporal", "vectors", "falkordb", "valkey", "postgres"]


def restarts_of(engine: str) -> float:
    """Return the metric of an engine's restarts; 0 before the first."""
    return REGISTRY.get_sample_value("apex_engine_restarts_total", {"engine": engine}) or 0


async def kill_and_see_it_return(
    folder: Path, name: str, events: list[tuple[str, str, str]]
) -> None:
    counted = restarts_of(name)
    stack = read_stack(folder)
    assert stack
    former = stack.children[name].pid
    os.kill(former, signal.SIGKILL)

    took = await seconds_until(
        lambda: any(event[:2] == (name, "restarted") for event in events), seconds=15
    )
    print(f"{name} answers again after {took:.2f} s")
    stack = read_stack(folder)
    assert stack
    child = stack.children[name]
    assert child.pid not in (0, former)
    assert (child.last_exit, child.ready) == ("SIGKILL", True)
    assert child.restarts >= 1
    assert restarts_of(name) > counted
    died = [detail for who, what, detail in events if (who, what) == (name, "died")]
    assert died[0].startswith("SIGKILL")


async def test_second_start_on_the_same_folder_is_refused(folder: Path) -> None:
    async with Supervisor(folder, lambda *event: None):
        with pytest.raises(Conflict, match=f"process {os.getpid()}"):
            async with Supervisor(folder, lambda *event: None):
                pass
        assert read_stack(folder) is not None


async def test_ctrl_c_ends_everything(folder: Path) -> None:
    async with driver(folder) as (process, _):
        assert len(belonging(folder)) >= len(ENGINES)
        begun = time.monotonic()
        process.send_signal(signal.SIGINT)
        try:
            code = await asyncio.wait_for(process.wait(), 60)
        except TimeoutError:
            print(await where_it_stands(process, folder))
            pytest.fail("Ctrl-C did not end it within 60 s; where it hung is above")
        assert code == 0
        print(f"all stopped after {time.monotonic() - begun:.2f} s")
        assert belonging(folder) == []
        assert read_stack(folder) is None


async def test_a_background_job_outlives_ctrl_c_and_ends_when_signalled(folder: Path) -> None:
    async with driver(folder, "background") as (process, _):
        process.send_signal(signal.SIGINT)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(process.wait(), 1)
        process.send_signal(signal.SIGTERM)
        assert await asyncio.wait_for(process.wait(), 60) == 0
        assert belonging(folder) == []


async def where_it_stands(process: asyncio.subprocess.Process, folder: Path) -> str:
    """Return the threads and tasks of a supervisor that does not end, its output, and the processes below it."""
    assert process.stdout
    lines_by_process = [command_and_environment(pid).splitlines()[:1] for pid in belonging(folder)]
    for number in (signal.SIGUSR1, signal.SIGUSR2):
        process.send_signal(number)
    with contextlib.suppress(TimeoutError):
        while line := await asyncio.wait_for(process.stdout.readline(), 2):
            lines_by_process.append([line.decode().rstrip()])
    return "\n".join(line for lines in lines_by_process for line in lines)


async def test_killed_supervisor_leaves_no_orphan_and_the_next_start_recovers(folder: Path) -> None:
    async with driver(folder) as (process, _):
        reach = reach_of(folder)
        async with await psycopg.AsyncConnection.connect(reach["APEX_DOCUMENTS"]) as connection:
            await connection.execute("CREATE TABLE kept AS SELECT 42 AS answer")
        await ask_graph(reach, "CREATE (:Kept {answer: 42})")
        process.kill()
        took = await seconds_until(lambda: belonging(folder) == [], seconds=5)
        print(f"no orphan {took:.2f} s after kill -9")

    begun = time.monotonic()
    async with driver(folder):
        print(f"started again after {time.monotonic() - begun:.2f} s, the interpreter's included")
        assert reach_of(folder) == reach
        async with await psycopg.AsyncConnection.connect(reach["APEX_DOCUMENTS"]) as connection:
            cursor = await connection.execute("SELECT answer FROM kept")
            assert await cursor.fetchone() == (42,)
        assert await ask_graph(reach, "MATCH (k:Kept) RETURN k.answer") == [[42]]


async def test_where_children_outlive_their_parent_the_next_start_ends_them(folder: Path) -> None:
    """The way of systems without a parent-death signal; and the control of the test above."""
    async with driver(folder, "untied") as (process, _):
        process.kill()
        await process.wait()
        assert len(belonging(folder)) >= len(ENGINES)
        assert read_stack(folder) is None

    left: list[str] = []

    def see(name: str, what: str, detail: str) -> None:
        if what == "leftover":
            left.append(name)
            stack = read_stack(folder)
            assert stack and stack.pid == os.getpid()
            assert [(n, c.ready) for n, c in stack.children.items()] == [
                (n, False) for n in ENGINES
            ]

    async with Supervisor(folder, see):
        assert left == list(ENGINES)
        assert belonging(folder) == []
        assert (stack := read_stack(folder)) and not stack.children


def reach_of(folder: Path) -> dict[str, str]:
    """Return the addresses that a running stack has, from what it keeps in its folder."""
    stack = read_stack(folder)
    assert stack
    secrets = json.loads((folder / "secrets.json").read_text())
    ports = {name: child.port for name, child in stack.children.items()}
    return {
        "APEX_DOCUMENTS": f"postgresql://apex:{secrets['documents']}@127.0.0.1:{ports['postgres']}/apex",
        "APEX_GRAPH": f"falkordb://:{secrets['graph']}@127.0.0.1:{ports['falkordb']}/apex",
    }


async def ask_graph(reach: dict[str, str], query: str) -> list[list[object]]:
    address = urlsplit(reach["APEX_GRAPH"])
    client = Redis(
        host=address.hostname, port=address.port, password=address.password, decode_responses=True
    )
    try:
        answer = await client.execute_command("GRAPH.QUERY", "apex", query)
        return answer[1] if len(answer) == 3 else []
    finally:
        await client.aclose()
