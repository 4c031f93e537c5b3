"""A TCP proxy that can lose a reply, or bring it late: the request reached the store and took effect, and nobody knows."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable

CHUNK = 1 << 16


class Proxy:
    """Stands for a store on a port of its own. `target` is called at each connection, as the store may move."""

    def __init__(self, target: Callable[[], int], request: bytes = b"") -> None:
        """`request` is what the requests hold whose replies may be lost or late; empty for none."""
        self._target = target
        self._request = request
        self._losing = 0
        self._late_seconds = 0.0
        self._passable = asyncio.Event()
        self._passable.set()
        self._server: asyncio.Server | None = None
        self._open: set[asyncio.Task[None]] = set()
        self.lost = 0
        self.late = 0
        self.held = 0
        """Connections and requests that waited while nothing was let through."""

    async def start(self) -> int:
        """Return the port."""
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        return int(self._server.sockets[0].getsockname()[1])

    async def stop(self) -> None:
        if self._server:
            self._server.close()
        for task in self._open:
            task.cancel()
        await asyncio.gather(*self._open, return_exceptions=True)

    def lose(self, times: int) -> None:
        """Cut the next `times` connections between such a request and its reply."""
        self._losing = times

    def delay(self, seconds: float) -> None:
        """Bring replies to such requests that much later: so a disk shows that takes its time."""
        self._late_seconds = seconds

    def hang(self) -> None:
        """Accept connections and let nothing through, as a network that drops packets: no connection is refused."""
        self._passable.clear()

    def cut(self) -> None:
        """End all connections: who still wants something connects again."""
        for task in self._open:
            task.cancel()

    def heal(self) -> None:
        self._losing, self._late_seconds = 0, 0.0
        self._passable.set()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task
        self._open.add(task)
        try:
            with contextlib.suppress(OSError):
                await self._between(reader, writer)
        except asyncio.CancelledError:
            pass  # by `cut` or `stop`; the server would log it
        finally:
            self._open.discard(task)
            writer.close()

    async def _between(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await self._pass()
        store_reader, store_writer = await asyncio.open_connection("127.0.0.1", self._target())
        lose, delay = asyncio.Event(), asyncio.Event()
        there = asyncio.create_task(self._requests(reader, store_writer, lose, delay))
        back = asyncio.create_task(self._replies(store_reader, writer, lose, delay))
        try:
            await asyncio.wait((there, back), return_when=asyncio.FIRST_COMPLETED)
        finally:
            there.cancel()
            back.cancel()
            await asyncio.gather(there, back, return_exceptions=True)
            store_writer.close()

    async def _pass(self) -> None:
        self.held += not self._passable.is_set()
        await self._passable.wait()

    async def _requests(
        self,
        reader: asyncio.StreamReader,
        store: asyncio.StreamWriter,
        lose: asyncio.Event,
        delay: asyncio.Event,
    ) -> None:
        while chunk := await reader.read(CHUNK):
            await self._pass()
            if self._request and self._request in chunk:
                if self._losing:
                    self._losing -= 1
                    lose.set()
                if self._late_seconds:
                    delay.set()
            store.write(chunk)
            await store.drain()

    async def _replies(
        self,
        store: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        lose: asyncio.Event,
        delay: asyncio.Event,
    ) -> None:
        while chunk := await store.read(CHUNK):
            if lose.is_set():  # the store has responded: the call took effect
                self.lost += 1
                return
            if delay.is_set():
                delay.clear()
                self.late += 1
                await asyncio.sleep(self._late_seconds)  # the fault itself
            writer.write(chunk)
            await writer.drain()
