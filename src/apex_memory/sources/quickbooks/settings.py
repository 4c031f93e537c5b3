"""The settings of the source `quickbooks`."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, SecretStr

from apex_memory.sources.base import PulledSettings
from apex_memory.sources.signatures import Secret


class QuickBooksSettings(PulledSettings):
    """`[sources.quickbooks]`"""

    client_id: str = Field("", description="Client id of the Intuit application.")
    client_secret: SecretStr = Field(
        SecretStr(""), description="Client secret of the Intuit application."
    )
    realm_ids: list[Annotated[str, Field(pattern=r"^[0-9]{1,30}$")]] = Field(
        default=[], description="Ids of the QuickBooks companies (realms) to read."
    )
    refresh_tokens: list[Secret] = Field(
        default=[],
        description="A refresh token for each company, in the order of `realm_ids`, as the application got it when the company was connected. Newer ones are stored in PostgreSQL.",
    )
    verifier_tokens: list[Secret] = Field(
        default=[],
        max_length=2,
        description="Verifier tokens of the application's webhooks; two while one replaces the other.",
    )
    entities: list[Annotated[str, Field(pattern=r"^[A-Z][A-Za-z]{1,39}$")]] = Field(
        default=["Invoice", "Payment", "Bill", "Customer", "Vendor"],
        min_length=1,
        description="Kinds of records to keep, as QuickBooks' API spells them.",
    )
    overlap_seconds: float = Field(
        600,
        ge=0,
        description="Seconds before the time of the last response from which the next changes are fetched.",
    )
    base_url: str = Field(
        "https://quickbooks.api.intuit.com",
        pattern=r"^https?://[^/]+(/.*)?$",
        description="QuickBooks' API; `https://sandbox-quickbooks.api.intuit.com` for a sandbox.",
    )
    token_url: str = Field(
        "https://oauth.platform.intuit.com/oauth2/v1/tokens/bearer",
        pattern=r"^https?://[^/]+(/.*)?$",
        description="Intuit's address for tokens.",
    )

    def companies(self) -> dict[str, str]:
        """Return each company's refresh token of the settings by realm."""
        tokens = [token.get_secret_value() for token in self.refresh_tokens]
        return dict(zip(self.realm_ids, tokens, strict=False))
