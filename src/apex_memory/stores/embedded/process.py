"""One child process: in a group of its own, as the right user, gone when its parent is gone."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import warnings
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from apex_memory.errors import Unavailable
from apex_memory.stores.embedded import Engine

PR_SET_PDEATHSIG = 1
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
    port: int = 0
    url: str = ""
    """Where people reach it; without a password."""
    version: Callable[[], Awaitable[str]] | None = None
    stop_signal: signal.Signals = signal.SIGTERM
    orphan_signal: signal.Signals = signal.SIGKILL
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
        url=engine.url.replace(f":{engine.password}@", ""),
        version=engine.version,
        stop_signal=engine.stop_signal,
        orphan_signal=engine.orphan_signal,
    )


class Process:
    """A started child. Start it from the main thread: the kernel ends it when the thread that made it ends."""

    def __init__(self, child: Child, log: Path) -> None:
        self.child = child
        self.log = log
        _rotate(log)
        with log.open("ab") as output, warnings.catch_warnings():
            # Newer Pythons warn of preexec_fn beside threads. Ours makes two system calls and takes no lock.
            warnings.simplefilter("ignore", DeprecationWarning)
            self._popen = subprocess.Popen(
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
                preexec_fn=die_with_parent(child.orphan_signal),  # noqa: PLW1509 (see above)
            )

    @property
    def pid(self) -> int:
        return self._popen.pid

    async def exited(self) -> int:
        """Wait for the end; the exit code, or minus the signal that ended it."""
        while (code := self._popen.poll()) is None:
            await self._change()
        return code

    async def until_ready(self) -> None:
        """Return once the child answers. Raises `Unavailable`, with its last words, when it exits or is too slow."""
        ready = asyncio.ensure_future(self.child.ready())
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
            await ready
        finally:
            ready.cancel()
            exited.cancel()
            await asyncio.gather(ready, exited, return_exceptions=True)

    async def stop(self) -> int:
        """Ask it to end, with its whole group; after `stop_seconds` kill it. The exit code."""
        self.signal(self.child.stop_signal)
        try:
            async with asyncio.timeout(self.child.stop_seconds):
                return await self.exited()
        except TimeoutError:
            return await self.kill()
        finally:
            self._signal_group(signal.SIGKILL)  # what it may have left behind

    async def kill(self) -> int:
        """End it at once, with its whole group."""
        self._signal_group(signal.SIGKILL)
        return await self.exited()

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the child alone: it tells its own children what it wants of them."""
        if self._popen.poll() is None:
            self._popen.send_signal(number)

    def _signal_group(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, number)

    async def _change(self) -> None:
        """Return when the process may have ended."""
        if not hasattr(os, "pidfd_open"):
            await asyncio.sleep(0.1)
            return
        handle = os.pidfd_open(self.pid)
        loop, ended = asyncio.get_running_loop(), asyncio.Event()
        loop.add_reader(handle, ended.set)
        try:
            await ended.wait()
        finally:
            loop.remove_reader(handle)
            os.close(handle)

    def _failure(self, what: str) -> Unavailable:
        words = " | ".join(last_lines(self.log, 5))
        return Unavailable(self.child.name, f"{what}: {words}", remedy=f"see {self.log}")


def die_with_parent(number: signal.Signals) -> Callable[[], None] | None:
    """A function to run in a new process, after it dropped its rights: the parent's death ends it too.

    Linux only; elsewhere None, and the next start ends what is left (see `leftovers`).
    """
    if sys.platform != "linux":
        return None
    # Looked up here: after a fork nothing may be loaded.
    prctl, parent = ctypes.CDLL(None, use_errno=True).prctl, os.getpid()

    def tie() -> None:
        prctl(PR_SET_PDEATHSIG, int(number), 0, 0, 0)
        if os.getppid() != parent:  # it died before the call
            os._exit(1)

    return tie


def describe(code: int) -> str:
    """An exit code for people: `exit code 1`, `SIGKILL`."""
    return f"exit code {code}" if code >= 0 else signal.Signals(-code).name


def last_lines(log: Path, count: int) -> list[str]:
    """The last lines of a log file, at most 4 kB."""
    with log.open("rb") as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - 4096))
        return [
            line.strip() for line in deque(file.read().decode(errors="replace").splitlines(), count)
        ]


def _rotate(log: Path) -> None:
    log.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    log.touch(mode=0o600)
    if log.stat().st_size > LOG_BYTES:
        log.replace(log.with_suffix(".log.1"))
        log.touch(mode=0o600)


def _environment(child: Child) -> dict[str, str]:
    kept = {
        name: value
        for name, value in os.environ.items()
        if not (child.private and name.startswith("APEX_"))
    }
    return kept | dict(child.environment)
