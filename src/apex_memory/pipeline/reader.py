"""Reads the files of events in processes of their own, bounded in memory, time and output.

Parsers can be made to run for hours, to eat all memory, or to crash: a deeply nested HTML page of 500 kB overflows
the native stack. Here that costs one event, in the worker it would cost all.

An event has one budget for all of its files (`ReaderLimits`). Whoever needs more becomes a dead letter that names
the limit. A file that crashes the process twice is left out, with a note, so that the mail around it is kept.
"""

from __future__ import annotations

import asyncio
import os
import signal
import struct
import sys
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from time import monotonic
from typing import Any

import msgpack

from apex_memory.errors import Misconfigured, Rejected, require_extra
from apex_memory.model import Assertion, File
from apex_memory.pipeline.file_limits import BudgetExceeded, ReaderLimits, budget_exceeded
from apex_memory.pipeline.parse import Parsed, read_plain_text

_MODULE = "apex_memory.pipeline.reader_process"
_LENGTH = struct.Struct(">Q")
_MAX_MESSAGE = 64_000_000  # bytes: the characters of an event, in UTF-8, with notes on its files
_SLICE = 262_144  # bytes written at once: the event loop serves others between two slices
_START_SECONDS = 60.0
_MAX_ATTEMPTS = 6  # three files of an event may crash the process twice
_CPU_LIMIT = (
    -signal.SIGXCPU if hasattr(signal, "SIGXCPU") else None
)  # exit code of a process ended by it
_PASSED = (
    *("PATH", "HOME", "USER", "LOGNAME", "LANG", "LANGUAGE", "TZ", "TMPDIR", "TEMP", "TMP"),
    *("LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "DYLD_FALLBACK_LIBRARY_PATH"),
    *("VIRTUAL_ENV", "TESSDATA_PREFIX", "SYSTEMROOT", "SYSTEMDRIVE", "USERPROFILE"),
)
_PASSED_PREFIXES = ("LC_", "PYTHON")
_KEPT_MEMORY = 512_000_000  # bytes: a process that ever used more is ended, which gives it back


@dataclass(frozen=True, slots=True)
class ReadFiles:
    """What is in the files of an event, and what is not because of the limit of characters."""

    parsed: Parsed
    characters_left_out: int = 0
    files_left_out: int = 0


class _Crashed(Exception):
    """The process ended. `native_call` is the number of the call of native code that it was in, if in one."""

    def __init__(self, code: int | None, native_call: int | None) -> None:
        super().__init__()
        self.code = code
        self.native_call = native_call


class FileReader:
    """Up to `processes` processes, each of which reads the files of one event at a time. Started when needed."""

    def __init__(self, limits: ReaderLimits | None = None, *, processes: int = 3) -> None:
        self._limits = limits or ReaderLimits()
        self.share = max(1, processes - 1)
        """Most events that one batch reads at once. The process that is left is for the batches of other sources."""
        self._idle: list[Process] = []
        self._slots = asyncio.Semaphore(processes)

    async def read_file(self, file: File) -> ReadFiles:
        """Return the text of a single file.

        Raises `Rejected` for a file that cannot be read or crashes the reader twice, `BudgetExceeded` beyond a limit.
        """
        if plain := read_plain_text(file):
            text = plain.text[: self._limits.characters]
            left_out = len(plain.text) - len(text)
            return ReadFiles(replace(plain, text=text) if left_out else plain, left_out)
        return await self._read([file], None)

    async def append_files(self, text: str, files: Sequence[File]) -> ReadFiles:
        """Return the text with each file's under a heading behind it.

        `metadata["files"]` has a note on every file, with the reason under `unread` for one that cannot be read.
        Raises `BudgetExceeded` beyond a limit.
        """
        return await self._read(files, text)

    async def close(self) -> None:
        """End the processes. Nobody may be reading."""
        while self._idle:
            await _end(self._idle.pop())

    async def _read(self, files: Sequence[File], text: str | None) -> ReadFiles:
        request = {
            "files": [[file.name, file.content_type, len(file.data)] for file in files],
            "text": text,
            "limits": asdict(self._limits),
            "has_office_reader": _has_office_reader(),
        }
        async with self._slots:  # waiting for one is not a part of the event's time
            return await self._attempt(request, files)

    async def _attempt(self, request: dict[str, Any], files: Sequence[File]) -> ReadFiles:
        """Send the request until a process reads it to the end. Files that crashed a process twice are left out."""
        seconds, cpu_seconds = self._limits.seconds, self._limits.cpu_seconds
        crashes: Counter[int] = Counter()
        for _ in range(_MAX_ATTEMPTS):
            skipped = [number for number, count in crashes.items() if count > 1]
            process = await self._take()
            began = monotonic()
            try:
                async with asyncio.timeout(seconds):
                    attempt = {**request, "skipped": skipped, "cpu_seconds": cpu_seconds}
                    answer = await _exchange(process, attempt, files)
            except TimeoutError:
                await _end(process)
                raise self._too_slow() from None
            except _Crashed as crash:
                await _end(process)
                if crash.code == _CPU_LIMIT:
                    raise self._too_much_cpu() from None
                # Who crashes in native code is known by the number of the call. -1: the process died elsewhere.
                crashes[-1 if crash.native_call is None else crash.native_call] += 1
                elapsed = monotonic() - began
                seconds, cpu_seconds = max(1, seconds - elapsed), max(1, cpu_seconds - elapsed)
                continue
            except BaseException:  # also when cancelled: half an answer may be on its way
                await _end(process)
                raise
            await self._give_back(process, answer["peak_memory"])
            return _read_files(answer)
        raise Rejected(
            f"its files crashed the reader {_MAX_ATTEMPTS} times",
            remedy="save them anew in another format, or send their text",
        )

    async def _take(self) -> Process:
        while self._idle:
            process = self._idle.pop()
            if process.returncode is None:
                return process
            await _end(process)
        return await _start()

    async def _give_back(self, process: Process, peak_memory: int) -> None:
        if peak_memory > _KEPT_MEMORY:
            await _end(process)
        else:
            self._idle.append(process)

    def _too_slow(self) -> BudgetExceeded:
        return budget_exceeded(
            "reader_seconds", f"reading its files takes longer than {self._limits.seconds:g} s"
        )

    def _too_much_cpu(self) -> BudgetExceeded:
        return budget_exceeded(
            "reader_cpu_seconds",
            f"reading its files takes more than {self._limits.cpu_seconds:g} s of processor time",
        )


async def _exchange(
    process: Process, request: dict[str, Any], files: Sequence[File]
) -> dict[str, Any]:
    """Send a request with its files and return its answer. Raises `_Crashed` when the process ends instead."""
    assert process.stdin is not None
    native_call: int | None = None
    try:
        body: bytes = msgpack.packb(request, unicode_errors="surrogatepass")
        process.stdin.write(_LENGTH.pack(len(body)) + body)
        for file in files:
            for start in range(0, len(file.data), _SLICE):
                process.stdin.write(file.data[start : start + _SLICE])
                await process.stdin.drain()
        await process.stdin.drain()
        while True:
            message = await _receive(process)
            if "native" not in message:
                return message
            native_call = message["native"]
    except (asyncio.IncompleteReadError, ConnectionError):
        raise _Crashed(await process.wait(), native_call) from None


async def _receive(process: Process) -> dict[str, Any]:
    assert process.stdout is not None
    length = _LENGTH.unpack(await process.stdout.readexactly(_LENGTH.size))[0]
    if length > _MAX_MESSAGE:
        raise Rejected(
            f"its files hold more than {_MAX_MESSAGE:,} bytes of text and notes",
            remedy="split it, or send its text",
        )
    message: dict[str, Any] = msgpack.unpackb(
        await process.stdout.readexactly(length), unicode_errors="surrogatepass"
    )
    return message


def _read_files(answer: dict[str, Any]) -> ReadFiles:
    """Return the result of an answer, or raise its error."""
    if "needs_office_reader" in answer:
        _require_office_reader()
    if error := answer.get("error"):
        raise Rejected(error["message"], remedy=error["remedy"])
    fields = answer["parsed"]
    parsed = Parsed(
        text=fields["text"],
        title=fields["title"],
        sections=tuple((start, end) for start, end in fields["sections"]),
        metadata=fields["metadata"],
        assertions=tuple(Assertion(**assertion) for assertion in fields["assertions"]),
    )
    return ReadFiles(parsed, answer["characters_left_out"], answer["files_left_out"])


def _has_office_reader() -> bool:
    try:
        _require_office_reader()
    except Misconfigured:
        return False
    return True


def _require_office_reader() -> None:
    require_extra("xberg", extra="documents", feature="office files")


def reader_environment(own: Mapping[str, str]) -> dict[str, str]:
    """Return the variables for a process that parses foreign files: what Python and its libraries need to run, and no secret.

    `own` are those of this process, among them keys and passwords: `APEX_*`, and those of cloud providers.
    """
    passed = {
        name: value
        for name, value in own.items()
        if name in _PASSED or name.startswith(_PASSED_PREFIXES)
    }
    # Numeric libraries reserve address space for each of their threads. None computes anything here.
    return {**passed, "OPENBLAS_NUM_THREADS": "1"}


async def _start() -> Process:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-P",
        "-m",
        _MODULE,
        stdin=PIPE,
        stdout=PIPE,
        stderr=DEVNULL,
        env=reader_environment(os.environ),
    )
    try:
        async with asyncio.timeout(_START_SECONDS):
            if "ready" in await _receive(process):
                return process
    except (TimeoutError, asyncio.IncompleteReadError):
        pass
    await _end(process)
    raise Misconfigured(
        "the reader of files does not start",
        remedy=f"`python -m {_MODULE}` says why; install the extra `documents` again",
    )


async def _end(process: Process) -> None:
    if process.returncode is None:
        process.kill()
    await process.communicate()
