"""What `[sources.quickbooks]` may hold."""

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
        description="A refresh token a company, in the order of `realm_ids`, as the application got it when the company was connected. Later ones are kept in PostgreSQL.",
    )
    verifier_tokens: list[Secret] = Field(
        default=[],
        max_length=2,
        description="Verifier tokens of the application's webhooks; two while one replaces the other.",
    )
    entities: list[Annotated[str, Field(pattern=r"^[A-Z][A-Za-z]{1,39}$")]] = Field(
        default=["Invoice", "Payment", "Bill", "Customer", "Vendor"],
        min_length=1,
        description="Kinds of records to hold, as QuickBooks' API spells them.",
    )
    overlap_seconds: float = Field(
        600,
        ge=0,
        description="How far before the last answer's time the next changes are asked for.",
    )
    base_url: str = Field(
        "https://quickbooks.api.intuit.com",
        pattern=r"^https?://[^/]+(/.*)?$",
        description="QuickBooks' API; `https://sandbox-quickbooks.api.intuit.com` for a sandbox.",
    )
    token_url: str = Field(
        "https://oauth.platform.intuit.com/oauth2/v1/tokens/bearer",
        pattern=r"^https?://[^/]+(/.*)?$",
        description="Where Intuit gives out tokens.",
    )

    def companies(self) -> dict[str, str]:
        """The first refresh token by realm."""
        tokens = [token.get_secret_value() for token in self.refresh_tokens]
        return dict(zip(self.realm_ids, tokens, strict=False))
