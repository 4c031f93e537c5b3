"""The process of the embedded vector server: Qdrant Edge behind a loopback port.

`python -m apex_memory.edge.server` reads its settings from the environment: APEX_EDGE_HOST,
APEX_EDGE_PORT, APEX_EDGE_PASSWORD, APEX_EDGE_DIR, APEX_EDGE_DIMENSION, APEX_EDGE_METRICS, and the level and the format
of its log from APEX_EDGE_LOG_LEVEL and APEX_EDGE_LOG_FORMAT. For tests are APEX_EDGE_SEAL, the number of points at which a
shard is sealed, APEX_EDGE_MERGE, the number of shards to merge, and APEX_EDGE_QUIET, the seconds without a sealed shard
after which large ones are merged.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import os
import secrets
import signal
import struct
import sys
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from typing import Any
from uuid import UUID

import numpy as np
from opentelemetry.trace import SpanKind
from qdrant_edge import SparseVector

from apex_memory.edge.catalogue import to_place, to_uuid
from apex_memory.edge.corpus import (
    QUIET_SECONDS,
    SLICE,
    Corpus,
    DiskNearlyFull,
    Row,
    open_corpus,
    slices,
)
from apex_memory.edge.protocol import (
    BUFFER,
    MAX_GREETING,
    BrokenFrame,
    read_frame,
    to_frame,
)
from apex_memory.edge.search import Hit, Question, search
from apex_memory.edge.shard import breathe, to_point
from apex_memory.edge.shard_list import lock_folder
from apex_memory.errors import Misconfigured, Rejected, Unavailable
from apex_memory.gc_tuning import collect_garbage_seldom
from apex_memory.telemetry import (
    BUILD_INFO,
    VECTORS_FAILURES,
    VECTORS_POINTS,
    VECTORS_UNINDEXED,
    configure_logging,
    logger,
    traces,
)
from apex_memory.telemetry.export import exporting
from apex_memory.telemetry.exposition import Address, exposed

SEAL_POINTS, MERGE_SHARDS = 20_000, 4
GREETING_SECONDS = 5
IN_FLIGHT = 32  # concurrent requests per connection
WALK_STAGES = SLICE
STATS_SECONDS = 5.0
# How the errors of the engine begin that are no fault of its input.
ENGINE_FAULTS = ("Service ", "Inconsistent storage", "Out of memory")


class VectorServer:
    """Serves the requests for one corpus. `edge.protocol` is the wire format."""

    def __init__(self, corpus: Corpus, password: str) -> None:
        self._corpus = corpus
        self._password = password.encode()
        self._connections: set[asyncio.Task[None]] = set()
        self._greeting = {
            "incarnation": secrets.token_hex(16),
            "version": f"Qdrant Edge {version('qdrant-edge-py')}",
            "dimension": corpus.dimension,
            "traces": True,
            "search_all": True,
        }
        self._methods: Mapping[str, Callable[[Any], Awaitable[Any]]] = {
            "ping": self._ping,
            "upsert": self._upsert,
            "flush": self._flush,
            "tally": self._tally,
            "delete": self._delete,
            "walk": self._walk,
            "search_all": self._search_all,
            "stats": self._stats,
        }

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one connection until it ends."""
        task = asyncio.current_task()
        assert task is not None
        self._connections.add(task)
        try:
            with contextlib.suppress(
                *(asyncio.IncompleteReadError, ConnectionError, TimeoutError, BrokenFrame),
                asyncio.CancelledError,  # only by `close`; the stream would log it as a failure
            ):
                if await self._greet(reader, writer):
                    await self._serve_requests(reader, writer)
        finally:
            self._connections.discard(task)
            writer.close()

    async def close(self) -> None:
        """End all connections without a response to their open requests."""
        for task in self._connections:
            task.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)

    async def _greet(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        async with asyncio.timeout(GREETING_SECONDS):
            greeting = await read_frame(reader, MAX_GREETING)
        password = greeting.get("password") if isinstance(greeting, dict) else None
        valid = isinstance(password, str) and hmac.compare_digest(password.encode(), self._password)
        writer.write(to_frame(self._greeting if valid else {"refused": "wrong password"}))
        await writer.drain()
        return valid

    async def _serve_requests(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        free = asyncio.Semaphore(IN_FLIGHT)
        async with asyncio.TaskGroup() as requests:
            try:
                while True:
                    request = await read_frame(reader)
                    await free.acquire()
                    task = requests.create_task(self._respond(request, writer))
                    task.add_done_callback(lambda _: free.release())
            except (asyncio.IncompleteReadError, ConnectionError, BrokenFrame):
                return  # the task group still finishes the requests received before

    async def _respond(self, request: Any, writer: asyncio.StreamWriter) -> None:
        try:
            number, method, argument, *caller = request
            if method not in self._methods:  # of a client of another build
                raise Unavailable("vectors", f"this vector process does not know {method}")
            parent = traces.context_of(caller[0] if caller else "")
            with traces.span(f"vectors {method}", parent=parent, kind=SpanKind.SERVER):
                response = [number, "ok", await self._methods[method](argument)]
        except Rejected as error:
            response = [number, "rejected", str(error)]
        except Unavailable as error:
            response = [number, "unavailable", str(error)]
        except DiskNearlyFull as error:
            response = [number, "full", str(error)]
        except OSError as error:
            logger(store="vectors").error("disk_failed", method=method, error=str(error))
            response = [number, "unavailable", f"{error.strerror} ({method})"]
        except Exception as error:  # noqa: BLE001 (outermost loop; the engine raises no narrower type)
            logger(store="vectors").error("request_failed", method=method, error=str(error))
            kind = "rejected" if is_refusal(error) else "unavailable"
            response = [number, kind, str(error) or type(error).__name__]
        with contextlib.suppress(ConnectionError):
            writer.write(to_frame(response))
            await writer.drain()

    async def _ping(self, _: None) -> None:
        return None

    async def _stats(self, _: None) -> dict[str, int]:
        return self._corpus.stats()

    async def _flush(self, _: None) -> None:
        await self._corpus.flush()

    async def _upsert(self, batch: dict[str, Any]) -> None:
        with reading_request():
            rows = await self._rows(batch)
        await self._corpus.upsert(rows)

    async def _rows(self, batch: dict[str, Any]) -> list[Row]:
        rows = batch["points"]
        if not rows:
            return []
        dense = np.frombuffer(batch["dense"], dtype="<f4").reshape(len(rows), -1)
        if dense.shape[1] != self._corpus.dimension:
            raise Rejected(
                f"vectors of {dense.shape[1]} dimensions; this store holds {self._corpus.dimension}",
                remedy="use the embedder that this store was made with",
            )
        ends = np.cumsum(np.frombuffer(batch["lengths"], dtype="<u4")).tolist()
        ids = np.frombuffer(batch["ids"], dtype="<u4").tolist()
        weights = np.frombuffer(batch["weights"], dtype="<f4").tolist()
        terms = [ids[first:end] for first, end in pairwise([0, *ends])]
        written: list[Row] = []
        for row, vector, words, end in zip(rows, dense.tolist(), terms, ends, strict=True):
            vectors: dict[str, Any] = {"dense": vector}
            if words:
                vectors["terms"] = SparseVector(words, weights[end - len(words) : end])
            identity, stage, place, *_ = row
            where = to_place(to_uuid(stage), place)
            point = to_point(vectors, *row)
            written.append(Row(UUID(identity), to_uuid(stage), where, words, point))
            if len(written) % 100 == 0:
                await breathe()
        return written

    async def _tally(self, stages: list[bytes]) -> list[tuple[bytes, int, int]]:
        with reading_request():
            wanted = [UUID(bytes=stage) for stage in stages]
        return await self._tallies(wanted)

    async def _tallies(self, stages: list[UUID]) -> list[tuple[bytes, int, int]]:
        rows: list[tuple[bytes, int, int]] = []
        for part in slices(stages):
            tallies = self._corpus.tally(part)
            rows += [(stage.bytes, tally.count, tally.checksum) for stage, tally in tallies.items()]
            await breathe()
        return rows

    async def _delete(self, stages: list[bytes]) -> None:
        with reading_request():
            unwanted = [UUID(bytes=stage) for stage in stages]
        await self._corpus.delete_stages(unwanted)

    async def _walk(self, cursor: int | None) -> tuple[list[tuple[bytes, int, int]], int | None]:
        """Return the tallies of the next stages and the next cursor, None at the end."""
        stages = self._corpus.stages_after(-1 if cursor is None else cursor, WALK_STAGES)
        if not stages:
            return [], None
        return await self._tallies(stages), stages[-1].int >> 64

    async def _search_all(self, requests: list[dict[str, Any]]) -> dict[str, Any]:
        """Return `places` (`PLACE` of each point, concatenated), and for each of the `queries` numbers and scores by leg."""
        with reading_request():
            questions = [_question(**request) for request in requests]
        result = search(self._corpus.shards, questions)
        return {
            "places": b"".join(result.places),
            "queries": [{leg: _packed(hits) for leg, hits in legs.items()} for legs in result.hits],
        }


def _question(
    *, stages: list[bytes], exclude: list[bytes], among: bytes, **fields: Any
) -> Question:
    return Question(
        stages=[UUID(bytes=stage) for stage in stages],
        exclude=[UUID(bytes=stage) for stage in exclude],
        among=[among[first : first + 16] for first in range(0, len(among), 16)],
        **fields,
    )


def _packed(hits: Sequence[Hit]) -> tuple[bytes, bytes]:
    """Return the numbers as little-endian uint32, and the scores as float32."""
    numbers, scores = zip(*hits, strict=True) if hits else ((), ())
    return np.array(numbers, dtype="<u4").tobytes(), np.array(scores, dtype="<f4").tobytes()


@contextlib.contextmanager
def reading_request() -> Iterator[None]:
    """Raise `Rejected` for what a malformed argument makes its reader raise.

    Only for the lines that read the argument: the same errors anywhere else are faults of this process.
    """
    try:
        yield
    except (ArithmeticError, LookupError, TypeError, ValueError, struct.error) as error:
        raise Rejected(f"malformed request ({error})") from error


def is_refusal(error: Exception) -> bool:
    """Return whether the engine refused its input. Anything else, also of this process itself, is no fault of the request.

    The engine raises plain `Exception`, and only its text shows whether the engine itself failed (its disk, say).
    """
    if type(error) is not Exception:
        return False
    text = str(error)
    return not text.startswith(ENGINE_FAULTS) and "os error" not in text


async def show_stats(corpus: Corpus) -> None:
    """Keep the gauges of the vector store. Never returns. Not at each scrape: that is another thread."""
    while True:
        stats = corpus.stats()
        VECTORS_POINTS.set(stats["points"])
        VECTORS_UNINDEXED.set(stats["unindexed"])
        VECTORS_FAILURES.set(stats["failures"])
        await asyncio.sleep(STATS_SECONDS)


async def serve(
    folder: Path,
    host: str,
    port: int,
    password: str,
    metrics: Address,
    *,
    dimension: int,
    seal_points: int,
    merge_shards: int,
    quiet_seconds: float,
) -> None:
    """Own the folder and serve the port until SIGTERM or SIGINT. The other options are those of `open_corpus`."""
    BUILD_INFO.labels(version("apex-memory"), "").set(1)
    with lock_folder(folder), exposed(metrics, process="vectors"):
        corpus = await open_corpus(
            folder,
            dimension,
            seal_points=seal_points,
            merge_shards=merge_shards,
            quiet_seconds=quiet_seconds,
        )
        vector_server = VectorServer(corpus, password)
        stop = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, stop.set)
        server = await asyncio.start_server(vector_server.serve, host, port, limit=BUFFER)
        background = [
            asyncio.create_task(corpus.build()),
            asyncio.create_task(show_stats(corpus)),
        ]
        collect_garbage_seldom()
        logger(store="vectors").info("ready", port=port, **corpus.stats())
        await stop.wait()
        server.close()
        await vector_server.close()
        for task in background:
            task.cancel()
        await asyncio.gather(*background, return_exceptions=True)
        await corpus.close()


def main() -> None:
    # This process alone does not read config.py: the other settings hold keys that it does not need.
    environment = os.environ
    configure_logging(
        environment.get("APEX_EDGE_LOG_LEVEL", "info"),
        environment.get("APEX_EDGE_LOG_FORMAT", "console"),
    )
    try:
        with exporting("vectors"):
            asyncio.run(
                serve(
                    Path(environment["APEX_EDGE_DIR"]),
                    environment["APEX_EDGE_HOST"],
                    int(environment["APEX_EDGE_PORT"]),
                    environment["APEX_EDGE_PASSWORD"],
                    Address.parse(environment.get("APEX_EDGE_METRICS", "127.0.0.1:0")),
                    dimension=int(environment["APEX_EDGE_DIMENSION"]),
                    seal_points=int(environment.get("APEX_EDGE_SEAL", SEAL_POINTS)),
                    merge_shards=int(environment.get("APEX_EDGE_MERGE", MERGE_SHARDS)),
                    quiet_seconds=float(environment.get("APEX_EDGE_QUIET", QUIET_SECONDS)),
                )
            )
    except Misconfigured as error:
        sys.exit(f"{error}: {error.remedy}")
    except KeyError as error:
        sys.exit(f"{error.args[0]} is not set: start this process with `apex up`")


if __name__ == "__main__":
    main()
