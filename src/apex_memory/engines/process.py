"""One child process: in a process group of its own, as the right user, ended when its parent ends."""

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
from io import FileIO
from pathlib import Path

from apex_memory.engines.base import Engine
from apex_memory.errors import Unavailable
from apex_memory.parent_death import die_with_parent

LOG_BYTES = 10_000_000  # of a log file, before it becomes the former one
COPY_BYTES = 1_000_000
COPIED_MAX = (
    4 * LOG_BYTES
)  # of a log that is rotated while its process runs; of a longer one, the end


@dataclass(frozen=True, slots=True, kw_only=True)
class ChildProcess:
    """A process to keep running. `ready` returns once it serves requests; `ready_seconds` bounds the wait."""

    name: str
    command: Sequence[str]
    ready: Callable[[], Awaitable[None]]
    directory: Path
    environment: Mapping[str, str] = field(default_factory=dict)
    """Variables added to the supervisor's own environment."""
    private: bool = False
    """Leave out the supervisor's `APEX_*` variables: they hold keys that engines do not need."""
    user: int | None = None
    niceness: int = 0
    """CPU niceness, 0 (normal) to 19 (lowest priority)."""
    port: int = 0
    url: str = ""
    """The address for display, without a password."""
    metrics: str = ""
    """Where it exposes its metrics, as a URL."""
    version: Callable[[], Awaitable[str]] | None = None
    stop_signal: signal.Signals = signal.SIGTERM
    orphan_signal: signal.Signals = signal.SIGKILL
    refuse_writes: Callable[[bool], Awaitable[None]] | None = None
    """Makes it refuse or accept writes, for a child that must not meet a full disk; see `disk_space`."""
    start_waits: Sequence[float] = ()
    """Seconds before each retry, when it exits or does not become ready at its very first start."""
    ready_seconds: float = 900
    """Seconds. A process that starts slowly is left alone: on a machine slowed to a tenth a gateway takes 80 s."""
    stop_seconds: float = 10


def child_of(engine: Engine) -> ChildProcess:
    """Return how to run an engine, which must be prepared."""
    return ChildProcess(
        name=engine.name,
        command=engine.command(),
        ready=engine.ready,
        directory=engine.directory.resolve(),
        environment={"APEX_DATA_DIR": str(engine.data_dir), **engine.environment()},
        private=True,
        user=engine.user,
        port=engine.port,
        url=engine.url.replace(f":{engine.password}@", "@").replace("://@", "://"),
        metrics=engine.metrics,
        version=engine.version,
        stop_signal=engine.stop_signal,
        orphan_signal=engine.orphan_signal,
        refuse_writes=engine.write_switch,
        start_waits=(0.3, 1),  # the resources of a killed run may take a moment to be released
        ready_seconds=engine.ready_seconds,
    )


