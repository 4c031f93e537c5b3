"""What a deletion leaves: former versions for admin keys until the retention ends, then no word of the document anywhere."""

from __future__ import annotations

import asyncio
import uuid
from typing import Any

import httpx2
import psycopg
import pytest
from psycopg import sql

from apex_memory.config import IN_DOCUMENTS
from apex_memory.credentials.api_keys import create_key
from tests.e2e.conftest import MakeSettings, live
from tests.e2e.test_api import Api, client_of, running_api

WORD = "zyxwvut"
PERSON = f"Contact: {WORD} Nguyen, {WORD}@example.com, owes $1,250. Consignee: {WORD} Foods LLC"
OTHER = "PO 445566 is for Harbor Foods LLC."
SOON = 1e-5  # days: a second


async def places(url: str) -> list[str]:
    """Return the columns of all tables that hold the word."""
    found = []
    async with await psycopg.AsyncConnection.connect(url) as connection:
        columns = await connection.execute(
            """SELECT c.table_schema, c.table_name, c.column_name, c.data_type = 'bytea'
               FROM information_schema.columns c JOIN information_schema.tables t USING (table_schema, table_name)
               WHERE t.table_type = 'BASE TABLE' AND c.table_schema NOT IN ('pg_catalog', 'information_schema')"""
        )
        for schema, table, column, is_bytes in await columns.fetchall():
            text = "encode({}, 'escape')" if is_bytes else "{}::text"
            query = sql.SQL("SELECT count(*) FROM {}.{} WHERE " + text + " ILIKE {}").format(
                sql.Identifier(schema),
                sql.Identifier(table),
                sql.Identifier(column),
                f"%{WORD}%",
            )
            row = await (await connection.execute(query)).fetchone()
            if row and row[0]:
                found.append(f"{schema}.{table}.{column}")
    return found


async def with_key(api: Api, scope: str) -> httpx2.AsyncClient:
    key = await create_key(api.app.db, scope, [scope])
    return client_of(api.application, {"x-api-key": key.key})


async def post_broken(api: Api, number: int) -> Any:
    """Land a file that cannot be read; return its event."""
    body = b"%PDF-1.4 " + WORD.encode() + b" broken %d" % number
    answer = await api.post(
        "/v1/documents",
        params={"name": "broken.pdf"},
        content=body,
        headers={"content-type": "application/pdf"},
    )
    return answer.json()["events"][0]


async def delete(api: Api, document: str) -> None:
    assert (await api.http.delete(f"/v1/documents/{document}")).status_code == 202
    await api.app.direct.drain("documents")


async def end_retention(api: Api) -> None:
    settings = api.app.settings
    await asyncio.sleep(settings.grace_seconds + settings.call_timeout_seconds + 1)
    for _ in range(3):  # the stage of a tombstone follows the tombstone
        await api.app.upkeep.sweep()
        await api.app.upkeep.collect()
        await asyncio.sleep(settings.grace_seconds + settings.call_timeout_seconds)


async def test_a_deleted_document_is_read_by_admin_keys_alone(make_settings: MakeSettings) -> None:
    async with running_api(make_settings(temporal="127.0.0.1:1/apex")) as api:
        event = await api.land("person", PERSON, title=f"About {WORD}")
        await api.app.direct.drain("documents")
        document = event["document_id"]
        version = (await api.get(f"/v1/documents/{document}")).json()["versions"][0]["version"]
        paths = (f"/v1/documents/{document}/versions/{version}", f"/v1/events/{event['id']}")
        async with await with_key(api, "read") as reader:
            assert (await reader.get(paths[0])).json()["text"] == PERSON
            assert (await reader.get(paths[1])).json()["title"] == f"About {WORD}"

            await delete(api, document)
            refused = await reader.get(paths[0])
            assert refused.status_code == 404 and "deleted at 20" in refused.text
            assert "admin key" in refused.text
            for path in (*paths, f"/v1/documents/{document}", "/v1/events", "/v1/documents"):
                shown = await reader.get(path)
                assert WORD not in shown.text, path
            assert (await api.get(paths[0])).json()["text"] == PERSON
            assert (await api.get(paths[1])).json()["title"] == f"About {WORD}"

            await api.app.db.execute("DELETE FROM documents")  # as once the tombstone is too old
            assert (await reader.get(paths[0])).status_code == 404
            assert (await reader.get(paths[1])).json()["title"] is None
            assert (await api.get(paths[0])).json()["text"] == PERSON

            await api.land("person", PERSON, title=f"About {WORD}")  # it is sent again
            await api.app.direct.drain("documents")
            assert (await reader.get(paths[0])).json()["text"] == PERSON


@pytest.mark.parametrize("graph", ["postgresql", "falkordb"])
async def test_no_word_of_a_deleted_document_is_left(
    make_settings: MakeSettings, database_url: str, falkordb_url: str, graph: str
) -> None:
    """Nor of a file that could not be read, once its dead letter is closed. What others name stays."""
    settings = make_settings(
        temporal="127.0.0.1:1/apex",
        payload_days=SOON,
        tombstone_days=SOON,
        collect_seconds=86_400,
        call_timeout_seconds=2,
        graph=IN_DOCUMENTS if graph == "postgresql" else f"{falkordb_url}-{uuid.uuid4().hex}",
    )
    async with running_api(settings) as api:
        event = await api.land("person", f"{PERSON}\n{OTHER}")
        await api.land("other", OTHER)
        discarded, still_open = [await post_broken(api, n) for n in range(2)]
        await api.app.direct.drain("documents")
        row = await live(api.app, "person")
        assert row
        refs: list[str] = row["entities"]
        assert any(WORD in ref for ref in refs) and await api.app.graph.known(refs)

        await delete(api, event["document_id"])
        letters = (await api.get("/v1/dead-letters")).json()["dead_letters"]
        letter = {item["event"]: item["id"] for item in letters}[discarded["id"]]
        reason = {"reason": "erasure request"}
        answer = await api.post(f"/v1/dead-letters/{letter}/discard", json=reason)
        assert answer.status_code == 200, answer.text
        await end_retention(api)

        known = await api.app.graph.known(refs)
        assert known and not [ref for ref in known if WORD in ref]
        assert set(known) == set((await live(api.app, "other") or {})["entities"])
        assert (await api.get(f"/v1/events/{discarded['id']}/payload")).status_code == 404
        assert (await api.get(f"/v1/events/{still_open['id']}/payload")).status_code == 200
        assert await places(database_url) == ["public.payloads.body"], "of the open dead letter"
        await api.app.db.execute("UPDATE dead_letters SET status = 'discarded'")
        await api.app.upkeep.collect()
        assert await places(database_url) == []
