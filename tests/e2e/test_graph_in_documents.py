"""A whole stack as it is by default, with its graph in the PostgreSQL of the documents, on a machine without FalkorDB."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.e2e.stack import Stack, data_folder

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="reads /proc"),
    pytest.mark.timeout(240),  # processes start on a machine that others work on, too
]


class WithoutFalkorDB(Stack):
    module = "tests.e2e.without_falkordb"

    def __init__(self, data_dir: Path, **settings: str) -> None:
        super().__init__(data_dir, **settings)
        self._given["PYTHONPATH"] = str(Path(__file__).parents[2])


async def test_the_stack_needs_no_falkordb() -> None:
    async with data_folder() as folder:
        stack = WithoutFalkorDB(folder)
        try:
            await stack.start()
            assert "falkordb" not in stack.children()
            await stack.remember("one", "Shipment SHP-48213 waits in Laredo for Acme Freight.")
            assert await _named_by(stack) == 1
            status = await stack.get("/v1/status")
            [graph] = [store for store in status["stores"] if store["name"] == "graph"]
            assert graph["state"] == "ready" and graph["version"].startswith("PostgreSQL 18")

            await stack.kill_child("postgres")
            await stack.whole()
            await stack.remember("two", "Shipment SHP-48213 has left Laredo.")
            assert await _named_by(stack) == 2
            doctor = await stack.command("doctor")
            assert doctor.code == 0 and "store graph: PostgreSQL 18" in doctor.out, doctor.out
        finally:
            await stack.stop()


async def test_a_graph_in_falkordb_moves_by_itself() -> None:
    """As when a data folder of a release with that default starts under this one, and then goes back."""
    async with data_folder() as folder:
        stack = Stack(folder, GRAPH="embedded:")
        try:
            await stack.start()
            await stack.remember("one", "Shipment SHP-48213 waits in Laredo for Acme Freight.")
            await stack.stop()

            stack.set(GRAPH="postgresql:")
            await stack.start()
            assert "falkordb" not in stack.children()
            assert "APEX_GRAPH=embedded: goes back" in stack.log.read_text()
            await stack.whole()
            assert await _named_by(stack) == 1
            await stack.remember("two", "Shipment SHP-48213 has left Laredo.")
            await stack.stop()

            stack.set(GRAPH="embedded:")
            await stack.start()
            await stack.whole()
            assert await _named_by(stack) == 2
        finally:
            await stack.stop()


async def test_without_its_package_falkordb_is_refused_with_a_remedy() -> None:
    async with data_folder() as folder:
        stack = WithoutFalkorDB(folder, GRAPH="embedded:")
        try:
            with pytest.raises(AssertionError, match="apex up ended"):
                await stack.start()
            log = stack.log.read_text()
            assert "apex-memory[falkordb]" in log and "APEX_GRAPH" in log
        finally:
            await stack.stop()


async def _named_by(stack: Stack) -> int:
    """Return how many live assertions of documents the graph has about the shipment."""
    facts = await stack.get("/v1/entities/shipment/SHP-48213")
    assert facts["degraded"] == []
    return sum(facts["roles"].values())
