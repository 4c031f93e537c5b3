"""Supervision with small processes in the engines' place: ends, restarts, signals, and what is left."""

from __future__ import annotations

import asyncio
import errno
import os
import random
import signal
import socket
import subprocess
import sys
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from apex_memory.config import Settings
from apex_memory.engines import supervisor
from apex_memory.engines.base import free_port
from apex_memory.engines.falkordb import FalkorDB
from apex_memory.engines.process import ChildProcess, Process, child_of, command_and_environment
from apex_memory.engines.selection import embedded_engines
from apex_memory.engines.state import (
    ChildState,
    Stack,
    last_ports,
    leftovers,
    ownership,
    read_stack,
    secret,
    write_stack,
)
from apex_memory.engines.supervisor import Supervisor
from apex_memory.engines.temporal import Temporal
from apex_memory.errors import Unavailable
from tests.waiting import until

Event = tuple[str, str, str]


def silent(*event: str) -> None:
    pass


async def at_once() -> None:
    pass


async def never() -> None:
    await asyncio.Event().wait()


def shell(
    script: str,
    folder: Path,
    *,
    name: str = "small",
    ready: Callable[[], Awaitable[None]] = at_once,
    **options: Any,
) -> ChildProcess:
    """Return a child that runs a line of shell and counts as ready at once. `options` are other fields of `ChildProcess`."""
    command = ["/bin/sh", "-c", script]
    child = ChildProcess(name=name, command=command, ready=ready, directory=folder)
    return replace(child, **options)


def alive(pid: int) -> bool:
    return bool(command_and_environment(pid))


async def test_a_child_that_ends_at_its_start_leaves_its_last_words(tmp_path: Path) -> None:
    child = shell("echo former; exit 0", tmp_path, ready=never)
    with pytest.raises(Unavailable, match="former"):
        await Process(child, tmp_path / "small.log").until_ready()

    child = shell("echo no such table; exit 3", tmp_path, ready=never)
    with pytest.raises(Unavailable, match=r"exit code 3\): no such table$") as caught:
        await Process(child, tmp_path / "small.log").until_ready()
    assert str(tmp_path / "small.log") in caught.value.remedy


async def test_a_child_that_never_responds_is_not_left_behind(tmp_path: Path) -> None:
    child = shell("echo $$; exec sleep 1000", tmp_path, ready=never, ready_seconds=0.2)
    async with Supervisor(tmp_path / "data", silent) as supervisor:
        with pytest.raises(Unavailable, match="was not ready within"):
            await supervisor.start(child)
        assert not alive(int((tmp_path / "data/log/small.log").read_text()))


