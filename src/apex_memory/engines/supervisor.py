"""Keeps the processes of one data folder running, and ends them all when it ends, however it ends."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Self

from apex_memory.engines.base import Engine
from apex_memory.engines.process import Child, Process, child_of, describe
from apex_memory.engines.state import (
    ChildState,
    Stack,
    end_leftover,
    last_ports,
    leftovers,
    ownership,
    write_stack,
)
from apex_memory.errors import ApexError, Misconfigured, Unavailable
from apex_memory.telemetry import ENGINE_RESTARTS

FIRST_WAIT, LONGEST_WAIT = 0.2, 5.0
TELL_SECONDS = 10.0
HEALTHY_SECONDS = 30
END_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

Report = Callable[[str, str, str], None]
"""Takes a child's name, what happened to it, and the detail for people.

What: `leftover`, `starting` (for long now), `ready`, `died`, `restarted`, `failed` (a start that did not
answer), `stopped`; and of the `stack` itself `unrecorded`, when `stack.json` cannot be written.
"""


@dataclass
class _Kept:
    """A child and its process now; `state` is what `stack.json` says of it."""

    state: ChildState
    process: Process | None = None
    watch: asyncio.Task[None] | None = field(default=None, repr=False)


class Supervisor:
    """`async with Supervisor(folder) as supervisor:` owns the folder; leaving the block stops all children.

    Entering raises `Conflict` when another process owns the folder, and ends what a killed supervisor
    left there. Use it from the main thread: a child ends with the thread that made it.

    SIGINT, SIGTERM and SIGHUP end `wait`. While the block does something else, they cancel its task, and
    `asyncio.CancelledError` leaves the block once all has stopped. A second one kills all at once.
    """

    def __init__(self, data_dir: Path, on_event: Report) -> None:
        self.data_dir = data_dir.resolve()
        self._report = on_event
        self._kept: list[_Kept] = []
        self._leaving = contextlib.ExitStack()
        self._ending = asyncio.Event()
        self._waiting = False
        self._task: asyncio.Task[object] | None = None

    async def __aenter__(self) -> Self:
        with contextlib.ExitStack() as leaving:
            leaving.enter_context(ownership(self.data_dir))
            self._ports = last_ports(self.data_dir)
            self._since = datetime.now(UTC)
            left = leftovers(self.data_dir)
            # Said at once: what the killed run wrote calls its children ready.
            self._kept = [_Kept(ChildState(name=name, pid=pid)) for name, pid in left]
            self._record()
            for name, pid in left:
                self._report(name, "leftover", f"ending process {pid} of a run that was killed")
                await asyncio.to_thread(end_leftover, pid)
            self._kept = []
            self._task = asyncio.current_task()
            self._record()
            self._listen(leaving)
            self._leaving = leaving.pop_all()
        return self

    async def __aexit__(self, *raised: object) -> None:
        self._task = None  # from here on a first signal changes nothing, a second one still kills
        with self._leaving:
            await self.stop()

    async def start(self, *parts: Engine | Child) -> None:
        """Start engines and other children side by side; return when all of them answer.

        Raises `Unavailable`, with the child's last words, when one ends or is too slow; the others go on
        until the block is left. Later calls start further children, which are stopped first.
        """
        kept = [_Kept(ChildState(name=part.name)) for part in parts]
        self._kept += kept
        tasks = [
            asyncio.create_task(self._bring_up(one, part))
            for one, part in zip(kept, parts, strict=True)
        ]
        try:
            await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def wait(self) -> None:
        """Return when a signal asks for the end. Children that die meanwhile are started again."""
        ending = asyncio.create_task(self._ending.wait())
        watches = [one.watch for one in self._kept if one.watch]
        self._waiting = True
        try:
            done, _ = await asyncio.wait((ending, *watches), return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()  # a watch ends only by an error of ours
        finally:
            self._waiting = False
            ending.cancel()

    async def stop(self) -> None:
        """Stop all children, the last started first: each is asked, given its time, then killed."""
        watches = [one.watch for one in self._kept if one.watch]
        for watch in watches:
            watch.cancel()
        await asyncio.gather(*watches, return_exceptions=True)
        while self._kept:
            one = self._kept[-1]
            if one.process:
                code = await one.process.stop()
                self._report(one.state.name, "stopped", describe(code))
            self._kept.pop()
            self._record()

    async def _bring_up(self, one: _Kept, part: Engine | Child) -> None:
        if isinstance(part, Engine):
            part = await _prepared(part)
        for wait in (*part.start_waits, None):
            try:
                await self._launch(one, part)
                break
            except Unavailable as error:
                if wait is None:
                    raise
                self._report(part.name, "failed", f"{error}; trying again in {wait:g} s")
                await asyncio.sleep(wait)
        self._report(part.name, "ready", part.url)
        one.watch = asyncio.create_task(self._watch(one, part))

    async def _launch(self, one: _Kept, child: Child) -> None:
        one.process = Process(child, self.data_dir / "log" / f"{child.name}.log")
        one.state = one.state.model_copy(
            update={
                "pid": one.process.pid,
                "port": child.port,
                "url": child.url,
                "since": datetime.now(UTC),
            }
        )
        self._record()
        telling = asyncio.create_task(self._tell(child, one.process.log))
        try:
            one.state.version = await one.process.until_ready()
        except BaseException:  # cancelled or not: what does not answer is not left behind
            await one.process.kill()
            raise
        finally:
            telling.cancel()
        one.state.ready = True
        self._record()

    async def _tell(self, child: Child, log: Path) -> None:
        """Say now and then that a start goes on: a store with much data reads it for minutes."""
        began = asyncio.get_running_loop().time()
        while True:
            await asyncio.sleep(TELL_SECONDS)
            waited = asyncio.get_running_loop().time() - began
            self._report(
                child.name,
                "starting",
                f"for {waited:.0f} s, of {child.ready_seconds:g} s at most; see {log}",
            )

    async def _watch(self, one: _Kept, child: Child) -> None:
        """Start the child again each time it ends; the more slowly, the sooner it ends."""
        clock = asyncio.get_running_loop().time
        wait, started = FIRST_WAIT, clock()
        while one.process:
            code = await one.process.exited()
            await one.process.kill()  # what it may have left in its group
            wait = FIRST_WAIT if clock() - started > HEALTHY_SECONDS else wait
            self._count(one, describe(code))
            self._report(
                child.name,
                "died",
                f"{describe(code)}, starting again in {wait:g} s; see {one.process.log}",
            )
            await asyncio.sleep(wait)
            wait, started = min(wait * 2, LONGEST_WAIT), clock()
            try:
                await self._launch(one, child)
                self._report(child.name, "restarted", f"process {one.process.pid}")
            except ApexError as error:
                self._report(child.name, "failed", str(error))

    def _count(self, one: _Kept, how: str) -> None:
        ENGINE_RESTARTS.labels(one.state.name).inc()
        one.state = one.state.model_copy(
            update={"pid": 0, "ready": False, "restarts": one.state.restarts + 1, "last_exit": how}
        )
        self._record()

    def _record(self) -> None:
        self._ports |= {one.state.name: one.state.port for one in self._kept if one.state.port}
        children = {one.state.name: one.state for one in self._kept}
        stack = Stack(pid=os.getpid(), since=self._since, children=children, ports=self._ports)
        try:
            write_stack(self.data_dir, stack)
        except OSError as error:  # a full disk must not end what runs
            self._report("stack", "unrecorded", str(error))

    def _listen(self, leaving: contextlib.ExitStack) -> None:
        loop = asyncio.get_running_loop()
        for number in END_SIGNALS:
            # Ignored stays ignored: nohup asks that for SIGHUP, a shell's `&` for SIGINT.
            if signal.getsignal(number) is not signal.SIG_IGN:
                loop.add_signal_handler(number, self._end)
                leaving.callback(loop.remove_signal_handler, number)

    def _end(self) -> None:
        """What a signal asks for: the end; asked twice, at once."""
        if self._ending.is_set():
            for one in self._kept:
                if one.process:
                    one.process.kill_group()
        elif self._task and not self._waiting:
            self._task.cancel()
        self._ending.set()


async def _prepared(engine: Engine) -> Child:
    try:
        await asyncio.to_thread(engine.prepare)
        return child_of(engine)
    except OSError as error:
        raise Misconfigured(
            f"{engine.role}: cannot prepare {engine.directory} ({error})",
            remedy="check its owner and the space there, or set APEX_DATA_DIR to another folder",
        ) from error
