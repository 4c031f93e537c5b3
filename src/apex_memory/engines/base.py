"""Real servers, started for you: one file a server, a supervisor that keeps them, a file that says what runs."""

from __future__ import annotations

import asyncio
import contextlib
import random
import signal
import socket
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import ClassVar, TypeVar

from apex_memory.errors import Misconfigured

HOST = "127.0.0.1"
PORTS = range(
    20_000, 32_000
)  # below the range for outgoing connections of Linux, macOS and Windows
T = TypeVar("T")


@dataclass
class Engine(ABC):
    """One embedded server: where it lives, how it starts, and how to tell that it answers.

    `prepare` comes first, once a start; then `command`, `environment` and `user` are valid. Only one
    process may own `data_dir`; the supervisor sees to that.
    """

    data_dir: Path
    port: int
    password: str

    name: ClassVar[str]
    """The program, as people and the log folder call it."""
    role: ClassVar[str]
    """The setting it serves: `documents`, `graph`, `vectors`, `cache` or `temporal`."""
    stop_signal: ClassVar[signal.Signals] = signal.SIGTERM
    orphan_signal: ClassVar[signal.Signals] = signal.SIGKILL
    """What the kernel sends when the supervisor dies: every engine keeps what it acknowledged."""
    ready_seconds: ClassVar[float] = 900
    """A start may take as long: a store reads its data meanwhile, and would never get there if it were ended."""

    @property
    def directory(self) -> Path:
        """The engine's own folder, and its working folder."""
        return self.data_dir / self.name

    @property
    def user(self) -> int | None:
        """The user id to run as; None keeps the supervisor's."""
        return None

    @property
    @abstractmethod
    def url(self) -> str:
        """The setting's value that reaches this engine, with its password."""

    def prepare(self) -> None:
        """Create data and configuration files. Idempotent; blocks for up to a second the first time."""
        self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)

    @abstractmethod
    def command(self) -> list[str]:
        """The program and its arguments, never with a secret: every user can read them in `ps`."""

    def environment(self) -> dict[str, str]:
        """Variables of this engine, added to the supervisor's own without `APEX_*`."""
        return {}

    @abstractmethod
    async def ready(self) -> None:
        """Return once the engine really answers. Waits for ever: the caller bounds it and sees it exit."""

    @abstractmethod
    async def version(self) -> str:
        """Program and version, for people, as the ready engine tells them."""


async def answering(attempt: Callable[[], Awaitable[T]], *passing: type[Exception]) -> T:
    """The result of `attempt`, repeated while it raises one of `passing`."""
    wait = 0.01
    while True:
        try:
            return await attempt()
        except passing:
            await asyncio.sleep(wait)
            wait = min(wait * 1.5, 0.2)


async def reachable(port: int) -> None:
    """Return once something listens on the port of this machine."""
    _, writer = await answering(lambda: asyncio.open_connection(HOST, port), OSError)
    writer.close()
    with contextlib.suppress(OSError):
        await writer.wait_closed()


def free_port(preferred: int | None = None) -> int:
    """`preferred` if nobody listens there, else a port that is free now."""
    # Not those that the system gives to outgoing connections: between now and the server's start
    # another program's connection could take such a one.
    for port in ([preferred] if preferred else []) + random.sample(PORTS, 20) + [0]:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((HOST, port))
            except OSError:
                continue
            return int(probe.getsockname()[1])
    raise AssertionError("the system hands out ports for 0")


def write_private(path: Path, text: str) -> None:
    """Write a file that only its owner reads, whole or not at all."""
    draft = path.with_name(f".{path.name}.new")
    draft.unlink(missing_ok=True)
    draft.touch(mode=0o600)
    draft.write_text(text, encoding="utf-8")
    draft.replace(path)


def package_folder(package: str) -> Path:
    """Where a package with an engine's programs is installed. It is not imported: some do things at import."""
    spec = find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise Misconfigured(
            f"{package}: the package is not installed",
            remedy="pip install 'apex-memory[embedded]', or set the address of a server of your own",
        )
    return Path(spec.submodule_search_locations[0])
