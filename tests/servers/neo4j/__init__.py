"""A real Neo4j for the tests: needs Maven and Java 17; its jars are fetched once into `.cache/neo4j`."""

from __future__ import annotations

import fcntl
import shutil
import subprocess
from pathlib import Path
from typing import ClassVar

import neo4j
from neo4j.exceptions import AuthError, Neo4jError, ServiceUnavailable

from apex_memory.engines.base import HOST, Engine, retry_until_ready

HERE = Path(__file__).parent
SERVER = HERE / "Neo4jServer.java"
JARS = HERE.parents[2] / ".cache" / "neo4j" / "lib"
FIRST_PASSWORD = "neo4j"


class Neo4j(Engine):
    """Started like the embedded engines, though it is none."""

    name: ClassVar[str] = "neo4j"
    role: ClassVar[str] = "graph"

    @property
    def url(self) -> str:
        return f"neo4j://neo4j:{self.password}@{HOST}:{self.port}/neo4j"

    def prepare(self) -> None:
        super().prepare()
        fetch_jars()

    def command(self) -> list[str]:
        java = [
            "java",
            "-Xmx512m",
            "-XX:+UseSerialGC",
            "-XX:TieredStopAtLevel=1",
            "-cp",
            f"{JARS}/*",
        ]
        return [*java, str(SERVER), str(self.directory), str(self.port)]

    async def ready(self) -> None:
        await retry_until_ready(self._log_in, ServiceUnavailable, Neo4jError, OSError)

    async def version(self) -> str:
        async with self._driver(self.password) as driver:
            return str((await driver.get_server_info()).agent)

    async def _log_in(self) -> None:
        try:
            async with self._driver(self.password) as driver:
                await driver.execute_query("RETURN 1", database_="neo4j")
        except AuthError:
            async with self._driver(FIRST_PASSWORD) as driver:
                await driver.execute_query(
                    "ALTER CURRENT USER SET PASSWORD FROM $old TO $new",
                    {"old": FIRST_PASSWORD, "new": self.password},
                    database_="system",
                )

    def _driver(self, password: str) -> neo4j.AsyncDriver:
        return neo4j.AsyncGraphDatabase.driver(
            f"bolt://{HOST}:{self.port}",
            auth=("neo4j", password),
            connection_timeout=2,
            max_transaction_retry_time=0,
        )


def fetch_jars() -> None:
    """Once a checkout, about 120 MB; several test runs may ask at the same time."""
    JARS.parent.mkdir(parents=True, exist_ok=True)
    with (JARS.parent / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if JARS.exists():
            return
        draft = JARS.with_name("lib.new")
        shutil.rmtree(draft, ignore_errors=True)
        fetch = ["mvn", "-q", "-B", "dependency:copy-dependencies", f"-DoutputDirectory={draft}"]
        subprocess.run(fetch, cwd=HERE, check=True)
        draft.rename(JARS)
