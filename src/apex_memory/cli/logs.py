"""`apex logs`: the logs of the processes that `apex up` runs."""

from __future__ import annotations

import os
import re
import sys
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, BinaryIO, Self

import typer

from apex_memory.cli.client import gateway
from apex_memory.cli.log_lines import LEVELS, LineParser, LogEntry, LogFilter
from apex_memory.cli.output import say
from apex_memory.config import load_settings
from apex_memory.errors import ApexError, NotFound, Rejected

FOLLOW_SECONDS = 0.3  # between two looks for new lines
BLOCK = 65_536  # bytes read at a time from the end of a log
MAX_LINE = 100_000  # characters that are read of one line
SHOWN_CHARS = 4_000  # characters that are shown of one line
STYLES = {"warning": "yellow", "error": "red", "critical": "bold red", "debug": "dim"}
_EVENT_ID = re.compile(r"[0-9a-f-]{8,36}")


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
    event: Annotated[
        str, typer.Option(help="Only lines about this event, its batch and its trace: any id.")
    ] = "",
    source: Annotated[str, typer.Option(help="Only lines about this source.")] = "",
    level: Annotated[str, typer.Option(help=f"Only from this level on: {', '.join(LEVELS)}.")] = "",
    json: Annotated[
        bool, typer.Option("--json", help="Print a JSON object a line, whatever form the log has.")
    ] = False,
) -> None:
    """Print the last lines of the logs, each with the name of its process.

    With a filter the lines of all processes are in the order of their times, and rotated logs are read too.

    Example: apex logs --event 0b6c3a7e --follow
    """
    if level and level not in LEVELS:
        raise Rejected(f"--level {level}: no such level", remedy=f"levels are {', '.join(LEVELS)}")
    chosen = LogFilter(level or "debug", source, _event_id(event))
    folder = load_settings().data_dir / "log"
    with ExitStack() as opened:
        tails = [opened.enter_context(Tail(file)) for file in log_files(folder, names or ())]
        show = Printer(chosen, as_json=json)
        _show_past(show, tails, lines, chosen.is_empty and not json, follow)
        while follow:
            time.sleep(FOLLOW_SECONDS)
            appeared = new_files(folder, names or (), tails)
            tails += [opened.enter_context(Tail(file)) for file in appeared]
            for tail in tails:
                show.lines(tail.name, list(tail.new()))


def _show_past(
    show: Printer, tails: Sequence[Tail], lines: int, is_whole: bool, follow: bool
) -> None:
    """Print the last lines: of each log as they stand, or those of all that match."""
    if is_whole:
        for tail in tails:
            show.lines(tail.name, tail.last(lines))
    elif not show.past(tails, lines):
        say(("No line matches yet." if follow else "No line matches.", "dim"), stderr=True)


def _event_id(text: str) -> str:
    """Return the id of the event that any id names: of an event, its beginning, or what only the gateway can resolve."""
    if not text or _EVENT_ID.fullmatch(text.lower()):
        return text.lower()
    with gateway() as api:
        return str(api.resolve(text)["event"])


def log_files(folder: Path, names: Sequence[str]) -> list[Path]:
    """Return the logs of these processes, or all. Raises `NotFound` for an unknown name, or when there are none."""
    known = {file.stem: file for file in sorted(folder.glob("*.log"))}
    if not known:
        raise NotFound(
            f"{folder} holds no logs",
            remedy="start the stack with `apex up`, or set APEX_DATA_DIR to its folder; "
            "processes that you start yourself log to their standard error",
        )
    for name in names:
        if name not in known:
            raise NotFound(f"{name}: no such log", remedy=f"logs are {', '.join(known)}")
    return [known[name] for name in names] if names else list(known.values())


def new_files(folder: Path, names: Sequence[str], tails: Sequence[Tail]) -> list[Path]:
    """Return the logs that appeared since, of processes that were started meanwhile."""
    known = {tail.name for tail in tails}
    try:
        return [file for file in log_files(folder, names) if file.stem not in known]
    except ApexError:  # the folder was removed
        return []


