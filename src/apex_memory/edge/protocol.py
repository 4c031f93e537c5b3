"""Frames between the vector process and its clients: a length of four bytes, then msgpack.

First frame of a client: `{"password": …}`; answer: `{"incarnation", "version", "dimension"}` or
`{"refused": why}`. Then requests `[id, method, argument]` and answers `[id, "ok", result]` or
`[id, kind, message]`, in any order. Vectors travel as raw little-endian float32, the points of an
answer as 16 bytes of id and their `PLACE` each.
"""

from __future__ import annotations

import asyncio
import struct
from typing import Any

import msgpack

MAX_FRAME = 64 * 1024 * 1024
MAX_GREETING = 4096
BUFFER = 1024 * 1024  # bytes a stream reads ahead

PLACE = struct.Struct("<16s16sIII")
"""Where a point is: stage, document, number there, start and end in its text."""

_LENGTH = struct.Struct(">I")


class BrokenFrame(ValueError):
    """The bytes are no frame of ours; the connection cannot go on."""


async def read_frame(reader: asyncio.StreamReader, limit: int = MAX_FRAME) -> Any:
    """The next message. Raises `BrokenFrame`, and `IncompleteReadError` at the end of the stream."""
    (length,) = _LENGTH.unpack(await reader.readexactly(_LENGTH.size))
    if length > limit:
        raise BrokenFrame(f"a frame of {length} bytes, above the limit of {limit}")
    body = await reader.readexactly(length)
    try:
        return msgpack.unpackb(body)
    except (ValueError, msgpack.UnpackException) as error:
        raise BrokenFrame("a frame that is not msgpack") from error


def to_frame(message: Any) -> bytes:
    """The bytes of a message. Raises `BrokenFrame` above the size limit."""
    body: bytes = msgpack.packb(message)
    if len(body) > MAX_FRAME:
        raise BrokenFrame(f"a frame of {len(body)} bytes, above the limit of {MAX_FRAME}")
    return _LENGTH.pack(len(body)) + body
