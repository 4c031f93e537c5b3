"""The credentials of sources: their settings from file and environment, overlaid by what the vault holds."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

from apex_memory.config import Settings
from apex_memory.credentials.vault import Vault
from apex_memory.errors import ApexError
from apex_memory.sources import registry
from apex_memory.sources.base import Source
from apex_memory.telemetry import logger

FRESH_SECONDS = 1.0  # how soon every process uses a secret that was set


class Credentials:
    def __init__(self, vault: Vault, loaded: Mapping[str, Source], settings: Settings) -> None:
        self._vault = vault
        self._sources = loaded
        self._settings = settings
        self._log = logger(component="secrets")

    async def apply(self) -> None:
        """Overlay the settings of each source with the vault's values. Raises `Misconfigured` for an invalid one."""
        stored = await self._vault.all(registry.SECRETS)
        for name, source in self._sources.items():
            kind = type(source)
            given = {**self._settings.sources.get(name, {}), **registry.secrets_of(kind, stored)}
            source.settings = registry.settings_of(kind, given)

    async def keep_fresh(self) -> None:
        """Run for ever: apply what changes in the vault within a second. Invalid values are logged and ignored."""
        applied = None
        while True:
            try:
                revision = await self._vault.revision()
                if revision != applied:
                    applied = revision
                    await self.apply()
            except ApexError as error:
                self._log.warning("secrets not applied", reason=str(error))
            await asyncio.sleep(FRESH_SECONDS)
