"""One child process: in a group of its own, as the right user, gone when its parent is gone."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import warnings
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from apex_memory.engines.base import Engine
from apex_memory.errors import Unavailable
from apex_memory.parent_death import die_with_parent

LOG_BYTES = 10_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Child:
    """A process to keep running. `ready` returns once it answers; waiting for it is bounded by `ready_seconds`."""

    name: str
    command: Sequence[str]
    ready: Callable[[], Awaitable[None]]
    directory: Path
    environment: Mapping[str, str] = field(default_factory=dict)
    """Set on top of the supervisor's own environment."""
    private: bool = False
    """Leave the supervisor's `APEX_*` variables out: they hold keys that engines have no use for."""
    user: int | None = None
    niceness: int = 0
    """How far it stands back while others want the processor: 0 not at all, 19 for whatever nobody wants."""
    port: int = 0
    url: str = ""
    """Where people reach it; without a password."""
    version: Callable[[], Awaitable[str]] | None = None
    stop_signal: signal.Signals = signal.SIGTERM
    orphan_signal: signal.Signals = signal.SIGKILL
    start_waits: Sequence[float] = ()
    """Seconds before each further try, when it ends or does not answer at its very first start."""
    ready_seconds: float = 30
    stop_seconds: float = 10


def child_of(engine: Engine) -> Child:
    """How to run an engine that is prepared."""
    return Child(
        name=engine.name,
        command=engine.command(),
        ready=engine.ready,
        directory=engine.directory.resolve(),
        environment={"APEX_DATA_DIR": str(engine.data_dir), **engine.environment()},
        private=True,
        user=engine.user,
        port=engine.port,
        url=engine.url.replace(f":{engine.password}@", "@").replace("://@", "://"),
        version=engine.version,
        stop_signal=engine.stop_signal,
        orphan_signal=engine.orphan_signal,
        start_waits=(0.3, 1),  # what a killed run held may take a moment to go
        ready_seconds=engine.ready_seconds,
    )


