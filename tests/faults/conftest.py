"""Engines for the fault tests; see tests/conftest.py for the others."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest_asyncio

from apex_memory.engines.base import free_port
from apex_memory.engines.edge import Edge
from tests.conftest import PASSWORD, running

HASHING_DIMENSION = 256


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def own_vectors_url(engine_data: Path) -> AsyncIterator[str]:
    """A vector process that no other test writes to: here all that it holds is accounted for."""
    folder = engine_data / "faults"
    folder.mkdir(exist_ok=True)
    async with running(Edge(folder, free_port(), PASSWORD, HASHING_DIMENSION)) as engine:
        yield engine.url
