"""What vendors' signatures have in common: secrets, digests, comparing them, and the window for the signed time.

What is signed, how it is written and where it stands differ from vendor to vendor, and stay in their files.
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
    """The HMAC of what is signed, as bytes."""
    if isinstance(key, SecretStr):
        key = key.get_secret_value().encode()
    return hmac.digest(key, signed, algorithm)


def signature_matches(wanted: Sequence[bytes], *given: str | bytes) -> bool:
    """Whether one of those given is one of those wanted: of each active secret one, as the vendor writes it."""
    said = [one.encode("utf-8", "replace") if isinstance(one, str) else one for one in given]
    # A list, so that every pair is compared and time tells nothing about which one fits.
    return any([hmac.compare_digest(one, another) for one in said for another in wanted])


def from_base64(text: str) -> bytes:
    """The bytes behind a text; none where it is no base64, which fits nothing."""
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        return b""


def check_time(request: InboundRequest, signed_at: int, source: str, replay_seconds: float) -> None:
    """Refuse, as `Unauthorized`, what was signed (microseconds since 1970) too far from when it came."""
    late = abs(micros(request.received_at) - signed_at) / 1_000_000
    if late > replay_seconds:
        raise Unauthorized(
            f"signed {late:.0f} s away from our time",
            remedy=f"check this machine's clock, or sources.{source}.replay_seconds",
        )