class Process:
    """A started child. Start it from the main thread: the kernel ends it when the thread that made it ends."""

    def __init__(self, child: Child, log: Path) -> None:
        self.child = child
        self.log = log
        self._gone = False
        try:
            _rotate(log)
            self._said = log.stat().st_size  # by earlier starts
            self._popen = _spawn(child, log)
        except OSError as error:
            raise Unavailable(
                child.name,
                f"cannot be started ({error})",
                remedy=f"check that this user may run {child.command[0]} and write to {log.parent}",
            ) from error

    @property
    def pid(self) -> int:
        return self._popen.pid

    async def exited(self) -> int:
        """Wait for the end; the exit code, or minus the signal that ended it."""
        while (code := self._popen.poll()) is None:
            await self._change()
        return code

    async def until_ready(self) -> str:
        """Return the child's version once it answers. Raises `Unavailable`, with its last words, when it exits or is too slow."""
        ready = asyncio.ensure_future(self._answer())
        exited = asyncio.ensure_future(self.exited())
        try:
            await asyncio.wait(
                (ready, exited),
                timeout=self.child.ready_seconds,
                return_when=asyncio.FIRST_COMPLETED,
            )
            if exited.done():
                raise self._failure(f"ended at its start ({describe(exited.result())})")
            if not ready.done():
                raise self._failure(f"did not answer within {self.child.ready_seconds:g} s")
            return ready.result()
        finally:
            ready.cancel()
            exited.cancel()
            await asyncio.gather(ready, exited, return_exceptions=True)

    async def stop(self) -> int:
        """Ask it to end; after `stop_seconds`, or when it has ended, kill what is left of its group. The exit code."""
        self.signal(self.child.stop_signal)
        try:
            async with asyncio.timeout(self.child.stop_seconds):
                await self.exited()
        except TimeoutError:
            pass
        finally:
            code = await self.kill()
        return code

    async def kill(self) -> int:
        """End it at once, with its whole group, and wait. The exit code."""
        self.kill_group()
        code = await self.exited()
        self._gone = True
        return code

    def kill_group(self) -> None:
        """End it and all of its group at once. Once it is gone, its number may be another's: nothing is done."""
        if not self._gone:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.pid, signal.SIGKILL)

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the child alone: it tells its own children what it wants of them."""
        if self._popen.poll() is None:
            self._popen.send_signal(number)

    async def _answer(self) -> str:
        await self.child.ready()
        return await self.child.version() if self.child.version else ""

    async def _change(self) -> None:
        """Return when the process may have ended."""
        try:
            handle = os.pidfd_open(self.pid)
        except (AttributeError, OSError):  # not on this system, or not allowed in this container
            await asyncio.sleep(0.1)
            return
        loop, ended = asyncio.get_running_loop(), asyncio.Event()
        loop.add_reader(handle, ended.set)
        try:
            await ended.wait()
        finally:
            loop.remove_reader(handle)
            os.close(handle)

    def _failure(self, what: str) -> Unavailable:
        words = " | ".join(last_lines(self.log, 5, since=self._said))
        return Unavailable(self.child.name, f"{what}: {words}", remedy=f"see {self.log}")


def words(pid: int) -> str:
    """Command line and environment of a process, to know it by; empty when it is gone or not ours to see."""
    if sys.platform == "linux":
        folder = Path(f"/proc/{pid}")
        try:
            told = (folder / "cmdline").read_bytes() + (folder / "environ").read_bytes()
        except OSError:
            return ""
        return told.replace(b"\0", b"\n").decode(errors="replace")
    # `e` adds the environment.
    command = ["ps", "eww", "-o", "command=", "-p", str(pid)]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout


def describe(code: int) -> str:
    """An exit code for people: `exit code 1`, `SIGKILL`."""
    return f"exit code {code}" if code >= 0 else signal.Signals(-code).name


def last_lines(log: Path, count: int, *, since: int = 0) -> list[str]:
    """The last lines of a log file, of what was written after the first `since` bytes; at most 4 kB."""
    with log.open("rb") as file:
        file.seek(max(since, file.seek(0, os.SEEK_END) - 4096))
        lines = file.read().decode(errors="replace").splitlines()
    return [line.strip() for line in lines[-count:]]


def _spawn(child: Child, log: Path) -> subprocess.Popen[bytes]:
    with log.open("ab") as output, warnings.catch_warnings():
        # Newer Pythons warn of preexec_fn beside threads. Ours makes a few system calls and takes no lock.
        warnings.simplefilter("ignore", DeprecationWarning)
        return subprocess.Popen(
            child.command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            cwd=child.directory,
            env=_environment(child),
            start_new_session=True,
            user=child.user,
            group=child.user,
            extra_groups=None if child.user is None else [],
            preexec_fn=_before_exec(child),  # noqa: PLW1509 (see above)
        )


def _before_exec(child: Child) -> Callable[[], None]:
    """What the new process does before it becomes the child's program."""
    tie = die_with_parent(child.orphan_signal)

    def prepare() -> None:
        if tie:
            tie()
        if child.niceness:
            stand_back(child.niceness)

    return prepare


def stand_back(niceness: int) -> None:
    """Let others go first from here on: this process, and on Linux its session, and what they start.

    Linux shares a processor among sessions first (`autogroup`), and among the processes of one
    session by their niceness only then. Children have sessions of their own, so that their niceness
    alone would change nothing.
    """
    os.nice(niceness)
    with contextlib.suppress(OSError):  # a kernel without it, or a container that does not allow it
        group = os.open("/proc/self/autogroup", os.O_WRONLY)
        try:
            os.write(group, str(niceness).encode())
        finally:
            os.close(group)


def _rotate(log: Path) -> None:
    log.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    log.touch(mode=0o600)
    if log.stat().st_size > LOG_BYTES:
        log.replace(log.with_suffix(".log.1"))
        log.touch(mode=0o600)


def _environment(child: Child) -> dict[str, str]:
    # Handed on, not read: a child needs PATH, HOME, locale, and what else this process was started with.
    kept = {
        name: value
        for name, value in os.environ.items()
        if not (child.private and name.startswith("APEX_"))
    }
    return kept | dict(child.environment)
