"""OAuth tokens in the vault, so that two workers never spend the same refresh token."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from apex_memory.credentials.vault import Vault
from apex_memory.sources.auth import Renew, Token

PREFIX = "token/"


class VaultTokens:
    """`apex_memory.sources.Tokens` over the vault."""

    def __init__(self, vault: Vault) -> None:
        self._vault = vault

    async def current(self, name: str) -> Token | None:
        return _token(await self._vault.get(PREFIX + name))

    async def renewed(self, name: str, spent: Token | None, renew: Renew) -> Token:
        async def make(stored: Any) -> Any:
            token = _token(stored)
            if (
                token is not None
                and not token.ending
                and (spent is None or token.access != spent.access)
            ):
                return stored  # another process was faster
            return _stored(await renew(token))

        token = _token(await self._vault.change(PREFIX + name, make, actor="token"))
        assert token is not None
        return token


def _token(stored: Any) -> Token | None:
    if not stored:
        return None
    expires = stored.get("expires_at")
    return Token(
        stored["access"],
        stored.get("refresh", ""),
        datetime.fromisoformat(expires) if expires else None,
    )


def _stored(token: Token) -> dict[str, str | None]:
    return {
        "access": token.access,
        "refresh": token.refresh,
        "expires_at": token.expires_at.isoformat() if token.expires_at else None,
    }
