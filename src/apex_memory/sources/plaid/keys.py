"""Who signed a webhook of Plaid: its keys, fetched by name and kept, and tokens checked against them."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from time import monotonic
from typing import Any
from uuid import uuid4

import jwt
from aiolimiter import AsyncLimiter
from cryptography.hazmat.primitives.asymmetric import ec

from apex_memory.errors import RetryLater, Unauthorized
from apex_memory.model import micros
from apex_memory.sources.base import InboundRequest
from apex_memory.sources.payloads import as_string
from apex_memory.sources.plaid.api import Plaid

HEADER = "plaid-verification"
KEY_SECONDS = 24 * 3600  # then a key is looked at again: it may have expired
KEY_PATIENCE = 5.0  # seconds to find a key in; Plaid waits 10 for its webhook's answer
UNKNOWN_KEYS = (5, 60)  # at most so many unknown keys are asked for in so many seconds


@dataclass(frozen=True, slots=True)
class Key:
    """A public key that Plaid signs with. `expired_at`: seconds since 1970."""

    public: ec.EllipticCurvePublicKey
    expired_at: float | None = None
    fetched: float = field(default_factory=monotonic)

    @property
    def old(self) -> bool:
        return monotonic() - self.fetched > KEY_SECONDS


class Keys:
    """The keys that Plaid has named so far."""

    def __init__(self) -> None:
        self._known: dict[str, Key] = {}
        self._asking = asyncio.Lock()
        self._unknown = AsyncLimiter(*UNKNOWN_KEYS)
        self._own: tuple[str, ec.EllipticCurvePrivateKey] | None = None

    async def learn(self, request: InboundRequest, plaid: Plaid) -> None:
        """Fetch the key that a webhook names, unless it is known.

        Anybody may name keys, so what is unknown is asked for a few times a minute and no more. Raises
        `RetryLater` when Plaid does not answer in time; it sends the webhook again.
        """
        kid = _kid(request.headers.get(HEADER, ""))
        if kid is None:
            return
        async with self._asking:  # many webhooks of a new key: one of them asks
            known = self._known.get(kid)
            if known is not None and not known.old:
                return
            if known is None:
                if not self._unknown.has_capacity():
                    return
                await self._unknown.acquire()
            try:
                async with asyncio.timeout(KEY_PATIENCE):
                    found = await plaid.key(kid)
            except TimeoutError:
                raise RetryLater(
                    "plaid: its key did not come in time", after=30, remedy="Plaid sends it again"
                ) from None
            self._known.pop(kid, None)
            if found and (key := _read_key(kid, found)):
                self._known[kid] = key

    def signed_at(self, request: InboundRequest, replay_seconds: float) -> datetime:
        """The time at which Plaid signed the body. Raises `Unauthorized`."""
        token = request.headers.get(HEADER, "")
        kid = _kid(token)
        if kid is None:
            raise Unauthorized(
                "Plaid-Verification is no ES256 token",
                remedy="webhooks come from Plaid alone; sources.plaid.base_url names its environment",
            )
        key = self._known.get(kid)
        if key is None:
            raise Unauthorized(
                "Plaid knows no such key, or it was not asked yet",
                remedy="set sources.plaid.client_id, secret and base_url to the environment that sends webhooks",
            )
        if key.expired_at is not None and key.expired_at <= request.received_at.timestamp():
            raise Unauthorized("the key has expired", remedy="Plaid signs with a newer key")
        try:
            # Times are compared with the request's below, not with the clock inside the library.
            claims = jwt.decode(
                token,
                key.public,
                algorithms=["ES256"],
                options={"verify_iat": False, "verify_exp": False, "verify_nbf": False},
            )
        except (jwt.PyJWTError, ValueError, RecursionError):
            raise Unauthorized(
                "Plaid-Verification is not signed by its key", remedy="is this Plaid's webhook?"
            ) from None
        given = as_string(claims.get("request_body_sha256")).encode("utf-8", "replace")
        if not hmac.compare_digest(given, hashlib.sha256(request.body).hexdigest().encode()):
            raise Unauthorized(
                "the body is not the one that was signed",
                remedy="let no proxy rewrite bodies on the way to /hooks/plaid",
            )
        issued = claims.get("iat")
        if isinstance(issued, bool) or not isinstance(issued, int | float):
            raise Unauthorized("the token has no time", remedy="is this Plaid's webhook?")
        late = request.received_at.timestamp() - issued
        if not abs(late) <= replay_seconds:
            raise Unauthorized(
                f"signed {abs(late):.0f} s away from our time",
                remedy="check this machine's clock, or sources.plaid.replay_seconds",
            )
        return datetime.fromtimestamp(int(issued), UTC)

    def sign(self, body: bytes, at: datetime) -> Mapping[str, str]:
        """The header for a body, with a key that only this object knows and trusts."""
        if self._own is None:
            self._own = (f"own-{uuid4()}", ec.generate_private_key(ec.SECP256R1()))
        kid, private = self._own
        self._known[kid] = Key(private.public_key())
        claims = {
            "iat": micros(at) // 1_000_000,
            "request_body_sha256": hashlib.sha256(body).hexdigest(),
        }
        return {HEADER: jwt.encode(claims, private, algorithm="ES256", headers={"kid": kid})}


def _kid(token: str) -> str | None:
    """The key that a token names; None when it is no token of Plaid's kind."""
    if not token.isascii() or len(token) > 4_000:
        return None
    try:
        header = jwt.get_unverified_header(token)
    except (jwt.PyJWTError, ValueError, RecursionError):
        return None
    kid = header.get("kid")
    usual = isinstance(kid, str) and re.fullmatch(r"[\w-]{1,100}", kid, re.ASCII)
    return kid if usual and header.get("alg") == "ES256" else None


def _read_key(kid: str, jwk: Mapping[str, Any]) -> Key | None:
    """The key as Plaid tells it; None when it is another key, or of another kind."""
    wanted = {"kid": kid, "alg": "ES256", "kty": "EC", "crv": "P-256"}
    if any(jwk.get(name) != value for name, value in wanted.items()):
        return None
    try:
        public = jwt.algorithms.ECAlgorithm.from_jwk(dict(jwk))
    except (jwt.PyJWTError, ValueError, TypeError):
        return None
    expired = jwk.get("expired_at")
    if not isinstance(public, ec.EllipticCurvePublicKey):
        return None
    return Key(public, float(expired) if isinstance(expired, int | float) else None)
