"""The client for vendors: the size and the time of a response are bounded, whatever its headers state."""

from __future__ import annotations

import asyncio
import gzip
from collections.abc import AsyncIterator, Callable

import httpx2
import pytest
from pydantic import ValidationError

from apex_memory.errors import Rejected, RetryLater
from apex_memory.sources import http
from apex_memory.sources.http import VendorClient
from apex_memory.sources.turvo.settings import TurvoSettings
from tests.unit.vendors import NoTokens

Handler = Callable[[httpx2.Request], httpx2.Response]


async def call(handler: Handler) -> httpx2.Response:
    transport = httpx2.MockTransport(handler)
    async with httpx2.AsyncClient(transport=transport) as client:
        link = VendorClient("toy", client, NoTokens(), patience=0)
        return await link.call("GET", "http://toy.test/")


async def test_w10_a_response_over_the_limit_is_refused_before_it_is_read_to_its_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(http, "MAX_RESPONSE_BYTES", 2_000_000)
    sent = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal sent
        while True:
            sent += 100_000
            yield b"x" * 100_000

    with pytest.raises(Rejected, match="larger than 2 MB") as refused:
        await call(lambda request: httpx2.Response(200, content=endless()))
    assert sent == 2_100_000
    assert "sources.toy.base_url" in refused.value.remedy


async def test_w10_a_small_body_that_decompresses_to_a_large_one_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(http, "MAX_RESPONSE_BYTES", 100_000)
    packed = gzip.compress(b" " * 100_001)
    assert len(packed) < 1_000
    headers = {"content-encoding": "gzip"}
    with pytest.raises(Rejected, match="larger than"):
        await call(lambda request: httpx2.Response(200, headers=headers, content=packed))


async def test_a_response_at_the_limit_is_complete(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "MAX_RESPONSE_BYTES", 100_000)
    packed = gzip.compress(b"x" * 100_000)
    headers = [("content-encoding", "gzip"), ("x-limit", "5"), ("x-limit", "6")]
    response = await call(lambda request: httpx2.Response(200, headers=headers, content=packed))
    assert response.content == b"x" * 100_000
    assert response.headers.get_list("x-limit") == ["5", "6"]
    assert str(response.request.url) == "http://toy.test/"


async def test_w10_a_body_that_never_ends_is_tried_again_later(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(http, "MAX_RESPONSE_SECONDS", 0.05)

    async def slow() -> AsyncIterator[bytes]:
        yield b"{"
        await asyncio.Event().wait()

    with pytest.raises(RetryLater, match="cannot be reached"):
        await call(lambda request: httpx2.Response(200, content=slow()))


@pytest.mark.parametrize(
    "url", ["http://127.example.com/v1", "http://127.0.0.1.example.com", "http://localhost.test"]
)
def test_a_name_that_looks_like_this_machine_gets_no_secret_without_tls(url: str) -> None:
    with pytest.raises(ValidationError, match="base_url: must start with https"):
        TurvoSettings(base_url=url)


@pytest.mark.parametrize("host", ["vendor.example", "8.8.8.8", "127.example.com", "134744072"])
def test_no_permission_sends_secrets_through_the_internet_without_tls(host: str) -> None:
    """`allow_http` is for a simulator beside Apex."""
    with pytest.raises(ValidationError, match="base_url: must start with https"):
        TurvoSettings(base_url=f"http://{host}/v1", allow_http=True)


@pytest.mark.parametrize("host", ["simulator:8470", "10.1.2.3", "vendor.internal"])
def test_a_private_network_without_tls_needs_permission(host: str) -> None:
    with pytest.raises(ValidationError, match="with allow_http"):
        TurvoSettings(base_url=f"http://{host}/v1")
    assert TurvoSettings(base_url=f"http://{host}/v1", allow_http=True).allow_http


@pytest.mark.parametrize(
    "url",
    ["https://127.example.com/v1", "http://127.0.0.2:8080", "http://[::1]/", "http://LOCALHOST"],
)
def test_this_machine_and_every_host_with_tls_are_allowed(url: str) -> None:
    assert TurvoSettings(base_url=url).base_url == url


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("0.40235", 0.40235), (" 7 ", 7.0), ("-3", 0.0), ("93600", 93_600.0),
        ("Wed, 01 Jan 2020 00:00:00 GMT", 0.0), ("Wed, 01 Jan 2020 00:00:00", 0.0),
        ("1761955200", None), ("1761955200123", None), ("inf", None), ("1e999", None), ("soon", None), ("", None),
        ("Fri, 31 Dec 9999 23:59:59 GMT", None), (None, None),
    ],
)  # fmt: skip
def test_a_retry_after_is_read_where_it_is_a_wait(text: str | None, seconds: float | None) -> None:
    assert http.retry_after(text) == seconds


@pytest.mark.parametrize("text", ["1761955200", "inf"])
async def test_a_retry_after_that_is_no_wait_does_not_hold_a_source(text: str) -> None:
    """A time in seconds since 1970, or without end: the source would stand still for decades."""
    with pytest.raises(RetryLater) as later:
        await call(lambda request: httpx2.Response(429, headers={"retry-after": text}))
    assert later.value.after < 60
