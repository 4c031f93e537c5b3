"""Every operation of the API with every kind of credential."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Iterator
from uuid import uuid4

import pytest

from apex_memory.credentials.api_keys import SCOPES, create_key, revoke_key
from tests.e2e.conftest import MakeSettings
from tests.e2e.test_api import Api, client_of, running_api

OPEN = {"/healthz", "/readyz", "/metrics"}  # metrics: to this machine without a key, else to admins
INGEST = {"POST /v1/documents", "POST /v1/conversations", "POST /v1/edi"}
# A POST that changes nothing of the memory.
READING_POSTS = {
    "POST /v1/search",
    "POST /v1/documents/newest",
    "POST /v1/events/states",
    "POST /v1/hello",
}
ADMIN_READS = {"GET /v1/keys", "GET /v1/secrets", "GET /v1/events/{id}/payload"}


ANY_KEY = {"GET /v1/keys/own"}  # what a key may do, it may know


def scope_of(operation: str) -> str | None:
    """Return the scope that an operation must require: what reads is for readers, what changes something for admins."""
    if operation in ANY_KEY:
        return None
    if operation in INGEST:
        return "ingest"
    if operation in READING_POSTS or (
        operation.startswith("GET ") and operation not in ADMIN_READS
    ):
        return "read"
    return "admin"


def operations(api: Api) -> Iterator[tuple[str, str]]:
    """Operation, and its path with some id in it, of all that takes a key."""
    for path, item in api.application.openapi()["paths"].items():
        if path in OPEN or path.startswith("/hooks/"):
            continue
        id = "1" if "dead-letters" in path else str(uuid4())
        place = path.replace("{id}", id).replace("{store}", "graph")
        for method in item:
            yield f"{method.upper()} {path}", re.sub(r"\{\w+\}", "1", place)


@pytest.fixture
async def api(make_settings: MakeSettings) -> AsyncIterator[Api]:
    async with running_api(make_settings(temporal="127.0.0.1:1/apex")) as api:
        yield api


async def test_each_scope_opens_its_operations_and_no_others(api: Api) -> None:
    keys = {scope: await create_key(api.app.db, scope, [scope]) for scope in SCOPES}
    revoked = await create_key(api.app.db, "revoked", ["admin"])
    await revoke_key(api.app.db, revoked.id, actor="test")
    refused = {
        "none": "",
        "another word": "secret",
        "revoked": revoked.key,
        "the right id": f"apex_{keys['admin'].id}_{'x' * 43}",
        "a digest": f"apex_{keys['admin'].id}_{'0' * 64}",
    }
    every = list(operations(api))
    assert len(every) >= 40
    async with client_of(api.application) as http:
        for operation, place in every:
            method = operation.partition(" ")[0]
            for kind, key in refused.items():
                answer = await http.request(method, place, json={}, headers={"x-api-key": key})
                assert answer.status_code == 401, (operation, kind)
            for scope, key_of_scope in keys.items():
                headers = {"x-api-key": key_of_scope.key}
                if scope_of(operation) in (None, scope) or scope == "admin":
                    continue
                answer = await http.request(method, place, json={}, headers=headers)
                assert answer.status_code == 403, (operation, scope, answer.text)
            required = scope_of(operation)
            for scope in dict.fromkeys(SCOPES if required is None else (required, "admin")):
                headers = {"x-api-key": keys[scope].key}
                answer = await http.request(method, place, json={}, headers=headers)
                assert answer.status_code not in (401, 403), (operation, answer.text)
