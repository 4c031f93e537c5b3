"""The supervisor: keeps the processes of one data folder running, and ends them all when it ends."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Self
from urllib.parse import urlsplit

from apex_memory.disk_space import disk_space
from apex_memory.engines.base import Engine
from apex_memory.engines.cards import write_targets
from apex_memory.engines.process import ChildProcess, Process, child_of, describe
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
from apex_memory.telemetry import (
    DISK_FREE,
    DISK_SIZE,
    ENGINE_REFUSES,
    ENGINE_RESTARTS,
    ENGINE_UP,
)

FIRST_WAIT, LONGEST_WAIT = 0.2, 5.0
PROGRESS_SECONDS = 10.0
HEALTHY_SECONDS = 30
DISK_SECONDS = 1.0  # between two looks at the space of a volume
SWITCH_SECONDS = 5.0
OBSERVE_SECONDS = 2.0
RECORD_SECONDS = 1.0  # until a state that could not be written is written again
END_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

Report = Callable[[str, str, str], None]
"""Called with a child's name, an event, and its detail for display.

Events: `leftover`, `starting` (still, after a while), `ready`, `died`, `restarted`, `failed` (a start without
success), `stopped`, `disk low` and `disk free` (it refuses or accepts writes); and for `stack` itself `unrecorded`, when `stack.json` cannot be written.
"""


@dataclass
class _Supervised:
    """A child with its current process; `state` is its part of `stack.json`."""

    state: ChildState
    process: Process | None = None
    watch: asyncio.Task[None] | None = field(default=None, repr=False)


class Supervisor:
    """`async with Supervisor(folder) as supervisor:` owns the folder; leaving the block stops all children.

    Entering raises `Conflict` when another process owns the folder, and ends leftover processes of a killed
    supervisor. Use it from the main thread: a child ends with the thread that started it.

    SIGINT, SIGTERM and SIGHUP end `wait`. While the block does something else, they cancel its task, and
    `asyncio.CancelledError` leaves the block once all children have stopped. A second signal kills them at once.
    """

    def __init__(self, data_dir: Path, on_event: Report, *, metrics: str = "") -> None:
        """`metrics` is the URL of the supervisor's own metrics, for the list of targets."""
        self.data_dir = data_dir.resolve()
        self._metrics = metrics
        self._folders: dict[str, Path] = {}
        """The data of each engine, by name."""
        self._report = on_event
        self._children: list[_Supervised] = []
        self._leaving = contextlib.ExitStack()
        self._ending = asyncio.Event()
        self._waiting = False
        self._task: asyncio.Task[object] | None = None
        self._recorded_again: asyncio.TimerHandle | None = None

    async def __aenter__(self) -> Self:
        with contextlib.ExitStack() as leaving:
            leaving.enter_context(ownership(self.data_dir))
            leaving.callback(self._end_recording)
            self._ports = last_ports(self.data_dir)
            self._since = datetime.now(UTC)
            leftover = leftovers(self.data_dir)
            # Recorded at once: the file of the killed run still calls its children ready.
            self._children = [_Supervised(ChildState(name=name, pid=pid)) for name, pid in leftover]
            self._record()
            for name, pid in leftover:
                self._report(name, "leftover", f"ending process {pid} of a killed run")
                await asyncio.to_thread(end_leftover, pid)
            self._children = []
            self._task = asyncio.current_task()
            self._record()
            self._listen(leaving)
            observing = asyncio.create_task(self._observe(), name="observe")
            leaving.callback(observing.cancel)
            self._leaving = leaving.pop_all()
        return self

    async def __aexit__(self, *raised: object) -> None:
        self._task = None  # from here on a first signal has no effect, a second one still kills
        with self._leaving:
            await self.stop()

    async def start(self, *parts: Engine | ChildProcess) -> None:
        """Start engines and other children in parallel. Return when all of them are ready.

        Raises `Unavailable`, with the last lines of its log, when one of them ends or is too slow; the others
        keep running until the block is left. Later calls start further children, which are stopped first.
        """
        children = [_Supervised(ChildState(name=part.name)) for part in parts]
        self._children += children
        tasks = [
            asyncio.create_task(self._bring_up(child, part))
            for child, part in zip(children, parts, strict=True)
        ]
        try:
            await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def wait(self) -> None:
        """Return after a signal to end. Children that die meanwhile are restarted."""
        ending = asyncio.create_task(self._ending.wait())
        watches = [child.watch for child in self._children if child.watch]
        self._waiting = True
        try:
            done, _ = await asyncio.wait((ending, *watches), return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()  # a watch ends only by a bug
        finally:
            self._waiting = False
            ending.cancel()

    async def stop(self) -> None:
        """Stop all children, the last started first: signal each, give it time, then kill it."""
        watches = [child.watch for child in self._children if child.watch]
        for watch in watches:
            watch.cancel()
        await asyncio.gather(*watches, return_exceptions=True)
        while self._children:
            supervised = self._children[-1]
            if supervised.process:
                code = await supervised.process.stop()
                self._report(supervised.state.name, "stopped", describe(code))
            self._children.pop()
            self._record()

    async def _bring_up(self, supervised: _Supervised, part: Engine | ChildProcess) -> None:
        ENGINE_UP.labels(part.name).set(0)
        ENGINE_RESTARTS.labels(part.name)  # so that a first restart is an increase
        if isinstance(part, Engine):
            part = await _prepared(part)
            self._folders[part.name] = Path(part.directory)
        for wait in (*part.start_waits, None):
            try:
                await self._launch(supervised, part)
                break
            except Unavailable as error:
                if wait is None:
                    raise
                self._report(part.name, "failed", f"{error}; retrying in {wait:g} s")
                await asyncio.sleep(wait)
        self._report(part.name, "ready", part.url)
        supervised.watch = asyncio.create_task(self._watch(supervised, part))

    async def _launch(self, supervised: _Supervised, child: ChildProcess) -> None:
        supervised.process = Process(child, self.data_dir / "log" / f"{child.name}.log")
        supervised.state = supervised.state.model_copy(
            update={
                "pid": supervised.process.pid,
                "port": child.port,
                "url": child.url,
                "metrics": child.metrics,
                "since": datetime.now(UTC),
            }
        )
        self._record()
        progress = asyncio.create_task(self._report_progress(child, supervised.process.log))
        try:
            supervised.state.version = await supervised.process.until_ready()
        except BaseException:  # also when cancelled: a child that is not ready must not stay behind
            await supervised.process.kill()
            raise
        finally:
            progress.cancel()
        supervised.state.ready = True
        ENGINE_UP.labels(child.name).set(1)
        self._record()

    async def _report_progress(self, child: ChildProcess, log: Path) -> None:
        """Report regularly that a start continues: a store with much data reads it for minutes."""
        began = asyncio.get_running_loop().time()
        while True:
            await asyncio.sleep(PROGRESS_SECONDS)
            waited = asyncio.get_running_loop().time() - began
            self._report(
                child.name,
                "starting",
                f"for {waited:.0f} s of at most {child.ready_seconds:g} s; see {log}",
            )

    async def _watch(self, supervised: _Supervised, child: ChildProcess) -> None:
        """Restart the child each time it ends, with a longer wait when it ends soon after its start."""
        clock = asyncio.get_running_loop().time
        wait, started = FIRST_WAIT, clock()
        while supervised.process:
            async with self._disk_guarded(child):
                code = await supervised.process.exited()
            await supervised.process.kill()  # the rest of its group
            wait = FIRST_WAIT if clock() - started > HEALTHY_SECONDS else wait
            self._count(supervised, describe(code))
            self._report(
                child.name,
                "died",
                f"{describe(code)}, restarting in {wait:g} s; see {supervised.process.log}",
            )
            await asyncio.sleep(wait)
            wait, started = min(wait * 2, LONGEST_WAIT), clock()
            try:
                await self._launch(supervised, child)
                self._report(child.name, "restarted", f"process {supervised.process.pid}")
            except ApexError as error:
                self._report(child.name, "failed", str(error))

    @asynccontextmanager
    async def _disk_guarded(self, child: ChildProcess) -> AsyncIterator[None]:
        """Inside the block, make the child refuse writes whenever its volume is nearly full."""
        if child.refuse_writes is None:
            yield
            return
        guard = asyncio.create_task(self._guard_disk(child, child.refuse_writes))
        try:
            yield
        finally:
            guard.cancel()
            await asyncio.gather(guard, return_exceptions=True)

    async def _guard_disk(
        self, child: ChildProcess, refuse_writes: Callable[[bool], Awaitable[None]]
    ) -> None:
        refusing = False  # a child that was started accepts writes
        while True:
            ENGINE_REFUSES.labels(child.name).set(refusing)
            with contextlib.suppress(OSError, TimeoutError):  # tried again after a moment
                space = disk_space(child.directory)
                low = space.is_low(refusing=refusing)
                if low != refusing:
                    async with asyncio.timeout(SWITCH_SECONDS):
                        await refuse_writes(low)
                    refusing = low
                    self._report(
                        child.name, "disk low" if low else "disk free", f"{space} are free"
                    )
            await asyncio.sleep(DISK_SECONDS)

    def _count(self, supervised: _Supervised, how: str) -> None:
        ENGINE_RESTARTS.labels(supervised.state.name).inc()
        ENGINE_UP.labels(supervised.state.name).set(0)
        supervised.state = supervised.state.model_copy(
            update={
                "pid": 0,
                "ready": False,
                "restarts": supervised.state.restarts + 1,
                "last_exit": how,
            }
        )
        self._record()

    async def _observe(self) -> None:
        """Keep the metrics of the disks, the list of targets for Prometheus, and the logs short. Never returns."""
        while True:
            for name, folder in self._folders.items():
                with contextlib.suppress(OSError):  # its volume may be away for a moment
                    space = disk_space(folder)
                    DISK_FREE.labels(name).set(space.free)
                    DISK_SIZE.labels(name).set(space.total)
            with contextlib.suppress(OSError):  # a full disk; written with the next round
                await asyncio.to_thread(write_targets, self.data_dir)
            for process in [child.process for child in self._children if child.process]:
                with contextlib.suppress(OSError):  # a full disk, or a log that somebody removed
                    await asyncio.to_thread(process.rotate_log)
            await asyncio.sleep(OBSERVE_SECONDS)

    def _record(self) -> None:
        for child in self._children:
            if child.state.port:
                self._ports[child.state.name] = child.state.port
            if child.state.metrics:
                port = urlsplit(child.state.metrics).port
                self._ports[f"{child.state.name} metrics"] = port or 0
        if self._metrics:
            self._ports["supervisor metrics"] = urlsplit(self._metrics).port or 0
        children = {child.state.name: child.state for child in self._children}
        stack = Stack(
            pid=os.getpid(),
            since=self._since,
            metrics=self._metrics,
            children=children,
            ports=self._ports,
        )
        first = self._recorded_again is None
        self._end_recording()
        try:
            write_stack(self.data_dir, stack)
        except OSError as error:  # a full disk must not end the running children
            if first:
                self._report("stack", "unrecorded", str(error))
            loop = asyncio.get_running_loop()
            self._recorded_again = loop.call_later(RECORD_SECONDS, self._record)

    def _end_recording(self) -> None:
        if self._recorded_again:
            self._recorded_again.cancel()
            self._recorded_again = None

    def _listen(self, leaving: contextlib.ExitStack) -> None:
        loop = asyncio.get_running_loop()
        for number in END_SIGNALS:
            # An ignored signal stays ignored: nohup ignores SIGHUP, a shell's `&` ignores SIGINT.
            if signal.getsignal(number) is not signal.SIG_IGN:
                loop.add_signal_handler(number, self._end)
                leaving.callback(loop.remove_signal_handler, number)

    def _end(self) -> None:
        """End at the first signal; kill all children at the second."""
        if self._ending.is_set():
            for child in self._children:
                if child.process:
                    child.process.kill_group()
        elif self._task and not self._waiting:
            self._task.cancel()
        self._ending.set()


async def _prepared(engine: Engine) -> ChildProcess:
    try:
        await asyncio.to_thread(engine.prepare)
        return child_of(engine)
    except OSError as error:
        raise Misconfigured(
            f"{engine.role}: cannot prepare {engine.directory} ({error})",
            remedy="check its owner and the free space, or set APEX_DATA_DIR to another folder",
        ) from error
