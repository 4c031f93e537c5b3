"""The settings of the source `sonar`."""

from __future__ import annotations

from datetime import date
from typing import Annotated

from pydantic import Field, SecretStr, field_validator

from apex_memory.sources.base import PulledSettings
from apex_memory.sources.signatures import Secret, from_base64

Series = Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]+/[A-Za-z0-9_.-]+$")]
FIRST_DAYS = 30  # fetched for a new series


class SonarSettings(PulledSettings):
    """`[sources.sonar]`"""

    relay_secrets: list[Secret] = Field(
        default=[],
        max_length=2,
        description="Secrets of the relay, `whsec_…` as Standard Webhooks writes them; two while one replaces the other.",
    )
    replay_seconds: float = Field(
        300,
        gt=0,
        description="Seconds that the signed time of a relay's message may differ from this machine's clock.",
    )
    base_url: str = Field(
        "https://api.freightwaves.com",
        pattern=r"^https?://[^/]+(/.*)?$",
        description="SONAR's API.",
    )
    username: str = Field("", description="User of the SONAR API.")
    password: SecretStr = Field(SecretStr(""), description="That user's password.")
    series: list[Series] = Field(
        default=[],
        description="The series to poll, as INDEX/QUALIFIER: `OTRI/USA`, `OTVI/ATL`, `VOTRI/ATLDAL`. One billed call each.",
    )
    since: date | None = Field(
        None,
        description=f"First day fetched for a new series; {FIRST_DAYS} days back when it is not set.",
    )
    reread_days: int = Field(
        7, ge=0, le=366, description="Days read again each time, because values are restated."
    )
    block_seconds: float = Field(
        600,
        gt=0,
        le=86_400,
        description="Seconds without any call after SONAR refused one (429, 451).",
    )

    @field_validator("relay_secrets")
    @classmethod
    def _readable(cls, secrets: list[SecretStr]) -> list[SecretStr]:
        for secret in secrets:
            relay_key(secret)
        return secrets


def relay_key(secret: SecretStr) -> bytes:
    """Return the bytes of a relay secret: base64 after `whsec_`; any other text as it is (Standard Webhooks).

    Raises `ValueError` for other text after `whsec_`.
    """
    text = secret.get_secret_value()
    if not text.startswith("whsec_"):
        return text.encode()
    coded = text.removeprefix("whsec_")
    key = from_base64(coded + "=" * (-len(coded) % 4))
    if not key:
        raise ValueError("expected base64 after whsec_")
    return key
