"""The embedded vector store as tests need it: killed, stopped, refused, and sealing early."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from apex_memory.engines.base import HOST, free_port
from apex_memory.errors import Unavailable
from apex_memory.stores.edge import EdgeVectors
from tests.waiting import until

DIMENSION = 16


class EdgeProcess:
    """One vector process on a folder and a port that stay the same over restarts."""

    def __init__(
        self,
        folder: Path,
        *,
        seal_points: int = 20_000,
        merge_shards: int = 8,
        quiet_seconds: float = 600,
        dimension: int = DIMENSION,
    ) -> None:
        self.folder, self.port = folder, free_port()
        self.url = f"edge://:p%40ss@{HOST}:{self.port}"
        self._environment = os.environ | {
            "APEX_EDGE_HOST": HOST,
            "APEX_EDGE_PORT": str(self.port),
            "APEX_EDGE_PASSWORD": "p@ss",
            "APEX_EDGE_DIR": str(folder),
            "APEX_EDGE_DIMENSION": str(dimension),
            "APEX_EDGE_SEAL": str(seal_points),
            "APEX_EDGE_MERGE": str(merge_shards),
            "APEX_EDGE_QUIET": str(quiet_seconds),
        }
        self._popen: subprocess.Popen[bytes] | None = None

    def start(self) -> subprocess.Popen[bytes]:
        with (self.folder.parent / f"{self.folder.name}.log").open("ab") as log:
            self._popen = subprocess.Popen(
                [sys.executable, "-m", "apex_memory.edge.server"],
                env=self._environment,
                stderr=log,
                start_new_session=True,
            )
        return self._popen

    async def ready(self, store: EdgeVectors) -> None:
        """Return when the server responds; its exit ends the wait."""
        popen = self._popen
        assert popen

        async def answers() -> bool:
            try:
                await store.ping()
            except Unavailable:
                assert popen.poll() is None, self.log()
                return False
            return True

        await until(answers, self.log, seconds=30)

    def send(self, number: signal.Signals) -> None:
        assert self._popen
        os.killpg(self._popen.pid, number)

    def end(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Signal it and wait for its end."""
        assert self._popen
        if self._popen.poll() is None:
            self.send(number)
        return self._popen.wait(20)

    def log(self) -> str:
        return (self.folder.parent / f"{self.folder.name}.log").read_text()


@contextmanager
def edge_process(folder: Path, **options: Any) -> Iterator[EdgeProcess]:
    """A started process, killed with its group at the end."""
    process = EdgeProcess(folder, **options)
    process.start()
    try:
        yield process
    finally:
        process.end(signal.SIGKILL)


def edge_client(process: EdgeProcess, *, timeout: float = 20) -> EdgeVectors:
    return EdgeVectors(process.url, DIMENSION, timeout=timeout, bm25_average_words=10)
