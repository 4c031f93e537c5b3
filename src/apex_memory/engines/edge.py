"""The embedded vector server, a process of this package."""

from __future__ import annotations

import os
import sys
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from importlib.metadata import version

from apex_memory.config import LOOPBACK
from apex_memory.edge.shard_list import read_shard_list
from apex_memory.engines.base import HOST, Engine, retry_until_ready
from apex_memory.errors import Unavailable
from apex_memory.stores.edge import EdgeVectors
from apex_memory.telemetry.exposition import Address

REPLY_SECONDS = 30  # of an attempt; shorter ones never succeed on a slow machine


@dataclass
class Edge(Engine):
    """Qdrant Edge in a process of its own: its calls hold the interpreter lock for longer than a gateway may pause."""

    dimension: int
    metrics_address: Address | None = None
    """Where its process exposes its metrics."""
    log_level: str = "info"
    log_format: str = "console"

    name = "vectors"
    role = "vectors"

    @property
    def url(self) -> str:
        return f"edge://:{self.password}@{HOST}:{self.port}"

    @property
    def metrics(self) -> str:
        return self.metrics_address.url if self.metrics_address else ""

    @property
    def write_switch(self) -> Callable[[bool], Awaitable[None]]:
        return _decides_itself

    def prepare(self) -> None:
        """Raise `Misconfigured` if the folder holds vectors of another dimension: the process would only log it."""
        super().prepare()
        read_shard_list(self.directory, self.dimension)

    def command(self) -> list[str]:
        return [sys.executable, "-m", "apex_memory.edge.server"]

    def environment(self) -> dict[str, str]:
        tracing = {name: value for name, value in os.environ.items() if name.startswith("OTEL_")}
        return {
            **tracing,
            "APEX_EDGE_LOG_LEVEL": self.log_level,
            "APEX_EDGE_LOG_FORMAT": self.log_format,
            "APEX_EDGE_METRICS": str(self.metrics_address or LOOPBACK),
            "APEX_EDGE_HOST": HOST,
            "APEX_EDGE_PORT": str(self.port),
            "APEX_EDGE_PASSWORD": self.password,
            "APEX_EDGE_DIR": str(self.directory),
            "APEX_EDGE_DIMENSION": str(self.dimension),
        }

    async def ready(self) -> None:
        # This client never searches, so the average length of texts does not matter.
        client = EdgeVectors(self.url, self.dimension, timeout=REPLY_SECONDS, bm25_average_words=60)
        try:
            await retry_until_ready(client.ping, Unavailable)
        finally:
            await client.close()

    async def version(self) -> str:
        return f"Qdrant Edge {version('qdrant-edge-py')}"


async def _decides_itself(refuse: bool) -> None:
    """Do nothing: the process looks at its disk before each write (`edge/corpus.py`), with the same reserve."""
