"""A client's connection to the vector server. Requests carry a number, so many can be in flight."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import select
import socket
from typing import Any

from apex_memory.edge.protocol import BUFFER, BrokenFrame, read_frame, to_frame
from apex_memory.errors import NoWrites, Rejected, Unavailable
from apex_memory.telemetry import traces

STORE = "vectors"


class Connection:
    """One open connection. `greeting` is the server's first frame. Open it with `connect`."""

    def __init__(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, greeting: dict[str, Any]
    ) -> None:
        self.greeting = greeting
        self._reader, self._writer = reader, writer
        self._numbers = itertools.count()
        self._waiting: dict[int, asyncio.Future[Any]] = {}
        self._broken = False
        self._reading = asyncio.create_task(self._read())

    @property
    def alive(self) -> bool:
        """Whether the server still holds it, according to the kernel, which knows of a closed one before the event loop reads it."""
        if self._broken:
            return False
        if not hasattr(select, "POLLRDHUP"):  # not on Linux: rely on the event loop
            return True
        poll = select.poll()
        poll.register(self._writer.get_extra_info("socket").fileno(), select.POLLRDHUP)
        return not poll.poll(0)

    async def call(self, method: str, argument: Any = None) -> Any:
        """Send one request and return its result.

        Raises `Unavailable` when the connection breaks or the engine fails, `NoWrites` when its disk is nearly full,
        `Rejected` when it refuses the input.
        """
        number = next(self._numbers)
        response = asyncio.get_running_loop().create_future()
        self._waiting[number] = response
        try:
            if self._broken:
                raise Unavailable(STORE, "the connection broke")
            self._writer.write(to_frame([number, method, argument, *self._trace()]))
            await self._writer.drain()
            kind, result = await response
        except ConnectionError as error:
            raise Unavailable(STORE, f"the connection broke ({error})") from error
        finally:
            del self._waiting[number]
            if response.done() and not response.cancelled():
                response.exception()  # mark as retrieved, also when the write failed first
        if kind == "ok":
            return result
        if kind == "rejected":
            raise Rejected(f"{STORE}: {result}", remedy="see the log of the vector process")
        if kind == "full":
            raise NoWrites(
                STORE,
                result,
                remedy="free space on its disk, which `apex doctor` names; events wait until then",
            )
        raise Unavailable(STORE, result, remedy="see the log of the vector process")

    def _trace(self) -> list[str]:
        """Return the current span for the server, if its trace is exported and the server takes it."""
        if not (self.greeting.get("traces") and traces.current_sampled_trace_id()):
            return []
        carrier = traces.trace_carrier()
        return [carrier] if carrier else []

    async def close(self) -> None:
        self._reading.cancel()
        await asyncio.gather(self._reading, return_exceptions=True)
        self._writer.close()  # again: a task cancelled before it started did not close it
        with contextlib.suppress(ConnectionError):
            await self._writer.wait_closed()

    async def _read(self) -> None:
        try:
            while True:
                number, kind, result = await read_frame(self._reader)
                waiting = self._waiting.get(number)
                if waiting and not waiting.done():
                    waiting.set_result((kind, result))
        except (asyncio.IncompleteReadError, ConnectionError, BrokenFrame):
            pass  # the waiting calls get their error below
        finally:
            self._broken = True
            for waiting in self._waiting.values():
                if not waiting.done():
                    waiting.set_exception(Unavailable(STORE, "the connection broke"))
            self._writer.close()


async def connect(host: str, port: int, password: str) -> Connection:
    """Open a connection that the server accepts. Raises `Unavailable`. The caller bounds the time."""
    try:
        reader, writer = await asyncio.open_connection(host, port, limit=BUFFER)
    except OSError as error:
        raise Unavailable(STORE, f"no server listens at {host}:{port}") from error
    try:
        writer.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        writer.write(to_frame({"password": password}))
        greeting = await read_frame(reader)
    except (asyncio.IncompleteReadError, ConnectionError, BrokenFrame) as error:
        writer.close()
        raise Unavailable(STORE, f"{host}:{port} is not a vector server ({error})") from error
    except asyncio.CancelledError:
        writer.close()
        raise
    if "refused" in greeting:
        writer.close()
        raise Unavailable(
            STORE,
            f"refused: {greeting['refused']}",
            remedy="check the password in APEX_VECTORS, or let `apex up` set it",
        )
    return Connection(reader, writer, greeting)
