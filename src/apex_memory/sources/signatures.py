"""The common parts of vendors' signatures: secrets, digests, their comparison, and the window for the signed time.

The signed bytes, their encoding and their header differ from vendor to vendor and are in the vendors' packages.
"""

from __future__ import annotations

import base64
import binascii
import hmac
from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import Field, SecretStr

from apex_memory.errors import Unauthorized
from apex_memory.model import micros
from apex_memory.sources.base import InboundRequest

Secret = Annotated[SecretStr, Field(min_length=1)]  # an empty secret would make forging easy


def digest(
    key: SecretStr | bytes, signed: bytes, algorithm: Literal["sha1", "sha256"] = "sha256"
) -> bytes:
    """Return the HMAC of the signed bytes."""
    if isinstance(key, SecretStr):
        key = key.get_secret_value().encode()
    return hmac.digest(key, signed, algorithm)


def signature_matches(expected: Sequence[bytes], *given: str | bytes) -> bool:
    """Return whether a given signature equals an expected one, of which each active secret has one.

    Takes the same time whichever pair matches: all are compared, each in constant time.
    """
    matches = False
    for signature in given:
        value = signature.encode("utf-8", "replace") if isinstance(signature, str) else signature
        for candidate in expected:
            matches |= hmac.compare_digest(value, candidate)
    return matches


def from_base64(text: str) -> bytes:
    """Decode base64. Return no bytes for other text, which match no signature."""
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        return b""


def check_time(request: InboundRequest, signed_at: int, source: str, replay_seconds: float) -> None:
    """Raise `Unauthorized` for a request that was signed (microseconds since 1970) too long before or after its arrival."""
    difference = abs(micros(request.received_at) - signed_at) / 1_000_000
    if difference > replay_seconds:
        raise Unauthorized(
            f"signed {difference:.0f} s away from this machine's time",
            remedy=f"check this machine's clock, or sources.{source}.replay_seconds",
        )
