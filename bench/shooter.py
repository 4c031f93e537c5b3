"""A load client that costs next to nothing: webhooks over kept-alive connections, each at its time.

`python -m bench.shooter URL RATE SECONDS` prints the answer times as JSON, in seconds. The requests are
made and signed beforehand; what is left for their time is a write and the reading of a status line.
A general client would take 3 ms a request, from the processors that the gateway runs on.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections import deque
from collections.abc import Sequence
from urllib.parse import urlsplit

from apex_memory.model import now
from apex_memory.sources import registry
from tests.e2e import front

PATH = "/hooks/frontapp"
WARM = 20


class Line(asyncio.Protocol):
    """One kept-alive connection, with at most one request under way."""

    def __init__(self) -> None:
        self._answer: asyncio.Future[int] | None = None
        self._read = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._read += data
        head, end, body = self._read.partition(b"\r\n\r\n")
        if end and len(body) >= _length(head):
            self._read = b""
            assert self._answer, "an answer that nobody asked for"
            self._answer.set_result(int(head.split(b" ", 2)[1]))

    def connection_lost(self, exc: Exception | None) -> None:
        if self._answer and not self._answer.done():
            self._answer.set_exception(exc or ConnectionError("the gateway hung up"))

    async def send(self, request: bytes) -> int:
        """The status of the answer."""
        self._answer = asyncio.get_running_loop().create_future()
        self._transport.write(request)
        return await self._answer

    def close(self) -> None:
        self._transport.close()


class Lines:
    """Connections to one gateway: a free one is taken, else another one opened."""

    def __init__(self, host: str, port: int) -> None:
        self._address = (host, port)
        self._free: deque[Line] = deque()

    async def send(self, request: bytes) -> int:
        line = self._free.pop() if self._free else await self._open()
        status = await line.send(request)
        self._free.append(line)
        return status

    async def _open(self) -> Line:
        loop = asyncio.get_running_loop()
        _, line = await loop.create_connection(Line, *self._address)
        return line

    def close(self) -> None:
        for line in self._free:
            line.close()


async def shoot(url: str, rate: int, seconds: int) -> list[float]:
    """Send signed webhooks in an open loop, each when it is due; return the seconds from due to response."""
    parts = urlsplit(url)
    assert parts.hostname and parts.port
    requests = signed_requests(f"{parts.hostname}:{parts.port}", rate * seconds)
    lines, loop = Lines(parts.hostname, parts.port), asyncio.get_running_loop()

    async def send(request: bytes, due: float) -> float:
        status = await lines.send(request)
        assert status == 202, status
        return loop.time() - due

    await asyncio.gather(*(send(request, 0) for request in requests[:WARM]))
    began, sent = loop.time() + 0.1, []
    for n, request in enumerate(requests[WARM:]):
        due = began + n / rate
        if (wait := due - loop.time()) > 0:
            await asyncio.sleep(wait)  # the pace of the load: no request waits for another one
        sent.append(asyncio.create_task(send(request, due)))
    answered = list(await asyncio.gather(*sent))
    lines.close()
    return answered


def signed_requests(host: str, count: int) -> Sequence[bytes]:
    """`WARM` requests and `count` more, as they go over the wire, signed as Front does. Signatures hold for minutes."""
    source = registry.load({"frontapp": {"signing_keys": ["test_signing_key"]}}, None)["frontapp"]
    made = []
    for n in range(WARM + count):
        body = front.message(f"r{n}", f"cnv_r{n}", at=n)
        headers = {
            "host": host,
            "content-type": "application/json",
            "content-length": str(len(body)),
            **source.sign(body, now()),
        }
        lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        made.append(f"POST {PATH} HTTP/1.1\r\n{lines}\r\n".encode() + body)
    return made


def _length(head: bytes) -> int:
    """Of the body, as the headers say it; an answer without a length is none of ours."""
    for line in head.split(b"\r\n")[1:]:
        name, _, value = line.partition(b":")
        if name.lower() == b"content-length":
            return int(value)
    raise AssertionError(f"no length: {head!r}")


if __name__ == "__main__":
    print(json.dumps(asyncio.run(shoot(sys.argv[1], int(sys.argv[2]), int(sys.argv[3])))))
