"""Histories with their payloads changed: opened, so that a test can look for words, or sealed."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from typing import Any

from google.protobuf import json_format
from temporalio.api.common.v1 import Payload
from temporalio.client import Client, WorkflowHistory

Change = Callable[[Payload], Awaitable[Any]]


async def readable(client: Client, history: WorkflowHistory) -> str:
    """Return a history as JSON, with the content of each payload as text, opened by this client's codec."""
    codec = client.data_converter.payload_codec
    assert codec is not None

    async def opened(payload: Payload) -> str:
        [content] = await codec.decode([payload])
        return content.data.decode("utf-8", "replace")

    return json.dumps(await with_payloads(json.loads(history.to_json()), opened))


async def with_payloads(value: Any, change: Change) -> Any:
    """Return the JSON of a history with each payload replaced; search attributes, which name their type, are left."""
    if isinstance(value, list):
        return [await with_payloads(item, change) for item in value]
    if not isinstance(value, dict):
        return value
    metadata = value.get("metadata", {})
    if "encoding" in metadata and "type" not in metadata:
        return await change(json_format.ParseDict(value, Payload()))
    return {key: await with_payloads(item, change) for key, item in value.items()}