async def test_a_start_that_takes_long_is_reported_and_not_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A store with much data reads it for minutes; ended and started again it would never be there."""
    monkeypatch.setattr(supervisor, "PROGRESS_SECONDS", 0.1)
    events: list[Event] = []
    loaded = asyncio.Event()

    def record_event(name: str, what: str, detail: str) -> None:
        events.append((name, what, detail))
        if len(events) == 3:
            loaded.set()

    async def ready() -> None:
        await loaded.wait()

    async with Supervisor(tmp_path / "data", record_event) as watched:
        await watched.start(shell("exec sleep 1000", tmp_path, ready=ready))
        assert [what for _, what, _ in events] == [*["starting"] * 3, "ready"]
        assert "small.log" in events[0][2]
    assert child_of(FalkorDB(tmp_path, 1, "")).ready_seconds > 600


async def test_a_child_that_stands_back_does_so_with_its_session(tmp_path: Path) -> None:
    """Niceness alone counts for nothing where the kernel shares among sessions first."""
    script = "nice; cat /proc/self/autogroup 2>/dev/null; exec sleep 1000"
    own = Path("/proc/self/autogroup")
    for niceness in (0, 7):
        child = shell(script, tmp_path, name=f"at{niceness}", niceness=niceness)
        async with Supervisor(tmp_path / child.name, silent) as supervisor:
            await supervisor.start(child)
            log = tmp_path / child.name / "log" / f"{child.name}.log"
            lines = 2 if own.exists() else 1
            await until(lambda: log.read_text().count("\n") == lines)  # noqa: B023
            log_lines = log.read_text().splitlines()
        assert int(log_lines[0]) == os.nice(0) + niceness
        if own.exists():
            assert log_lines[1].endswith(f"nice {niceness}")


async def test_a_missing_program_is_named(tmp_path: Path) -> None:
    child = ChildProcess(name="small", command=["/nowhere/x"], ready=at_once, directory=tmp_path)
    with pytest.raises(Unavailable, match="/nowhere/x"):
        Process(child, tmp_path / "small.log")


async def test_an_engine_gets_another_try_at_its_first_start(tmp_path: Path) -> None:
    script = "[ -e seen ] && { touch seen2; exec sleep 1000; }; touch seen; exit 1"
    events: list[Event] = []

    async def second_time() -> None:
        await until((tmp_path / "seen2").exists)

    child = shell(script, tmp_path, ready=second_time, start_waits=(0.01,))
    async with Supervisor(tmp_path / "data", lambda *e: events.append(e)) as supervisor:
        await supervisor.start(child)
        assert [what for _, what, _ in events] == ["failed", "ready"]


async def test_waits_double_while_a_child_keeps_dying_and_start_over_once_it_lived(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervisor, "FIRST_WAIT", 0.01)
    monkeypatch.setattr(supervisor, "LONGEST_WAIT", 0.04)
    assert await waits_before_restarts(tmp_path, 5) == [0.01, 0.02, 0.04, 0.04, 0.04]
    monkeypatch.setattr(supervisor, "HEALTHY_SECONDS", 0)
    assert await waits_before_restarts(tmp_path, 3) == [0.01, 0.01, 0.01]


async def waits_before_restarts(folder: Path, count: int) -> list[float]:
    """Return the waits announced when a child dies again and again."""
    died: list[float] = []

    def note(name: str, what: str, detail: str) -> None:
        if what == "died":
            died.append(float(detail.partition("restarting in ")[2].partition(" s")[0]))

    async with Supervisor(folder / "data", note) as supervisor:
        await supervisor.start(shell("sleep 0.1; exit 3", folder))
        await until(lambda: len(died) >= count)
        stack = read_stack(folder / "data")
        assert stack and stack.children["small"].last_exit == "exit code 3"
        assert stack.children["small"].restarts >= count
    return died[:count]


async def test_a_stubborn_child_is_killed_with_its_group(tmp_path: Path) -> None:
    child = shell(
        "trap '' TERM; echo $$; sleep 1000 & echo $!; while :; do wait; done",
        tmp_path,
        stop_seconds=0.2,
    )
    async with Supervisor(tmp_path / "data", silent) as supervisor:
        await supervisor.start(child)
        log = tmp_path / "data/log/small.log"
        await until(lambda: len(log.read_text().split()) == 2)
        pids = [int(word) for word in log.read_text().split()]
        assert all(alive(pid) for pid in pids)
    await until(lambda: not any(alive(pid) for pid in pids))


async def test_children_stop_in_reverse_order_of_their_start(tmp_path: Path) -> None:
    events: list[Event] = []
    async with Supervisor(tmp_path / "data", lambda *e: events.append(e)) as supervisor:
        await supervisor.start(*(shell("exec sleep 99", tmp_path, name=n) for n in ("a", "b")))
        await supervisor.start(shell("exec sleep 99", tmp_path, name="c"))
    assert [(n, d) for n, what, d in events if what == "stopped"] == [
        (name, "SIGTERM") for name in ("c", "b", "a")
    ]


async def test_one_signal_ends_the_wait_and_a_second_one_kills(tmp_path: Path) -> None:
    child = shell("trap '' TERM; echo up; while :; do sleep 1; done", tmp_path, stop_seconds=60)
    events: list[Event] = []
    loop = asyncio.get_running_loop()
    async with Supervisor(tmp_path / "data", lambda *e: events.append(e)) as supervisor:
        await supervisor.start(child)
        await until(lambda: (tmp_path / "data/log/small.log").read_text() == "up\n")
        loop.call_later(0.05, os.kill, os.getpid(), signal.SIGTERM)
        await supervisor.wait()
        begun = loop.time()
        loop.call_later(0.05, os.kill, os.getpid(), signal.SIGTERM)
    assert loop.time() - begun < 10
    assert events[-1] == ("small", "stopped", "SIGKILL")


async def test_a_signal_during_the_start_ends_it(tmp_path: Path) -> None:
    log = tmp_path / "data/log/small.log"

    async def signal_when_the_child_runs() -> None:
        await until(lambda: log.exists() and log.read_text().endswith("\n"), "its process id")
        os.kill(os.getpid(), signal.SIGTERM)

    signalling = asyncio.create_task(signal_when_the_child_runs())
    task = asyncio.current_task()
    assert task
    with pytest.raises(asyncio.CancelledError):
        async with Supervisor(tmp_path / "data", silent) as supervisor:
            await supervisor.start(shell("echo $$; exec sleep 1000", tmp_path, ready=never))
    task.uncancel()
    await signalling
    assert not alive(int(log.read_text()))
    assert read_stack(tmp_path / "data") is None


async def test_engines_do_not_see_the_settings_of_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("APEX_API_KEY", "hush")
    for private, seen in ((True, ":mine"), (False, "hush:mine")):
        child = shell(
            "echo $APEX_API_KEY:$APEX_OWN",
            tmp_path,
            private=private,
            environment={"APEX_OWN": "mine"},
        )
        log = tmp_path / f"{private}.log"
        await Process(child, log).exited()
        assert log.read_text().strip() == seen


async def test_a_log_is_turned_over_when_it_is_long(tmp_path: Path) -> None:
    log = tmp_path / "small.log"
    with log.open("wb") as file:
        file.truncate(10_000_001)
    await Process(shell("echo fresh", tmp_path), log).exited()
    assert log.read_text() == "fresh\n"
    assert (tmp_path / "small.log.1").stat().st_size == 10_000_001


async def test_the_log_of_a_process_that_runs_on_is_turned_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also with what the process writes meanwhile, but for a line at the very moment of a cut; and no line comes twice."""
    monkeypatch.setattr("apex_memory.engines.process.LOG_BYTES", 2_000)
    log, former = tmp_path / "busy.log", tmp_path / "busy.log.1"
    script = "for n in $(seq 1000); do echo line $n; [ $((n % 50)) != 0 ] || sleep 0.01; done"
    process = Process(shell(script, tmp_path), log)
    ended = asyncio.create_task(process.exited())
    lines: list[str] = []
    turns = 0
    while not ended.done():
        process.rotate_log()
        if former.exists():
            lines += former.read_text().splitlines()
            former.unlink()
            turns += 1
        await asyncio.sleep(0.005)
    lines += log.read_text().splitlines()
    numbers = [int(line.removeprefix("line ")) for line in lines]
    assert numbers == sorted(set(numbers)) and 1_000 - turns <= len(numbers)
    assert turns and log.stat().st_size < 9_000 and not (tmp_path / "busy.log.part").exists()


