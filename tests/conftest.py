"""Real engines for the tests, each started at its first use and stopped at the end.

The data lies below a folder that PostgreSQL's unprivileged user can pass through when tests run as root.
"""

from __future__ import annotations

import gc
import os
import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TypeVar

import pytest
import pytest_asyncio
from hypothesis import is_hypothesis_test, settings

from apex_memory.engines.base import Engine, free_port
from apex_memory.engines.edge import Edge
from apex_memory.engines.falkordb import FalkorDB
from apex_memory.engines.postgres import PostgreSQL
from apex_memory.engines.process import Process, child_of
from apex_memory.engines.temporal import Temporal
from apex_memory.engines.valkey import Valkey
from apex_memory.gc_tuning import collect_garbage_seldom
from tests.databases import Databases
from tests.needs import needs_engine, shares_engine_in_module
from tests.parallel import (
    ALONE,
    publish_groups,
    pytest_configure_node,
    pytest_xdist_make_scheduler,
)

__all__ = ["pytest_configure_node", "pytest_xdist_make_scheduler"]  # hooks, so they have to be here

EngineT = TypeVar("EngineT", bound=Engine)

PASSWORD = "pw"
DIMENSION = 32
DEPLOY_SECONDS = 7200  # Kubernetes is built before the first of them
SERVER_SECONDS = 600  # a JVM starts, comes back after kills, and Maven fetches it the first time


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--servers",
        action="store_true",
        help="also test on servers that PyPI does not carry: Neo4j, an OpenTelemetry collector",
    )
    parser.addoption(
        "--build-servers",
        action="store_true",
        help="build those of the servers first that take minutes: the OpenTelemetry collector",
    )
    parser.addoption(
        "--deploy",
        action="store_true",
        help="also install the chart on a real API server, and run the Compose project on Docker; both are built first and take long",
    )
    parser.addoption(
        "--quick",
        action="store_true",
        help="draw a fifth of the gate's examples in property tests",
    )
    parser.addoption(
        "--soak",
        type=int,
        metavar="SEED",
        help="draw faults and inputs from this seed instead of the gate's fixed ones; `make soak` passes fresh ones",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Fix the seeds of property tests, so that the gate fails for a change alone; a soak draws new ones."""
    gc.disable()  # what collection makes stays: looking through it again and again took a quarter of its time
    # Without a deadline for one example: beside other work a machine is slow now and then, which is nobody's fault.
    settings.register_profile("gate", derandomize=True, database=None, deadline=None)
    settings.register_profile(
        "soak", max_examples=500, database=None, deadline=None, print_blob=True
    )
    settings.register_profile(
        "quick", max_examples=20, derandomize=True, database=None, deadline=None
    )
    if config.getoption("--quick"):
        settings.load_profile("quick")
    else:
        settings.load_profile("gate" if config.getoption("--soak") is None else "soak")


@pytest.hookimpl(tryfirst=True)  # before `-m` selects by these marks
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Mark tests by what they use, and group those that must stay in one worker."""
    for item in items:
        if needs_engine(item):
            item.add_marker("engine")
        if is_hypothesis_test(getattr(item, "obj", None)):
            item.add_marker("soak")
        if server := item.get_closest_marker("server"):
            item.add_marker(pytest.mark.timeout(server.kwargs.get("seconds", SERVER_SECONDS)))
            address = server.kwargs.get("address", "")
            programs = server.args or (() if address else ("java", "mvn"))
            if missing := servers_missing(config, programs, address):
                item.add_marker(pytest.mark.skip(reason=missing))
        if deployed := item.get_closest_marker("deploy"):
            item.add_marker(pytest.mark.timeout(DEPLOY_SECONDS))
            if missing := deploy_missing(config, deployed.args):
                item.add_marker(pytest.mark.skip(reason=missing))
        _group(item)
    publish_groups(config, items)


def pytest_collection_finish() -> None:
    gc.enable()
    collect_garbage_seldom()


def _group(item: pytest.Item) -> None:
    """Keep together in one worker the tests that share an engine, so that it is started once."""
    if item.get_closest_marker("alone"):
        group = ALONE
    elif item.get_closest_marker("server"):
        group = "server"
    elif item.get_closest_marker("deploy"):
        group = "deploy"
    elif shares_engine_in_module(item):
        group = item.nodeid.partition("::")[0]
    else:
        return
    item.add_marker(pytest.mark.xdist_group(group))


def servers_missing(config: pytest.Config, programs: Sequence[str], address: str = "") -> str:
    """Return why tests on a server are skipped; empty when they run.

    These programs build or run it, or the variable `address` names one that runs already.
    """
    if not (config.getoption("--servers") or os.environ.get("SERVERS")):
        return "on servers that PyPI does not carry only with --servers: `make test-servers`"
    if address and not os.environ.get(address):
        return f"NOT TESTED: needs the address of a server in {address}"
    return programs_missing(programs)


def deploy_missing(config: pytest.Config, programs: Sequence[str]) -> str:
    """Return why tests of a deployment that needs these programs are skipped; empty when they run."""
    if not config.getoption("--deploy"):
        return "deployments only with --deploy: `make test-deploy`"
    return programs_missing(programs)


def programs_missing(programs: Sequence[str]) -> str:
    """Return which of these programs are not on the path, as the reason to skip a test; empty when all are."""
    missing = [program for program in programs if shutil.which(program) is None]
    if missing:
        return f"NOT TESTED: needs {' and '.join(missing)}"
    return ""


@pytest.fixture(scope="session", autouse=True)
def _scrubbed_environment() -> Iterator[None]:
    """No setting of the person who runs the tests reaches them."""
    with pytest.MonkeyPatch.context() as patch:
        for name in [
            name for name in os.environ if name.startswith(("APEX_", "OTEL_", "TEMPORAL_"))
        ]:
            patch.delenv(name)
        patch.setenv("APEX_SETTINGS_FILE", os.devnull)
        # Without its bytecode each process that a test starts compiles the whole package: 5 s of processor time.
        patch.delenv("PYTHONDONTWRITEBYTECODE", raising=False)
        yield


@pytest.fixture(scope="session")
def engine_data() -> Iterator[Path]:
    """A folder for engines' data that every user can pass through, removed at the end."""
    folder = Path(tempfile.mkdtemp(prefix="apex-test-"))
    folder.chmod(0o711)
    yield folder
    shutil.rmtree(folder)


@asynccontextmanager
async def running(engine: EngineT) -> AsyncIterator[EngineT]:
    """The engine, started and answering; stopped afterwards."""
    engine.prepare()
    process = Process(child_of(engine), engine.data_dir / "log" / f"{engine.name}.log")
    try:
        await process.until_ready()
        yield engine
    finally:
        await process.stop()


session = pytest_asyncio.fixture(scope="session", loop_scope="session")


@session
async def postgres_url(engine_data: Path) -> AsyncIterator[str]:
    """`postgresql://apex:pw@127.0.0.1:PORT/postgres`, a superuser's."""
    async with running(PostgreSQL(engine_data, free_port(), PASSWORD)) as engine:
        yield engine.url.removesuffix("/apex") + "/postgres"


@session
async def falkordb_url(engine_data: Path) -> AsyncIterator[str]:
    """`falkordb://:pw@127.0.0.1:PORT/apex`."""
    async with running(FalkorDB(engine_data, free_port(), PASSWORD)) as engine:
        yield engine.url


@session
async def valkey_url(engine_data: Path) -> AsyncIterator[str]:
    """`redis://:pw@127.0.0.1:PORT/0`."""
    async with running(Valkey(engine_data, free_port(), PASSWORD)) as engine:
        yield engine.url


@session
async def vectors_url(engine_data: Path) -> AsyncIterator[str]:
    """`edge://:pw@127.0.0.1:PORT`, with `DIMENSION` dimensions."""
    async with running(Edge(engine_data, free_port(), PASSWORD, DIMENSION)) as engine:
        yield engine.url


@session
async def temporal_address(engine_data: Path) -> AsyncIterator[str]:
    """`127.0.0.1:PORT/apex`."""
    async with running(Temporal(engine_data, free_port(), "", free_port())) as engine:
        yield engine.url


@session
async def databases(postgres_url: str) -> Databases:
    """Databases with all migrations, on the server of `postgres_url`."""
    databases = Databases(postgres_url)
    await databases.prepare()
    return databases


@pytest_asyncio.fixture
async def database_url(databases: Databases) -> AsyncIterator[str]:
    """A database with all migrations that no other test uses, whoever is still connected to an earlier one."""
    async with databases.database() as url:
        yield url
