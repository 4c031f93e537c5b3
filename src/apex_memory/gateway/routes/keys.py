"""API keys: create, list, revoke."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Path
from pydantic import BaseModel, ConfigDict, Field

from apex_memory.credentials import api_keys as keys
from apex_memory.gateway.dependencies import Admin, AnyKey, GatewayDep
from apex_memory.gateway.routes.shared import RequestBody, example, problems

Scope = Literal["ingest", "read", "admin"]
_KEY: dict[str, Any] = {
    "id": "4f0c9a1be27d",
    "name": "support agent",
    "scopes": ["read"],
    "created_at": "2026-03-01T08:00:00Z",
    "used_at": "2026-03-03T15:15:00Z",
    "revoked_at": None,
}


class KeyRequest(RequestBody):
    """The key to create. `admin` includes the other scopes."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"name": "support agent", "scopes": ["read"]}]},
    )
    name: str = Field(min_length=1, max_length=100, pattern=r"^[^\x00-\x1f]+$")
    scopes: list[Scope] = Field(min_length=1, max_length=3)


class CreatedKey(BaseModel):
    """The new key. `key` is shown only in this response: only its digest is stored."""

    model_config = ConfigDict(
        from_attributes=True,
        json_schema_extra={
            "examples": [
                {
                    "id": "4f0c9a1be27d",
                    "name": "support agent",
                    "scopes": ["read"],
                    "key": "apex_4f0c9a1be27d_…",
                }
            ]
        },
    )
    id: str
    name: str
    scopes: list[Scope]
    key: str


class ApiKey(BaseModel):
    """A key without its secret. `used_at` is accurate to a minute."""

    model_config = example(_KEY)
    id: str
    name: str
    scopes: list[Scope]
    created_at: datetime
    used_at: datetime | None
    revoked_at: datetime | None


class OwnKey(BaseModel):
    """The key of the request, without its secret. The scope `admin` includes the others."""

    model_config = example({"id": "4f0c9a1be27d", "name": "support agent", "scopes": ["read"]})
    id: str
    name: str
    scopes: list[Scope]


class ApiKeyList(BaseModel):
    """All keys, newest first, with revoked ones."""

    model_config = example({"keys": [_KEY]})
    keys: list[ApiKey]


router = APIRouter(tags=["keys"])


@router.get(
    "/v1/keys",
    summary="List API keys",
    response_model=ApiKeyList,
    responses=problems(401, 403, 503),
)
async def list_keys(gateway: GatewayDep, key: Admin) -> dict[str, Any]:
    """List all keys, revoked ones too, with the time of their last use."""
    return {"keys": await keys.list_keys(gateway.app.db)}


@router.get(
    "/v1/keys/own",
    summary="Show the API key of this request",
    response_model=OwnKey,
    responses=problems(401, 503),
)
async def show_own_key(key: AnyKey) -> dict[str, Any]:
    """Show name and scopes of the key with which this request is sent: any key may ask what it may do."""
    return {"id": key.id, "name": key.name, "scopes": sorted(key.scopes)}


@router.post(
    "/v1/keys",
    status_code=201,
    summary="Create an API key",
    response_model=CreatedKey,
    responses=problems(400, 401, 403, 413, 422, 503),
)
async def create_key(gateway: GatewayDep, key: Admin, body: KeyRequest) -> keys.NewKey:
    """Create a key. Only this response contains it."""
    created = await keys.create_key(gateway.app.db, body.name, body.scopes, actor=key.actor)
    gateway.keys.expire()
    return created


@router.delete(
    "/v1/keys/{id}",
    summary="Revoke an API key",
    response_model=ApiKey,
    responses=problems(401, 403, 404, 409, 422, 503),
)
async def revoke_key(
    gateway: GatewayDep,
    key: Admin,
    id: Annotated[
        str, Path(max_length=100, description="The key's id.", examples=["4f0c9a1be27d"])
    ],
) -> keys.StoredKey:
    """Revoke a key: at once on this gateway, within seconds on others. The last admin key cannot be revoked."""
    revoked = await keys.revoke_key(gateway.app.db, id, actor=key.actor)
    gateway.keys.expire()
    return revoked
