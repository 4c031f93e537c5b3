"""OAuth tokens in the vault, so that two workers never spend the same refresh token."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from apex_memory.credentials.vault import Vault
from apex_memory.sources.auth import Renew, Token

PREFIX = "token/"


class VaultTokens:
    """`apex_memory.sources.auth.Tokens` over the vault."""

    def __init__(self, vault: Vault) -> None:
        self._vault = vault

    async def current(self, name: str) -> Token | None:
        """Return the newest token under this name."""
        return _token(await self._vault.get(PREFIX + name))

    async def renewed(self, name: str, spent: Token | None, renew: Renew) -> Token:
        """Return a token other than `spent`: one that another process stored, or else what `renew` returns."""

        async def make(stored: Any) -> Any:
            token = _token(stored)
            if token is not None and not token.ending and not _same(token, spent):
                return stored
            return _stored(await renew(token))

        token = _token(await self._vault.change(PREFIX + name, make, actor="token"))
        assert token is not None
        return token


def _same(token: Token, spent: Token | None) -> bool:
    return spent is not None and token.access == spent.access


def _token(stored: Any) -> Token | None:
    """Return the token in a value of the vault."""
    if not stored:
        return None
    expires = stored.get("expires_at")
    return Token(
        stored["access"],
        stored.get("refresh", ""),
        datetime.fromisoformat(expires) if expires else None,
    )


def _stored(token: Token) -> dict[str, str | None]:
    """Return a token as a value of the vault."""
    return {
        "access": token.access,
        "refresh": token.refresh,
        "expires_at": token.expires_at.isoformat() if token.expires_at else None,
    }
