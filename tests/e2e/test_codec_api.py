"""`/codec`: who may open payloads, what Temporal's command line makes of it, and which web page may read an answer."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncIterator
from typing import Any

import httpx2
import pytest
import pytest_asyncio
from google.protobuf import json_format
from temporalio.api.common.v1 import Payload

from apex_memory.engines.temporal import ISOLATED, _program
from apex_memory.flows.temporal.codec import ENCODING, SealingCodec
from apex_memory.gateway.codec_session import Sessions
from apex_memory.sealing import Keyring, new_key, read_keys
from tests.e2e.conftest import MakeSettings
from tests.e2e.serving import Served, serving_gateway

WORDS = "words that no operator of Temporal reads"
UI = "http://127.0.0.1:8233"


@pytest_asyncio.fixture
async def served(make_settings: MakeSettings, temporal_address: str) -> AsyncIterator[Served]:
    settings = make_settings(temporal=temporal_address, temporal_ui=f"{UI}/")
    async with serving_gateway(settings) as served:
        yield served


async def sealed_body(served: Served) -> dict[str, Any]:
    """Return the body of a request to open one payload of this gateway."""
    converter = served.api.gateway.temporal.data_converter
    [payload] = await converter.encode([WORDS])
    assert payload.metadata["encoding"] == ENCODING
    return {"payloads": [json_format.MessageToDict(payload)]}


def content_of(answer: httpx2.Response) -> bytes:
    assert answer.status_code == 200, answer.text
    return base64.b64decode(answer.json()["payloads"][0]["data"])


async def decode(http: httpx2.AsyncClient, body: dict[str, Any], **headers: str) -> httpx2.Response:
    """Ask as the UI does, with its query."""
    return await http.post("/codec/decode?preserveStorageRefs=true", json=body, headers=headers)


async def test_an_admin_key_opens_and_seals_payloads(served: Served) -> None:
    http = served.api.http
    body = await sealed_body(served)
    answer = await decode(http, body)
    assert content_of(answer) == json.dumps(WORDS).encode()
    assert answer.headers["cache-control"] == "no-store"
    again = await http.post("/codec/encode", json=answer.json())
    assert WORDS.encode() not in content_of(again)
    assert content_of(await decode(http, again.json())) == json.dumps(WORDS).encode()


@pytest.mark.parametrize("path", ["/codec/decode", "/codec/encode"])
async def test_without_an_admin_key_nothing_is_opened_or_sealed(served: Served, path: str) -> None:
    body = await sealed_body(served)
    read = await served.key("read", "ingest")
    async with httpx2.AsyncClient(base_url=served.url) as http:
        assert (await http.post(path, json=body)).status_code == 401
        refused = await http.post(path, json=body, headers={"authorization": f"Bearer {read}"})
        assert refused.status_code == 403
        assert WORDS not in refused.text


@pytest.mark.parametrize("body", [b"", b"{", b'{"payloads": 1}', b"\xff"])
async def test_a_body_that_is_no_list_of_payloads_is_refused(served: Served, body: bytes) -> None:
    answer = await served.api.http.post("/codec/decode", content=body)
    assert answer.status_code == 422, answer.text


async def test_what_no_key_opens_comes_back_beside_what_opens(served: Served) -> None:
    foreign = SealingCodec(Keyring(read_keys([new_key()])))
    [lost] = await foreign.encode([Payload(metadata={"encoding": b"json/plain"}, data=b"1")])
    plain = Payload(metadata={"encoding": b"json/plain"}, data=b"2")
    body = await sealed_body(served)
    body["payloads"] += [json_format.MessageToDict(payload) for payload in (lost, plain)]
    answer = await decode(served.api.http, body)
    assert content_of(answer) == json.dumps(WORDS).encode()
    assert answer.json()["payloads"][1:] == body["payloads"][1:]


async def test_temporals_command_line_reads_a_history_by_the_gateway_only(
    served: Served, temporal_address: str
) -> None:
    client = served.api.gateway.temporal
    address, _, namespace = temporal_address.partition("/")
    handle = await client.start_workflow("Nobody", WORDS, id="codec-shown", task_queue="nobody")
    key = await served.key("admin")
    show = ["workflow", "show", "--workflow-id", handle.id, "--detailed"]
    show += ["--address", address, "--namespace", namespace, *ISOLATED]
    by_gateway = ["--codec-endpoint", f"{served.url}/codec", "--codec-auth", f"Bearer {key}"]
    try:
        assert WORDS not in await run(*show)
        assert WORDS in await run(*show, *by_gateway)
    finally:
        await handle.terminate("the test is over")


async def run(*arguments: str) -> str:
    process = await asyncio.create_subprocess_exec(
        _program(), *arguments, stdout=asyncio.subprocess.PIPE, stdin=asyncio.subprocess.DEVNULL
    )
    output, _ = await process.communicate()
    assert process.returncode == 0
    return output.decode()


async def test_only_a_page_of_the_ui_reads_answers(served: Served) -> None:
    body = await sealed_body(served)
    asks = {
        "access-control-request-method": "POST",
        "access-control-request-headers": "authorization,content-type,x-namespace",
    }
    async with httpx2.AsyncClient(base_url=served.url) as http:
        allowed = await http.options("/codec/decode", headers={"origin": UI, **asks})
        assert allowed.is_success
        assert allowed.headers["access-control-allow-origin"] == UI
        assert allowed.headers["access-control-allow-credentials"] == "true"
        for origin in ("http://127.0.0.1:8234", "https://127.0.0.1:8233", "null"):
            refused = await http.options("/codec/decode", headers={"origin": origin, **asks})
            assert "access-control-allow-origin" not in refused.headers
            answer = await decode(served.api.http, body, origin=origin)
            assert "access-control-allow-origin" not in answer.headers
        read = await decode(http, body, origin=UI)
        assert read.status_code == 401
        assert read.headers["access-control-allow-origin"] == UI, "so that the page can say why"
        other = await http.get("/v1/sources", headers={"origin": UI})
        assert "access-control-allow-origin" not in other.headers


async def test_a_browser_signs_in_and_its_cookie_counts_for_the_ui_alone(served: Served) -> None:
    body = await sealed_body(served)
    key = await served.key("admin")
    async with httpx2.AsyncClient(base_url=served.url) as http:
        challenge = await http.get("/codec/sign-in")
        assert challenge.status_code == 401 and challenge.headers["www-authenticate"].startswith(
            "Basic"
        )
        signed_in = await http.get("/codec/sign-in", auth=("anybody", key))
        assert signed_in.status_code == 200
        cookie = signed_in.headers["set-cookie"].lower()
        assert {"httponly", "path=/codec", "samesite=strict"} <= set(cookie.split("; "))
        assert key.lower() not in cookie
        assert content_of(await decode(http, body, origin=UI)) == json.dumps(WORDS).encode()
        assert (await decode(http, body)).status_code == 401
        assert (await decode(http, body, origin="http://elsewhere.example")).status_code == 401
        elsewhere = await http.get(
            "/v1/sources",
            headers={"origin": UI, "cookie": f"{Sessions.NAME}={http.cookies[Sessions.NAME]}"},
        )
        assert elsewhere.status_code == 401, "the cookie is no key for the API"


async def test_a_session_ends_with_its_key_and_with_its_time(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    body = await sealed_body(served)
    key = await served.key("admin")
    async with httpx2.AsyncClient(base_url=served.url) as http:
        await http.get("/codec/sign-in", auth=("", key))
        assert (await decode(http, body, origin=UI)).status_code == 200
        await served.api.http.delete(f"/v1/keys/{key.split('_')[1]}")
        assert (await decode(http, body, origin=UI)).status_code == 401
    sessions = Sessions(served.api.app.keyring)
    cookie = sessions.cookie_of(key)
    assert sessions.key_of(cookie) == key
    assert sessions.key_of(cookie[:-4] + "AAAA") is None
    assert sessions.key_of("no.cookie") is None
    monkeypatch.setattr("apex_memory.gateway.codec_session.time", lambda: 4e9)
    assert sessions.key_of(cookie) is None


async def test_a_key_without_the_scope_cannot_sign_in(served: Served) -> None:
    key = await served.key("read")
    async with httpx2.AsyncClient(base_url=served.url) as http:
        refused = await http.get("/codec/sign-in", auth=("", key))
        assert refused.status_code == 403 and "set-cookie" not in refused.headers
