"""An opened App over real engines, with the hashing embedder; each test has a database and a graph of its own."""

from __future__ import annotations

import json
import tempfile
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from apex_memory.app import App, open_app
from apex_memory.config import IN_DOCUMENTS, Settings
from apex_memory.engines.base import free_port
from apex_memory.engines.edge import Edge
from apex_memory.model import TOMBSTONE, Event, LandResult, micros, now
from apex_memory.sealing import new_key
from apex_memory.sources.base import InboundRequest
from tests.conftest import PASSWORD, running

HASHING_DIMENSION = 256

MakeSettings = Callable[..., Settings]


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def hashing_vectors_url(engine_data: Path) -> AsyncIterator[str]:
    """A vector process for the hashing embedder, shared by the tests: stage ids keep them apart."""
    folder = Path(tempfile.mkdtemp(dir=engine_data))  # other folders' tests make one of their own
    async with running(Edge(folder, free_port(), PASSWORD, HASHING_DIMENSION)) as engine:
        yield engine.url


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def own_vectors_url(engine_data: Path) -> AsyncIterator[str]:
    """A vector process for the tests of one module, where it matters which other points it holds.

    Of the shared one a search may be degraded: behind many points of other tests there may be more hits.
    """
    folder = Path(tempfile.mkdtemp(dir=engine_data))
    async with running(Edge(folder, free_port(), PASSWORD, HASHING_DIMENSION)) as engine:
        yield engine.url


@pytest.fixture
def make_settings(
    database_url: str, valkey_url: str, hashing_vectors_url: str, tmp_path: Path
) -> MakeSettings:
    """Settings over the test engines; keyword arguments override. All of a test are of one installation, with one key."""
    key = new_key()

    def make(**overrides: Any) -> Settings:
        given: dict[str, Any] = {
            "documents": database_url,
            "graph": IN_DOCUMENTS,
            "vectors": hashing_vectors_url,
            "cache": valkey_url,
            "embedder": "hashing",
            "secret_key": key,
            "data_dir": tmp_path,
            "retry_attempts": 2,
            "retry_seconds": 0.02,
            "call_timeout_seconds": 5,
            "breaker_open_seconds": 0.3,
            "snapshot_seconds": 0.5,
            "grace_seconds": 0.6,
            "sources": {"frontapp": {"signing_keys": ["test_signing_key"]}},
        }
        return Settings(**{**given, **overrides})

    return make


@pytest.fixture
async def app(make_settings: MakeSettings) -> AsyncIterator[App]:
    async with open_app(make_settings()) as app:
        await app.recovery.check_restarted_stores()  # as the worker does at its start
        yield app


def text_event(
    app: App,
    key: str,
    text: str,
    *,
    version: int | None = None,
    event_id: str | None = None,
    **fields: Any,
) -> Event:
    """Return the event that `POST /v1/documents` makes of a text, with a chosen version and idempotency key."""
    number = micros(now()) if version is None else version
    body = {"key": key, "text": text, "version": number, **fields}
    request = InboundRequest(
        body=dumps(body),
        headers={
            "content-type": "application/json",
            "idempotency-key": event_id or f"{key}@{number}",
        },
        query={},
        received_at=now(),
    )
    return app.sources["documents"].receive(request).events[0]


def delete_event(of: Event, *, version: int) -> Event:
    """A delete of the document that an event made, as the API lands it."""
    return Event(
        source=of.source,
        event_id=f"delete:{of.doc_key}@{version}",
        doc_key=of.doc_key,
        version=version,
        occurred_at=now(),
        payload=b"",
        content_type=TOMBSTONE,
    )


async def land(app: App, *events: Event) -> list[LandResult]:
    return await app.inbox.land(events)


async def state(app: App, landed: LandResult) -> str:
    row = await app.db.fetch_one("SELECT state FROM inbox WHERE id = %s", (landed.id,))
    assert row
    return str(row["state"])


async def live(app: App, key: str) -> dict[str, Any] | None:
    """Return the live document with this key, with its text; None when there is none, or it is deleted."""
    return await app.db.fetch_one(
        """SELECT d.*, m.text FROM documents d JOIN manifests m ON m.id = d.manifest_id
           WHERE d.doc_key = %s AND NOT d.deleted""",
        (key,),
    )


def dumps(value: Any) -> bytes:
    return json.dumps(value).encode()
