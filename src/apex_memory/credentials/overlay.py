"""The credentials of sources: what the settings say, and what the vault holds laid over it."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

from apex_memory.config import Settings
from apex_memory.credentials.vault import Vault
from apex_memory.errors import ApexError, Misconfigured
from apex_memory.sources import registry
from apex_memory.sources.base import Source
from apex_memory.telemetry import logger

FRESH_SECONDS = 1.0  # how soon every process knows a secret that was set


class Credentials:
    def __init__(self, vault: Vault, loaded: Mapping[str, Source], settings: Settings) -> None:
        self._vault = vault
        self._sources = loaded
        self._settings = settings
        self._log = logger(component="secrets")

    async def apply(self) -> None:
        """Lay the vault's values over the settings of each source. Raises `Misconfigured` for one that cannot be right."""
        kept = await self._vault.all(registry.SECRETS)
        for name, source in self._sources.items():
            given = {**self._settings.sources.get(name, {}), **registry.secrets_of(name, kept)}
            source.settings = registry.settings_of(type(source), given)

    async def keep_fresh(self) -> None:
        """For ever: take over, within a second, what is set in the vault. Wrong values are logged and left out."""
        known = None
        while True:
            try:
                if (changed := await self._vault.changed_at()) != known:
                    known = changed
                    await self.apply()
            except ApexError as error:
                self._log.warning("secrets not read", reason=str(error))
            await asyncio.sleep(FRESH_SECONDS)


def secret_keys(settings: Settings) -> list[str]:
    """The texts of the keys that seal secrets: the setting first, then the file's lines."""
    file = settings.secret_key_file or settings.data_dir / "secret.key"
    try:
        lines = file.read_text().splitlines()
    except FileNotFoundError:
        if settings.secret_key_file:
            raise Misconfigured(
                f"secret_key_file: {file} is not there", remedy="make a key with `apex secrets key`"
            ) from None
        lines = []
    return [settings.secret_key.get_secret_value(), *lines]
