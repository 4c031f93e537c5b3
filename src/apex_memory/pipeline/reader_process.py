"""The process that reads foreign files: `python -m apex_memory.pipeline.reader_process`, started by `reader.py`.

A message is eight bytes with its length (big endian) and then msgpack. A request is a message, and then the bytes of
its files. For each request the process sends any number of `{"native": n}`, before its n-th call of native code, and
then one message with `parsed` or `error`. It ends when its input does. Whatever the files do, the kernel bounds its processor time and memory.
"""

from __future__ import annotations

import ctypes
import os
import struct
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any, BinaryIO

import msgpack

from apex_memory.errors import Rejected, as_rejected
from apex_memory.model import File
from apex_memory.pipeline.file_limits import (
    EventBudget,
    OfficeReaderMissing,
    ReaderLimits,
    budget_exceeded,
)
from apex_memory.pipeline.parse import Parsed, append_files, parse

try:
    import resource
except ImportError:  # Windows: only the counted limits hold there
    resource = None  # type: ignore[assignment]
with suppress(ImportError):  # an extra; loaded before the first file, so that no event pays for it
    import xberg  # noqa: F401

_LENGTH = struct.Struct(">Q")
_PR_SET_NO_NEW_PRIVS = 38  # of prctl(2)
_MAX_WRITTEN_FILE = 1_000_000  # bytes of any file on disk that native code might write

NICENESS = 10
"""The event loops of worker and gateway come first on a busy processor: a storm of files must not slow messages."""


def main(requests: BinaryIO, answers: BinaryIO) -> None:
    send(answers, {"ready": True})
    limited_memory = 0
    while length := requests.read(_LENGTH.size):
        body = requests.read(_LENGTH.unpack(length)[0])
        request = msgpack.unpackb(body, unicode_errors="surrogatepass")
        limits = ReaderLimits(**request["limits"])
        if limits.memory_bytes != limited_memory:
            _limit_memory(limits.memory_bytes)
            limited_memory = limits.memory_bytes
        files = [File(name, kind, requests.read(size)) for name, kind, size in request["files"]]
        _limit_cpu(request["cpu_seconds"])
        send(answers, _answer(request, files, limits, lambda n: send(answers, {"native": n})))


def send(stream: BinaryIO, message: Mapping[str, Any]) -> None:
    body: bytes = msgpack.packb(message, unicode_errors="surrogatepass")
    stream.write(_LENGTH.pack(len(body)) + body)
    stream.flush()


def _answer(
    request: Mapping[str, Any],
    files: list[File],
    limits: ReaderLimits,
    before_native: Callable[[int], None],
) -> dict[str, Any]:
    budget = EventBudget(
        limits,
        has_office_reader=request["has_office_reader"],
        skipped=frozenset(request["skipped"]),
        before_native=before_native,
    )
    try:
        parsed = _read(files, request["text"], budget)
        answer: dict[str, Any] = {"parsed": asdict(parsed)}
    except MemoryError:
        answer = {"error": _error(memory_exceeded(limits))}
    except OfficeReaderMissing:
        answer = {"needs_office_reader": True}
    except Rejected as error:
        answer = {"error": _error(error)}
    except Exception as error:  # noqa: BLE001 -- a parser's bug must cost its own event alone
        answer = {"error": _error(as_rejected(error, "the reader"))}
    answer["characters_left_out"] = budget.characters_left_out
    answer["files_left_out"] = budget.files_left_out
    answer["peak_memory"] = _peak_memory()
    return answer


def _read(files: list[File], text: str | None, budget: EventBudget) -> Parsed:
    """Return the one file, or the text with the files behind it."""
    if text is None:
        return parse(files[0], budget)
    text, sections, notes = append_files(text, files, budget, depth=0)
    return Parsed(text, sections=sections, metadata={"files": notes})


def _error(error: Rejected) -> dict[str, str]:
    return {"message": str(error), "remedy": error.remedy}


def memory_exceeded(limits: ReaderLimits) -> Rejected:
    return budget_exceeded(
        "reader_memory_bytes",
        f"reading its files needs more than {limits.memory_bytes:,} bytes of memory",
    )


def _limit_memory(size: int) -> None:
    """Let allocations beyond `size` bytes of address space fail, and large files on disk and core dumps, too."""
    if resource is not None:
        _set_limit(resource.RLIMIT_AS, size)
        _set_limit(resource.RLIMIT_FSIZE, _MAX_WRITTEN_FILE)
        _set_limit(resource.RLIMIT_CORE, 0)


def _limit_cpu(seconds: float) -> None:
    """Let the kernel end this process `seconds` of processor time from now. The limit counts whole seconds."""
    if resource is not None:
        used = time.process_time()
        _set_limit(resource.RLIMIT_CPU, int(used + seconds) + 1)


def _set_limit(kind: int, value: int) -> None:
    """Set a limit of this process, at most to what its own parent allows."""
    _, most = resource.getrlimit(kind)
    resource.setrlimit(kind, (value if most == resource.RLIM_INFINITY else min(value, most), most))


def _give_up_privileges() -> None:
    """Let no program that this process may start have more rights than it, such as one with the setuid bit. Linux only."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)


def _peak_memory() -> int:
    """Return the most memory in bytes that this process ever used; 0 where that is unknown.

    `getrusage` does not tell: on Linux it begins with what the worker had when it started this process.
    """
    try:
        with Path("/proc/self/status").open(encoding="ascii") as status:
            for line in status:
                if line.startswith("VmHWM:"):
                    return int(line.split()[1]) * 1024
    except OSError:  # another system
        pass
    return 0


if __name__ == "__main__":
    _give_up_privileges()
    os.nice(NICENESS)
    messages = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what native code prints must not mix with the messages
    main(sys.stdin.buffer, messages)
