"""Office files are read in a process of its own, bounded in memory and time.

Parsers of such formats can be made to run for hours, to eat all memory, or to crash: a deeply
nested HTML page of 500 kB overflows the native stack. There it costs one file, here the worker.
"""

from __future__ import annotations

import asyncio
import json
import sys
from asyncio.subprocess import DEVNULL, PIPE, Process
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from apex_memory.errors import Misconfigured, Rejected, require_extra

_PROGRAM = Path(__file__).parent / "reader_process.py"
_MEMORY = 4 << 30  # bytes of address space; threads reserve much more than they use
_START_SECONDS = 60.0

Style = Literal["plain", "markdown"]


@dataclass(frozen=True, slots=True)
class ParsedFile:
    """What is in an office file."""

    text: str
    cut: bool
    title: str
    subject: str
    authors: list[str]
    pages: int | None


class FileReader:
    """One process that reads one file at a time; started at the first file, and again after a crash."""

    def __init__(self, *, seconds: float, most: int) -> None:
        """At most `seconds` a file, and `most` characters of its text."""
        self._seconds = seconds
        self._most = most
        self._process: Process | None = None
        self._lock = asyncio.Lock()

    async def read(self, data: bytes, media_type: str, style: Style) -> ParsedFile:
        """Raises `Rejected` for a file that cannot be read, crashes the reader twice, or takes too long."""
        async with self._lock:
            for _ in range(2):  # a crash may have been a shortage of memory that has passed
                try:
                    return await self._ask(data, media_type, style)
                except (EOFError, ConnectionError):
                    continue
            raise Rejected(
                "the file crashed the reader twice",
                remedy="save it anew in another format, or send its text",
            )

    async def close(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            if process.returncode is None:
                process.kill()
            await process.communicate()

    async def _ask(self, data: bytes, media_type: str, style: Style) -> ParsedFile:
        process = self._process
        if (
            process is None or process.returncode is not None
        ):  # it may have died after its last answer
            await self.close()
            process = await self._start()
        answered = False
        try:
            async with asyncio.timeout(self._seconds):
                answer = await self._exchange(process, data, media_type, style)
            answered = True
        except TimeoutError:
            raise Rejected(
                f"the file took longer than {self._seconds:g} s to read",
                remedy="split it, or send its text",
            ) from None
        finally:
            if (
                not answered
            ):  # half an answer may be on its way: nobody can talk to this process again
                await self.close()
        if "error" in answer:
            raise Rejected(
                f"the file cannot be read as {media_type} ({answer['error']})",
                remedy="see that it opens in its own program and is not protected by a password",
            )
        return ParsedFile(**answer)

    async def _exchange(
        self, process: Process, data: bytes, media_type: str, style: Style
    ) -> dict[str, Any]:
        assert process.stdin is not None
        assert process.stdout is not None
        request = {"size": len(data), "type": media_type, "style": style, "most": self._most}
        process.stdin.write(json.dumps(request).encode() + b"\n")
        process.stdin.write(data)
        await process.stdin.drain()
        line = await process.stdout.readline()
        if not line:
            raise EOFError
        answer: dict[str, Any] = json.loads(
            await process.stdout.readexactly(json.loads(line)["size"])
        )
        return answer

    async def _start(self) -> Process:
        require_extra("xberg", extra="documents", feature="office files")
        self._process = process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-P",
            str(_PROGRAM),
            str(_MEMORY),
            stdin=PIPE,
            stdout=PIPE,
            stderr=DEVNULL,
        )
        assert process.stdout is not None
        try:
            async with asyncio.timeout(_START_SECONDS):
                if await process.stdout.readline() == b"ready\n":
                    return process
        except TimeoutError:
            pass
        await self.close()
        raise Misconfigured(
            "the reader of office files does not start",
            remedy="install xberg again, and see that 4 GiB of address space are allowed",
        )
