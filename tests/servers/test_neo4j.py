"""What only Neo4j has: its constraints, the rights it wants, and servers without the procedure that returns their start time."""

from __future__ import annotations

import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from apex_memory.engines.base import free_port
from apex_memory.errors import Unavailable
from apex_memory.stores import neo4j_graph as adapter
from apex_memory.stores.neo4j_graph import Neo4jGraph
from tests.conftest import running
from tests.servers.neo4j import Neo4j

pytestmark = pytest.mark.server


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def url(engine_data: Path) -> AsyncIterator[str]:
    folder = Path(tempfile.mkdtemp(dir=engine_data))
    async with running(Neo4j(folder, free_port(), "apex-pass")) as engine:
        yield engine.url


@pytest_asyncio.fixture
async def graph(url: str) -> AsyncIterator[Neo4jGraph]:
    store = Neo4jGraph(url, timeout=30)
    await store.prepare()
    yield store
    await store.close()


async def test_prepare_makes_what_the_manual_says(graph: Neo4jGraph) -> None:
    await graph.prepare()  # twice is once
    constraints = await graph._read("SHOW CONSTRAINTS YIELD name, type, labelsOrTypes, properties")
    assert sorted(list(row) for row in constraints) == [
        ["apex_assertion", "UNIQUENESS", ["Assertion"], ["id"]],
        ["apex_entity", "UNIQUENESS", ["Entity"], ["id"]],
        ["apex_stage", "UNIQUENESS", ["Stage"], ["id"]],
    ]


async def test_the_procedures_that_it_calls_are_no_admin_ones(graph: Neo4jGraph) -> None:
    """So that `GRANT EXECUTE PROCEDURE` is all they need."""
    rows = await graph._read("SHOW PROCEDURES YIELD name, admin")
    admin_only = {name: admin for name, admin in rows}
    called = ("dbms.queryJmx", "db.awaitIndexes", "db.info")
    assert [admin_only[name] for name in called] == [False] * 3


async def test_a_server_that_hides_its_start_shows_its_database(
    graph: Neo4jGraph, monkeypatch: pytest.MonkeyPatch
) -> None:
    of_process = await graph.incarnation()
    procedure = adapter.PROCESS.replace("queryJmx", "notThere")
    monkeypatch.setattr(adapter, "PROCESS", procedure)
    of_database = await graph.incarnation()
    assert of_database not in ("", of_process)
    assert of_database == await graph.incarnation()


async def test_the_error_of_a_wrong_password_names_what_to_check(url: str) -> None:
    store = Neo4jGraph(url.replace("apex-pass", "wrong"), timeout=10)
    with pytest.raises(Unavailable, match="refuses the credentials") as refused:
        await store.ping()
    assert "rights" in refused.value.remedy
    await store.close()
