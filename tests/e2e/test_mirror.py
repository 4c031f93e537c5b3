"""Mirrored webhooks through the HTTP API in this process: what is accepted is forwarded, with signatures that still verify."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest

from apex_memory.engines.base import free_port
from apex_memory.errors import Unavailable
from apex_memory.mirror import forwarder
from apex_memory.mirror.copies import MirrorCopy
from apex_memory.model import Event, LandResult, now
from apex_memory.sources.base import InboundRequest
from tests.e2e import front
from tests.e2e.conftest import MakeSettings
from tests.e2e.test_api import Api, client_of, running_api
from tests.receiver import LOOPBACK, Receiver, Response, receiving
from tests.waiting import until


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forwarder, "POLL_SECONDS", 0.01)
    monkeypatch.setattr(forwarder, "FIRST_WAIT", 0.01)


@asynccontextmanager
async def mirrored(
    make_settings: MakeSettings, receiver: Receiver, **settings: Any
) -> AsyncIterator[Api]:
    """The API with mirrors of Front and Turvo to the receiver, and a forwarder beside it."""
    given = {"mirror_url": receiver.url, "mirror_networks": [LOOPBACK], **settings}
    made = make_settings(
        temporal=f"127.0.0.1:{free_port()}/apex",
        sources={
            "frontapp": {"signing_keys": ["test_signing_key"], **given},
            "turvo": {"webhook_tokens": ["turvo_secret"], **given},
        },
    )
    async with running_api(made) as api:
        forwarding = asyncio.create_task(api.app.mirror.forwarder.run())
        try:
            yield api
        finally:
            forwarding.cancel()
            await asyncio.gather(forwarding, return_exceptions=True)


async def test_accepted_webhooks_are_forwarded_and_their_signature_verifies(
    make_settings: MakeSettings,
) -> None:
    async with receiving() as receiver, mirrored(make_settings, receiver) as api:
        sent = [front.message(f"m{n}", "c1", at=n) for n in range(20)]
        for body in sent:
            assert (await api.hook(body)).status_code == 202
        assert (await api.hook(sent[0])).json()["events"][0]["duplicate"]
        await until(lambda: len(receiver.accepted) == 21, "all are mirrored")
        assert receiver.bodies == [*sent, sent[0]], "a redelivery is one for the former system too"
        first = receiver.received[0]
        assert first.target == "/legacy"
        request = InboundRequest(
            body=first.body, headers=dict(first.headers), query={}, received_at=now()
        )
        assert len(api.app.sources["frontapp"].receive(request).events) == 1
        assert first.header("host") == f"127.0.0.1:{receiver.port}"
        unsigned = await client_of(api.application).post("/hooks/frontapp", content=sent[1])
        assert unsigned.status_code == 401
        refused = await api.hook(b"{")
        assert refused.status_code in (400, 422)
        await api.hook(front.message("last", "c1", at=99))
        await until(lambda: len(receiver.accepted) == 22, "the last is mirrored")
        assert len(receiver.received) == 22, "what is refused is not mirrored"


async def test_a_webhook_of_hints_and_one_of_nothing_are_forwarded(
    make_settings: MakeSettings,
) -> None:
    async with receiving() as receiver, mirrored(make_settings, receiver) as api:
        source = api.app.sources["turvo"]
        hint = next(s.body for s in source.samples())
        ignored = json.dumps({**json.loads(front.message("m1", "c1", at=1)), "type": "reminder"})
        for name, body in (("turvo", hint), ("frontapp", ignored.encode())):
            headers = {
                **api.app.sources[name].sign(body, now()),
                "content-type": "application/json",
            }
            response = await client_of(api.application).post(
                f"/hooks/{name}", content=body, headers=headers
            )
            assert response.status_code < 300, response.text
        await until(lambda: len(receiver.accepted) == 2, "both are mirrored")
        assert set(receiver.bodies) == {hint, ignored.encode()}
        assert len(await api.app.db.fetch("SELECT FROM change_hints")) == 1


async def test_a_refused_landing_leaves_no_copy(
    make_settings: MakeSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with receiving() as receiver, mirrored(make_settings, receiver) as api:

        async def broken(connection: Any, kept: Sequence[MirrorCopy]) -> None:
            raise Unavailable("documents", "gone")

        with monkeypatch.context() as patch:
            patch.setattr("apex_memory.mirror.copies.insert", broken)
            body = front.message("m1", "c1", at=1)
            assert (await api.hook(body)).status_code == 503
        assert await api.app.db.fetch("SELECT FROM inbox") == []
        await until(lambda: again(api, body), "PostgreSQL is tried again")
        await until(lambda: len(receiver.accepted) == 1, "it is mirrored once")


async def again(api: Api, body: bytes) -> bool:
    return (await api.hook(body)).status_code == 202


async def test_a_source_without_a_mirror_lands_as_before(
    make_settings: MakeSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running_api(make_settings(temporal=f"127.0.0.1:{free_port()}/apex")) as api:

        async def never(events: Sequence[Event], kept: Sequence[MirrorCopy]) -> list[LandResult]:
            raise AssertionError("no copy, no transaction")

        monkeypatch.setattr(api.app.mirror, "land", never)
        monkeypatch.setattr(api.gateway.group_commit, "_land_with_copies", never)
        assert (await api.hook(front.message("m1", "c1", at=1))).status_code == 202
        assert (await api.get("/v1/mirror")).json() == {"mirrors": []}


async def test_dead_letters_of_the_mirror_are_listed_redriven_and_discarded(
    make_settings: MakeSettings,
) -> None:
    async with receiving() as receiver, mirrored(make_settings, receiver) as api:
        receiver.script = lambda request: Response(400)
        for n in range(3):
            await api.hook(front.message(f"m{n}", "c1", at=n))

        async def dead() -> list[dict[str, Any]]:
            answer = (await api.get("/v1/mirror/copies?source=frontapp&limit=2")).json()
            assert len(answer["copies"]) <= 2
            if answer["next"]:
                rest = await api.get(f"/v1/mirror/copies?source=frontapp&cursor={answer['next']}")
                answer["copies"] += rest.json()["copies"]
            return answer["copies"] if len(answer["copies"]) == 3 else []

        rows = await until(dead, "three dead letters")
        assert [row["last_error"] for row in rows] == ["the target refuses it with status 400"] * 3
        mirrors = {row["source"]: row for row in (await api.get("/v1/mirror")).json()["mirrors"]}
        assert mirrors["frontapp"]["dead"] == 3 and mirrors["turvo"]["dead"] == 0
        assert mirrors["frontapp"]["url"] == receiver.url
        receiver.script = lambda request: Response()
        reason = {"ids": [rows[0]["id"]], "reason": "sent by hand"}
        assert (await api.post("/v1/mirror/discard", json=reason)).json() == {"changed": 1}
        again = await api.post("/v1/mirror/redrive", json={"source": "frontapp"})
        assert again.json() == {"changed": 2}
        await until(lambda: len(receiver.accepted) == 2, "two are sent again")
        assert (await api.post("/v1/mirror/redrive", json={})).status_code == 422
        both = {"ids": [1], "source": "frontapp"}
        assert (await api.post("/v1/mirror/redrive", json=both)).status_code == 422
        gone = await api.post("/v1/mirror/redrive", json={"ids": [rows[0]["id"]]})
        assert gone.status_code == 409
        assert (await api.get("/v1/mirror/copies?cursor=x")).status_code == 422
        assert (await api.get("/v1/mirror/copies?source=none")).status_code == 422
