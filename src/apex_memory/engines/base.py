"""The base class of embedded engines, and small functions that all of them use."""

from __future__ import annotations

import asyncio
import contextlib
import random
import signal
import socket
import sys
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Collection
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
    """One embedded server: its folder, how to start it, and how to know that it is ready.

    Call `prepare` first, once per start; then `command`, `environment` and `user` are valid. Only one
    process may own `data_dir`; the supervisor ensures that.
    """

    data_dir: Path
    port: int
    password: str

    name: ClassVar[str]
    """The name of the program, in messages and in the log folder."""
    role: ClassVar[str]
    """The setting that it serves: `documents`, `graph`, `vectors`, `cache` or `temporal`."""
    stop_signal: ClassVar[signal.Signals] = signal.SIGTERM
    orphan_signal: ClassVar[signal.Signals] = signal.SIGKILL
    """The signal that the kernel sends when the supervisor dies. Every engine keeps its acknowledged writes."""
    ready_seconds: ClassVar[float] = 900
    """Time limit of a start. A store reads all its data meanwhile, and would never start if this were short."""

    @property
    def directory(self) -> Path:
        """The engine's own folder, which is also its working folder."""
        return self.data_dir / self.name

    @property
    def metrics(self) -> str:
        """The URL of the server's own metrics for Prometheus; empty where it has none."""
        return ""

    @property
    def write_switch(self) -> Callable[[bool], Awaitable[None]] | None:
        """A function that makes the server refuse writes (True) or accept them; None where a full disk does it no harm.

        It does nothing for a server that decides by itself: then the supervisor only reports and counts what holds.
        """
        return None

    @property
    def user(self) -> int | None:
        """The user id to run as; None keeps the supervisor's."""
        return None

    @property
    @abstractmethod
    def url(self) -> str:
        """The value of the setting that reaches this engine, with its password."""

    def prepare(self) -> None:
        """Create data and configuration files. Idempotent; blocks for up to a second the first time."""
        self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)

    @abstractmethod
    def command(self) -> list[str]:
        """Return the program and its arguments, never with a secret: every user can read them in `ps`."""

    def environment(self) -> dict[str, str]:
        """Return the variables that this engine needs beside the supervisor's own, which it gets without `APEX_*` and `OTEL_*`."""
        return {}

    @abstractmethod
    async def ready(self) -> None:
        """Return once the engine serves requests. Waits for ever: the caller bounds the time and watches for its exit."""

    @abstractmethod
    async def version(self) -> str:
        """Return program and version for display, as reported by the ready engine."""


async def retry_until_ready(attempt: Callable[[], Awaitable[T]], *transient: type[Exception]) -> T:
    """Return the result of `attempt`, repeated while it raises one of `transient`."""
    wait = 0.01
    while True:
        try:
            return await attempt()
        except transient:
            await asyncio.sleep(wait)
            wait = min(wait * 1.5, 0.2)


async def reachable(port: int) -> None:
    """Return once a server listens on this port of the loopback address."""
    _, writer = await retry_until_ready(lambda: asyncio.open_connection(HOST, port), OSError)
    writer.close()
    with contextlib.suppress(OSError):
        await writer.wait_closed()


def free_port(preferred: int | None = None, *, taken: Collection[int] = ()) -> int:
    """Return `preferred` if no server listens there, else a port that is free now.

    None of `taken`: ports that were chosen for servers that do not listen yet.
    """
    # Not from the range for outgoing connections: between now and the server's start a connection of
    # another program could take such a port.
    # Drawn by the system: processes that seed `random` alike would all try the same port at the same time.
    drawn = random.SystemRandom().sample(PORTS, 20)
    for port in ([preferred] if preferred else []) + drawn + [0]:
        if port in taken:
            continue
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((HOST, port))
            except OSError:
                continue
            return int(probe.getsockname()[1])
    raise AssertionError("the system always has a port for 0")


SUPPORTED = ((3, 11), (3, 12), (3, 13))
"""Python versions for which every engine has a wheel."""


def package_folder(
    package: str, *, extra: str = "embedded", setting: str = "", servers: str = "a server"
) -> Path:
    """Return the folder of an installed package with programs. It is not imported: some packages act at import.

    Raises `Misconfigured` when the package, which `extra` brings, is not installed. `setting` takes the address of one of `servers` instead.
    """
    spec = find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        instead = f"set {setting} to {servers}" if setting else f"set the address of {servers}"
        if sys.version_info[:2] not in SUPPORTED:
            raise Misconfigured(
                f"{package}: this package has no wheel for Python {sys.version_info[0]}.{sys.version_info[1]}",
                remedy=f"use Python 3.11, 3.12 or 3.13, or {instead}",
            )
        raise Misconfigured(
            f"{package}: the package is not installed",
            remedy=f"pip install 'apex-memory[{extra}]', or {instead}",
        )
    return Path(spec.submodule_search_locations[0])
