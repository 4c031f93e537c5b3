"""PostgreSQL as a company runs it: a server with a standby that follows it, and an archive of its log."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import psycopg

from apex_memory.engines.base import HOST, free_port
from apex_memory.engines.postgres import PostgreSQL
from apex_memory.engines.process import Process, child_of
from tests.conftest import PASSWORD
from tests.waiting import until


@dataclass
class Server(PostgreSQL):
    """A server with further settings. Its cluster is a copy of that of `source`, taken by `pg_basebackup`, if there is one."""

    source: PostgreSQL | None = None
    options: Mapping[str, str] = field(default_factory=dict)
    copy_options: Sequence[str] = ("--write-recovery-conf", "--wal-method=stream")

    def command(self) -> list[str]:
        command = super().command()
        for name, value in self.options.items():
            command += ["-c", f"{name}={value}"]
        return command

    def _create(self) -> None:
        if self.source is None:
            super()._create()
        else:
            copy_cluster(self, self.source, self._cluster, *self.copy_options)

    @property
    def cluster(self) -> Path:
        """The folder of its data."""
        return self._cluster


def copy_cluster(server: PostgreSQL, source: PostgreSQL, target: Path, *options: str) -> None:
    """Copy the cluster of a running server into a folder that the user of `server` owns."""
    target.mkdir(mode=0o700)
    if server.user is not None:
        os.chown(target, server.user, server.user)
    origin = f"host={HOST} port={source.port} user=apex password={source.password} application_name={server.data_dir.name}"
    run_program(
        server, "pg_basebackup", "--dbname", origin, "--pgdata", str(target), "-c", "fast", *options
    )


def run_program(server: PostgreSQL, program: str, *arguments: str) -> str:
    """Run one of PostgreSQL's programs as the user of a server. Return what it prints."""
    done = subprocess.run(
        [server.binaries / program, *arguments],
        user=server.user,
        group=server.user,
        extra_groups=None if server.user is None else [],
        cwd="/",
        env={"PATH": os.defpath, "HOME": "/"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def shared_folder(path: Path) -> Path:
    """Make a folder that every user may write to, as an archive is that PostgreSQL's user fills."""
    path.mkdir(parents=True)
    path.chmod(0o777)
    return path


@dataclass
class Pair:
    """A primary and its standby, which both run."""

    primary: Server
    standby: Server
    processes: dict[str, Process]

    def url(self, attributes: str, database: str = "apex") -> str:
        """Return the address of both servers, of which clients take the one with these `target_session_attrs`."""
        hosts = f"{HOST}:{self.primary.port},{HOST}:{self.standby.port}"
        return f"postgresql://apex:{PASSWORD}@{hosts}/{database}?target_session_attrs={attributes}"

    async def disconnect(self) -> None:
        """Let the standby receive nothing any more, as when the network between the servers is gone."""
        await statement(self.standby, "ALTER SYSTEM SET primary_conninfo = ''")
        await statement(self.standby, "SELECT pg_reload_conf()")
        await until(self._receives_nothing, "the standby is disconnected")

    async def _receives_nothing(self) -> bool:
        return not await statement(self.primary, "SELECT 1 FROM pg_stat_replication")

    async def kill_primary(self) -> None:
        await self.processes["primary"].kill()

    async def promote(self) -> None:
        """Make the standby the primary, as an operator or a failover manager does."""
        await statement(self.standby, "SELECT pg_promote(wait => true)")


async def statement(
    server: PostgreSQL, query: str, database: str = "apex"
) -> list[tuple[object, ...]]:
    """Run a statement on a server, outside of a transaction. Return its rows."""
    url = server.url.removesuffix("/apex") + f"/{database}"
    async with await psycopg.AsyncConnection.connect(url, autocommit=True) as connection:
        cursor = await connection.execute(query.encode())
        return await cursor.fetchall() if cursor.description else []


@asynccontextmanager
async def running_server(server: Server) -> AsyncIterator[Process]:
    """Start a server, and stop it at the end unless it was killed. Its folder remains."""
    server.data_dir.mkdir(mode=0o711, parents=True, exist_ok=True)
    server.data_dir.chmod(0o711)
    server.prepare()
    process = Process(child_of(server), server.data_dir / "log" / "postgres.log")
    try:
        await process.until_ready()
        yield process
    finally:
        await process.stop()


@asynccontextmanager
async def replicated(folder: Path, *, synchronous: bool) -> AsyncIterator[Pair]:
    """Run a primary and a standby that streams its log; with `synchronous` each commit waits until the standby has it on disk."""
    primary = Server(folder / "primary", free_port(), PASSWORD)
    standby = Server(folder / "standby", free_port(taken=[primary.port]), PASSWORD, source=primary)
    async with running_server(primary) as first, running_server(standby) as second:
        if synchronous:
            await statement(primary, "ALTER SYSTEM SET synchronous_standby_names = 'standby'")
            await statement(primary, "SELECT pg_reload_conf()")
        await until(lambda: _streams(primary, synchronous=synchronous), "the standby streams")
        yield Pair(primary, standby, {"primary": first, "standby": second})
    shutil.rmtree(folder)


async def _streams(primary: Server, *, synchronous: bool) -> bool:
    rows = await statement(primary, "SELECT state, sync_state FROM pg_stat_replication")
    return rows == [("streaming", "sync" if synchronous else "async")]
