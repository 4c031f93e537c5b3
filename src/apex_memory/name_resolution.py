"""An event loop that resolves host names in threads of their own.

asyncio resolves names in its default pool, which has six threads on two processors, and which also runs everything
that `asyncio.to_thread` is for: chunking, embedding, files. A resolver that does not respond holds a thread for
half a minute and more, and cannot be cancelled. So a few lookups of one vendor would stop the work of all sources.

Here a name has one lookup at a time, which all that wait for it share: a name that hangs costs one thread, and no other
name waits for it.
"""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any

Addresses = list[tuple[Any, ...]]
"""What `socket.getaddrinfo` returns."""


class NameResolvingLoop(asyncio.SelectorEventLoop):
    """The usual event loop, except for `getaddrinfo`. Pass the class as `loop_factory` to `asyncio.Runner`."""

    def __init__(self) -> None:
        super().__init__()
        self._lookups: dict[tuple[Any, ...], asyncio.Future[Addresses]] = {}

    async def getaddrinfo(
        self,
        host: bytes | str | None,
        port: bytes | str | int | None,
        *,
        family: int = 0,
        type: int = 0,
        proto: int = 0,
        flags: int = 0,
    ) -> Addresses:
        """Return the addresses of a name. Raises `socket.gaierror`. Cancelling it ends the wait, not the lookup."""
        arguments = (host, port, family, type, proto, flags)
        lookup = self._lookups.get(arguments)
        if lookup is None:
            lookup = self._start_lookup(arguments)
        return await asyncio.shield(lookup)

    def _start_lookup(self, arguments: tuple[Any, ...]) -> asyncio.Future[Addresses]:
        lookup: asyncio.Future[Addresses] = self.create_future()
        self._lookups[arguments] = lookup
        lookup.add_done_callback(lambda _: self._lookups.pop(arguments, None))
        # Retrieved here, because everybody who waited for it may have given up.
        lookup.add_done_callback(lambda done: done.cancelled() or done.exception())
        # A daemon, so that a hanging lookup does not keep the process from ending.
        thread = threading.Thread(
            target=self._look_up, args=(arguments, lookup), name="lookup", daemon=True
        )
        thread.start()
        return lookup

    def _look_up(self, arguments: tuple[Any, ...], lookup: asyncio.Future[Addresses]) -> None:
        """Resolve a name and hand the outcome to the loop. Runs in a thread."""
        deliver: Callable[[], None]
        try:
            deliver = partial(_set_result, lookup, socket.getaddrinfo(*arguments))
        except Exception as error:  # noqa: BLE001 (whatever it is belongs to those who wait)
            deliver = partial(_set_exception, lookup, error)
        with suppress(RuntimeError):  # the loop was closed meanwhile
            self.call_soon_threadsafe(deliver)


def _set_result(lookup: asyncio.Future[Addresses], addresses: Addresses) -> None:
    if not lookup.done():
        lookup.set_result(addresses)


def _set_exception(lookup: asyncio.Future[Addresses], error: Exception) -> None:
    if not lookup.done():
        lookup.set_exception(error)
