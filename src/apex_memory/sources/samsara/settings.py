"""The settings of the source `samsara`."""

from __future__ import annotations

from pydantic import Field, SecretStr

from apex_memory.sources.base import PulledSettings
from apex_memory.sources.signatures import Secret


class SamsaraSettings(PulledSettings):
    """`[sources.samsara]`"""

    api_token: SecretStr = Field(
        SecretStr(""), description="API token that may read vehicle statistics."
    )
    base_url: str = Field(
        "https://api.samsara.com",
        pattern=r"^https?://[^/]+(/.*)?$",
        description="Samsara's API; `https://api.eu.samsara.com` for organisations in Europe.",
    )
    webhook_secrets: list[Secret] = Field(
        default=[],
        max_length=2,
        description="Secret keys of the webhooks, in base64 as Samsara shows them; two while one replaces the other.",
    )
    replay_seconds: float = Field(
        300,
        gt=0,
        description="Seconds that the signed time of a webhook may differ from this machine's clock.",
    )
    oldest_days: float = Field(
        400,
        gt=0,
        le=36500,
        description="Days that a reading may be old; an older one is a dead letter.",
    )
    ahead_days: float = Field(
        1,
        gt=0,
        le=36500,
        description="Days that a reading may be ahead of this machine's clock; one further ahead is a dead letter.",
    )
