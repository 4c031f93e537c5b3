"""API keys: made, listed, revoked."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Path
from pydantic import BaseModel, ConfigDict, Field

from apex_memory.credentials import api_keys as keys
from apex_memory.gateway.dependencies import Admin, GatewayDep
from apex_memory.gateway.routes.shared import example, problems

Scope = Literal["ingest", "read", "admin"]
_KEY: dict[str, Any] = {
    "id": "4f0c9a1be27d",
    "name": "support agent",
    "scopes": ["read"],
    "created_at": "2026-03-01T08:00:00Z",
    "used_at": "2026-03-03T15:15:00Z",
    "revoked_at": None,
}


class KeyOrder(BaseModel):
    """The key to make. `admin` implies the other scopes."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={"examples": [{"name": "support agent", "scopes": ["read"]}]},
    )
    name: str = Field(min_length=1, max_length=100, pattern=r"^[^\x00-\x1f]+$")
    scopes: list[Scope] = Field(min_length=1, max_length=3)


class MadeKey(BaseModel):
    """The new key. `key` is shown this once and kept nowhere."""

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


class KeyRow(BaseModel):
    """A key, without what could be presented. `used_at` is exact to a minute."""

    model_config = example(_KEY)
    id: str
    name: str
    scopes: list[Scope]
    created_at: datetime
    used_at: datetime | None
    revoked_at: datetime | None


class KeyRows(BaseModel):
    """All keys ever made, newest first."""

    model_config = example({"keys": [_KEY]})
    keys: list[KeyRow]


def routes() -> APIRouter:
    router = APIRouter(tags=["keys"])
    router.add_api_route(
        "/v1/keys",
        list_keys,
        summary="List API keys",
        response_model=KeyRows,
        responses=problems(401, 403, 503),
    )
    router.add_api_route(
        "/v1/keys",
        create_key,
        methods=["POST"],
        status_code=201,
        summary="Make an API key",
        response_model=MadeKey,
        responses=problems(400, 401, 403, 413, 422, 503),
    )
    router.add_api_route(
        "/v1/keys/{id}",
        revoke_key,
        methods=["DELETE"],
        summary="Revoke an API key",
        response_model=KeyRow,
        responses=problems(401, 403, 404, 409, 422, 503),
    )
    return router


async def list_keys(gateway: GatewayDep, key: Admin) -> dict[str, Any]:
    """Also those revoked, with when they were last used."""
    return {"keys": await keys.list_keys(gateway.app.db)}


async def create_key(gateway: GatewayDep, key: Admin, order: KeyOrder) -> keys.NewKey:
    """The answer shows the key; nothing can show it again."""
    made = await keys.create_key(gateway.app.db, order.name, order.scopes, actor=key.actor)
    gateway.keys.expire()
    return made


async def revoke_key(
    gateway: GatewayDep,
    key: Admin,
    id: Annotated[
        str, Path(max_length=100, description="From the list.", examples=["4f0c9a1be27d"])
    ],
) -> dict[str, Any]:
    """At once on this gateway, within seconds on every other. The last admin key is refused."""
    row = await keys.revoke_key(gateway.app.db, id, actor=key.actor)
    gateway.keys.expire()
    return row
