"""The page `/ops`: for this machine, or with a key; its policy lets a browser load nothing from elsewhere."""

from __future__ import annotations

from collections.abc import AsyncIterator

import httpx2
import pytest

from apex_memory.credentials.api_keys import create_key
from apex_memory.gateway.ops.panels import DASHBOARDS
from tests.e2e.conftest import MakeSettings
from tests.e2e.test_api import Api, client_of, running_api
from tests.waiting import until


@pytest.fixture
async def api(make_settings: MakeSettings) -> AsyncIterator[Api]:
    settings = make_settings(temporal="127.0.0.1:1/apex", facts_seconds=1)
    async with running_api(settings) as api:
        yield api


async def test_a_setting_requires_the_key_of_every_caller(make_settings: MakeSettings) -> None:
    """A proxy on this machine may look like a program of it: nginx does, with no more than `proxy_pass`."""
    settings = make_settings(temporal="127.0.0.1:1/apex", local_without_key=False)
    async with running_api(settings) as api, client_of(api.application) as here:
        for path in ("/ops", "/ops/overview", "/ops/data/overview", "/metrics"):
            assert (await here.get(path)).status_code == 401, path
        assert (await api.get("/metrics")).status_code == 200
        assert (await api.get("/ops/overview")).status_code == 200


async def test_the_page_is_for_this_machine_or_for_readers(api: Api) -> None:
    async with client_of(api.application) as here:
        assert (await here.get("/ops")).headers["location"] == "/ops/overview"
        assert (await here.get("/ops/overview")).status_code == 200
        # Behind a proxy, or under a name that a web page chose, a request is not one of this machine.
        forwarded = {"x-forwarded-for": "8.8.8.8"}
        assert (await here.get("/ops/overview", headers=forwarded)).status_code == 401
        rebound = await here.get("/ops/overview", headers={"host": "attacker.example"})
        assert rebound.status_code == 421
    away = httpx2.ASGITransport(app=api.application, client=("10.0.0.9", 1))
    reader = await create_key(api.app.db, "reader", ["read"])
    writer = await create_key(api.app.db, "writer", ["ingest"])
    async with httpx2.AsyncClient(transport=away, base_url="http://127.0.0.1:8460") as http:
        for path in ("/ops", "/ops/overview", "/ops/data/overview"):
            refused = await http.get(path)
            assert refused.status_code == 401, path
            assert refused.headers["www-authenticate"].startswith("Basic")
            basic = await http.get(path, auth=("anyone", reader.key))
            assert basic.status_code in (200, 307), path
            assert (await http.get(path, headers={"x-api-key": reader.key})).status_code != 401
            assert (await http.get(path, auth=("anyone", writer.key))).status_code == 403
            wrong = await http.get(path, headers={"authorization": "Basic ???"})
            assert wrong.status_code == 401
        assert (await http.get("/ops/static/ops.js")).status_code == 200
        assert (await http.get("/ops/static/..%2fpage.py")).status_code in (401, 404)


async def test_every_dashboard_is_shown_with_data_of_this_process(api: Api) -> None:
    await api.land()
    async with client_of(api.application) as http:

        async def landed() -> bool:
            data = (await http.get("/ops/data/overview")).json()
            panels = {panel["id"]: panel for panel in data["panels"]}
            return bool(panels["open-events"]["value"] == "1")

        await until(landed, "facts and history have a sample", seconds=90, every=0.5)
        for dashboard in DASHBOARDS:
            page = await http.get(f"/ops/{dashboard.name}")
            assert page.status_code == 200
            policy = page.headers["content-security-policy"]
            assert "default-src 'none'" in policy and "unsafe" not in policy
            for panel in dashboard.panels:
                assert f'id="{panel.id}"' in page.text
        assert "own memory" in (await http.get("/ops/overview")).text
        missing = await http.get("/ops/nothing")
        assert missing.status_code == 404 and "overview" in missing.json()["error"]["remedy"]


async def test_a_prometheus_that_is_away_is_named(make_settings: MakeSettings) -> None:
    settings = make_settings(temporal="127.0.0.1:1/apex", prometheus_url="http://127.0.0.1:1")
    async with running_api(settings) as api, client_of(api.application) as http:
        answer = await http.get("/ops/overview")
    assert answer.status_code == 503
    assert "prometheus_url" in answer.json()["error"]["remedy"]
