"""Shares by API: who sets one, what is refused, and that the next claim follows it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest

from apex_memory.cli.rollout import _per_cent
from apex_memory.errors import Rejected
from tests.e2e.conftest import MakeSettings
from tests.e2e.test_api import Api, running_api


@pytest.fixture
async def api(make_settings: MakeSettings) -> AsyncIterator[Api]:
    async with running_api(make_settings(temporal="127.0.0.1:1/apex")) as api:
        yield api


async def put(api: Api, source: str, body: dict[str, Any]) -> Any:
    return await api.http.request("PUT", f"/v1/rollouts/{source}", json=body)


async def test_a_share_that_is_set_is_listed_and_acts_with_the_next_claim(api: Api) -> None:
    assert (await api.get("/v1/rollouts")).json() == {"rollouts": []}
    untouched = (await api.get("/v1/rollouts/documents")).json()
    assert (untouched["share"], untouched["rollout"], untouched["history"]) == (100, None, [])
    assert (await api.get("/v1/rollouts/nobody")).status_code == 404
    await api.land()
    steps = api.app.steps
    assert not (await steps.claim("documents", path="direct", everything=False)).events
    answer = await put(api, "documents", {"share": 0, "shadow": True, "reason": "try it"})
    assert answer.status_code == 200
    row = answer.json()
    assert (row["subject"], row["share"], row["shadow"], row["reason"]) == (
        "source:documents",
        0,
        True,
        "try it",
    )
    assert row["changed_by"]
    assert (await api.get("/v1/rollouts/documents")).json() == row
    [change] = row.pop("history")
    assert (change["event"], change["reason"]) == ("set", "try it")
    assert (await api.get("/v1/rollouts")).json() == {"rollouts": [row]}
    assert not (await steps.claim("documents", path="temporal", everything=False)).events
    assert len((await steps.claim("documents", path="direct", everything=False)).events) == 1


@pytest.mark.parametrize(
    ("source", "body", "status"),
    [
        ("nobody", {"share": 10}, 404),
        ("documents", {"share": 101}, 422),
        ("documents", {"share": -1}, 422),
        ("documents", {"share": 10, "shares": 10}, 422),
    ],
)
async def test_a_share_that_makes_no_sense_is_refused(
    api: Api, source: str, body: dict[str, Any], status: int
) -> None:
    answer = await put(api, source, body)
    assert answer.status_code == status
    assert answer.json()["error"]["remedy"]
    assert (await api.get("/v1/rollouts")).json() == {"rollouts": []}


def test_the_command_takes_per_cent_off_and_shadow() -> None:
    shares = {"0": 0, "10": 10, "100": 100, "50%": 50, "off": 0, "shadow": 0}
    assert {text: _per_cent(text) for text in shares} == shares
    for text in ("101", "-1", "ten", "", "1.5"):
        with pytest.raises(Rejected):
            _per_cent(text)


async def steer(api: Api, action: str, body: dict[str, Any] | None = None) -> Any:
    return await api.post(f"/v1/rollouts/documents/{action}", json=body or {})


async def test_a_rollout_is_started_steered_and_stopped(api: Api) -> None:
    plan = {"steps": [10, 50], "min_seconds": 0, "promotion": "manual"}
    started = await steer(api, "start", {"reason": "week one", "plan": plan})
    assert started.status_code == 200, started.text
    row = started.json()
    assert (row["share"], row["rollout"]["state"], row["rollout"]["step"]) == (
        10,
        "running",
        "10 %",
    )
    assert row["rollout"]["steps"] == ["10 %", "50 %"]
    assert (await steer(api, "start", {"plan": plan})).status_code == 409
    assert await api.app.rollouts.tick()
    row = (await api.get("/v1/rollouts/documents")).json()
    assert "0 of 100 events" in row["rollout"]["verdict"]
    checks = {check["name"]: check["result"] for check in row["rollout"]["checks"]}
    assert (checks["duration"], checks["events"]) == ("passed", "open")
    assert (await steer(api, "hold", {"reason": "wait"})).json()["rollout"]["state"] == "held"
    assert (await steer(api, "approve")).json()["rollout"]["approved"] is True
    back = (await steer(api, "back", {"to": "off", "reason": "enough"})).json()
    assert (back["share"], back["rollout"]["state"]) == (0, "rolled back")
    assert (await steer(api, "stop")).status_code == 409
    assert (await steer(api, "start", {"plan": plan})).status_code == 200
    stopped = (await steer(api, "stop", {"keep": True})).json()
    assert (stopped["share"], stopped["rollout"]["state"]) == (10, "stopped")
    events = [(change["event"], change["reason"]) for change in stopped["history"]]
    assert events[-1] == ("start", "week one")
    assert ("back", "enough") in events
    assert {change["actor"][:4] for change in stopped["history"]} == {"key:"}


async def test_a_share_that_is_set_by_hand_ends_the_rollout(api: Api) -> None:
    await steer(api, "start", {"plan": {"steps": [10, 50]}})
    row = (await put(api, "documents", {"share": 0, "reason": "emergency"})).json()
    assert (row["share"], row["rollout"]["state"]) == (0, "stopped")
    assert row["rollout"]["ended_at"]


@pytest.mark.parametrize(
    ("action", "body", "status"),
    [
        ("start", {"plan": {"steps": [50, 10]}}, 422),
        ("start", {"plan": {"min_event": 3}}, 422),
        ("start", {"build": "b"}, 422),
        ("start", {"why": "x"}, 422),
        ("back", {"to": "10"}, 409),
        ("hold", {}, 409),
        ("approve", {}, 409),
    ],
)
async def test_what_cannot_be_done_to_a_rollout_is_refused(
    api: Api, action: str, body: dict[str, Any], status: int
) -> None:
    answer = await steer(api, action, body)
    assert (answer.status_code, bool(answer.json()["error"]["remedy"])) == (status, True)
