"""A body of a megabyte of JSON costs about as much as any other: one error is enough to refuse it."""

from __future__ import annotations

import importlib
import pkgutil
import tracemalloc
from collections.abc import Iterator, Mapping
from typing import Any

import pytest
from pydantic import BaseModel, ValidationError

from apex_memory import sources
from apex_memory.errors import Rejected
from apex_memory.gateway import ingest
from apex_memory.mcp.tools import Arguments
from apex_memory.model import now
from apex_memory.sources import payloads
from apex_memory.sources.base import InboundRequest, Source, SourceSettings
from apex_memory.sources.documents.source import Documents
from apex_memory.sources.llm.source import LLM
from apex_memory.sources.payloads import parse_json
from apex_memory.sources.plaid.settings import PlaidItem

ONES = b"[" + b"1," * 100_000 + b"1]"
NODES = b",".join(b'"%d":1' % n for n in range(50_000))
MOST_MEMORY = 30_000_000  # bytes; before, the errors of such a body took 150 to 300 MB


def models() -> list[type[BaseModel]]:
    """Return the models of what callers send: those of all sources but for settings, and of all tools."""
    for module in pkgutil.walk_packages(sources.__path__, f"{sources.__name__}."):
        importlib.import_module(module.name)
    found: list[type[BaseModel]] = []
    open_: list[type[BaseModel]] = [BaseModel]
    while open_:
        subclasses = open_.pop().__subclasses__()
        open_ += subclasses
        found += [
            model
            for model in subclasses
            if model.__module__.startswith(f"{sources.__name__}.") or issubclass(model, Arguments)
        ]
    return [
        model
        for model in dict.fromkeys(found)
        if not issubclass(model, SourceSettings) and model is not PlaidItem
    ]


def schemas(schema: Any) -> Iterator[Mapping[str, Any]]:
    """Yield every part of a schema of pydantic."""
    open_ = [schema]
    while open_:
        value = open_.pop()
        if isinstance(value, dict):
            if isinstance(value.get("type"), str):
                yield value
            open_ += value.values()
        elif isinstance(value, list | tuple):
            open_ += value


def test_lists_of_foreign_input_end_at_the_first_wrong_item() -> None:
    names = {model.__name__ for model in models()}
    assert names >= {"_Chat", "_Message", "_Claude", "_ChatGPT", "Fields", "Post", "SearchMemory"}
    for model in models():
        for schema in schemas(model.__pydantic_core_schema__):
            place = f"{model.__module__}.{model.__name__}"
            if schema["type"] in ("list", "set", "tuple", "frozenset"):
                assert schema.get("fail_fast"), place
            if schema["type"] == "dict":
                assert schema.get("values_schema", {}).get("type", "any") == "any", (
                    f"{place}: an object has no end at the first error, so check its values one by one"
                )


def test_unknown_fields_of_foreign_input_are_one_error() -> None:
    unknown = {str(n): n for n in range(1_000)}
    for model in models():
        if model.model_config.get("extra") == "forbid":
            with pytest.raises(ValidationError) as refused:
                model.model_validate(unknown)
            forbidden = [
                error for error in refused.value.errors() if error["type"] == "extra_forbidden"
            ]
            assert [error["loc"] for error in forbidden] == [("0",)], model.__name__


@pytest.mark.parametrize(
    ("source", "body", "place"),
    [
        (LLM, b'{"messages":%s}' % ONES, "messages[0]"),
        (LLM, b'{"messages":[{"role":"user","content":%s}]}' % ONES, "messages[0].content"),
        (LLM, b'{"system":%s,"messages":[]}' % ONES, "system"),
        (LLM, b'{"chat_messages":%s}' % ONES, "chat_messages[0]"),
        (LLM, b'{"mapping":{%s}}' % NODES, "mapping.0"),
        (Documents, b'{"text":"a","entities":%s}' % ONES, "entities[0]"),
        (Documents, b'{"text":"a",%s}' % NODES, "0"),
    ],
)
def test_a_body_of_wrong_values_costs_one_error(
    source: type[Source[Any]], body: bytes, place: str
) -> None:
    reader = source(source.Settings())
    request = InboundRequest(body, {"content-type": "application/json"}, {}, now(), "key")
    tracemalloc.start()
    try:
        with pytest.raises(Rejected) as refused:
            reader.receive(request)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert str(refused.value).startswith(f"{place}: ")
    assert peak < MOST_MEMORY


def test_the_values_of_a_body_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(payloads, "MAX_VALUES", 1_000)
    for text in (b"[" + b"1," * 1_001 + b"1]", b"[" + b"[]," * 501 + b"1]"):
        with pytest.raises(Rejected, match="body: more than 1,000 values"):
            parse_json(text)
    with pytest.raises(Rejected, match="not JSON"):
        parse_json(b'"' + b'\\"' * 100_000)


def test_commas_and_brackets_in_texts_are_no_values(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(payloads, "MAX_VALUES", 1_000)
    text = ',[{"\\,' * 10_000
    assert parse_json(payloads.canonical({"text": text, text: [1, 2]}))["text"] == text


def test_a_large_conversation_export_is_within_the_bound() -> None:
    # A message of an export as ChatGPT writes it, with one word of text.
    message = {
        "id": "b0000000-0000-4000-8000-000000000001",
        "author": {"role": "user", "name": None, "metadata": {}},
        "create_time": 1772550900.123,
        "update_time": None,
        "content": {"content_type": "text", "parts": ["Hi"]},
        "status": "finished_successfully",
        "end_turn": None,
        "weight": 1.0,
        "metadata": {"selected_github_repos": [], "serialization_metadata": {}},
        "recipient": "all",
        "channel": None,
    }
    node = payloads.canonical({"id": message["id"], "message": message, "parent": "", "children": ["x"]})  # fmt: skip
    per_byte = payloads._separators(node) / len(node)
    assert per_byte * LLM.max_body_bytes < payloads.MAX_VALUES


def test_bodies_that_take_the_event_loop_long_are_read_in_a_thread() -> None:
    assert ingest.THREAD_BYTES <= 16_000
