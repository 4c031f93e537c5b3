"""Embedded engines without gateway and worker, and an App in this process on top of them."""

from __future__ import annotations

import os
import shutil
import tempfile
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg

from apex_memory.app import App, open_app
from apex_memory.config import IN_DOCUMENTS, Settings
from apex_memory.engines.selection import embedded_engines, environment_for
from apex_memory.engines.state import read_stack
from apex_memory.engines.supervisor import Supervisor
from apex_memory.gc_tuning import collect_garbage_seldom
from apex_memory.pipeline import Embedder, Pipeline
from apex_memory.sealing import new_key
from bench.corpus import CHUNK_CHARS, DIMENSION

GRAPH = os.environ.get("GRAPH", IN_DOCUMENTS)
"""`postgresql:` measures with the graph in PostgreSQL, as by default, `embedded:` with FalkorDB."""


@dataclass(frozen=True, slots=True)
class Engines:
    """Running engines: their addresses by setting, and their processes by name."""

    folder: Path
    urls: dict[str, str]

    @property
    def pids(self) -> dict[str, int]:
        stack = read_stack(self.folder)
        assert stack
        return {name: child.pid for name, child in stack.children.items()}

    async def fresh(self) -> dict[str, str]:
        """Return the addresses of an empty database and an empty graph on the same servers."""
        name = f"b{uuid.uuid4().hex[:8]}"
        documents, graph = self.urls["documents"], self.urls["graph"]
        async with await psycopg.AsyncConnection.connect(documents, autocommit=True) as admin:
            await admin.execute(f"CREATE DATABASE {name}")
        return {
            **self.urls,
            "documents": documents.rsplit("/", 1)[0] + f"/{name}",
            "graph": graph if graph == IN_DOCUMENTS else graph.rsplit("/", 1)[0] + f"/{name}",
        }


@asynccontextmanager
async def data_folder() -> AsyncIterator[Path]:
    """A folder that PostgreSQL's unprivileged user can pass through; removed at the end."""
    folder = Path(tempfile.mkdtemp(prefix="apex-bench-"))
    folder.chmod(0o711)
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


@asynccontextmanager
async def running_engines(
    *, dimension: int = DIMENSION, temporal: bool = False
) -> AsyncIterator[Engines]:
    """Run PostgreSQL, FalkorDB if `GRAPH` is `embedded:`, the vector process, Valkey, and Temporal if `temporal`; stop them at the end."""
    async with (
        data_folder() as folder,
        engines_in(folder, dimension=dimension, temporal=temporal) as engines,
    ):
        yield engines


@asynccontextmanager
async def engines_in(
    folder: Path, *, dimension: int = DIMENSION, temporal: bool = False
) -> AsyncIterator[Engines]:
    """Run the engines of a data folder, which keeps what they store; stop them at the end."""
    settings = Settings(
        data_dir=folder, temporal="embedded:" if temporal else "none:1/apex", graph=GRAPH
    )
    async with Supervisor(folder, _silent) as supervisor:
        engines = embedded_engines(settings, dimension)
        await supervisor.start(*engines)
        known = environment_for(engines, settings)
        urls = {
            name.removeprefix("APEX_").lower(): value
            for name, value in known.items()
            if name not in ("APEX_DATA_DIR", "APEX_TEMPORAL_UI")
        }
        yield Engines(folder, {"graph": GRAPH, **urls})


@asynccontextmanager
async def opened(
    urls: dict[str, str], folder: Path, embedder: Embedder | None = None, **settings: Any
) -> AsyncIterator[App]:
    """Open an App on these addresses. With `embedder`, passages get their vectors from it; questions from the default model."""
    given: dict[str, Any] = {
        "data_dir": folder,
        "secret_key": new_key(),
        "chunk_chars": CHUNK_CHARS,
        "sources": {"frontapp": {"signing_keys": ["test_signing_key"]}},
    }
    async with open_app(Settings(**{**urls, **given, **settings})) as app:
        if embedder:
            await app.pipeline.close()
            app.pipeline = Pipeline(embedder, chunk_chars=CHUNK_CHARS)
            app.steps._pipeline = app.shadow._pipeline = app.pipeline
        await (
            app.recovery.check_restarted_stores()
        )  # this and the next as the worker does at its start
        collect_garbage_seldom()
        try:
            yield app
        finally:
            await app.pipeline.close()


@asynccontextmanager
async def standalone(**settings: Any) -> AsyncIterator[App]:
    """Open an App with the default model on engines of its own."""
    async with (
        running_engines() as engines,
        opened(await engines.fresh(), engines.folder, **settings) as app,
    ):
        yield app


def scrub_environment() -> None:
    """Remove the settings of the person who runs the bench."""
    for name in [name for name in os.environ if name.startswith("APEX_")]:
        del os.environ[name]
    os.environ["APEX_SETTINGS_FILE"] = os.devnull


def _silent(name: str, what: str, detail: str) -> None:
    if what in ("died", "failed"):
        print(f"  {name} {what} {detail}")
