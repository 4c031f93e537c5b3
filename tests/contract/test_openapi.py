"""The OpenAPI document is whole and true: every operation explained, with realistic examples and its refusals."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from pydantic import BaseModel, TypeAdapter, ValidationError

from apex_memory.config import Settings
from apex_memory.gateway import create_app
from apex_memory.gateway.openapi_page import METHODS, example_of, page
from apex_memory.sources import registry

DOCUMENT: dict[str, Any] = create_app(Settings(sources={})).openapi()
OPERATIONS = {
    f"{method} {path}": operation
    for path, item in DOCUMENT["paths"].items()
    for method, operation in item.items()
    if method in METHODS
}
operations = pytest.mark.parametrize("name", OPERATIONS)


@operations
def test_every_operation_is_explained(name: str) -> None:
    operation = OPERATIONS[name]
    assert operation["summary"] and operation["description"]
    assert operation["tags"] and operation["tags"][0] in {tag["name"] for tag in DOCUMENT["tags"]}
    for parameter in operation.get("parameters", ()):
        assert parameter.get("description") or parameter["in"] == "path", parameter["name"]


@operations
def test_every_operation_has_its_refusals(name: str) -> None:
    refusals = {
        status: answer
        for status, answer in OPERATIONS[name]["responses"].items()
        if not status.startswith("2")
    }
    assert any(status.startswith("4") for status in refusals)
    for status, answer in refusals.items():
        media = answer["content"]["application/json"]
        assert media["schema"]["$ref"].endswith("/ErrorResponse"), status
        assert set(media["example"]["error"]) == {"code", "message", "remedy"}
        assert "headers" in answer or status != "503"
    if "{id}" in name and "/v1/" in name:
        assert "404" in refusals


@operations
def test_every_operation_shows_an_example(name: str) -> None:
    operation = OPERATIONS[name]
    answers = [
        item
        for status, item in operation["responses"].items()
        if status.startswith("2") and status != "204"  # which has no body
    ]
    contents = [operation.get("requestBody", {}).get("content", {})]
    contents += [answer["content"] for answer in answers]
    for content in contents:
        for media in content.values():
            assert example_of(DOCUMENT, media) is not None


@operations
def test_every_route_but_the_open_ones_names_its_security(name: str) -> None:
    path = name.partition(" ")[2]
    if path.startswith("/hooks/") or path in ("/healthz", "/readyz", "/metrics"):
        assert "security" not in OPERATIONS[name]
    else:
        assert {next(iter(scheme)) for scheme in OPERATIONS[name]["security"]} == {
            "bearer",
            "header",
        }


OTHER_TYPES: dict[str, tuple[Any, ...]] = {"integer": (True, "5"), "boolean": (0, 1, "true")}
"""JSON values that Python takes for a value of this type, and JSON Schema does not."""


def models(parent: type[BaseModel] = BaseModel) -> Iterator[type[BaseModel]]:
    for model in parent.__subclasses__():
        yield model
        yield from models(model)


def request_models() -> list[type[BaseModel]]:
    """Return the models of JSON bodies, by the names that the document refers to."""
    bodies = [operation.get("requestBody", {}) for operation in OPERATIONS.values()]
    schemas = [
        body["content"].get("application/json", {}).get("schema", {}) for body in bodies if body
    ]
    names = {schema["$ref"].rpartition("/")[2] for schema in schemas if "$ref" in schema}
    ours = [
        model for model in models() if model.__module__.startswith("apex_memory.gateway.routes")
    ]
    return [model for model in ours if model.__name__ in names]


def typed_fields(model: type[BaseModel]) -> Iterator[tuple[str, str]]:
    """Yield the fields of a model that hold an integer or a boolean, or a list of them, and which."""
    for name, schema in model.model_json_schema()["properties"].items():
        for choice in (schema, *schema.get("anyOf", ())):
            kind = choice.get("items", choice).get("type")
            if kind in OTHER_TYPES:
                yield name, kind


REQUEST_FIELDS = sorted(
    {(model, *field) for model in request_models() for field in typed_fields(model)},
    key=lambda row: (row[0].__name__, row[1]),
)


def test_there_are_fields_of_requests_to_check() -> None:
    assert {"share", "shadow", "limit", "ids"} <= {name for _, name, _ in REQUEST_FIELDS}


@pytest.mark.parametrize(("model", "field", "kind"), REQUEST_FIELDS)
def test_a_request_takes_no_other_type(model: type[BaseModel], field: str, kind: str) -> None:
    """`share: false` is no share of 0."""
    for value in OTHER_TYPES[kind]:
        for given in (value, [value]):
            with pytest.raises(ValidationError) as refused:
                model.model_validate({field: given})
            assert field in {
                str(error["loc"][0]) for error in refused.value.errors() if error["loc"]
            }


REQUEST_MODELS = sorted(request_models(), key=lambda model: model.__name__)
MANY = 2_000
MOST_ERRORS = 1_000  # as many as a list may have items; each takes some 50 µs of the event loop


@pytest.mark.parametrize("model", REQUEST_MODELS)
def test_w6_a_request_makes_few_errors_whatever_it_holds(model: type[BaseModel]) -> None:
    """60,000 unknown fields of a search took the event loop 3 s."""
    bodies: list[Any] = [{str(n): n for n in range(MANY)}]
    for name in model.model_fields:
        bodies += [{name: [()] * MANY}, {name: {str(n): n for n in range(MANY)}}]
    for body in bodies:
        try:
            model.model_validate(body)
        except ValidationError as refused:
            assert refused.error_count() <= MOST_ERRORS


def test_every_source_has_its_route_with_the_bodies_of_its_samples() -> None:
    for source in registry.load({}).values():
        body = OPERATIONS[f"post {source.route}"]["requestBody"]
        kinds = {sample.content_type.partition(";")[0] for sample in source.samples()}
        assert body["required"] and set(body["content"]) == kinds


@pytest.mark.parametrize(("name", "schema"), DOCUMENT["components"]["schemas"].items())
def test_examples_of_models_fit_their_models(name: str, schema: dict[str, Any]) -> None:
    # FastAPI leaves nulls out of what it documents.
    nullable = {
        place
        for place, kind in schema.get("properties", {}).items()
        if {"type": "null"} in kind.get("anyOf", ())
    }
    for example in schema.get("examples", ()):
        assert set(example) <= set(schema["properties"]), name
        assert set(schema.get("required", ())) - nullable <= set(example), name


def test_operation_ids_are_unique() -> None:
    ids = [operation["operationId"] for operation in OPERATIONS.values()]
    assert len(ids) == len(set(ids))


def test_the_page_shows_all_of_it() -> None:
    shown = page(DOCUMENT)
    assert shown.count("<details>") == len(OPERATIONS)
    assert "<script" not in shown


def test_the_document_is_json() -> None:
    assert TypeAdapter(dict[str, Any]).dump_json(DOCUMENT)