class Printer:
    """Prints the entries that a filter accepts."""

    def __init__(self, chosen: LogFilter, *, as_json: bool) -> None:
        self._filter = chosen
        self._as_json = as_json
        self._parsers: dict[str, LineParser] = {}
        self._shown_last: dict[str, bool] = {}

    def past(self, tails: Sequence[Tail], count: int) -> int:
        """Print the last `count` matching entries of each log, in the order of their times; return their number."""
        if self._filter.event:  # first, so that earlier lines of its batch are seen as such
            for tail in tails:
                for entry in self._parser(tail.name).entries(tail.all()):
                    self._filter.learn(entry)
        shown: list[LogEntry] = []
        for tail in tails:
            matching = filter(self._filter.accepts, self._parser(tail.name).entries(tail.all()))
            shown += deque(matching, maxlen=count)
        for entry in sorted(shown, key=lambda entry: str(entry.fields.get("timestamp", ""))):
            self._print(entry)
        return len(shown)

    def lines(self, process: str, lines: Sequence[str]) -> None:
        """Print those of the new lines of a process that match. A line that continues another one goes with it."""
        for entry in self._parser(process).entries(lines):
            if entry.is_continued:
                is_shown = self._shown_last.get(process, self._filter.is_empty)
            else:
                is_shown = self._filter.accepts(entry)
                self._shown_last[process] = is_shown
            if is_shown:
                self._print(entry)

    def _parser(self, process: str) -> LineParser:
        return self._parsers.setdefault(process, LineParser(process))

    def _print(self, entry: LogEntry) -> None:
        if self._as_json:
            sys.stdout.write(entry.json() + "\n")
        else:
            for line in entry.text.split("\n"):
                text = line[:SHOWN_CHARS]
                say((f"{entry.process:>9}  ", "dim"), (text, STYLES.get(entry.level, "")))
        sys.stdout.flush()


class Tail:
    """A log that grows. It is followed through its rotation: what was written before is read to its end."""

    def __init__(self, file: Path) -> None:
        self.name = file.stem
        self._file = file
        self._log: BinaryIO | None = None
        self._rest = b""
        self._former: int | None = None
        """The inode of the former log when this one was opened: another one since then is a copy of this one."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *raised: object) -> None:
        if self._log:
            self._log.close()

    def last(self, count: int) -> list[str]:
        """Return the last `count` lines. `new` continues after them."""
        log = self._open()
        end = start = log.seek(0, 2)
        data = b""
        while start > 0 and data.count(b"\n") <= count:
            start = max(0, start - BLOCK)
            log.seek(start)
            data = log.read(end - start)
        return [_text(line) for line in deque(data.splitlines(), maxlen=count)]

    def all(self) -> Iterator[str]:
        """Yield every line, of the rotated log first. `new` continues after them."""
        rotated = self._file.with_suffix(".log.1")
        if rotated.exists():
            with rotated.open("rb") as log:
                for line in log:
                    yield _text(line.rstrip(b"\n"))
        self._open().seek(0)
        yield from self._complete_lines()

    def new(self) -> Iterator[str]:
        """Yield the complete lines that were added since."""
        yield from self._complete_lines()
        if self._is_replaced():
            yield from self._lines_before_the_cut()
            if self._rest:  # its process ended in the middle of a line
                yield _text(self._rest)
            self._reopen()
            yield from self._complete_lines()

    def _complete_lines(self) -> Iterator[str]:
        log = self._log or self._reopen()
        if log is None:
            return
        *complete, self._rest = (self._rest + log.read()).split(b"\n")
        for line in complete:
            yield _text(line)

    def _lines_before_the_cut(self) -> Iterator[str]:
        """Yield the lines that were written after the last read, when the supervisor has copied the log to the former one and cut it."""
        assert self._log is not None  # only called for a log that is replaced
        former = self._file.with_suffix(".log.1")
        own = os.fstat(self._log.fileno()).st_ino
        if _inode(self._file) != own or _inode(former) == self._former:
            return  # it was renamed and read to its end, or cut by somebody else
        with former.open("rb") as log:
            log.seek(self._log.tell())
            *complete, self._rest = (self._rest + log.read()).split(b"\n")
        for line in complete:
            yield _text(line)

    def _is_replaced(self) -> bool:
        """Return whether another file has the name now, or this one was cut."""
        if self._log is None:
            return False
        try:
            status = self._file.stat()
        except FileNotFoundError:  # being rotated
            return False
        own = os.fstat(self._log.fileno())
        return status.st_ino != own.st_ino or status.st_size < self._log.tell()

    def _open(self) -> BinaryIO:
        if self._log is None:
            self._former = _inode(self._file.with_suffix(".log.1"))
            self._log = self._file.open("rb")
        return self._log

    def _reopen(self) -> BinaryIO | None:
        if self._log:
            self._log.close()
        self._log, self._rest = None, b""
        try:
            return self._open()
        except FileNotFoundError:  # being rotated
            return None


def _inode(file: Path) -> int | None:
    """Return the inode of a file, None if it is not there."""
    try:
        return file.stat().st_ino
    except FileNotFoundError:
        return None


def _text(line: bytes) -> str:
    return line.decode("utf-8", "replace")[:MAX_LINE]
