"""Credentials of sources: set, list by name, remove. Values are stored encrypted and never returned."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any

from fastapi import APIRouter, Path, Response
from pydantic import BaseModel, BeforeValidator, ConfigDict, SecretStr

from apex_memory.errors import Conflict, Misconfigured, NotFound, Rejected
from apex_memory.gateway.dependencies import Admin, GatewayDep
from apex_memory.gateway.routes.shared import RequestBody, example, problems
from apex_memory.sources.registry import SECRETS, secret_settings, settings_of

_ROW = {
    "name": "source/frontapp/signing_keys",
    "key_id": "4f1c09aa2b7d",
    "changed_by": "k3f9a2",
    "changed_at": "2026-03-03T15:15:00Z",
    "readable": True,
}


class SecretRow(BaseModel):
    """A secret's name. `readable` is false when the encryption key of the secret is missing."""

    model_config = example(_ROW)
    name: str
    key_id: str
    changed_by: str
    changed_at: datetime
    readable: bool


class SecretList(BaseModel):
    model_config = example({"secrets": [_ROW]})
    secrets: list[SecretRow]


class ResealResult(BaseModel):
    """The numbers of secrets and of data keys that are newly encrypted under the first key, and those whose key is not configured.

    `objects` is the number of large payloads in the object store that stay encrypted under another key: keep it.
    """

    model_config = example({"resealed": 3, "data_keys": 2, "unreadable": [], "objects": 0})
    resealed: int
    data_keys: int
    unreadable: list[str]
    objects: int


MOST_VALUES = 100  # of one setting


def _few(value: Any) -> Any:
    """Refuse a long list or table before each of its values is checked."""
    if isinstance(value, list | dict) and len(value) > MOST_VALUES:
        raise ValueError(f"more than {MOST_VALUES} values")
    return value


class SecretValue(RequestBody):
    """The value: text, or a list of texts where the setting is a list (two signing keys during a rotation)."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"value": ["new-key", "old-key"]}]})
    value: Annotated[
        SecretStr | list[SecretStr] | dict[str, SecretStr],
        BeforeValidator(_few),
    ]


Name = Annotated[str, Path(description="The source's name.", examples=["frontapp"], max_length=100)]
Setting = Annotated[
    str,
    Path(
        description="The name of a setting of the source.",
        examples=["signing_keys"],
        max_length=100,
    ),
]


router = APIRouter(tags=["secrets"])


@router.get(
    "/v1/secrets",
    summary="List secrets",
    response_model=SecretList,
    responses=problems(401, 403, 503),
)
async def list_secrets(gateway: GatewayDep, key: Admin) -> dict[str, Any]:
    """List names and times, never values. Tokens that sources renewed automatically are included."""
    return {"secrets": await gateway.app.vault.listed()}


@router.post(
    "/v1/secrets/reseal",
    summary="Encrypt all secrets under the first key",
    response_model=ResealResult,
    responses=problems(401, 403, 409, 503),
)
async def reseal_secrets(gateway: GatewayDep, key: Admin) -> dict[str, Any]:
    """Encrypt every secret under the first key, and every data key of sealed payloads. Safe to repeat.

    Start every process with the new key first, in front of the old one. Large payloads in the object store (`objects`)
    and Temporal's histories stay encrypted as they are: an older key can be removed when none of them needs it.
    """
    try:
        secrets = await gateway.app.vault.reseal(actor=key.id)
        data_keys = await gateway.app.payloads.reseal(actor=key.id)
    except Misconfigured as error:
        raise Conflict(str(error), remedy=error.remedy) from None
    return {
        "resealed": secrets.resealed,
        "data_keys": data_keys.resealed,
        "unreadable": secrets.unreadable + data_keys.unreadable,
        "objects": data_keys.objects,
    }


@router.put(
    "/v1/secrets/{source}/{setting}",
    summary="Set a secret",
    status_code=204,
    response_class=Response,
    responses=problems(400, 401, 403, 404, 409, 413, 422, 503),
)
async def set_secret(
    gateway: GatewayDep, key: Admin, source: Name, setting: Setting, body: SecretValue
) -> None:
    """Set a secret. It takes effect in every process within a second, and takes precedence over the settings file."""
    loaded = gateway.app.sources.get(source)
    if loaded is None:
        raise NotFound(f"{source[:100]}: no such source", remedy="GET /v1/sources lists them")
    kind = type(loaded)
    names = secret_settings(kind)
    if setting not in names:
        raise Rejected(
            f"{source}.{setting[:100]} is not a secret",
            remedy=f"secrets of {source}: {', '.join(names) or 'none'}; set others in the settings file",
        )
    value = _plain(body.value)
    try:
        settings_of(kind, {**gateway.app.settings.sources.get(source, {}), setting: value})
    except Misconfigured as error:
        raise Rejected(
            str(error), remedy=f"see sources.{source}.{setting} in the settings reference"
        ) from None
    try:
        await gateway.app.vault.put(f"{SECRETS}{source}/{setting}", value, actor=key.id)
    except Misconfigured as error:
        raise Conflict(str(error), remedy=error.remedy) from None


@router.delete(
    "/v1/secrets/{source}/{setting}",
    summary="Remove a secret",
    status_code=204,
    response_class=Response,
    responses=problems(401, 403, 404, 422, 503),
)
async def remove_secret(gateway: GatewayDep, key: Admin, source: Name, setting: Setting) -> None:
    """Remove a secret. The value in the settings file takes effect again."""
    if not await gateway.app.vault.remove(f"{SECRETS}{source}/{setting}", actor=key.id):
        raise NotFound(f"{source}.{setting}: not set", remedy="GET /v1/secrets lists them")


def _plain(value: SecretStr | list[SecretStr] | dict[str, SecretStr]) -> Any:
    if isinstance(value, list):
        return [item.get_secret_value() for item in value]
    if isinstance(value, dict):
        return {name: item.get_secret_value() for name, item in value.items()}
    return value.get_secret_value()
