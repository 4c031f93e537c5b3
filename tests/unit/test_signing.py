"""What every webhook's check rests on: secrets that rotate, comparing all of them, the window of time."""

from __future__ import annotations

import hmac
from datetime import UTC, datetime, timedelta

import pytest

from apex_memory.errors import Unauthorized
from apex_memory.model import micros
from apex_memory.sources import signatures
from apex_memory.sources.base import InboundRequest
from apex_memory.sources.signatures import check_time, digest, from_base64, signature_matches

AT = datetime(2026, 3, 1, 12, tzinfo=UTC)


def test_either_of_two_secrets_fits_whichever_of_the_signatures_is_given() -> None:
    wanted = [digest(key, b"body") for key in (b"new", b"old")]
    for key in (b"new", b"old"):
        assert signature_matches(wanted, digest(key, b"body"))
        assert signature_matches(wanted, b"other", digest(key, b"body"))
    assert not signature_matches(wanted, digest(b"new", b"body "), digest(b"third", b"body"))


@pytest.mark.parametrize("given", ["", b"", "é", "\udcff"])
def test_what_is_no_signature_fits_nothing(given: str | bytes) -> None:
    assert not signature_matches([b"\xc3\xa9 ", b"wanted"], given)
    assert not signature_matches([], given)


def test_all_pairs_are_compared_though_the_first_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[bool] = []

    def compare(expected: bytes, given: bytes) -> bool:
        compared.append(hmac.compare_digest(expected, given))
        return compared[-1]

    class Watched:
        compare_digest = staticmethod(compare)

    monkeypatch.setattr(signatures, "hmac", Watched)
    assert signature_matches([b"a", b"b"], b"a", b"c")
    assert compared == [True, False, False, False]


def test_text_that_is_no_base64_is_nothing() -> None:
    assert from_base64("aGk=") == b"hi"
    assert [from_base64(text) for text in ("", "aGk", "a-k=", "é")] == [b""] * 4


@pytest.mark.parametrize("sign", [1, -1])
def test_the_window_ends_to_the_microsecond(sign: int) -> None:
    request = InboundRequest(b"", {}, {}, AT + sign * timedelta(seconds=300))
    check_time(request, micros(AT), "toy", 300)
    with pytest.raises(Unauthorized, match="300 s away") as refused:
        check_time(request, micros(AT) - sign, "toy", 300)
    assert refused.value.remedy == "check this machine's clock, or sources.toy.replay_seconds"