async def test_the_supervisor_turns_over_the_logs_of_what_runs_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("apex_memory.engines.supervisor.OBSERVE_SECONDS", 0.05)
    log = tmp_path / "log" / "small.log"
    async with Supervisor(tmp_path, silent) as supervisor:
        await supervisor.start(shell("sleep 1000 & wait", tmp_path))
        with log.open("ab") as file:
            file.write(b"x" * 10_000_001)
        async with asyncio.timeout(10):
            while log.stat().st_size:
                await asyncio.sleep(0.02)
    former = log.with_suffix(".log.1")
    assert former.stat().st_size == 10_000_001 and former.stat().st_mode & 0o777 == 0o600


async def test_a_log_stays_whole_while_the_disk_has_no_room_for_its_copy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "no space left")

    log = tmp_path / "long.log"
    process = Process(shell("exec sleep 1000", tmp_path), log)
    try:
        with log.open("wb") as file:
            file.truncate(10_000_001)
        monkeypatch.setattr("apex_memory.engines.process._copy", full)
        with pytest.raises(OSError):
            process.rotate_log()
    finally:
        await process.stop()
    assert log.stat().st_size == 10_000_001
    assert [file.name for file in tmp_path.iterdir()] == ["long.log"]


def test_only_processes_of_the_folder_are_leftovers(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    environment = {"APEX_DATA_DIR": str(tmp_path)}
    command = [sys.executable, "-c", "import sys; sys.stdin.read()"]
    processes = [
        subprocess.Popen(command, stdin=subprocess.PIPE, env=os.environ | more)
        for more in (environment, {"APEX_DATA_DIR": f"{tmp_path}2"})
    ]
    try:
        children = {
            str(p.pid): ChildState(name=str(p.pid), pid=p.pid, port=n)
            for n, p in enumerate(processes, 1)
        }
        write_stack(tmp_path, Stack(pid=1, since=datetime.now(UTC), children=children))
        assert [pid for _, pid in leftovers(tmp_path)] == [processes[0].pid]
    finally:
        for process in processes:
            process.communicate()


def test_what_is_kept_for_the_next_start(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    assert read_stack(folder) is None
    with ownership(folder):
        first = secret(folder, "documents")
        assert secret(folder, "graph") != first
        assert secret(folder, "documents") == first
        write_stack(folder, Stack(pid=1, since=datetime.now(UTC), ports={"postgres": 7}))
        assert read_stack(folder) is not None
    assert read_stack(folder) is None
    assert last_ports(folder) == {"postgres": 7}
    private = [folder / "secrets.json", folder / "run/stack.json"]
    assert [path.stat().st_mode & 0o777 for path in private] == [0o600, 0o600]


def test_processes_that_are_seeded_alike_draw_different_ports() -> None:
    """As the workers of a parallel test run are, which start their engines at the same time."""
    drawn = []
    for _ in range(2):
        random.seed(1)
        drawn.append([free_port() for _ in range(5)])
    assert drawn[0] != drawn[1]


def test_a_port_in_use_is_not_taken_again() -> None:
    import socket

    port = free_port()
    assert free_port(port) == port
    with socket.create_server(("127.0.0.1", port)):
        assert free_port(port) != port


def _port_with_a_free_neighbour(distance: int) -> int:
    """A free port below another free one. Beside other tests either may be taken."""
    while True:
        port = free_port()
        with suppress(OSError), socket.socket() as neighbour:
            neighbour.bind(("127.0.0.1", port + distance))
            return port


def test_every_server_of_a_stack_has_a_port_of_its_own(tmp_path: Path) -> None:
    """Also when the last run had Valkey where Temporal's UI would be now."""
    temporal = _port_with_a_free_neighbour(1000)
    with ownership(tmp_path):
        ports = {"temporal": temporal, "valkey": temporal + 1000}
        write_stack(tmp_path, Stack(pid=1, since=datetime.now(UTC), ports=ports))
        engines = embedded_engines(
            Settings(data_dir=tmp_path, graph="embedded:", temporal_ui="embedded:"), 32
        )
    chosen = [engine.port for engine in engines]
    chosen += [
        engine.ui_port
        for engine in engines
        if isinstance(engine, Temporal) and engine.ui_port is not None
    ]
    assert {temporal, temporal + 1000} < set(chosen)
    assert len(set(chosen)) == len(chosen) == 6
