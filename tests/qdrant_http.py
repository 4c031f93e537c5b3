"""The server side of Qdrant's HTTP API, as far as the adapter uses it, over qdrant-client's local mode. It is not a Qdrant.

What it gives is the wire: paths, methods, parameters and bodies as the adapter's client sends them, checked against the
models that qdrant-client has from Qdrant's OpenAPI document, with no other field allowed. It records them, and
`check_wire` compares them with the document itself where `APEX_TEST_QDRANT_OPENAPI` names it
(`docs/redoc/master/openapi.json` of Qdrant's repository).
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from pydantic import BaseModel, TypeAdapter, ValidationError
from qdrant_client import AsyncQdrantClient, models

from tests.waiting import until

Answer = Any
OPENAPI = os.environ.get("APEX_TEST_QDRANT_OPENAPI", "")


@dataclass(frozen=True, slots=True)
class Exchange:
    """A request and its response. `route` is the path with `{collection_name}`, as in the OpenAPI document."""

    method: str
    route: str
    query: dict[str, str]
    body: Any
    status: int
    answer: Any


@dataclass
class QdrantHttp:
    """A server without a port: the application, and what it holds and has seen."""

    memory: AsyncQdrantClient = field(default_factory=lambda: AsyncQdrantClient(":memory:"))
    exchanges: list[Exchange] = field(default_factory=list)
    created: dict[str, dict[str, Any]] = field(default_factory=dict)
    aliases: dict[str, str] = field(default_factory=dict)
    started: str = field(default_factory=lambda: str(uuid.uuid4()))
    api_key: str = ""

    def application(self) -> FastAPI:
        app = FastAPI()
        collection = "/collections/{collection_name}"
        handlers: dict[tuple[str, str], Callable[[str, Request, Any], Awaitable[Answer]]] = {
            ("GET", "/"): self._version,
            ("GET", "/telemetry"): self._telemetry,
            ("GET", "/aliases"): self._aliases,
            ("POST", "/collections/aliases"): self._change_aliases,
            ("GET", f"{collection}/exists"): self._exists,
            ("GET", collection): self._collection,
            ("PUT", collection): self._create,
            ("DELETE", collection): self._drop,
            ("PUT", f"{collection}/index"): self._index,
            ("PUT", f"{collection}/points"): self._upsert,
            ("POST", f"{collection}/points/delete"): self._delete,
            ("POST", f"{collection}/points/query/batch"): self._query,
            ("POST", f"{collection}/points/scroll"): self._scroll,
            ("POST", f"{collection}/points/count"): self._count,
        }
        for (method, route), handler in handlers.items():
            app.add_api_route(
                route, self._recorded(method, route, handler), methods=[method], name=route
            )
        return app

    def _recorded(
        self, method: str, route: str, handler: Callable[[str, Request, Any], Awaitable[Answer]]
    ) -> Callable[[Request], Awaitable[JSONResponse]]:
        async def handle(request: Request) -> JSONResponse:
            text = await request.body()
            body = json.loads(text) if text else None
            status, answer = await self._answer(handler, request, body)
            query = dict(request.query_params)
            self.exchanges.append(Exchange(method, route, query, body, status, answer))
            return JSONResponse(answer, status_code=status)

        return handle

    async def _answer(
        self,
        handler: Callable[[str, Request, Any], Awaitable[Answer]],
        request: Request,
        body: Any,
    ) -> tuple[int, Any]:
        if self.api_key and request.headers.get("api-key") != self.api_key:
            return _error(401, "Must provide an API key or an Authorization bearer token")
        name = request.path_params.get("collection_name", "")
        try:
            answer = await handler(self.aliases.get(name, name), request, body)
        except ValidationError as error:
            return _error(400, f"Format error in JSON body: {error}")
        except KeyError as error:
            return _error(404, f"Not found: Collection {error} doesn't exist!")
        except FileExistsError as error:
            return _error(409, str(error))
        if handler == self._version:
            return 200, answer
        return 200, {"result": _plain(answer), "status": "ok", "time": 0.001, "usage": None}

    async def _version(self, name: str, request: Request, body: Any) -> Answer:
        return {"title": "qdrant - vector search engine", "version": "1.19.0", "commit": None}

    async def _telemetry(self, name: str, request: Request, body: Any) -> Answer:
        app = {"name": "qdrant", "version": "1.19.0", "startup": "2026-01-01T00:00:00Z"}
        return {
            "id": self.started,
            "app": app,
            "collections": {"number_of_collections": len(self.created)},
        }

    async def _aliases(self, name: str, request: Request, body: Any) -> Answer:
        pairs = [{"alias_name": a, "collection_name": c} for a, c in self.aliases.items()]
        return {"aliases": pairs}

    async def _change_aliases(self, name: str, request: Request, body: Any) -> Answer:
        for action in _read(models.ChangeAliasesOperation, body).actions:
            if isinstance(action, models.CreateAliasOperation):
                made = action.create_alias
                self._require(made.collection_name)
                self.aliases[made.alias_name] = made.collection_name
            elif isinstance(action, models.DeleteAliasOperation):
                self.aliases.pop(action.delete_alias.alias_name, None)
        return True

    async def _exists(self, name: str, request: Request, body: Any) -> Answer:
        return {"exists": name in self.created}

    async def _collection(self, name: str, request: Request, body: Any) -> Answer:
        self._require(name)
        shown = _plain(await self.memory.get_collection(name))
        kept = {
            key: value
            for key, value in self.created[name].items()
            if value is not None and key in models.CollectionParams.model_fields
        }
        shown["config"]["params"] |= kept
        return shown

    async def _create(self, name: str, request: Request, body: Any) -> Answer:
        order = _read(models.CreateCollection, body)
        if name in self.created:
            raise FileExistsError(f"Wrong input: Collection `{name}` already exists!")
        await self.memory.create_collection(
            name, vectors_config=order.vectors, sparse_vectors_config=order.sparse_vectors
        )
        self.created[name] = body
        return True

    async def _drop(self, name: str, request: Request, body: Any) -> Answer:
        self.created.pop(name, None)
        return await self.memory.delete_collection(name)

    async def _index(self, name: str, request: Request, body: Any) -> Answer:
        self._require(name)
        order = _read(models.CreateFieldIndex, body)
        await self.memory.create_payload_index(name, order.field_name, order.field_schema)
        return _done(request)

    async def _upsert(self, name: str, request: Request, body: Any) -> Answer:
        self._require(name)
        order = _read(models.PointsList, body)
        await self.memory.upsert(name, order.points)
        return _done(request)

    async def _delete(self, name: str, request: Request, body: Any) -> Answer:
        self._require(name)
        await self.memory.delete(name, _read(models.FilterSelector, body))
        return _done(request)

    async def _query(self, name: str, request: Request, body: Any) -> Answer:
        self._require(name)
        order = _read(models.QueryRequestBatch, body)
        return await self.memory.query_batch_points(name, order.searches)

    async def _scroll(self, name: str, request: Request, body: Any) -> Answer:
        self._require(name)
        order = _read(models.ScrollRequest, body)
        points, following = await self.memory.scroll(
            name,
            scroll_filter=order.filter,
            limit=order.limit or 10,
            offset=order.offset,
            with_payload=order.with_payload if order.with_payload is not None else True,
            with_vectors=bool(order.with_vector),
        )
        return {"points": _plain(points), "next_page_offset": following}

    async def _count(self, name: str, request: Request, body: Any) -> Answer:
        self._require(name)
        order = _read(models.CountRequest, body)
        return await self.memory.count(name, order.filter, exact=bool(order.exact))

    def _require(self, name: str) -> None:
        if name not in self.created:
            raise KeyError(name)


def _read(model: type[BaseModel], body: Any) -> Any:
    """Return a body as its model, which allows no field that Qdrant does not know."""
    return TypeAdapter(model).validate_python(body)


def _done(request: Request) -> Answer:
    waited = request.query_params.get("wait") == "true"
    return {"operation_id": 1, "status": "completed" if waited else "acknowledged"}


def _plain(value: Any) -> Any:
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json", exclude_none=True)
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return value


def _error(status: int, message: str) -> tuple[int, Any]:
    return status, {"status": {"error": message}, "time": 0.001}


@asynccontextmanager
async def serving(server: QdrantHttp) -> AsyncIterator[str]:
    """Serve on loopback, in this event loop. Yield the address."""
    config = uvicorn.Config(
        server.application(), ws="none", lifespan="off", log_config=None, access_log=False
    )
    runner = uvicorn.Server(config)
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP) as bound:
        bound.bind(("127.0.0.1", 0))
        task = asyncio.create_task(runner._serve([bound]))
        try:
            await until(lambda: runner.started or task.done(), "it listens")
            yield f"http://127.0.0.1:{bound.getsockname()[1]}"
        finally:
            runner.should_exit = True
            await task


def check_wire(exchanges: Sequence[Exchange]) -> None:
    """Fail for a request or a response that Qdrant's OpenAPI document does not allow. Does nothing without the document."""
    if not OPENAPI:
        return
    for exchange in exchanges:
        operation = _document()["paths"][exchange.route][exchange.method.lower()]
        known = {p["name"]: p for p in operation.get("parameters", ()) if p["in"] == "query"}
        assert exchange.query.keys() <= known.keys(), (exchange.route, exchange.query)
        for name, value in exchange.query.items():
            _check(known[name]["schema"], _parameter(value), exchange, name)
        if exchange.body is not None:
            content = operation["requestBody"]["content"]["application/json"]
            _check(content["schema"], exchange.body, exchange, "body")
        responses = operation["responses"]
        response = responses.get(str(exchange.status)) or responses["4XX"]
        schema = response["content"]["application/json"]["schema"]
        _check(schema, exchange.answer, exchange, "response")


def _check(schema: Any, value: Any, exchange: Exchange, part: str) -> None:
    whole = {**schema, "components": _document()["components"]}
    errors = list(jsonschema.Draft202012Validator(whole).iter_errors(value))
    assert not errors, f"{exchange.method} {exchange.route} {part}: {errors[0].message[:500]}"


def _parameter(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


@cache
def _document() -> Any:
    return _with_null(json.loads(Path(OPENAPI).read_text(encoding="utf-8")))


def _with_null(value: Any) -> Any:
    """Return the document with OpenAPI 3.0's `nullable` as JSON Schema says it."""
    if isinstance(value, list):
        return [_with_null(item) for item in value]
    if not isinstance(value, dict):
        return value
    rest = {key: _with_null(item) for key, item in value.items() if key != "nullable"}
    if value.get("nullable") is not True:
        return rest
    return {"anyOf": [rest, {"type": "null"}]} if rest else {"type": "null"}
