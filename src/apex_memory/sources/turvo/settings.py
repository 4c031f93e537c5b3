"""The settings of the source `turvo`."""

from __future__ import annotations

from pydantic import Field, SecretStr

from apex_memory.sources.base import PulledSettings
from apex_memory.sources.signatures import Secret


class TurvoSettings(PulledSettings):
    """`[sources.turvo]`"""

    webhook_tokens: list[Secret] = Field(
        default=[],
        max_length=2,
        description="Auth tokens of Turvo's webhook profile; two while one replaces the other.",
    )
    webhook_header: str = Field(
        "authorization",
        pattern=r"^[A-Za-z0-9_-]+$",
        description="The header in which Turvo sends that token, with or without `Bearer` before it.",
    )
    hmac_keys: list[Secret] = Field(
        default=[],
        max_length=2,
        description="Keys with which a proxy in front signs the body (HMAC-SHA256, hex or base64), if one does; "
        "two while one replaces the other. Demanded besides the token where both are set.",
    )
    hmac_header: str = Field(
        "x-turvo-signature",
        pattern=r"^[A-Za-z0-9_-]+$",
        description="The header with that signature.",
    )
    base_url: str = Field(
        "https://publicapi.turvo.com/v1",
        pattern=r"^https?://[^/]+(/.*)?$",
        description="Turvo's API; the sandbox is `https://my-sandbox-publicapi.turvo.com/v1`.",
    )
    client_id: str = Field("", description="Client id of the tenant's API profile.")
    client_secret: SecretStr = Field(SecretStr(""), description="Client secret of that profile.")
    api_key: SecretStr = Field(SecretStr(""), description="API key of that profile (`x-api-key`).")
    username: str = Field("", description="The user as whom Apex reads.")
    password: SecretStr = Field(SecretStr(""), description="That user's password.")
    listing_seconds: float = Field(
        900, ge=0, description="How often the list of shipments is read for what webhooks missed."
    )
    overlap_seconds: float = Field(
        600,
        ge=0,
        description="How far back of the newest change the next reading looks; clocks may differ by as much.",
    )
    gone_codes: list[str] = Field(
        default=[],
        description="Values of `errorCode` with which your Turvo says that a shipment is not there (any more), "
        "where it answers so with HTTP 200 instead of 404.",
    )
    page_size: int = Field(100, ge=2, le=100, description="Shipments asked for in one page.")
    updated_filter: str = Field(
        "",
        description="Query parameter that limits the list to what changed since a time, such as "
        "`lastUpdatedOn[gte]`, where your Turvo knows one. Empty: the whole list is read and compared.",
    )