class Process:
    """A started child. Start it from the main thread: the kernel ends it when the thread that started it ends."""

    def __init__(self, child: ChildProcess, log: Path) -> None:
        self.child = child
        self.log = log
        self._reaped = False
        try:
            _rotate(log)
            self._log_start = log.stat().st_size  # the lines before it are of earlier starts
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
        """Wait for its end. Return the exit code, or minus the signal that ended it."""
        while (code := self._popen.poll()) is None:
            await self._state_change()
        return code

    async def until_ready(self) -> str:
        """Return the child's version once it is ready.

        Raises `Unavailable`, with the last lines of its log, when it exits or takes longer than `ready_seconds`.
        """
        ready = asyncio.ensure_future(self._ready_version())
        exited = asyncio.ensure_future(self.exited())
        try:
            await asyncio.wait(
                (ready, exited),
                timeout=self.child.ready_seconds,
                return_when=asyncio.FIRST_COMPLETED,
            )
            if exited.done():
                raise self._failure(f"ended during its start ({describe(exited.result())})")
            if not ready.done():
                raise self._failure(f"was not ready within {self.child.ready_seconds:g} s")
            return ready.result()
        finally:
            ready.cancel()
            exited.cancel()
            await asyncio.gather(ready, exited, return_exceptions=True)

    async def stop(self) -> int:
        """Signal it to end; after its end, or after `stop_seconds`, kill the rest of its group. Return the exit code."""
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
        """Kill it with its whole group, and wait. Return the exit code."""
        self.kill_group()
        code = await self.exited()
        self._reaped = True
        return code

    def kill_group(self) -> None:
        """Kill it with its whole group. Does nothing once it is reaped, as another process may have its id then."""
        if not self._reaped:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.pid, signal.SIGKILL)

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the child alone, which passes it on to its own children as it needs."""
        if self._popen.poll() is None:
            self._popen.send_signal(number)

    def rotate_log(self) -> None:
        """Rotate the log of a process that runs on, when it is long. Raises `OSError` on a full disk, and the log stays as it is.

        The process keeps the file open, so its content is copied, and the file cut.
        """
        if self.log.stat().st_size > LOG_BYTES:
            _copy_and_cut(self.log)
            self._log_start = 0

    async def _ready_version(self) -> str:
        await self.child.ready()
        return await self.child.version() if self.child.version else ""

    async def _state_change(self) -> None:
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
        lines = " | ".join(last_lines(self.log, 5, since=self._log_start))
        return Unavailable(self.child.name, f"{what}: {lines}", remedy=f"see {self.log}")


def command_and_environment(pid: int) -> str:
    """Return command line and environment of a process, to identify it; empty when it has ended or is not readable."""
    if sys.platform == "linux":
        folder = Path(f"/proc/{pid}")
        try:
            text = (folder / "cmdline").read_bytes() + (folder / "environ").read_bytes()
        except OSError:
            return ""
        return text.replace(b"\0", b"\n").decode(errors="replace")
    # `e` adds the environment.
    command = ["ps", "eww", "-o", "command=", "-p", str(pid)]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout


def describe(code: int) -> str:
    """Return an exit code for display: `exit code 1`, `SIGKILL`."""
    return f"exit code {code}" if code >= 0 else signal.Signals(-code).name


def last_lines(log: Path, count: int, *, since: int = 0) -> list[str]:
    """Return the last lines of a log file, written after its first `since` bytes; at most 4 kB."""
    with log.open("rb") as file:
        file.seek(max(since, file.seek(0, os.SEEK_END) - 4096))
        lines = file.read().decode(errors="replace").splitlines()
    return [line.strip() for line in lines[-count:]]


def _spawn(child: ChildProcess, log: Path) -> subprocess.Popen[bytes]:
    with log.open("ab") as output, warnings.catch_warnings():
        # Newer Pythons warn of preexec_fn beside threads. This one makes a few system calls and takes no lock.
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


def _before_exec(child: ChildProcess) -> Callable[[], None]:
    """Return the function that the new process runs before it executes the child's program."""
    end_with_parent = die_with_parent(child.orphan_signal)

    def prepare() -> None:
        if end_with_parent:
            end_with_parent()
        if child.niceness:
            lower_priority(child.niceness)

    return prepare


def lower_priority(niceness: int) -> None:
    """Lower the CPU priority of this process, on Linux of its session, and of the processes they start.

    Linux shares the CPU among sessions first (`autogroup`), and by niceness only within a session.
    Children have sessions of their own, so their niceness alone would change nothing.
    """
    os.nice(niceness)
    with contextlib.suppress(
        OSError
    ):  # a kernel without autogroup, or a container that does not allow it
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


def _copy_and_cut(log: Path) -> None:
    """Move the content of a log to the former log, while a process appends to it.

    The process wrote with `O_APPEND`, so it goes on at the new end. Only a line is lost that it writes between the last read,
    which finds nothing more, and the cut right after it.
    """
    former = log.with_suffix(".log.1")
    part = log.with_suffix(".log.part")
    part.unlink(missing_ok=True)
    part.touch(mode=0o600)
    with log.open("r+b", buffering=0) as source:
        length = source.seek(0, os.SEEK_END)
        source.seek(max(0, length - COPIED_MAX))
        with part.open("wb", buffering=0) as copy:
            try:
                _copy(source, copy, length - source.tell())
            except OSError:
                part.unlink()  # the space is needed more than half a log
                raise
            part.replace(former)
            # What the process wrote meanwhile. The bound is for one that writes faster than this copies.
            _copy(source, copy, COPIED_MAX)
            source.truncate(0)


def _copy(source: FileIO, target: FileIO, most: int) -> None:
    """Copy the next bytes of a file, until its end or `most`."""
    while most > 0 and (data := source.read(min(COPY_BYTES, most))):
        most -= len(data)
        view = memoryview(data)
        while view:
            view = view[target.write(view) :]


def _environment(child: ChildProcess) -> dict[str, str]:
    # Passed on, not read: a child needs PATH, HOME, the locale and other variables of this process.
    kept = {
        name: value
        for name, value in os.environ.items()
        if not (child.private and name.startswith(("APEX_", "OTEL_")))
    }
    return kept | dict(child.environment)
