"""What runs in a data folder, and who owns it: the lock, the secrets, `run/stack.json`, leftovers of a killed run."""

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

from apex_memory.engines.base import write_private
from apex_memory.engines.process import words
from apex_memory.errors import Conflict, Misconfigured


class ChildState(BaseModel):
    """One child of `apex up`. `pid` is 0 while it is down; `url` holds no password."""

    name: str
    pid: int = 0
    port: int = 0
    url: str = ""
    version: str = ""
    since: datetime | None = None
    ready: bool = False
    restarts: int = 0
    last_exit: str = ""


class Stack(BaseModel):
    """The state that `apex up` keeps in `run/stack.json`."""

    pid: int
    since: datetime
    children: dict[str, ChildState] = {}
    ports: dict[str, int] = {}
    """Ports by child's name, kept over the end of the stack: addresses people noted stay right."""

    @property
    def urls(self) -> dict[str, str]:
        """Where the children that run now are reached, by name; without passwords."""
        return {name: child.url for name, child in self.children.items() if child.pid and child.url}


def read_stack(data_dir: Path) -> Stack | None:
    """The stack that runs in this data folder; None when none does."""
    return _recorded(data_dir) if _owned(data_dir) else None


def write_stack(data_dir: Path, stack: Stack) -> None:
    """Record the stack, whole or not at all."""
    write_private(_file(data_dir), stack.model_dump_json(indent=1) + "\n")


def last_ports(data_dir: Path) -> dict[str, int]:
    """The ports that the children had last time, by name."""
    stack = _recorded(data_dir)
    return stack.ports if stack else {}


def secret(data_dir: Path, name: str) -> str:
    """The secret of this name, made when first asked for and kept in `secrets.json`, which only its owner reads."""
    path = data_dir / "secrets.json"
    try:
        known: dict[str, str] = json.loads(path.read_bytes()) if path.exists() else {}
    except ValueError:
        raise Misconfigured(
            f"{path}: not JSON",
            remedy="restore it from its backup: engines know no other passwords",
        ) from None
    if name not in known:
        known[name] = secrets.token_urlsafe(24)
        write_private(path, json.dumps(known, indent=1) + "\n")
    return known[name]


@contextlib.contextmanager
def ownership(data_dir: Path) -> Iterator[None]:
    """Hold the data folder for this process. Raises `Conflict`, naming the owner, when another one has it.

    The lock is the kernel's: it goes with its owner, however that ends.
    """
    try:
        # Others may pass through, for PostgreSQL's user; everything in it is closed.
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
    """(name, pid) of recorded children that still run although their supervisor does not."""
    stack = _recorded(data_dir)
    mark = rf"(^|\s)APEX_DATA_DIR={re.escape(str(data_dir))}(\s|$)"
    children = stack.children.values() if stack else []
    return [
        (child.name, child.pid)
        for child in children
        if child.pid and re.search(mark, words(child.pid), re.MULTILINE)
    ]


def end_leftover(pid: int, *, seconds: float = 5) -> None:
    """Ask a process to end and wait; then kill it, with its group. For PostgreSQL and others alike."""
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
            f"data_dir: {data_dir} may not be read by you",
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
        f"{data_dir}: Apex runs here already ({owner}{where})",
        remedy="use the one that runs, stop it first, or set APEX_DATA_DIR to another folder",
    )


def _ended(pid: int, seconds: float) -> bool:
    """Wait until a process that is not our child has ended; False when it has not by then."""
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
    """Ended, but not yet collected by its parent, as happens in a container without an init process."""
    with contextlib.suppress(FileNotFoundError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    return False
