"""The settings of the source `frontapp`."""

from __future__ import annotations

from pydantic import Field, SecretStr

from apex_memory.sources.base import PulledSettings
from apex_memory.sources.signatures import Secret


class FrontAppSettings(PulledSettings):
    """`[sources.frontapp]`"""

    signing_keys: list[Secret] = Field(
        default=[],
        max_length=2,
        description="Signing keys of the Front application; two while one replaces the other.",
    )
    api_secrets: list[Secret] = Field(
        default=[],
        max_length=2,
        description="API secrets of Front's older rule webhooks; two while one replaces the other.",
    )
    replay_seconds: float = Field(
        300,
        gt=0,
        description="Seconds that the signed time of an application webhook may differ from this machine's clock.",
    )
    api_token: SecretStr = Field(
        SecretStr(""),
        description="API token for the poll that fetches what webhooks miss. Without it there is no poll.",
    )
    base_url: str = Field("https://api2.frontapp.com", description="Front's API.")
    requests_per_minute: float = Field(
        40,
        gt=0,
        description="Most calls a minute: Front's plans allow 50, 100 or 200 for a whole company.",
    )
    first_poll_hours: float = Field(
        24, gt=0, description="Hours that the very first poll goes back; use a backfill for more."
    )
