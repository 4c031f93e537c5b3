"""Credentials of sources: set, listed by name, removed. Values are sealed, and never come out again."""

from __future__ import annotations

from dataclasses import asdict
from datetime import datetime
from typing import Annotated, Any

from fastapi import APIRouter, Path, Response
from pydantic import BaseModel, ConfigDict, SecretStr

from apex_memory.errors import Conflict, Misconfigured, NotFound, Rejected
from apex_memory.gateway.dependencies import Admin, GatewayDep
from apex_memory.gateway.routes.shared import example, problems
from apex_memory.sources.registry import SECRETS, settings_of

_ROW = {
    "name": "source/frontapp/signing_keys",
    "key_id": "4f1c09aa2b7d",
    "changed_by": "k3f9a2",
    "changed_at": "2026-03-03T15:15:00Z",
    "readable": True,
}


class SecretRow(BaseModel):
    """A secret's name; `readable` is false when the key that sealed it is not here."""

    model_config = example(_ROW)
    name: str
    key_id: str
    changed_by: str
    changed_at: datetime
    readable: bool


class SecretList(BaseModel):
    model_config = example({"secrets": [_ROW]})
    secrets: list[SecretRow]


class Resealed(BaseModel):
    """How many secrets are under the first key now that were not, and those whose key is not configured."""

    model_config = example({"resealed": 3, "unreadable": []})
    resealed: int
    unreadable: list[str]


class SecretValue(BaseModel):
    """The value: text, or a list of texts where the setting is a list (two signing keys while one replaces the other)."""

    model_config = ConfigDict(
        extra="forbid", json_schema_extra={"examples": [{"value": ["new-key", "old-key"]}]}
    )
    value: SecretStr | list[SecretStr] | dict[str, SecretStr]


Name = Annotated[str, Path(description="Source.", examples=["frontapp"], max_length=100)]
Setting = Annotated[
    str, Path(description="Setting of the source.", examples=["signing_keys"], max_length=100)
]


def routes() -> APIRouter:
    router = APIRouter(tags=["secrets"])
    router.add_api_route(
        "/v1/secrets",
        list_secrets,
        methods=["GET"],
        summary="List secrets",
        response_model=SecretList,
        responses=problems(401, 403, 503),
    )
    router.add_api_route(
        "/v1/secrets/reseal",
        reseal_secrets,
        methods=["POST"],
        summary="Reseal all secrets under the first key",
        response_model=Resealed,
        responses=problems(401, 403, 409, 503),
    )
    router.add_api_route(
        "/v1/secrets/{source}/{setting}",
        set_secret,
        methods=["PUT"],
        summary="Set a secret",
        status_code=204,
        response_class=Response,
        responses=problems(400, 401, 403, 404, 409, 413, 422, 503),
    )
    router.add_api_route(
        "/v1/secrets/{source}/{setting}",
        remove_secret,
        methods=["DELETE"],
        summary="Remove a secret",
        status_code=204,
        response_class=Response,
        responses=problems(401, 403, 404, 422, 503),
    )
    return router


async def list_secrets(gateway: GatewayDep, key: Admin) -> dict[str, Any]:
    """Names and times, never values. Tokens that sources renewed by themselves are among them."""
    return {"secrets": [asdict(row) for row in await gateway.app.vault.listed()]}


async def reseal_secrets(gateway: GatewayDep, key: Admin) -> dict[str, Any]:
    """Seal every secret under the first key, so that older keys can be removed. Safe to repeat.

    Start every process with the new key first, in front of the old one.
    """
    try:
        return asdict(await gateway.app.vault.reseal(actor=key.id))
    except Misconfigured as error:
        raise Conflict(str(error), remedy=error.remedy) from None


async def set_secret(
    gateway: GatewayDep, key: Admin, source: Name, setting: Setting, given: SecretValue
) -> None:
    """Holds in every process within a second, without a restart; it goes before the settings file."""
    loaded = gateway.app.sources.get(source)
    if loaded is None:
        raise NotFound(f"{source[:100]}: no such source", remedy="GET /v1/sources lists them")
    if setting not in loaded.Settings.model_fields:
        known = ", ".join(loaded.Settings.model_fields)
        raise Rejected(f"{source}.{setting[:100]}: no such setting", remedy=f"known: {known}")
    value = _plain(given.value)
    try:
        settings_of(type(loaded), {**gateway.app.settings.sources.get(source, {}), setting: value})
    except Misconfigured as error:
        raise Rejected(
            str(error), remedy=f"see sources.{source}.{setting} in the settings reference"
        ) from None
    try:
        await gateway.app.vault.put(f"{SECRETS}{source}/{setting}", value, actor=key.id)
    except Misconfigured as error:
        raise Conflict(str(error), remedy=error.remedy) from None


async def remove_secret(gateway: GatewayDep, key: Admin, source: Name, setting: Setting) -> None:
    """What the settings file says holds again."""
    if not await gateway.app.vault.remove(f"{SECRETS}{source}/{setting}", actor=key.id):
        raise NotFound(f"{source}.{setting}: not set here", remedy="GET /v1/secrets lists them")


def _plain(value: SecretStr | list[SecretStr] | dict[str, SecretStr]) -> Any:
    if isinstance(value, list):
        return [one.get_secret_value() for one in value]
    if isinstance(value, dict):
        return {name: one.get_secret_value() for name, one in value.items()}
    return value.get_secret_value()
