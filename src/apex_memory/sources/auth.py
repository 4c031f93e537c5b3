"""What authenticates calls to a vendor: fixed headers, or OAuth tokens that all processes share."""

from __future__ import annotations

import base64
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Protocol

EXPIRY_SECONDS = 60  # a token is renewed this long before it expires


@dataclass(frozen=True, slots=True)
class Token:
    """An OAuth token. It is never logged, and encrypted where it is stored."""

    access: str
    refresh: str = ""
    expires_at: datetime | None = None

    @property
    def ending(self) -> bool:
        return self.expires_at is not None and self.expires_at < datetime.now(UTC) + timedelta(
            seconds=EXPIRY_SECONDS
        )

    def __repr__(self) -> str:
        return f"Token(expires_at={self.expires_at})"


Renew = Callable[[Token | None], Awaitable[Token]]


class Tokens(Protocol):
    """The stored tokens, shared by all processes."""

    async def current(self, name: str) -> Token | None:
        """Return the newest token of this name."""

    async def renewed(self, name: str, spent: Token | None, renew: Renew) -> Token:
        """Return a token newer than `spent`: the stored one if it is newer, else the result of `renew`.

        Holds a lock over all processes and stores the result before releasing it, so that no refresh token is spent
        twice.
        """


class Auth(Protocol):
    """The authentication of a call."""

    async def headers(self) -> Mapping[str, str]: ...

    async def renew(self) -> bool:
        """Renew after a 401. Return whether another attempt has other headers."""


@dataclass(frozen=True, slots=True)
class Fixed:
    """Fixed headers, such as an API token or a key and a secret."""

    values: Mapping[str, str]

    async def headers(self) -> Mapping[str, str]:
        return self.values

    async def renew(self) -> bool:
        return False


def bearer(token: str) -> Fixed:
    """Return bearer authentication with an API token."""
    return Fixed({"Authorization": f"Bearer {token}"})


class OAuth:
    """A bearer token that is stored in `tokens` and renewed when it expires or is refused."""

    def __init__(
        self, tokens: Tokens, name: str, renew: Renew, *, more: Mapping[str, str] | None = None
    ) -> None:
        self._tokens, self._name, self._renew = tokens, name, renew
        self._more = more or {}
        self._used: Token | None = None

    async def headers(self) -> Mapping[str, str]:
        token = await self._tokens.current(self._name)
        if token is None or token.ending:
            token = await self._tokens.renewed(self._name, token, self._renew)
        self._used = token
        return {"Authorization": f"Bearer {token.access}", **self._more}

    async def renew(self) -> bool:
        self._used = await self._tokens.renewed(self._name, self._used, self._renew)
        return True


def basic(user: str, password: str) -> Fixed:
    """Return HTTP basic authentication (RFC 7617)."""
    pair = base64.b64encode(f"{user}:{password}".encode()).decode()
    return Fixed({"Authorization": f"Basic {pair}"})
