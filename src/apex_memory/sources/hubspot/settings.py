"""The settings of the source `hubspot`."""

from __future__ import annotations

from typing import Literal
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from pydantic import Field, SecretStr, field_validator

from apex_memory.sources.base import PulledSettings
from apex_memory.sources.signatures import Secret


class HubSpotSettings(PulledSettings):
    """`[sources.hubspot]`"""

    access_token: SecretStr = Field(
        SecretStr(""), description="Access token of a HubSpot private app that may read the CRM."
    )
    base_url: str = Field(
        "https://api.hubapi.com", pattern=r"^https?://[^/]+(/.*)?$", description="HubSpot's API."
    )
    objects: list[Literal["companies", "contacts", "deals"]] = Field(
        default=["companies", "contacts", "deals"],
        min_length=1,
        description="Types of objects to keep.",
    )
    properties: list[str] = Field(
        default=[],
        description="Internal names of further properties to fetch, such as custom ones (`scac`, `mc_number`).",
    )
    client_secrets: list[Secret] = Field(
        default=[],
        max_length=2,
        description="Client secrets of the app that sends webhooks; two while one replaces the other.",
    )
    public_url: str = Field(
        "http://127.0.0.1:8460/hooks/hubspot",
        description="The webhook's URL exactly as entered in HubSpot, query and all: it is part of what HubSpot signs.",
    )
    legacy_signatures: bool = Field(
        default=False,
        description="Accept webhooks of older apps too, whose signatures (v1, v2) have no time and so may be replayed.",
    )
    replay_seconds: float = Field(
        300,
        gt=0,
        description="Seconds that the time of a webhook's signature may differ from this machine's clock.",
    )
    portal_id: int = Field(
        0, ge=0, description="HubSpot account whose webhooks are accepted; 0: any that is signed."
    )
    overlap_seconds: float = Field(
        600,
        ge=0,
        description="Seconds before the newest change seen at which a poll begins: HubSpot's search shows changes late.",
    )
    archived_seconds: float = Field(
        3600,
        ge=0,
        description="Seconds between two listings of the recycling bin, for deletes without a webhook.",
    )
    time_zone: str = Field(
        "UTC",
        description="Time zone of the HubSpot account: its daily limit ends at midnight there.",
    )

    @field_validator("time_zone")
    @classmethod
    def _known_zone(cls, value: str) -> str:
        try:
            ZoneInfo(value)
        except (ZoneInfoNotFoundError, ValueError, OSError):
            raise ValueError("unknown time zone: expected a name like America/Chicago") from None
        return value
