"""Moving the vectors from Qdrant Edge to the Qdrant adapter and back, by `apex rebuild vectors`.

The server is the HTTP stand-in of the contract suite over qdrant-client's local mode, not a Qdrant; on the Qdrant that
`APEX_TEST_QDRANT` names the same test runs with `--servers`.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import pytest
from qdrant_client import AsyncQdrantClient

from apex_memory.app import App, open_app
from apex_memory.config import Settings
from tests.e2e.conftest import MakeSettings, land, text_event
from tests.e2e.test_rebuild import fill, incomplete
from tests.qdrant_http import QdrantHttp, check_wire, serving

SERVER = os.environ.get("APEX_TEST_QDRANT", "")
KEY = os.environ.get("APEX_TEST_QDRANT_API_KEY", "")
ON_SERVER = pytest.param("server", marks=pytest.mark.server(address="APEX_TEST_QDRANT"))

pytestmark = [
    pytest.mark.filterwarnings("ignore:Payload indexes have no effect:UserWarning"),
    pytest.mark.filterwarnings("ignore:Local mode performs exact:UserWarning"),
    pytest.mark.filterwarnings("ignore:Api key is used with an insecure connection:UserWarning"),
]


@pytest.fixture(params=["http", ON_SERVER])
async def qdrant(request: pytest.FixtureRequest) -> AsyncIterator[str]:
    """The address of a server, without a collection."""
    async with AsyncExitStack() as stack:
        if request.param == "http":
            server = QdrantHttp()
            stack.callback(check_wire, server.exchanges)
            yield await stack.enter_async_context(serving(server))
        else:
            yield SERVER.rstrip("/")


@asynccontextmanager
async def removed(url: str, collection: str) -> AsyncIterator[None]:
    yield
    if url == SERVER.rstrip("/"):
        client = AsyncQdrantClient(url=url, api_key=KEY or None)
        await client.delete_collection(collection)
        await client.close()


async def best_passage(app: App) -> tuple[str, int]:
    """Return the best passage for a question, and how many there are: the others score alike."""
    result = await app.search.search("SHP-100007 waits at door 7")
    assert result.degraded == []
    return result.hits[0].snippet, len(result.hits)


async def test_vectors_move_to_a_server_and_back(
    make_settings: MakeSettings, own_vectors_url: str, qdrant: str
) -> None:
    collection = f"apex_move_{uuid.uuid4().hex}"
    edge = make_settings(
        vectors=own_vectors_url, qdrant_api_key=KEY, snapshot_seconds=10, grace_seconds=20
    )
    server = edge.model_copy(update={"vectors": f"{qdrant}/{collection}"})
    async with open_app(edge) as app:
        await app.recovery.check_restarted_stores()
        await fill(app, 40)
        before = await best_passage(app)
    async with removed(qdrant, collection):
        async with open_app(server) as app:
            assert len(await incomplete_after_prepare(app)) == 40
            result = await app.search.search("SHP-100007")
            assert (
                "vectors" in result.degraded and result.hits
            )  # by its identifier, from PostgreSQL
            progress = await app.rebuild.run("vectors")
            assert progress.state == "done"
            assert await incomplete(app, "vectors") == []
            await app.recovery.check_restarted_stores()
            assert await best_passage(app) == before
            await land(app, text_event(app, "new", "SHP-100999 came meanwhile.", version=1))
            await app.direct.drain("documents")
        await check_back(edge)


async def incomplete_after_prepare(app: App) -> list[str]:
    await app.recovery.prepare()
    return await incomplete(app, "vectors")


async def check_back(edge: Settings) -> None:
    """With the former URL again, the check at the start brings Edge up to date."""
    async with open_app(edge) as app:
        await app.recovery.check_restarted_stores()
        assert await incomplete(app, "vectors") == []
        result = await app.search.search("SHP-100999")
        assert result.degraded == [] and result.hits[0].snippet == "SHP-100999 came meanwhile."
