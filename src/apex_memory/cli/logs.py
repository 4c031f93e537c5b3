"""`apex logs`: the logs of the processes that `apex up` runs."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated

import typer

from apex_memory.cli.output import say
from apex_memory.config import load_settings
from apex_memory.errors import NotFound

FOLLOW_SECONDS = 0.3  # between two looks for new lines
BLOCK = 65_536  # bytes read at a time from the end of a log
MAX_LINE = 4_000  # characters of one line


def logs(
    names: Annotated[
        list[str] | None, typer.Argument(help="Only these processes, as in `apex status`.")
    ] = None,
    lines: Annotated[
        int, typer.Option("--lines", "-n", min=0, help="How many of the last lines of each.")
    ] = 20,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Keep printing new lines, until Ctrl-C.")
    ] = False,
) -> None:
    """Print the last lines of the logs, each with the name of its process.

    Example: apex logs worker gateway --follow
    """
    folder = load_settings().data_dir / "log"
    files = log_files(folder, names or ())
    tails = [Tail(file) for file in files]
    for tail in tails:
        _print(tail, tail.last(lines))
    while follow:
        time.sleep(FOLLOW_SECONDS)
        for tail in tails:
            _print(tail, tail.new())


def log_files(folder: Path, names: Sequence[str]) -> list[Path]:
    """Return the logs of these processes, or all. Raises `NotFound` for an unknown name, or when there are none."""
    known = {file.stem: file for file in sorted(folder.glob("*.log"))}
    if not known:
        raise NotFound(
            f"{folder} holds no logs",
            remedy="start the stack with `apex up`, or set APEX_DATA_DIR to its folder",
        )
    for name in names:
        if name not in known:
            raise NotFound(f"{name}: no such log", remedy=f"logs are {', '.join(known)}")
    return [known[name] for name in names] if names else list(known.values())


class Tail:
    """The end of a log that grows, and that starts anew when it is rotated."""

    def __init__(self, file: Path) -> None:
        self.name = file.stem
        self._file = file
        self._position = 0
        self._inode = 0
        self._rest = b""

    def last(self, count: int) -> list[str]:
        """Return the last `count` lines. `new` continues after them."""
        with self._file.open("rb") as log:
            self._inode = self._file.stat().st_ino
            log.seek(0, 2)
            start = self._position = log.tell()
            data = b""
            while start > 0 and data.count(b"\n") <= count:
                start = max(0, start - BLOCK)
                log.seek(start)
                data = log.read(self._position - start)
        return [_text(line) for line in deque(data.splitlines(), maxlen=count)]

    def new(self) -> Iterator[str]:
        """Yield the complete lines that were added since."""
        try:
            status = self._file.stat()
            if status.st_ino != self._inode or status.st_size < self._position:
                self._inode, self._position, self._rest = status.st_ino, 0, b""
            with self._file.open("rb") as log:
                log.seek(self._position)
                data = self._rest + log.read()
                self._position = log.tell()
        except FileNotFoundError:  # being rotated
            return
        *complete, self._rest = data.split(b"\n")
        for line in complete:
            yield _text(line)


def _text(line: bytes) -> str:
    return line.decode("utf-8", "replace")[:MAX_LINE]


def _print(tail: Tail, lines: Sequence[str] | Iterator[str]) -> None:
    for line in lines:
        say((f"{tail.name:>9}  ", "dim"), line)
