"""W10 over the API: a document of the last version can be deleted, and integers beyond 64 bits are refused or readable."""

from __future__ import annotations

from collections.abc import AsyncIterator
from uuid import UUID, uuid4

import pytest

from apex_memory.engines.base import free_port
from tests.e2e.conftest import MakeSettings
from tests.e2e.test_api import Api, running_api


@pytest.fixture
async def api(make_settings: MakeSettings) -> AsyncIterator[Api]:
    async with running_api(make_settings(temporal=f"127.0.0.1:{free_port()}/apex")) as api:
        yield api


async def test_w10_the_last_version_can_be_deleted(api: Api) -> None:
    event = await api.land("last", version=2**63 - 1)
    await api.app.direct.drain("documents")
    address = f"/v1/documents/{event['document_id']}"
    assert (await api.get(address)).status_code == 200
    deletion = await api.http.delete(address)
    assert deletion.status_code == 202, deletion.text
    await api.app.direct.drain("documents")
    assert (await api.get(address)).status_code == 404
    assert (await api.http.delete(address)).status_code == 404


async def test_w10_a_deleted_document_of_the_last_version_stays_deleted_when_it_is_replayed(
    api: Api,
) -> None:
    """Documents of the same version are ordered by event id, and each replay gives an event a new id."""
    event = await api.land("last", version=2**63 - 1)
    address = f"/v1/documents/{event['document_id']}"
    await api.app.direct.drain("documents")
    lengths = []
    for n in range(4):
        await _replay(api, n)
        if n == 0:
            assert (await api.get(address)).status_code == 200
            assert (await api.http.delete(address)).status_code == 202
            await api.app.direct.drain("documents")
        assert (await api.get(address)).status_code == 404, f"replay {n} brought it back"
        assert (await api.http.delete(address)).status_code == 404
        rows = await api.app.db.fetch("SELECT max(length(event_id)) AS longest FROM inbox")
        lengths.append(rows[0]["longest"])
    assert lengths[1] == lengths[3], "replays and deletions do not lengthen the ids"


async def _replay(api: Api, n: int) -> None:
    """Replay all of `documents`; the ids of the replays ascend with `n`."""
    id = UUID(f"{n + 1:x}{uuid4().hex[1:]}")
    await api.app.db.execute(
        """INSERT INTO backfills (id, source, kind, since, until, actor)
           VALUES (%s, 'documents', 'replay', now() - interval '1 hour', now() + interval '1 hour', 'test')""",
        (id,),
    )
    while (await api.app.backfills.replay_chunk(id)).more:
        pass
    await api.app.backfills.end(id, "done")
    await api.app.direct.drain("documents")


@pytest.mark.parametrize("number", [2**63, -(2**63) - 1, 10**400], ids=["high", "low", "huge"])
async def test_w10_an_integer_beyond_64_bits_is_refused_at_every_entrance(
    api: Api, number: int
) -> None:
    metadata = {"a": [{"b": number}]}
    chat = {"messages": [{"role": "user", "content": "x"}], "metadata": metadata}
    for path, body in (
        ("/v1/documents", {"text": "x", "metadata": metadata}),
        ("/v1/conversations", chat),
    ):
        refused = await api.post(path, json=body)
        assert refused.status_code == 422, (path, refused.text)
        assert "64 bits" in refused.json()["error"]["message"]


async def test_w10_metadata_that_is_stored_already_can_be_read(api: Api) -> None:
    event = await api.land("old", metadata={"n": 2**63 - 1})
    await api.app.direct.drain("documents")
    await api.app.db.execute(
        "UPDATE manifests SET metadata = jsonb_build_object('n', 1e30::numeric::numeric(40, 0)) WHERE doc_id = %s",
        (event["document_id"],),
    )
    shown = await api.get(f"/v1/documents/{event['document_id']}")
    assert shown.status_code == 200 and shown.json()["metadata"]["n"] == str(10**30)
