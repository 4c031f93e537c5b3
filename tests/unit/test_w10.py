"""W10: small holes of security, each with the input that once went through."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import jwt
import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from apex_memory.errors import RetryLater, Unauthorized, Unavailable
from apex_memory.fetching.backfills import MARK
from apex_memory.gateway.group_commit import GroupCommitter
from apex_memory.gateway.routes.memory import tombstone
from apex_memory.model import Event, LandResult, now
from apex_memory.pipeline.text import clean_value
from apex_memory.sources.base import InboundRequest
from apex_memory.sources.plaid.api import Plaid
from apex_memory.sources.plaid.keys import HEADER, Keys
from tests.waiting import until

BODY = b"{}"


@given(
    version=st.integers(-(2**63), 2**63 - 1),
    event_id=st.text(st.characters(codec="utf-8", exclude_characters="\x00"), min_size=1),
)
def test_w10_a_deletion_is_newer_than_any_version(version: int, event_id: str) -> None:
    event = tombstone("documents", "key", version, event_id)
    assert -(2**63) <= event.version < 2**63
    # Of equal versions the greater event id is newer, by bytes.
    assert (event.version, event.event_id.encode()) > (version, event_id.encode())


@given(
    event_id=st.text(st.characters(codec="utf-8", exclude_characters="\x00"), min_size=1),
    replays=st.lists(st.integers(0, 16**12 - 1).map("{:012x}".format), min_size=2, max_size=4),
)
def test_w10_a_deletion_is_newer_than_every_replay_and_does_not_grow_with_them(
    event_id: str, replays: list[str]
) -> None:
    """A document of the last version is replayed, deleted, replayed again: each time by the id of another replay."""
    last = 2**63 - 1
    lengths = set()
    for live in replays:
        event = tombstone("documents", "key", last, f"{event_id}{MARK}{live}")
        lengths.add(len(event.event_id))
        for other in replays:
            replayed = f"{event_id}{MARK}{other}"
            assert (event.version, event.event_id.encode()) > (last, replayed.encode())
        assert event.event_id.encode() > event_id.encode()
    assert max(lengths) <= len(event_id) + len("~delete:") + 36


@given(number=st.integers())
def test_w10_metadata_can_be_read_whatever_its_integers(number: int) -> None:
    cleaned = clean_value({"a": [number, {"b": number}], "c": True})
    assert cleaned["c"] is True
    assert str(cleaned["a"][0]) == str(number)
    assert msgpack.unpackb(msgpack.packb(cleaned)) == cleaned


@pytest.mark.parametrize(
    "issued",
    [10**400, -(10**400), 2**63, 1e300, float("nan"), float("inf")],
    ids=lambda number: f"{str(number)[:8]}",
)
def test_w10_a_signed_time_beyond_all_clocks_is_refused(issued: float) -> None:
    keys = Keys()
    kid = jwt.get_unverified_header(keys.sign(BODY, now())[HEADER])["kid"]
    assert keys._own is not None
    claims = {"iat": issued, "request_body_sha256": hashlib.sha256(BODY).hexdigest()}
    token = jwt.api_jws.encode(_json(claims), keys._own[1], algorithm="ES256", headers={"kid": kid})
    with pytest.raises(Unauthorized):
        keys.signed_at(_request(token), 300)


def _json(claims: Mapping[str, Any]) -> bytes:
    """JSON with numbers of any size, as a sender may write them."""
    issued = claims["iat"]
    text = f'{{"iat": {issued!r}, "request_body_sha256": "{claims["request_body_sha256"]}"}}'
    return text.replace("nan", "NaN").replace("inf", "Infinity").encode()


def _request(token: str) -> InboundRequest:
    return InboundRequest(body=BODY, headers={HEADER: token}, query={}, received_at=now())


class SlowPlaid(Plaid):
    """Knows the key `genuine` at once, and takes for ever about any other one."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    async def key(self, kid: str) -> Mapping[str, Any] | None:
        self.calls.append(kid)
        if kid != "genuine":
            await asyncio.Event().wait()
        return None


class UnknownPlaid(SlowPlaid):
    """Knows no key."""

    async def key(self, kid: str) -> Mapping[str, Any] | None:
        self.calls.append(kid)
        return None


def _naming(kid: str) -> InboundRequest:
    keys = Keys()
    keys.sign(BODY, now())
    assert keys._own is not None
    return _request(jwt.encode({}, keys._own[1], algorithm="ES256", headers={"kid": kid}))


async def test_w10_a_forged_key_id_does_not_hold_a_genuine_webhook() -> None:
    keys, plaid = Keys(), SlowPlaid()
    forged = [asyncio.create_task(keys.learn(_naming(f"forged-{n}"), plaid)) for n in range(3)]
    await until(lambda: len(plaid.calls) == 3, "all forged keys are fetched", every=0)
    async with asyncio.timeout(2):
        await keys.learn(_naming("genuine"), plaid)
    assert not any(task.done() for task in forged)
    for task in forged:
        task.cancel()
    for fetch in list(keys._fetching.values()):
        fetch.cancel()
    await asyncio.gather(*forged, return_exceptions=True)


async def test_w10_an_absent_key_is_not_fetched_again_for_a_while() -> None:
    keys, plaid = Keys(), UnknownPlaid()
    for _ in range(3):
        await keys.learn(_naming("made-up"), plaid)
    assert plaid.calls == ["made-up"]


async def test_w10_one_fetch_serves_all_webhooks_with_its_key() -> None:
    keys, plaid = Keys(), UnknownPlaid()
    await asyncio.gather(*(keys.learn(_naming("new"), plaid) for _ in range(10)))
    assert plaid.calls == ["new"]


async def test_w10_forged_key_ids_cost_a_genuine_webhook_no_more_than_a_repetition() -> None:
    """401 would tell Plaid's webhook with a new key that it is forged; 503 brings it again."""
    keys, plaid = Keys(), UnknownPlaid()
    for n in range(5):
        await keys.learn(_naming(f"forged-{n}"), plaid)
    with pytest.raises(RetryLater, match="unknown keys"):
        await keys.learn(_naming("genuine"), plaid)


def _event() -> Event:
    return Event(
        source="toy", event_id="e", doc_key="d", version=1, occurred_at=now(), payload=b"x"
    )


async def test_w10_a_503_after_which_the_event_may_be_stored_states_it() -> None:
    async def lost(events: Sequence[Event]) -> list[LandResult]:
        raise Unavailable("documents", "PostgreSQL does not respond (OperationalError)")

    committer = GroupCommitter(lost)
    with pytest.raises(Unavailable, match="outcome is unknown") as unknown:
        await committer.land([_event()])
    assert "may have been stored" in unknown.value.remedy
    assert "same Idempotency-Key" in unknown.value.remedy
    with pytest.raises(Unavailable, match="nothing of this request is stored"):
        await committer.land([_event()])


async def test_w10_a_503_by_time_states_that_the_outcome_is_unknown() -> None:
    async def stuck(events: Sequence[Event]) -> list[LandResult]:
        await asyncio.Event().wait()
        return []

    committer = GroupCommitter(stuck, seconds=0.05)
    with pytest.raises(RetryLater, match="outcome is unknown") as unknown:
        await committer.land([_event()])
    assert "may have been stored" in unknown.value.remedy
