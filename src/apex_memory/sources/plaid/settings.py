"""The settings of the source `plaid`."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field, SecretStr

from apex_memory.sources.base import PulledSettings


class PlaidItem(BaseModel):
    """One bank connection of Plaid, which calls it an Item."""

    model_config = ConfigDict(extra="forbid")

    id: str = Field(min_length=1, max_length=200)
    access_token: SecretStr = Field(min_length=1)


class PlaidSettings(PulledSettings):
    """`[sources.plaid]`"""

    client_id: str = Field("", description="Client id, from Plaid's dashboard.")
    secret: SecretStr = Field(SecretStr(""), description="Secret of the environment in `base_url`.")
    items: list[PlaidItem] = Field(
        default=[],
        description="The bank connections to read: `[{id = …, access_token = …}]`, as Plaid Link gave them.",
    )
    base_url: str = Field(
        "https://production.plaid.com",
        description="Plaid's API; `https://sandbox.plaid.com` for its sandbox.",
    )
    history_days: int = Field(
        90,
        ge=1,
        le=730,
        description="Days that an Item's first sync goes back; it cannot be changed afterwards.",
    )
    replay_seconds: float = Field(
        300,
        gt=0,
        description="Seconds that the signed time of a webhook may differ from this machine's clock.",
    )
