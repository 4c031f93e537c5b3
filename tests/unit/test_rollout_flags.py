"""Flags: our shares read through OpenFeature, and shares that the provider of a user decides."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator, Mapping
from typing import Any
from uuid import NAMESPACE_URL, uuid5

import httpx2
import pytest

pytest.importorskip("openfeature", reason="needs the extra `flags`")

from openfeature import api
from openfeature.evaluation_context import EvaluationContext
from openfeature.exception import ErrorCode, FlagNotFoundError, GeneralError
from openfeature.flag_evaluation import FlagResolutionDetails, Reason
from openfeature.provider import AbstractProvider, Metadata

from apex_memory.errors import Misconfigured
from apex_memory.inbox.routing import bucket_of
from apex_memory.rollout import flags as flags_module
from apex_memory.rollout.flags import FlagFollower, Flags, FlagShare
from apex_memory.rollout.provider import RolloutProvider, ShareRow
from apex_memory.rollout.shares import Shares
from apex_memory.stores.postgres import Postgres
from apex_memory.telemetry import FLAG_DEFAULTS

DOCUMENTS = [uuid5(NAMESPACE_URL, f"document {n}") for n in range(2_000)]


@pytest.fixture(autouse=True)
def _no_provider_is_left() -> Iterator[None]:
    yield
    api.clear_providers()


class Rows:
    """The shares as the gateway lists them, which a test changes."""

    def __init__(self, **shares: int) -> None:
        self.shares = shares
        self.reads = 0
        self.away = False

    def __call__(self) -> Mapping[str, ShareRow]:
        self.reads += 1
        if self.away:
            raise httpx2.ConnectError("refused")
        return {
            name: ShareRow(share=share, shadow=share == 0) for name, share in self.shares.items()
        }


def client_of(rows: Rows, *, refresh_seconds: float = 0) -> Any:
    api.set_provider_and_wait(RolloutProvider(rows, refresh_seconds=refresh_seconds), domain="ours")
    return api.get_client(domain="ours")


def test_each_document_has_the_path_that_the_claim_gives_it() -> None:
    client = client_of(Rows(frontapp=10))
    for document in DOCUMENTS:
        context = EvaluationContext(targeting_key=str(document))
        details = client.get_string_details("apex.frontapp.path", "default", context)
        assert details.value == ("temporal" if bucket_of(document) < 10 else "direct")
        assert details.reason == Reason.SPLIT


def test_shares_and_shadow_are_flags() -> None:
    client = client_of(Rows(frontapp=10, edi=0))
    assert client.get_integer_value("apex.frontapp.share", -1) == 10
    assert client.get_boolean_value("apex.frontapp.shadow", True) is False
    assert client.get_boolean_value("apex.edi.shadow", False) is True


@pytest.mark.parametrize(
    ("flag", "key", "code"),
    [
        ("apex.nobody.path", str(DOCUMENTS[0]), ErrorCode.FLAG_NOT_FOUND),
        ("apex.frontapp.colour", str(DOCUMENTS[0]), ErrorCode.FLAG_NOT_FOUND),
        ("frontapp.path", str(DOCUMENTS[0]), ErrorCode.FLAG_NOT_FOUND),
        ("", str(DOCUMENTS[0]), ErrorCode.FLAG_NOT_FOUND),
        ("apex.frontapp.share", str(DOCUMENTS[0]), ErrorCode.TYPE_MISMATCH),
        ("apex.frontapp.path", "", ErrorCode.TARGETING_KEY_MISSING),
        ("apex.frontapp.path", "SHP-100045", ErrorCode.INVALID_CONTEXT),
    ],
)
def test_what_has_no_value_says_why(flag: str, key: str, code: ErrorCode) -> None:
    details = client_of(Rows(frontapp=10)).get_string_details(
        flag, "default", EvaluationContext(targeting_key=key)
    )
    assert (details.value, details.error_code) == ("default", code)


async def test_the_rows_are_read_at_most_once_a_second_and_hold_while_the_gateway_is_away() -> None:
    rows = Rows(frontapp=10)
    client = client_of(rows, refresh_seconds=60)
    values = await asyncio.gather(
        *(client.get_integer_value_async("apex.frontapp.share", -1) for _ in range(50))
    )
    assert (set(values), rows.reads) == ({10}, 1)

    rows = Rows(frontapp=10)
    client = client_of(rows)
    assert client.get_integer_value("apex.frontapp.share", -1) == 10
    rows.shares["frontapp"] = 50
    assert client.get_integer_value("apex.frontapp.share", -1) == 50
    rows.away = True
    details = client.get_integer_details("apex.frontapp.share", -1)
    assert (details.value, details.reason) == (50, Reason.STALE)


def test_a_provider_that_never_could_read_gives_no_value() -> None:
    rows = Rows(frontapp=10)
    rows.away = True
    details = client_of(rows).get_integer_details("apex.frontapp.share", -1)
    assert (details.value, details.error_code) == (-1, ErrorCode.GENERAL)


class UserProvider(AbstractProvider):
    """A flag system of a user: values by flag, errors for all others."""

    def __init__(self) -> None:
        super().__init__()
        self.values: dict[str, Any] = {}
        self.hangs = threading.Event()
        self.hangs.set()

    def get_metadata(self) -> Metadata:
        return Metadata(name="users")

    def _resolve(self, flag_key: str) -> FlagResolutionDetails[Any]:
        self.hangs.wait(30)
        if flag_key not in self.values:
            raise FlagNotFoundError(flag_key)
        if isinstance(self.values[flag_key], Exception):
            raise self.values[flag_key]
        return FlagResolutionDetails(self.values[flag_key], reason=Reason.TARGETING_MATCH)

    def resolve_boolean_details(
        self, flag_key: str, default_value: bool, evaluation_context: Any = None
    ) -> FlagResolutionDetails[bool]:
        return self._resolve(flag_key)

    def resolve_string_details(
        self, flag_key: str, default_value: str, evaluation_context: Any = None
    ) -> FlagResolutionDetails[str]:
        return self._resolve(flag_key)

    def resolve_integer_details(
        self, flag_key: str, default_value: int, evaluation_context: Any = None
    ) -> FlagResolutionDetails[int]:
        return self._resolve(flag_key)

    def resolve_float_details(
        self, flag_key: str, default_value: float, evaluation_context: Any = None
    ) -> FlagResolutionDetails[float]:
        return self._resolve(flag_key)

    def resolve_object_details(
        self, flag_key: str, default_value: Any, evaluation_context: Any = None
    ) -> FlagResolutionDetails[Any]:
        return self._resolve(flag_key)


USERS = UserProvider()


def make_provider() -> UserProvider:
    return USERS


@pytest.fixture
async def db(database_url: str) -> AsyncIterator[Postgres]:
    db = Postgres(database_url)
    await db.open()
    yield db
    await db.close()


@pytest.fixture
def follower(db: Postgres) -> Iterator[FlagFollower]:
    USERS.values = {}
    follower = FlagFollower(
        Shares(db),
        ("frontapp", "plaid"),
        Flags(f"{__name__}:make_provider"),
        seconds=0.05,
        elected=lambda: True,
    )
    yield follower
    follower.close()


async def test_the_users_flags_become_shares_with_the_reason(
    db: Postgres, follower: FlagFollower
) -> None:
    USERS.values = {"apex.frontapp.share": 25, "apex.frontapp.shadow": True}
    await follower.follow()
    row = await Shares(db).find("source:frontapp")
    assert row and (row.share, row.shadow, row.changed_by) == (25, True, "openfeature")
    assert "apex.frontapp.share" in row.reason
    changed = row.changed_at
    await follower.follow()
    row = await Shares(db).find("source:frontapp")
    assert row and row.changed_at == changed, "nothing is written while the flag stays"
    USERS.values["apex.frontapp.share"] = 0
    await follower.follow()
    row = await Shares(db).find("source:frontapp")
    assert row and row.share == 0
    audit = await db.fetch("SELECT actor FROM audit WHERE subject = 'source:frontapp'")
    assert [row["actor"] for row in audit] == ["openfeature", "openfeature"]


@pytest.mark.parametrize("value", [101, -1, -7, "ten", GeneralError("away"), ValueError("bug")])
async def test_a_flag_without_a_decision_leaves_the_share_and_is_counted(
    db: Postgres, follower: FlagFollower, value: Any
) -> None:
    await Shares(db).set("source:frontapp", 10, actor="test")
    USERS.values = {"apex.frontapp.share": value}
    before = FLAG_DEFAULTS.labels("frontapp")._value.get()
    await follower.follow()
    row = await Shares(db).find("source:frontapp")
    assert row and (row.share, row.changed_by) == (10, "test")
    assert FLAG_DEFAULTS.labels("frontapp")._value.get() == before + 1
    assert await Shares(db).find("source:plaid") is None


async def test_a_provider_that_hangs_is_counted_and_not_called_again(
    db: Postgres, follower: FlagFollower, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(flags_module, "EVALUATION_SECONDS", 0.05)
    USERS.values = {"apex.frontapp.share": 25}
    USERS.hangs.clear()
    before = FLAG_DEFAULTS.labels("frontapp")._value.get()
    try:
        for _ in range(3):
            await follower.follow()
    finally:
        USERS.hangs.set()
    assert FLAG_DEFAULTS.labels("frontapp")._value.get() == before + 3
    monkeypatch.setattr(flags_module, "EVALUATION_SECONDS", 10)
    await follower.follow()
    row = await Shares(db).find("source:frontapp")
    assert row and row.share == 25, "and goes on where it hung"


def test_what_is_no_provider_is_refused_by_name() -> None:
    for name, problem in [
        ("no_such_module:provider", "not found"),
        (f"{__name__}:nothing", "not found"),
        (f"{__name__}:DOCUMENTS", "is not an OpenFeature provider"),
    ]:
        with pytest.raises(Misconfigured, match=problem):
            Flags(name)


def test_a_class_and_an_instance_are_taken_too() -> None:
    for name in ("UserProvider", "USERS"):
        USERS.values = {"apex.frontapp.share": 5}
        share = Flags(f"{__name__}:{name}").read(["frontapp"])["frontapp"]
        known = name == "USERS"
        assert share == (FlagShare(5, False) if known else FlagShare(None, False, "FLAG_NOT_FOUND"))
