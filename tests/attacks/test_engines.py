"""What another user of the machine reaches of the engines that `apex up` starts: their ports and their folders."""

from __future__ import annotations

import os
import stat
import sys
from pathlib import Path
from urllib.parse import urlsplit

import psycopg
import pytest
import redis.asyncio as redis

from apex_memory.config import Settings
from apex_memory.edge.connection import connect
from apex_memory.engines.selection import embedded_engines
from apex_memory.engines.state import ownership
from apex_memory.errors import Unavailable
from tests.attacks.sockets import beyond_loopback

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


async def test_engines_listen_on_loopback_and_refuse_whoever_has_no_password(
    postgres_url: str, falkordb_url: str, valkey_url: str, vectors_url: str
) -> None:
    urls = (postgres_url, falkordb_url, valkey_url, vectors_url)
    postgres, falkordb, valkey, vectors = (urlsplit(url).port or 0 for url in urls)
    assert not beyond_loopback({postgres, falkordb, valkey, vectors})
    for password in ("", "guess"):
        with pytest.raises(psycopg.OperationalError, match="password"):
            await psycopg.AsyncConnection.connect(
                host="127.0.0.1", port=postgres, user="apex", dbname="postgres", password=password
            )
        for port in (falkordb, valkey):
            async with redis.Redis(port=port, password=password or None) as client:
                with pytest.raises(redis.AuthenticationError):
                    await client.get("x")
        with pytest.raises(Unavailable, match="wrong password"):
            await connect("127.0.0.1", vectors, password)


def test_nobody_else_reads_in_the_data_folder(engine_data: Path) -> None:
    folder = engine_data / "private"
    with ownership(folder):
        engines = embedded_engines(Settings(data_dir=folder), 32)
        for engine in engines:
            engine.prepare()
    assert stat.S_IMODE(folder.stat().st_mode) == 0o711, "others may pass, and list nothing"
    modes = {item.name: stat.S_IMODE(item.stat().st_mode) for item in folder.iterdir()}
    assert {engine.name for engine in engines} <= modes.keys()
    assert modes.pop("postgres") == (0o710 if os.geteuid() == 0 else 0o700)
    assert modes.pop("secrets.json") == 0o600
    assert set(modes.values()) == {0o700}, modes
