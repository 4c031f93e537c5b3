"""Verification of Plaid's webhooks: keys fetched by their id and kept, and tokens verified with them."""

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
KEY_SECONDS = 24 * 3600  # after which a key is fetched again: it may have expired
KEY_PATIENCE = 5.0  # seconds to fetch a key; Plaid waits 10 for the response to its webhook
ABSENT_SECONDS = 60.0  # for which a key that Plaid does not know is not fetched again
MOST_ABSENT = 1_000  # such key ids that are remembered
UNKNOWN_KEYS = (5, 60)  # most unknown keys to fetch, in so many seconds


@dataclass(frozen=True, slots=True)
class VerificationKey:
    """A public key that Plaid signs with. `expired_at`: seconds since 1970."""

    public: ec.EllipticCurvePublicKey
    expired_at: float | None = None
    fetched: float = field(default_factory=monotonic)

    @property
    def old(self) -> bool:
        return monotonic() - self.fetched > KEY_SECONDS


class Keys:
    """The keys known so far."""

    def __init__(self) -> None:
        self._known: dict[str, VerificationKey] = {}
        self._fetching: dict[str, asyncio.Task[None]] = {}
        self._absent: dict[str, float] = {}  # by key id, the time when Plaid did not know it
        self._unknown = AsyncLimiter(*UNKNOWN_KEYS)
        self._own: tuple[str, ec.EllipticCurvePrivateKey] | None = None

    async def learn(self, request: InboundRequest, plaid: Plaid) -> None:
        """Fetch the key that a webhook names, unless it is known.

        Anybody may name keys in a request, so only a few unknown ones per minute are fetched, and one that Plaid does
        not know is not fetched again for a minute. Each key is fetched apart: a webhook never waits for the key of
        another one. Raises `RetryLater` when Plaid does not respond in time, or when too many unknown keys were named:
        a genuine webhook among them is sent again.
        """
        kid = _kid(request.headers.get(HEADER, ""))
        if kid is None:
            return
        known = self._known.get(kid)
        if known is not None and not known.old:
            return
        fetch = self._fetching.get(kid)
        if fetch is None:
            if known is None and not await self._may_fetch(kid):
                return
            fetch = asyncio.create_task(self._fetch(kid, plaid), name="plaid key")
            self._fetching[kid] = fetch
            fetch.add_done_callback(lambda done: self._forget_fetch(kid, done))
        # Shielded: of many webhooks with a new key one fetches it, and may be gone before the others.
        await asyncio.shield(fetch)

    async def _may_fetch(self, kid: str) -> bool:
        """Return whether an unknown key is worth fetching, and count it. Raises `RetryLater` when none may be fetched now."""
        if monotonic() - self._absent.get(kid, float("-inf")) < ABSENT_SECONDS:
            return False
        if not self._unknown.has_capacity():
            raise RetryLater(
                "plaid: too many webhooks name unknown keys",
                after=ABSENT_SECONDS,
                remedy="Plaid sends a genuine one again; if this goes on, somebody forges webhooks",
            )
        await self._unknown.acquire()
        return True

    async def _fetch(self, kid: str, plaid: Plaid) -> None:
        try:
            async with asyncio.timeout(KEY_PATIENCE):
                jwk = await plaid.key(kid)
        except TimeoutError:
            raise RetryLater(
                "plaid: the key did not arrive in time", after=30, remedy="Plaid sends it again"
            ) from None
        self._known.pop(kid, None)
        if jwk and (key := _read_key(kid, jwk)):
            self._known[kid] = key
            return
        if len(self._absent) >= MOST_ABSENT:
            self._absent.clear()
        self._absent[kid] = monotonic()

    def _forget_fetch(self, kid: str, done: asyncio.Task[None]) -> None:
        self._fetching.pop(kid, None)
        if not done.cancelled():
            done.exception()  # marked as seen: whoever waited has it, and all of them may be gone

    def signed_at(self, request: InboundRequest, replay_seconds: float) -> datetime:
        """Return the time at which Plaid signed the body. Raises `Unauthorized` for a request that Plaid did not sign."""
        token = request.headers.get(HEADER, "")
        kid = _kid(token)
        if kid is None:
            raise Unauthorized(
                "Plaid-Verification is not an ES256 token",
                remedy="check that the request comes from Plaid",
            )
        key = self._known.get(kid)
        if key is None:
            raise Unauthorized(
                "the key of this webhook is unknown, or was not fetched yet",
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
                "Plaid-Verification is not signed by its key",
                remedy="check that the request comes from Plaid",
            ) from None
        given = as_string(claims.get("request_body_sha256")).encode("utf-8", "replace")
        if not hmac.compare_digest(given, hashlib.sha256(request.body).hexdigest().encode()):
            raise Unauthorized(
                "the body is not the one that was signed",
                remedy="no proxy may change bodies on the way to /hooks/plaid",
            )
        issued = claims.get("iat")
        # Compared before any arithmetic: an integer may be too large for a float.
        if (
            isinstance(issued, bool)
            or not isinstance(issued, int | float)
            or not abs(issued) < 2**53
        ):
            raise Unauthorized(
                "the token has no time", remedy="check that the request comes from Plaid"
            )
        difference = request.received_at.timestamp() - issued
        if not abs(difference) <= replay_seconds:
            raise Unauthorized(
                f"signed {abs(difference):.0f} s away from this machine's time",
                remedy="check this machine's clock, or sources.plaid.replay_seconds",
            )
        return datetime.fromtimestamp(int(issued), UTC)

    def sign(self, body: bytes, at: datetime) -> Mapping[str, str]:
        """Return the header for a body, signed with a key that only this object knows and accepts."""
        if self._own is None:
            self._own = (f"own-{uuid4()}", ec.generate_private_key(ec.SECP256R1()))
        kid, private = self._own
        self._known[kid] = VerificationKey(private.public_key())
        claims = {
            "iat": micros(at) // 1_000_000,
            "request_body_sha256": hashlib.sha256(body).hexdigest(),
        }
        return {HEADER: jwt.encode(claims, private, algorithm="ES256", headers={"kid": kid})}


def _kid(token: str) -> str | None:
    """Return the key id of a token, None when it is not a token of Plaid's form."""
    if not token.isascii() or len(token) > 4_000:
        return None
    try:
        header = jwt.get_unverified_header(token)
    except (jwt.PyJWTError, ValueError, RecursionError):
        return None
    kid = header.get("kid")
    usual = isinstance(kid, str) and re.fullmatch(r"[\w-]{1,100}", kid, re.ASCII)
    return kid if usual and header.get("alg") == "ES256" else None


def _read_key(kid: str, jwk: Mapping[str, Any]) -> VerificationKey | None:
    """Return the key of a JSON Web VerificationKey, None for another key or another type."""
    expected = {"kid": kid, "alg": "ES256", "kty": "EC", "crv": "P-256"}
    if any(jwk.get(name) != value for name, value in expected.items()):
        return None
    try:
        public = jwt.algorithms.ECAlgorithm.from_jwk(dict(jwk))
    except (jwt.PyJWTError, ValueError, TypeError):
        return None
    expired = jwk.get("expired_at")
    if not isinstance(public, ec.EllipticCurvePublicKey):
        return None
    if not isinstance(expired, int | float) or abs(expired) > 2**53:
        return VerificationKey(public)
    return VerificationKey(public, float(expired))
