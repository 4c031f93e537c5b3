"""The state of a data folder on disk: its lock, the secrets, `run/stack.json`, leftover processes of a killed run."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import secrets
import signal
import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

from pydantic import BaseModel, ValidationError

from apex_memory.durable_files import write_private
from apex_memory.engines.process import command_and_environment
from apex_memory.errors import Conflict, Misconfigured


class ChildState(BaseModel):
    """One child of `apex up`. `pid` is 0 while it is down; `url` has no password."""

    name: str
    pid: int = 0
    port: int = 0
    url: str = ""
    version: str = ""
    since: datetime | None = None
    ready: bool = False
    restarts: int = 0
    last_exit: str = ""
    metrics: str = ""
    """Where it exposes its metrics; empty where it has none."""


class Stack(BaseModel):
    """The state that `apex up` keeps in `run/stack.json`."""

    pid: int
    since: datetime
    metrics: str = ""
    """Where the supervisor exposes its own metrics."""
    children: dict[str, ChildState] = {}
    ports: dict[str, int] = {}
    """Ports by child's name, kept after the stack ends, so that noted addresses stay valid."""

    @property
    def urls(self) -> dict[str, str]:
        """The addresses of the running children by name, without passwords."""
        return {name: child.url for name, child in self.children.items() if child.pid and child.url}


def read_stack(data_dir: Path) -> Stack | None:
    """Return the stack that runs in this data folder, None when none does."""
    return _recorded(data_dir) if _owned(data_dir) else None


def write_stack(data_dir: Path, stack: Stack) -> None:
    """Record the stack, atomically."""
    write_private(_file(data_dir), stack.model_dump_json(indent=1) + "\n")


def last_ports(data_dir: Path) -> dict[str, int]:
    """Return the ports that the children had in the last run, by name."""
    stack = _recorded(data_dir)
    return stack.ports if stack else {}


def secret(data_dir: Path, name: str) -> str:
    """Return the secret of this name. The first call creates it; `secrets.json`, readable by its owner alone, keeps it."""
    path = data_dir / "secrets.json"
    try:
        known: dict[str, str] = json.loads(path.read_bytes()) if path.exists() else {}
    except ValueError:
        raise Misconfigured(
            f"{path}: not JSON",
            remedy="restore it from its backup: the engines accept only those passwords",
        ) from None
    if name not in known:
        known[name] = secrets.token_urlsafe(24)
        write_private(path, json.dumps(known, indent=1) + "\n")
    return known[name]


@contextlib.contextmanager
def ownership(data_dir: Path) -> Iterator[None]:
    """Lock the data folder for this process. Raises `Conflict`, naming the owner, when another process holds it.

    The kernel releases the lock when its owner ends, however that happens.
    """
    try:
        # Other users may pass through, for PostgreSQL's user; its content is closed to them.
        data_dir.mkdir(mode=0o711, parents=True, exist_ok=True)
        (data_dir / "run").mkdir(mode=0o700, exist_ok=True)
        file = _lock_file(data_dir).open("a")
    except OSError as error:
        raise Misconfigured(
            f"data_dir: cannot write to {data_dir} ({error.strerror})",
            remedy="give this user the folder, or set APEX_DATA_DIR to another one",
        ) from None
    with file as lock:
        deadline = time.monotonic() + 0.5  # a reader holds it for an instant
        while not _take(lock.fileno(), fcntl.LOCK_EX):
            if time.monotonic() > deadline:
                raise _refusal(data_dir)
            time.sleep(0.02)
        yield


def leftovers(data_dir: Path) -> list[tuple[str, int]]:
    """Return (name, pid) of recorded children that still run although their supervisor does not."""
    stack = _recorded(data_dir)
    mark = rf"(^|\s)APEX_DATA_DIR={re.escape(str(data_dir))}(\s|$)"
    children = stack.children.values() if stack else []
    return [
        (child.name, child.pid)
        for child in children
        if child.pid and re.search(mark, command_and_environment(child.pid), re.MULTILINE)
    ]


def end_leftover(pid: int, *, seconds: float = 5) -> None:
    """Interrupt a process and wait for its end, then kill it with its group. SIGINT suits PostgreSQL too."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGINT)
        if not _ended(pid, seconds):
            os.killpg(pid, signal.SIGKILL)
            _ended(pid, seconds)


def _file(data_dir: Path) -> Path:
    return data_dir / "run" / "stack.json"


def _lock_file(data_dir: Path) -> Path:
    return data_dir / "run" / "lock"


def _recorded(data_dir: Path) -> Stack | None:
    try:
        return Stack.model_validate_json(_file(data_dir).read_bytes())
    except (FileNotFoundError, ValidationError):
        return None


def _owned(data_dir: Path) -> bool:
    try:
        with _lock_file(data_dir).open() as lock:
            return not _take(lock.fileno(), fcntl.LOCK_SH)
    except FileNotFoundError:
        return False
    except PermissionError:
        raise Misconfigured(
            f"data_dir: {data_dir} is not readable for this user",
            remedy="run this as the user who runs `apex up`, or set APEX_URL and APEX_API_KEY",
        ) from None


def _take(handle: int, kind: int) -> bool:
    try:
        fcntl.flock(handle, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _refusal(data_dir: Path) -> Conflict:
    stack = _recorded(data_dir)
    owner = f"process {stack.pid}" if stack else "another process"
    url = stack.urls.get("gateway") if stack else None
    where = f", at {url}" if url else ""
    return Conflict(
        f"{data_dir}: Apex already runs here ({owner}{where})",
        remedy="use the running one, stop it first, or set APEX_DATA_DIR to another folder",
    )


def _ended(pid: int, seconds: float) -> bool:
    """Wait until a process that is not a child has ended. Return False when it still runs after `seconds`."""
    deadline = time.monotonic() + seconds
    with contextlib.suppress(ProcessLookupError):
        while time.monotonic() < deadline:
            os.kill(pid, 0)
            if _zombie(pid):
                return True
            time.sleep(0.05)
        return False
    return True


def _zombie(pid: int) -> bool:
    """Return whether it has ended but its parent has not reaped it, as in a container without an init process."""
    with contextlib.suppress(FileNotFoundError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    return False
