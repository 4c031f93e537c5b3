"""A terminal in which the commands of a page are typed: one shell, whose folder and variables last from one to the next."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

END = "@@ ended with"
STOP_SECONDS = 90.0
STARTED_SECONDS = 0.5
"""What goes on until Ctrl-C and says nothing about its start runs if it has not ended after so long."""
GOES_ON = {
    r"apex up\b(?!.*--detach)": "Ctrl-C stops all",
    r"apex simulate": "Settings are in",
    r"python -m apex_memory\.flows shadow": "processing copies",
    r"python -m apex_memory\.flows": "worker starting",
    r"apex logs .*--follow": "",
    r"prometheus ": "Server is ready",
}
"""Commands that go on until Ctrl-C, as patterns, and what they print when they are ready for the next command."""


@dataclass(frozen=True, slots=True)
class Ran:
    """What a command came to. A command that goes on has the code 0."""

    code: int
    output: str
    seconds: float


class Terminal:
    """A shell in a folder. Close it: that ends what it has left running, as Ctrl-C does."""

    def __init__(self, folder: Path, environment: Mapping[str, str]) -> None:
        self._notes = Path(tempfile.mkdtemp(prefix="apex-terminal-"))
        self._log = self._notes / "log"
        self._count = 0
        self._running: list[int] = []
        with self._log.open("wb") as log:
            self._shell = subprocess.Popen(
                ["bash", "--noprofile", "--norc"],
                cwd=folder,
                env=environment,
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def run(self, command: str, *, seconds: float) -> Ran:
        """Run a command to its end, or, if it goes on until Ctrl-C, until it is ready.

        Raises `TimeoutError` with its output when that takes longer than `seconds`.
        """
        began = time.monotonic()
        for pattern, ready in GOES_ON.items():
            if re.match(rf"(\w+=\S* )*{pattern}", command):
                code, output = self._start(command, ready, seconds)
                break
        else:
            code, output = self._run(command, seconds)
        return Ran(code, output, time.monotonic() - began)

    def close(self) -> None:
        """End what still runs, and the shell."""
        for group in self._running:
            _end(group)
        assert self._shell.stdin
        self._shell.stdin.close()
        _end(self._shell.pid)
        self._shell.wait()
        shutil.rmtree(self._notes)

    def _run(self, command: str, seconds: float) -> tuple[int, str]:
        # It reads nothing: what follows in the shell's input are the next commands.
        return self._type(f". {self._script(command)} < /dev/null", seconds)

    def _start(self, command: str, ready: str, seconds: float) -> tuple[int, str]:
        script = self._script(command)
        log = script.with_suffix(".log")
        # With job control it gets a process group, and heeds Ctrl-C.
        line = f"set -m; . {script} < /dev/null > {log} 2>&1 & set +m; echo $!"
        _, output = self._type(line, seconds)
        group = int(output.split()[-1])
        self._running.append(group)
        began = time.monotonic()

        def is_ready() -> bool:
            if not _exists(group):
                return True
            if ready:
                return ready in log.read_text(errors="replace")
            return time.monotonic() - began > STARTED_SECONDS

        try:
            _until(is_ready, seconds)
        except TimeoutError:
            raise TimeoutError(log.read_text(errors="replace")) from None
        return 0 if _exists(group) else 1, log.read_text(errors="replace")

    def _type(self, line: str, seconds: float) -> tuple[int, str]:
        """Type a line; return its exit code and what was printed until its end."""
        start = self._log.stat().st_size
        assert self._shell.stdin
        self._shell.stdin.write(f"{line}\nprintf '\\n{END} %s\\n' $?\n".encode())
        self._shell.stdin.flush()

        def output() -> str:
            with self._log.open("rb") as log:
                log.seek(start)
                return log.read().decode(errors="replace")

        try:
            _until(lambda: re.search(rf"^{END} \d+\n", output(), re.MULTILINE), seconds)
        except TimeoutError:
            raise TimeoutError(output()) from None
        text, _, code = output().rpartition(f"\n{END} ")
        return int(code), text

    def _script(self, command: str) -> Path:
        self._count += 1
        script = self._notes / f"{self._count}.sh"
        script.write_text(command + "\n", encoding="utf-8")
        return script


def _until(condition: Callable[[], object], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError
        time.sleep(0.05)  # the rhythm of the look


def _end(group: int) -> None:
    """Interrupt a process group, and kill it when it has not ended in time."""
    with suppress(ProcessLookupError):
        os.killpg(group, signal.SIGINT)
        with suppress(TimeoutError):
            _until(lambda: not _exists(group), STOP_SECONDS)
        os.killpg(group, signal.SIGKILL)


def _exists(group: int) -> bool:
    """Return whether a process of the group runs. One that has ended, and that its parent has not noticed, does not."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with suppress(FileNotFoundError, ProcessLookupError):
                state, _, its_group = (entry / "stat").read_text().rpartition(")")[2].split()[:3]
                if int(its_group) == group and state != "Z":
                    return True
    return False
