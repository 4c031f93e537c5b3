"""Frames between the vector server and its clients: a length of four bytes, then msgpack.

A client's first frame is `{"password": …}`; the response is `{"incarnation", "version", "dimension", "traces"}` or
`{"refused": reason}`. Then come requests `[id, method, argument]`, to a server whose greeting has `traces` also with the
caller's W3C `traceparent` at the end, and responses `[id, "ok", result]` or
`[id, kind, message]`, in any order, with the kind `rejected`, `full` (the disk) or `unavailable`. Vectors travel as raw little-endian float32, the passages of
a search result as their `PLACE` each, the hits of a leg as places in that list (uint32) and scores (float32). A server whose greeting lacks `search_all` is of
an earlier build and takes one query a request, which this build does not send.
"""

from __future__ import annotations

import asyncio
import struct
from typing import Any

import msgpack

MAX_FRAME = 64 * 1024 * 1024
MAX_GREETING = 4096
BUFFER = 1024 * 1024  # bytes that a stream reads ahead

PLACE = struct.Struct("<16s16sIII")
"""The place of a point: stage, document, number of the passage, its start and end in the text."""

_LENGTH = struct.Struct(">I")


class BrokenFrame(ValueError):
    """The bytes are not a frame of this protocol; the connection cannot continue."""


async def read_frame(reader: asyncio.StreamReader, limit: int = MAX_FRAME) -> Any:
    """Return the next message. Raises `BrokenFrame`, and `IncompleteReadError` at the end of the stream."""
    (length,) = _LENGTH.unpack(await reader.readexactly(_LENGTH.size))
    if length > limit:
        raise BrokenFrame(f"a frame of {length} bytes, above the limit of {limit}")
    body = await reader.readexactly(length)
    try:
        return msgpack.unpackb(body)
    except (ValueError, msgpack.UnpackException) as error:
        raise BrokenFrame("a frame that is not msgpack") from error


def to_frame(message: Any) -> bytes:
    """Return the bytes of a message. Raises `BrokenFrame` above the size limit."""
    body: bytes = msgpack.packb(message)
    if len(body) > MAX_FRAME:
        raise BrokenFrame(f"a frame of {len(body)} bytes, above the limit of {MAX_FRAME}")
    return _LENGTH.pack(len(body)) + body
